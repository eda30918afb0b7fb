package rules_test

import (
	"fmt"
	"sync"
	"testing"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/rules"
)

func TestClassOf(t *testing.T) {
	t.Parallel()
	plan := compile(t, `
version: 1
namespace: shop
entries:
  product: {key: "product:{id}"}
  slug: {key: "product:slug:{slug}"}
  posts: {key: "user:{id}:posts"}
  user: {key: "user:{id}"}
  pair: {key: "pair:{a}-{b}"}
  front: {key: "front"}
`)
	for name, want := range map[string]string{
		"shop:product:42":       "product [42]",
		"shop:product:slug:a:b": "slug [a:b]",
		"shop:product:slug:":    "product [slug:]",
		"shop:product:":         "",
		"shop:user:1:posts":     "posts [1]",
		"shop:user:1":           "user [1]",
		"shop:user:1:2:posts":   "posts [1:2]", // the last placeholder takes colons
		"shop:pair:1-2-3":       "pair [1-2 3]",
		"shop:pair:1:2":         "",
		"shop:front":            "front []",
		"shop:front:x":          "",
		"product:42":            "",
		"shopproduct:42":        "",
		"shop:":                 "",
		"":                      "",
	} {
		got := ""
		if c := plan.ClassOf([]byte(name)); c != nil {
			v, ok := c.Captures([]byte(name))
			if !ok {
				t.Errorf("Captures(%q) of its own class %s: no", name, c.Name)
			}
			got = c.Name + " " + fmt.Sprint(v)
		}
		if got != want {
			t.Errorf("ClassOf(%q) = %q, want %q", name, got, want)
		}
	}
}

// A template belongs to the entry with the same literals, whatever its
// placeholders are called, sides and filters aside.
func TestTemplatesBindByLiterals(t *testing.T) {
	t.Parallel()
	set := parse(t, `
version: 1
entries: {product: {key: "product:{id}"}}
rules:
  - {name: r, table: t, keys: ["product:{product_id}", "product:{old.x|lower}", "product:{a}:{b}", "products:{id}"]}
`)
	want := []bool{true, true, false, false}
	for i, k := range set.Rules[0].Keys {
		if got := k.Class != nil; got != want[i] {
			t.Errorf("%s bound: %v, want %v", k, got, want[i])
		}
	}
}

func TestTables(t *testing.T) {
	t.Parallel()
	set := parse(t, `
version: 1
rules:
  - {name: a, table: b.two, keys: ["k:{x}:{new.y}"], on: [insert]}
  - {name: b, table: one, keys: ["k:{z}:{new.y}"], tags: {all: ["t:{x}", "u:{old.w}"]}, when: 'changed("c") && new.d == 1 && old.e == 2'}
  - {name: c, table: one, keys: ["k:{x}"], on: [delete]}
`)
	got := fmt.Sprintf("%+v", set.Tables())
	want := fmt.Sprintf("%+v", []rules.TableUse{
		{Schema: "b", Name: "two", Columns: []string{"x", "y"}, OldColumns: []string{}, Ops: rules.OnInsert},
		{Schema: "public", Name: "one", Columns: []string{"c", "d", "e", "w", "x", "y", "z"}, OldColumns: []string{"c", "e", "w", "x", "z"}, Ops: rules.OnAll},
	})
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestPlainPatterns(t *testing.T) {
	t.Parallel()
	plan := compile(t, `
version: 1
namespace: s
entries:
  exact: {key: "e:{id}"}
  plain: {key: "p[1]:{id}:x", mode: plain, versions: [1, 2]}
rules:
  - {name: r, table: t, keys: ["e:{id}", "orphan:{id}", "orphan:{other}"]}
dependencies:
  - {of: "e:{id}", also: ["left:{id}"]}
`)
	got := ""
	for _, p := range plan.PlainPatterns() {
		name := "-"
		if p.Class != nil {
			name = p.Class.Name
		}
		got += fmt.Sprintln(name, p.Globs)
	}
	want := `plain [s:p\[1\]:*:x {s:p\[1\]:*:x}:t s:p\[1\]:*:x:t s:p\[1\]:*:x@2 {s:p\[1\]:*:x@2}:t s:p\[1\]:*:x@2:t]
- [s:orphan:* {s:orphan:*}:t s:orphan:*:t]
- [s:left:* {s:left:*}:t s:left:*:t]
`
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}

func TestClassesOfTable(t *testing.T) {
	t.Parallel()
	plan := compile(t, `
version: 1
entries:
  a: {key: "a:{id}"}
  b: {key: "b:{id}"}
  c: {key: "c:{id}", tags: ["t:{x}"]}
  d: {key: "d:{id}"}
rules:
  - {name: r1, table: one, keys: ["a:{id}"]}
  - {name: r2, table: two, keys: ["d:{id}"], tags: ["t:{id}"]}
  - {name: r3, table: three, keys: ["x:{id}"]}
dependencies:
  - {of: "a:{id}", also: ["b:{id}"]}
  - {of: "b:{id}", also: ["c:{id}"]}
`)
	for table, want := range map[string]string{
		"public.one":   "a b c false", // by the cascade
		"public.two":   "d c true",
		"public.three": "true",
		"public.none":  "false",
	} {
		classes, all := plan.ClassesOfTable(table)
		got := ""
		for _, c := range classes {
			got += c.Name + " "
		}
		if got += fmt.Sprint(all); got != want {
			t.Errorf("ClassesOfTable(%s) = %s, want %s", table, got, want)
		}
	}
}

// A plan serves many goroutines, each with a matcher of its own.
func TestPlanIsSharedByMatchers(t *testing.T) {
	t.Parallel()
	plan := compile(t, twoKeys+`  - {name: cond, table: public.products, keys: ["c:{id}"], when: 'new.price > 1 && changed("slug")'}`+"\n")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			m := plan.NewMatcher(rules.Observer{})
			var ts rules.Targets
			for range 200 {
				ts.Reset()
				if err := m.Match(&ts, &change.Change{Op: change.Insert, Table: products, New: row("1", "a", "7", "2", "{}")}, change.Position{}); err != nil {
					t.Error(err)
				}
				if got, want := show(&ts), "key shop:product:1; key shop:product:slug:a; tag shop:category:7; key shop:c:1"; got != want {
					t.Errorf("got %s", got)
					return
				}
			}
		})
	}
	wg.Wait()
}

// Names stay what they are while more are added, until Reset.
func TestTargetsKeepNames(t *testing.T) {
	t.Parallel()
	m := compile(t, twoKeys).NewMatcher(rules.Observer{})
	var ts rules.Targets
	for round := range 2 {
		ts.Reset()
		for i := range 2000 {
			if err := m.Match(&ts, &change.Change{Op: change.Insert, Table: products, New: row(fmt.Sprint(i), "s", "7", "1", "{}")}, change.Position{}); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 2000 {
			if got, want := string(ts.List[3*i].Name), fmt.Sprint("shop:product:", i); got != want {
				t.Fatalf("round %d: name %d is %q, want %q", round, i, got, want)
			}
		}
	}
}

// The worked example has no findings.
func TestExampleRules(t *testing.T) {
	t.Parallel()
	set, err := rules.Load("../rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if fs := set.Lint(); len(fs) > 0 {
		t.Errorf("rules.yaml:\n%s", fs)
	}
}

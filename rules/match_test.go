package rules_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/rules"
)

// show renders targets one a word, for comparison.
func show(ts *rules.Targets) string {
	var out []string
	for i := range ts.List {
		t := &ts.List[i]
		s := t.Kind.String() + " " + string(t.Name)
		switch t.Kind {
		case rules.KindClass:
			s = "raise " + t.ClassName() + " " + t.Reason
		case rules.KindAllTags:
			names := make([]string, len(t.Names))
			for i, n := range t.Names {
				names[i] = string(n)
			}
			s = "all " + strings.Join(names, "&")
		}
		if t.Action != rules.Delete {
			s += " " + t.Action.String()
		}
		out = append(out, s)
	}
	return strings.Join(out, "; ")
}

func parse(t testing.TB, yaml string) *rules.Set {
	t.Helper()
	set, err := rules.Parse("test.yaml", []byte(yaml))
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func compile(t testing.TB, yaml string) *rules.Plan {
	t.Helper()
	plan, err := parse(t, yaml).Compile()
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

// row makes a row from text: "-" is absent, "NULL" NULL, "~" unchanged TOAST.
func row(values ...string) change.Row {
	r := make(change.Row, len(values))
	for i, v := range values {
		switch v {
		case "-":
		case "NULL":
			r[i].Kind = change.Null
		case "~":
			r[i].Kind = change.Unchanged
		default:
			r[i] = change.Value{Kind: change.Text, Bytes: []byte(v)}
		}
	}
	return r
}

// products has id as its replica identity.
var products = &change.Table{ID: 1, Schema: "public", Name: "products", Identity: change.IdentityDefault, Columns: []change.Column{
	{Name: "id", Type: 20, Key: true}, {Name: "slug", Type: 25}, {Name: "category_id", Type: 20}, {Name: "price", Type: 1700}, {Name: "meta", Type: 3802},
}}

// productsFull is the same table under REPLICA IDENTITY FULL.
var productsFull = func() *change.Table {
	t := *products
	t.Identity = change.IdentityFull
	t.Columns = slices.Clone(products.Columns)
	for i := range t.Columns {
		t.Columns[i].Key = true
	}
	return &t
}()

// counts is an observer that counts.
type counts struct {
	old, new, cond int
	err            error
}

func (c *counts) observer() rules.Observer {
	return rules.Observer{
		OldValueUnknown:  func(*rules.Rule) { c.old++ },
		NewValueUnknown:  func(*rules.Rule) { c.new++ },
		ConditionUnknown: func(_ *rules.Rule, err error) { c.cond++; c.err = err },
	}
}

const twoKeys = `
version: 1
namespace: shop
entries:
  product: {key: "product:{id}"}
  bySlug: {key: "product:slug:{slug}"}
rules:
  - {name: r, table: public.products, keys: ["product:{id}", "product:slug:{slug}"], tags: ["category:{category_id}"]}
`

func TestMatch(t *testing.T) {
	t.Parallel()
	const head = "version: 1\nentries: {product: {key: 'product:{id}'}, slug: {key: 'slug:{slug}'}}\nrules:\n- "
	tests := []struct {
		name     string
		yaml     string
		op       change.Op
		table    *change.Table
		old, new change.Row
		want     string
		counts   counts
	}{
		{"insert", twoKeys, change.Insert, products, nil, row("1", "a", "7", "1", "{}"),
			"key shop:product:1; key shop:product:slug:a; tag shop:category:7", counts{}},
		{"delete with the key only", twoKeys, change.Delete, products, row("1", "-", "-", "-", "-"), nil,
			"key shop:product:1", counts{old: 2}},
		{"delete with the whole row", twoKeys, change.Delete, productsFull, row("1", "a", "7", "1", "{}"), nil,
			"key shop:product:1; key shop:product:slug:a; tag shop:category:7", counts{}},
		{"update that moves the row", twoKeys, change.Update, productsFull, row("1", "a", "7", "1", "{}"), row("1", "b", "8", "1", "{}"),
			"key shop:product:1; key shop:product:slug:b; key shop:product:slug:a; tag shop:category:8; tag shop:category:7", counts{}},
		{"update that moves nothing", twoKeys, change.Update, productsFull, row("1", "a", "7", "1", "{}"), row("1", "a", "7", "2", "{}"),
			"key shop:product:1; key shop:product:slug:a; tag shop:category:7", counts{}},
		{"update without an old row", twoKeys, change.Update, products, nil, row("1", "b", "8", "1", "{}"),
			"key shop:product:1; key shop:product:slug:b; tag shop:category:8", counts{old: 2}},
		{"update of the key", twoKeys, change.Update, products, row("1", "-", "-", "-", "-"), row("2", "b", "8", "1", "{}"),
			"key shop:product:2; key shop:product:1; key shop:product:slug:b; tag shop:category:8", counts{old: 2}},
		{"NULL gives no key", twoKeys, change.Insert, products, nil, row("1", "NULL", "NULL", "1", "{}"),
			"key shop:product:1", counts{}},
		{"from NULL to a value", twoKeys, change.Update, productsFull, row("1", "NULL", "7", "1", "{}"), row("1", "b", "7", "1", "{}"),
			"key shop:product:1; key shop:product:slug:b; tag shop:category:7", counts{}},
		{"from a value to NULL", twoKeys, change.Update, productsFull, row("1", "a", "7", "1", "{}"), row("1", "NULL", "7", "1", "{}"),
			"key shop:product:1; key shop:product:slug:a; tag shop:category:7", counts{}},
		{"from empty text to NULL", head + "{name: r, table: products, keys: ['slug:{slug}']}", change.Update, productsFull, row("1", "", "7", "1", "{}"), row("1", "NULL", "7", "1", "{}"),
			"key slug:", counts{}},
		{"from NULL to empty text", head + "{name: r, table: products, keys: ['slug:{slug}']}", change.Update, productsFull, row("1", "NULL", "7", "1", "{}"), row("1", "", "7", "1", "{}"),
			"key slug:", counts{}},
		{"from what is not known to empty text", head + "{name: r, table: products, keys: ['slug:{slug}']}", change.Update, products, row("1", "-", "-", "-", "-"), row("2", "", "7", "1", "{}"),
			"key slug:", counts{old: 1}},
		{"the first of two placeholders moves", head + "{name: r, table: products, keys: ['x:{slug}:{id}']}", change.Update, productsFull, row("1", "a", "7", "1", "{}"), row("1", "b", "7", "1", "{}"),
			"key x:b:1; key x:a:1", counts{}},
		{"empty text is a value", head + "{name: r, table: products, keys: ['slug:{slug}']}", change.Insert, products, nil, row("1", "", "7", "1", "{}"),
			"key slug:", counts{}},
		{"unchanged TOAST without its old value", head + "{name: r, table: products, keys: ['slug:{slug}']}", change.Update, products, nil, row("1", "~", "7", "1", "{}"),
			"raise slug old_value", counts{new: 1}},
		{"unchanged TOAST with its old value", head + "{name: r, table: products, keys: ['slug:{slug}']}", change.Update, productsFull, row("1", "a", "7", "1", "{}"), row("1", "~", "7", "1", "{}"),
			"key slug:a", counts{}},
		{"unchanged TOAST in a key without class", head + "{name: r, table: products, keys: ['x:{slug}']}", change.Update, products, nil, row("1", "~", "7", "1", "{}"),
			"raise * old_value", counts{new: 1}},
		{"unchanged TOAST in a tag", head + "{name: r, table: products, tags: ['x:{slug}']}", change.Update, products, nil, row("1", "~", "7", "1", "{}"),
			"raise * old_value", counts{new: 1}},
		{"a needed column is not published", head + "{name: r, table: products, keys: ['slug:{slug}']}", change.Update, products, nil, row("1", "-", "7", "1", "{}"),
			"raise slug old_value", counts{new: 1}},
		{"a needed column does not exist", head + "{name: r, table: products, keys: ['product:{nix}']}", change.Insert, products, nil, row("1", "-", "7", "1", "{}"),
			"raise product old_value", counts{new: 1}},
		{"NULL goes before what is unknown", head + "{name: r, table: products, keys: ['m:{meta}:{slug}']}", change.Update, productsFull, row("1", "NULL", "7", "1", "-"), row("1", "NULL", "7", "1", "~"),
			"", counts{}},
		{"FULL without an old row knows nothing of it", head + "{name: r, table: products, keys: ['product:{id}']}", change.Update, productsFull, nil, row("1", "a", "7", "1", "{}"),
			"key product:1", counts{old: 1}},
		{"strict", head + "{name: r, table: products, strict: true, keys: ['slug:{slug}', 'product:{id}']}", change.Update, products, nil, row("1", "b", "7", "1", "{}"),
			"key slug:b; raise slug old_value; key product:1", counts{old: 1}},
		{"strict delete", head + "{name: r, table: products, strict: true, keys: ['slug:{slug}', 'product:{id}']}", change.Delete, products, row("1", "-", "-", "-", "-"), nil,
			"raise slug old_value; key product:1", counts{old: 1}},
		{"{old.x} of an update", head + "{name: r, table: products, keys: ['slug:{old.slug}']}", change.Update, productsFull, row("1", "a", "7", "1", "{}"), row("1", "b", "7", "1", "{}"),
			"key slug:a", counts{}},
		{"{new.x} of an update", head + "{name: r, table: products, keys: ['slug:{new.slug}']}", change.Update, productsFull, row("1", "a", "7", "1", "{}"), row("1", "b", "7", "1", "{}"),
			"key slug:b", counts{}},
		{"{old.x} of an insert", head + "{name: r, table: products, keys: ['slug:{old.slug}']}", change.Insert, products, nil, row("1", "b", "7", "1", "{}"),
			"", counts{}},
		{"{old.x} that is not in the log", head + "{name: r, table: products, keys: ['slug:{old.slug}']}", change.Update, products, nil, row("1", "b", "7", "1", "{}"),
			"", counts{old: 1}},
		{"a column and the other side in one key", head + "{name: r, table: products, keys: ['m:{id}:{old.slug}']}", change.Update, productsFull, row("1", "a", "7", "1", "{}"), row("2", "b", "7", "1", "{}"),
			"key m:2:a; key m:1:a", counts{}},
		{"a key without placeholders", head + "{name: r, table: products, keys: [everything]}", change.Delete, products, row("1", "-", "-", "-", "-"), nil,
			"key everything", counts{}},
		{"all", head + "{name: r, table: products, tags: {all: ['c:{category_id}', 's:{slug}']}}", change.Update, productsFull, row("1", "a", "7", "1", "{}"), row("1", "a", "8", "1", "{}"),
			"all c:8&s:a; all c:7&s:a", counts{}},
		{"all, not moved", head + "{name: r, table: products, tags: {all: ['c:{category_id}', 's:{slug}']}}", change.Update, productsFull, row("1", "a", "7", "1", "{}"), row("1", "a", "7", "2", "{}"),
			"all c:7&s:a", counts{}},
		{"all with NULL", head + "{name: r, table: products, tags: {all: ['c:{category_id}', 's:{slug}']}}", change.Insert, products, nil, row("1", "NULL", "8", "1", "{}"),
			"", counts{}},
		{"any", head + "{name: r, table: products, tags: {any: ['c:{category_id}', 's:{slug}']}, action: stale}", change.Insert, products, nil, row("1", "a", "8", "1", "{}"),
			"tag c:8 stale; tag s:a stale", counts{}},
		{"another operation", head + "{name: r, table: products, on: [update], keys: ['product:{id}']}", change.Insert, products, nil, row("1", "a", "8", "1", "{}"),
			"", counts{}},
		{"another table", head + "{name: r, table: other, keys: ['product:{id}']}", change.Insert, products, nil, row("1", "a", "8", "1", "{}"),
			"", counts{}},
		{"action rewarm", head + "{name: r, table: products, action: rewarm, keys: ['product:{id}']}", change.Insert, products, nil, row("1", "a", "8", "1", "{}"),
			"key product:1 rewarm", counts{}},
		{"truncate raises the classes of keys", head + "{name: r, table: products, keys: ['product:{id}', 'slug:{slug}']}", change.Truncate, products, nil, nil,
			"raise product truncate; raise slug truncate", counts{}},
		{"truncate of keys without class raises all", head + "{name: r, table: products, keys: ['product:{id}', 'x:{slug}']}", change.Truncate, products, nil, nil,
			"raise product truncate; raise * truncate", counts{}},
		{"delete includes truncate", head + "{name: r, table: products, on: [delete], keys: ['product:{id}']}", change.Truncate, products, nil, nil,
			"raise product truncate", counts{}},
		{"insert does not", head + "{name: r, table: products, on: [insert, update], keys: ['product:{id}']}", change.Truncate, products, nil, nil,
			"", counts{}},
		{"truncate does not ask the condition", head + "{name: r, table: products, when: 'false', keys: ['product:{id}']}", change.Truncate, products, nil, nil,
			"raise product truncate", counts{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			var got counts
			var ts rules.Targets
			c := &change.Change{Op: tt.op, Table: tt.table, Old: tt.old, New: tt.new}
			x := change.Position{Era: 1, LSN: 99}
			if err := compile(t, tt.yaml).NewMatcher(got.observer()).Match(&ts, c, x); err != nil {
				t.Fatal(err)
			}
			if s := show(&ts); s != tt.want {
				t.Errorf("got  %s\nwant %s", s, tt.want)
			}
			if got.old != tt.counts.old || got.new != tt.counts.new || got.cond != 0 {
				t.Errorf("counted %+v, want %+v", got, tt.counts)
			}
			for i := range ts.List {
				if ts.List[i].X != x {
					t.Errorf("target %d has X %v", i, ts.List[i].X)
				}
			}
		})
	}
}

func TestMatchTruncateOfTagsRaisesDeclaredAndAll(t *testing.T) {
	t.Parallel()
	plan := compile(t, `
version: 1
entries:
  product: {key: "product:{id}", tags: ["category:{category_id}"]}
  other: {key: "other:{id}"}
rules:
  - {name: r, table: products, tags: ["category:{id}"]}
`)
	var ts rules.Targets
	if err := plan.NewMatcher(rules.Observer{}).Match(&ts, &change.Change{Op: change.Truncate, Table: products}, change.Position{}); err != nil {
		t.Fatal(err)
	}
	if got, want := show(&ts), "raise product truncate; raise * truncate"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestMatchVersions(t *testing.T) {
	t.Parallel()
	plan := compile(t, `
version: 1
namespace: n
entries:
  product: {key: "product:{id}", versions: [2, 3]}
rules:
  - {name: r, table: products, keys: ["product:{id}"]}
`)
	var ts rules.Targets
	if err := plan.NewMatcher(rules.Observer{}).Match(&ts, &change.Change{Op: change.Insert, Table: products, New: row("1", "a", "7", "1", "{}")}, change.Position{}); err != nil {
		t.Fatal(err)
	}
	if got, want := show(&ts), "key n:product:1; key n:product:1@2; key n:product:1@3"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	c := plan.ClassOf([]byte("n:product:1@3"))
	if c == nil {
		t.Fatal("a versioned name has no class")
	}
	if v, ok := c.Captures([]byte("n:product:1@3")); !ok || fmt.Sprint(v) != "[1]" {
		t.Errorf("Captures = %v, %v", v, ok)
	}
	if v, ok := c.Captures([]byte("n:product:1@9")); !ok || fmt.Sprint(v) != "[1@9]" {
		t.Errorf("Captures of a version that does not exist = %v, %v", v, ok)
	}
}

// What can not be a change of the table is an error, and leaves no targets.
func TestMatchRefusesMalformedChanges(t *testing.T) {
	t.Parallel()
	m := compile(t, twoKeys).NewMatcher(rules.Observer{})
	for name, c := range map[string]*change.Change{
		"too few values":       {Op: change.Insert, Table: products, New: row("1")},
		"old row of other":     {Op: change.Update, Table: products, Old: row("1", "2"), New: row("1", "a", "7", "1", "{}")},
		"insert without a row": {Op: change.Insert, Table: products},
		"update without a row": {Op: change.Update, Table: products, Old: row("1", "a", "7", "1", "{}")},
		"no table":             {Op: change.Insert, New: row("1")},
	} {
		var ts rules.Targets
		if err := m.Match(&ts, c, change.Position{}); err == nil || len(ts.List) != 0 {
			t.Errorf("%s: error %v, targets %s", name, err, show(&ts))
		}
	}
}

// A relation that changes mid-stream comes as another Table.
func TestMatchFollowsRelationChanges(t *testing.T) {
	t.Parallel()
	m := compile(t, twoKeys).NewMatcher(rules.Observer{})
	swapped := *products
	swapped.Columns = slices.Clone(products.Columns)
	swapped.Columns[0], swapped.Columns[1] = swapped.Columns[1], swapped.Columns[0]
	var ts rules.Targets
	for range 2 {
		for _, c := range []*change.Change{
			{Op: change.Insert, Table: products, New: row("1", "a", "7", "1", "{}")},
			{Op: change.Insert, Table: &swapped, New: row("a", "1", "7", "1", "{}")},
			{Op: change.Insert, Table: func() *change.Table { same := *products; return &same }(), New: row("1", "a", "7", "1", "{}")},
		} {
			ts.Reset()
			if err := m.Match(&ts, c, change.Position{}); err != nil {
				t.Fatal(err)
			}
			if got, want := show(&ts), "key shop:product:1; key shop:product:slug:a; tag shop:category:7"; got != want {
				t.Fatalf("got %s, want %s", got, want)
			}
		}
	}
}

func TestMatchMessage(t *testing.T) {
	t.Parallel()
	plan := compile(t, twoKeys)
	tests := []struct{ prefix, content, want, err string }{
		{"lethe", `{"keys":["product:1","x"],"tags":["category:7"]}`, "key shop:product:1; key shop:x; tag shop:category:7", ""},
		{"lethe", `{"tags":{"all":["a","b"]},"action":"stale"}`, "all shop:a&shop:b stale", ""},
		{"lethe", `{"tags":{"any":["a","b"]},"reason":"import"}`, "tag shop:a; tag shop:b", ""},
		{"lethe", `{"classes":["product","*"],"tags":[],"at":""}`, "raise product manual; raise * manual", ""},
		{"lethe.heartbeat", `not JSON`, "", ""},
		{"other", `not JSON`, "", ""},
		{"lethe", `not JSON`, "", "invalid character"},
		{"lethe", `{"keys":["a"]} more`, "", "behind the JSON"},
		{"lethe", `{"kyes":["a"]}`, "", "unknown field"},
		{"lethe", `{}`, "", "neither keys"},
		{"lethe", `{"keys":null,"reason":"import"}`, "", "neither keys"},
		{"lethe", `{"keys":[],"tags":[],"classes":[],"action":"","at":"","reason":""}`, "", ""},
		{"lethe", `{"tags":[]}`, "", ""},
		{"lethe", `{"keys":[""]}`, "", "0 bytes"},
		{"lethe", `{"keys":["a"],"classes":["prodct"]}`, "", `did you mean "product"?`},
		{"lethe", `{"keys":["a"],"action":"drop"}`, "", "none of delete"},
		{"lethe", `{"keys":["a"],"at":"2027-01-01T00:00:00Z"}`, "", ""},
		{"lethe", `{"keys":["a"],"at":"tomorrow"}`, "", "is a time such as"},
		{"lethe", `{"tags":{"all":[["a","b"],["c"]],"any":["d"]}}`, "tag shop:d; all shop:a&shop:b; all shop:c", ""},
		{"lethe", `{"tags":{"all":[["a",""]]}}`, "", "0 bytes"},
		{"lethe", `{"keys":["a"],"namespace":"shop"}`, "key shop:a", ""},
		{"lethe", `{"keys":["a"],"namespace":"blog","classes":["post"]}`, "", ""},
		{"lethe", `{"keys":["a"],"cascade":{"depth":65}}`, "", "want 0 to 64"},
		{"lethe", `{"classes":["gone"],"rule":"a rule that is gone"}`, "raise * manual", ""},
		{"lethe", `{"tags":"a"}`, "", "cannot unmarshal"},
	}
	for _, tt := range tests {
		var ts rules.Targets
		err := plan.NewMatcher(rules.Observer{}).Match(&ts, &change.Change{Op: change.Message, Prefix: tt.prefix, Content: []byte(tt.content)}, change.Position{})
		if (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: error %v, want %q", tt.content, err, tt.err)
		}
		if got := show(&ts); got != tt.want {
			t.Errorf("%s: got %s, want %s", tt.content, got, tt.want)
		}
	}
}

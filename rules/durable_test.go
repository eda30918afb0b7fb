package rules_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/lethe-cache/lethe/rules"
)

const declaredRules = `version: 1
namespace: n
entries:
  user: {key: "user:{id}", versions: 2}
  profile: {key: "profile:{id}"}
  feed: {key: "feed:{id}", tags: ["follows:{id}"]}
rules:
  - {name: users, table: public.users, keys: ["user:{id}"]}
dependencies:
  - {of: "profile:{id}", also: ["feed:{id}"]}
`

func parseSet(t testing.TB, text string) *rules.Set {
	t.Helper()
	set, err := rules.Parse("rules.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func problemsText(problems []rules.EdgeProblem) string {
	var lines []string
	for _, p := range problems {
		lines = append(lines, p.String())
	}
	return strings.Join(lines, "\n")
}

// What can be understood of a declared dependency takes effect, and the rest is
// told; a condition that can not be read counts as true.
func TestWithEdges(t *testing.T) {
	t.Parallel()
	set := parseSet(t, declaredRules)
	with, problems := set.WithEdges([]rules.Edge{
		{ID: 9, Of: "user:{id}", Also: []string{"profile:{id}", "follows:{id}", "profile:{id}"}, When: `op == "update"`},
		{ID: 2, Of: "user:1", Also: []string{"feed:{id}", "feed:2", ""}},
		{ID: 3, Of: "user:{id", Also: []string{"feed:1"}},
		{ID: 4, Of: "user:{id}", Also: []string{"feed:{id}"}, When: "idd == 1"},
		{ID: 5, Of: "user:{id}", Also: []string{"feed:{old.id}", "feed:{id|lower}", "feed:{id.x}"}},
		{ID: 6, Of: "user:{id}:{id}", Also: []string{"feed:1"}},
		{ID: 7, Of: "user:{id}", Also: nil},
		{ID: 8, Of: "user:{op}", Also: []string{"feed:1"}, When: "true"},
	})
	want := `edge 2: also: {id} is no placeholder of "user:1": it takes effect without that
edge 2: also: template is empty: it takes effect without that
edge 3: of: placeholder in template "user:{id" is not closed: it has no effect
edge 4: when: undeclared reference to 'idd' (did you mean 'id'?): it takes effect without that
edge 5: also: "feed:{old.id}": {old...} and {new...} have a meaning in rules only: it takes effect without that
edge 5: also: "feed:{id|lower}": filters have no meaning in dependencies: it takes effect without that
edge 5: also: "feed:{id.x}": {id.x} reaches into a column, which has a meaning in rules only: it takes effect without that
edge 5: also: there is no name that can be used: it has no effect
edge 6: of: a placeholder of "user:{id}:{id}" is there twice: it has no effect
edge 7: also: there is no name that can be used: it has no effect
edge 8: when: the placeholder {op} has the name of a variable of conditions (op, table, rule, depth): it takes effect without that`
	if got := problemsText(problems); got != want {
		t.Errorf("problems\n%s\nwant\n%s", got, want)
	}
	var got []string
	for _, d := range with.Dependencies {
		line := fmt.Sprint(d.ID, " ", d.Of, " ->")
		for _, a := range d.Also {
			line += " " + a.String()
			if a.Class != nil {
				line += "/" + a.Class.Name
			}
		}
		got = append(got, line+" "+d.When)
	}
	if want := []string{"0 profile:{id} -> feed:{id}/feed ", "2 user:1 -> feed:2/feed ", "4 user:{id} -> feed:{id}/feed ", "8 user:{op} -> feed:1/feed ",
		`9 user:{id} -> profile:{id}/profile follows:{id} op == "update"`}; !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if len(set.Dependencies) != 1 {
		t.Errorf("the set itself has %d dependencies now", len(set.Dependencies))
	}
	classes, all := with.Reach(set.Class("user").Key, 1)
	if len(classes) != 2 || !all { // profile and feed, and a tag
		t.Errorf("from user one comes to %v, all: %v", classes, all)
	}
	if classes, _ := set.Reach(set.Class("user").Key, 9); len(classes) != 0 {
		t.Errorf("without them, from user one comes to %v", classes)
	}
}

// touched are the classes of the units that only next has.
func touched(before, next *rules.Set) string {
	there := map[uint64]bool{}
	for _, u := range before.Units() {
		there[u.ID] = true
	}
	names := map[string]bool{}
	for _, u := range next.Units() {
		if there[u.ID] {
			continue
		}
		if u.All {
			names["*"] = true
		}
		for _, c := range u.Classes {
			names[c.Name] = true
		}
	}
	var out []string
	for n := range names {
		out = append(out, n)
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// A declared dependency is a unit as one of the file is: what it newly leads to
// is forgotten, and what follows from there. Its number, and where it stands, do
// not matter.
func TestUnitsOfDeclaredDependencies(t *testing.T) {
	t.Parallel()
	set := parseSet(t, declaredRules)
	none, _ := set.WithEdges(nil)
	one, _ := set.WithEdges([]rules.Edge{{ID: 1, Of: "user:{id}", Also: []string{"profile:{id}"}}})
	same, _ := set.WithEdges([]rules.Edge{{ID: 7, Of: "user:{id}", Also: []string{"profile:{id}"}}})
	when, _ := set.WithEdges([]rules.Edge{{ID: 1, Of: "user:{id}", Also: []string{"profile:{id}"}, When: "depth == 0"}})
	name, _ := set.WithEdges([]rules.Edge{{ID: 1, Of: "user:7", Also: []string{"feed:7"}}})
	tag, _ := set.WithEdges([]rules.Edge{{ID: 1, Of: "user:7", Also: []string{"follows:7"}}})
	inFile := parseSet(t, declaredRules+"  - {of: \"user:{id}\", also: [\"profile:{id}\"]}\n")
	for _, tt := range []struct {
		name         string
		before, next *rules.Set
		want         string
	}{
		{"nothing", set, none, ""},
		{"declared", none, one, "feed profile"},
		{"another number", one, same, ""},
		{"taken back", one, none, ""},
		{"from the table into the file", one, inFile, ""},
		{"a condition", one, when, "feed profile"},
		{"one name", none, name, "feed"},
		{"a tag", none, tag, "*"},
	} {
		got := touched(tt.before, tt.next)
		if got != tt.want {
			t.Errorf("%s: touches %q, want %q", tt.name, got, tt.want)
		}
	}
}

// What each partition notes does not grow with the number of dependencies, and
// tells every change of them.
func TestUnitsOfManyDependencies(t *testing.T) {
	t.Parallel()
	set := parseSet(t, declaredRules)
	edges := func(n int) []rules.Edge {
		list := make([]rules.Edge, n)
		for i := range list {
			list[i] = rules.Edge{ID: int64(i + 1), Of: fmt.Sprint("user:", i), Also: []string{fmt.Sprint("profile:", i)}}
		}
		return list
	}
	many, _ := set.WithEdges(edges(20_000))
	if n := len(many.Units()); n > 1100 {
		t.Errorf("%d units", n)
	}
	again := edges(20_000)
	slices.Reverse(again)
	same, _ := set.WithEdges(again)
	if got := touched(many, same); got != "" {
		t.Errorf("another order touches %q", got)
	}
	for name, change := range map[string]func(list []rules.Edge) []rules.Edge{
		"one more": func(l []rules.Edge) []rules.Edge {
			return append(l, rules.Edge{ID: 1 << 40, Of: "user:x", Also: []string{"feed:1"}})
		},
		"one that is another": func(l []rules.Edge) []rules.Edge { l[500].Also = []string{"feed:2"}; return l },
		"one with a condition": func(l []rules.Edge) []rules.Edge {
			l[19_999].When = "depth < 2"
			return l
		},
	} {
		next, _ := set.WithEdges(change(edges(20_000)))
		if got := touched(many, next); !strings.Contains(got, "profile") {
			t.Errorf("%s touches %q, want profile among it", name, got)
		}
	}
}

// What the cascade can reach is followed through forms that may stand for the
// same names, and through single names.
func TestReachThroughForms(t *testing.T) {
	t.Parallel()
	set := parseSet(t, "version: 1\nentries:\n  a: {key: 'a:{id}'}\n  b: {key: 'b:{id}'}\n  c: {key: 'c:{id}'}\n  d: {key: 'd:{id}'}\n")
	for name, tt := range map[string]struct {
		edges []rules.Edge
		depth int
		want  string
	}{
		"a form that is no class's": {[]rules.Edge{{Of: "a:{id}", Also: []string{"b:x{id}"}}, {Of: "b:{id}", Also: []string{"c:{id}"}}}, 2, "c *"},
		"to a form from a class":    {[]rules.Edge{{Of: "a:{id}", Also: []string{"b:{id}"}}, {Of: "b:x{id}", Also: []string{"c:{id}"}}}, 2, "b c"},
		"names of classes":          {[]rules.Edge{{Of: "a:1", Also: []string{"b:1"}}, {Of: "b:1", Also: []string{"c:1"}}}, 2, "b c"},
		"not so deep":               {[]rules.Edge{{Of: "a:1", Also: []string{"b:1"}}, {Of: "b:1", Also: []string{"c:1"}}}, 1, "b"},
		"names of no class":         {[]rules.Edge{{Of: "a:1", Also: []string{"x"}}, {Of: "x", Also: []string{"y"}}, {Of: "y", Also: []string{"d:1"}}}, 3, "d *"},
		"a name and a form":         {[]rules.Edge{{Of: "a:1", Also: []string{"x:{{1"}}, {Of: "x:{id}", Also: []string{"d:1"}}, {Of: "x:{{1", Also: []string{"c:1"}}}, 2, "c d *"},
		"nothing":                   {[]rules.Edge{{Of: "b:1", Also: []string{"c:1"}}}, 9, ""},
	} {
		for i := range tt.edges {
			tt.edges[i].ID = int64(i + 1)
		}
		with, problems := set.WithEdges(tt.edges)
		if len(problems) > 0 {
			t.Fatal(problems)
		}
		classes, all := with.Reach(set.Class("a").Key, tt.depth)
		var got []string
		for _, c := range classes {
			got = append(got, c.Name)
		}
		slices.Sort(got)
		if all {
			got = append(got, "*")
		}
		if text := strings.Join(got, " "); text != tt.want {
			t.Errorf("%s: from a one comes to %q, want %q", name, text, tt.want)
		}
	}
}

// Who fills entries by the file alone finds its units with workers that have
// read the table too, however many rows that has.
func TestUnitsOfClass(t *testing.T) {
	t.Parallel()
	text := declaredRules + "  - {of: \"user:{id}\", also: [\"feed:{id}\"], when: \"depth == 0\"}\n"
	file := parseSet(t, text)
	for _, rows := range []int{1, 2000} {
		list := make([]rules.Edge, rows)
		for i := range list {
			list[i] = rules.Edge{ID: int64(i + 1), Of: fmt.Sprint("user:", i), Also: []string{fmt.Sprint("profile:", i)}}
		}
		worked, _ := file.WithEdges(list)
		there := map[uint64]bool{}
		for _, u := range worked.Units() {
			there[u.ID] = true
		}
		for _, c := range file.Entries {
			ids := file.UnitsOf(c)
			if len(ids) == 0 {
				t.Errorf("no unit touches %s, not even its own", c.Name)
			}
			for _, id := range ids {
				if !there[id] {
					t.Errorf("%d rows: a unit of %s is not among those of the workers", rows, c.Name)
				}
			}
			if got := worked.UnitsOf(worked.Class(c.Name)); len(got) < len(ids) {
				t.Errorf("%d rows: %d units of %s, %d without rows", rows, len(got), c.Name, len(ids))
			}
		}
		// A row is nobody's who fills: the table changes all the time.
		more, _ := file.WithEdges(append(list, rules.Edge{ID: 1 << 40, Of: "user:x", Also: []string{"profile:x"}}))
		if a, b := worked.UnitsOf(worked.Class("profile")), more.UnitsOf(more.Class("profile")); !slices.Equal(a, b) {
			t.Errorf("%d rows: one more row changes the units of profile: %d, %d", rows, len(a), len(b))
		}
	}
	// Another tag is another way to find the entries of this class, and of no other.
	tagged := parseSet(t, strings.Replace(text, "profile: {key: \"profile:{id}\"", "profile: {tags: [\"who:{id}\"], key: \"profile:{id}\"", 1))
	if slices.Equal(tagged.UnitsOf(tagged.Class("profile")), file.UnitsOf(file.Class("profile"))) {
		t.Error("another tag does not change the units of profile")
	}
}

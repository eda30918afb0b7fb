package depgraph_test

import (
	"testing"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/depgraph"
	"github.com/lethe-cache/lethe/rules"
)

const conditional = `
version: 1
namespace: n
entries:
  user: {key: "user:{id}"}
  profile: {key: "profile:{id}"}
  feed: {key: "feed:{id}"}
  badge: {key: "badge:{id}"}
dependencies:
  - {of: "user:{id}", also: ["profile:{id}"], when: 'op == "update" && table == "public.users"'}
  - {of: "user:{id}", also: ["feed:{id}"], when: 'id.startsWith("1") || rule == "all feeds"'}
  - {of: "profile:{id}", also: ["badge:{id}"], when: 'depth > 0'}
  - {of: "badge:{id}", also: ["user:x"], when: 'int(id) > 5'}
`

// A dependency is followed where its condition holds, and where nobody can say.
func TestConditions(t *testing.T) {
	t.Parallel()
	set := parse(t, conditional)
	users := &change.Table{Schema: "public", Name: "users"}
	update := &change.Change{Op: change.Update, Table: users}
	insert := &change.Change{Op: change.Insert, Table: users}
	plain, feeds := &rules.Rule{Name: "plain"}, &rules.Rule{Name: "all feeds"}
	tests := []struct {
		name    string
		change  *change.Change
		from    rules.Target
		want    string
		unknown int
	}{
		{"all hold", update, key(set, "user:1", plain, deep), "key n:user:1/0; key n:profile:1/1; key n:feed:1/1; key n:badge:1/2", 0},
		{"another operation", insert, key(set, "user:1", plain, deep), "key n:user:1/0; key n:feed:1/1", 0},
		{"another table", &change.Change{Op: change.Update, Table: &change.Table{Schema: "a", Name: "users"}}, key(set, "user:1", plain, deep), "key n:user:1/0; key n:feed:1/1", 0},
		{"a message has no table", &change.Change{Op: change.Message}, key(set, "user:2", nil, deep), "key n:user:2/0", 0},
		{"a captured value", insert, key(set, "user:21", plain, deep), "key n:user:21/0", 0},
		{"the rule", insert, key(set, "user:21", feeds, deep), "key n:user:21/0; key n:feed:21/1", 0},
		{"the depth", insert, key(set, "profile:7", plain, deep), "key n:profile:7/0", 0},
		{"an error counts as true", insert, key(set, "badge:b", plain, deep), "key n:badge:b/0; key n:user:x/1", 1},
		{"it holds", insert, key(set, "badge:6", plain, deep), "key n:badge:6/0; key n:user:x/1", 0},
		{"no change to be told of", nil, key(set, "badge:1", plain, rules.Cascade{Depth: 1, Bound: true}), "key n:badge:1/0; key n:user:x/1", 0},
		// A depth that is reached by default asks the condition, too.
		{"beyond the depth", insert, key(set, "badge:1", plain, rules.Cascade{Depth: 1}), "key n:badge:1/0", 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ts := rules.Targets{List: []rules.Target{tt.from}}
			w := depgraph.New(set).NewWalker(depgraph.Limits{})
			unknown := 0
			w.ConditionUnknown = func(d *rules.Dependency, err error) {
				unknown++
				if d.When == "" || err == nil {
					t.Errorf("told of %q: %v", d.When, err)
				}
			}
			w.Cascade(&ts, 0, tt.change)
			if got := show(&ts); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if unknown != tt.unknown {
				t.Errorf("%d conditions were undecided, want %d", unknown, tt.unknown)
			}
		})
	}
}

// A truncate raises, and what is raised takes along whatever might follow:
// nobody knows of which names.
func TestRaisesKnowNoConditions(t *testing.T) {
	t.Parallel()
	set := parse(t, conditional)
	ts := rules.Targets{List: []rules.Target{{Kind: rules.KindClass, Class: set.Class("user"), Cascade: deep, Reason: "truncate"}}}
	depgraph.New(set).NewWalker(depgraph.Limits{}).Cascade(&ts, 0, &change.Change{Op: change.Truncate})
	if got, want := show(&ts), "raise user truncate; raise profile truncate; raise feed truncate; raise badge truncate"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// What lies beyond stale_beyond is kept stale, unless a shorter way or another
// rule says otherwise; what a rule keeps stale anyway stays so.
func TestStaleBeyond(t *testing.T) {
	t.Parallel()
	set := parse(t, `
version: 1
entries:
  a: {key: "a:{id}", versions: 2}
  b: {key: "b:{id}"}
  c: {key: "c:{id}"}
  d: {key: "d:{id}"}
dependencies:
  - {of: "a:{id}", also: ["b:{id}", "c:{id}"]}
  - {of: "b:{id}", also: ["c:{id}", "d:{id}"]}
  - {of: "d:{id}", also: ["a:{id}", "a:2"]}
`)
	one, two := &rules.Rule{Name: "one"}, &rules.Rule{Name: "two"}
	first := key(set, "a:1", one, rules.Cascade{Depth: 3, Bound: true, StaleFrom: 2})
	second := key(set, "b:1", two, rules.Cascade{Depth: 1, Bound: true})
	second.Action = rules.Rewarm
	ts := rules.Targets{List: []rules.Target{first, second}}
	depgraph.New(set).NewWalker(depgraph.Limits{}).Cascade(&ts, 0, nil)
	got := ""
	for i := range ts.List {
		got += string(ts.List[i].Name) + " " + ts.List[i].Action.String() + "; "
	}
	want := "a:1 delete; b:1 rewarm; b:1 delete; c:1 delete; d:1 stale; a:2 stale; a:2@2 stale; c:1 rewarm; d:1 rewarm; "
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// A key has one class, whatever other form it has as well; a form that is no
// class's applies to keys of any, and a tag may look like anything.
func TestFormsThatOverlap(t *testing.T) {
	t.Parallel()
	set := parse(t, `
version: 1
entries:
  a: {key: "a:{id}"}
  ax: {key: "a:x:{id}"}
  b: {key: "b:{id}", tags: ["a:x:{t}:tag"]}
dependencies:
  - {of: "a:{id}", also: ["b:by-a"]}
  - {of: "a:x:{id}", also: ["b:by-ax"]}
  - {of: "a:x{id}", also: ["b:by-form"]}
`)
	for name, want := range map[string]string{
		"a:1":   "key a:1/0; key b:by-a/1",
		"a:x:1": "key a:x:1/0; key b:by-form/1; key b:by-ax/1",
		"a:x1":  "key a:x1/0; key b:by-a/1; key b:by-form/1",
	} {
		ts := rules.Targets{List: []rules.Target{key(set, name, nil, deep)}}
		depgraph.New(set).NewWalker(depgraph.Limits{}).Cascade(&ts, 0, nil)
		if got := show(&ts); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
	tag := rules.Target{Kind: rules.KindTag, Name: []byte("a:x:1"), Cascade: deep}
	ts := rules.Targets{List: []rules.Target{tag}}
	if depgraph.New(set).NewWalker(depgraph.Limits{}).Cascade(&ts, 0, nil); len(ts.List) != 4 {
		t.Errorf("got %s, want what all three lead to", show(&ts))
	}
}

package depgraph_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/depgraph"
	"github.com/lethe-cache/lethe/rules"
)

func parse(t testing.TB, yaml string) *rules.Set {
	t.Helper()
	set, err := rules.Parse("test.yaml", []byte(yaml))
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// key makes a target as a matcher would.
func key(set *rules.Set, name string, r *rules.Rule, c rules.Cascade) rules.Target {
	full := []byte(set.FullName(name))
	return rules.Target{Kind: rules.KindKey, Name: full, Class: set.ClassOf(full), Rule: r, Cascade: c, X: change.Position{Era: 1, LSN: 5}}
}

var deep = rules.Cascade{Depth: rules.CascadeDepthDefault}

func show(ts *rules.Targets) string {
	var out []string
	for i := range ts.List {
		t := &ts.List[i]
		if t.Kind == rules.KindClass {
			out = append(out, "raise "+t.ClassName()+" "+t.Reason)
		} else {
			out = append(out, fmt.Sprintf("%s %s/%d", t.Kind, t.Name, t.Depth))
		}
	}
	return strings.Join(out, "; ")
}

const social = `
version: 1
namespace: n
entries:
  user: {key: "user:{id}", versions: [1, 2]}
  profile: {key: "profile:{id}"}
  feed: {key: "feed:{id}:page", tags: ["follows:{id}"]}
  badge: {key: "badge:{id}"}
dependencies:
  - {of: "user:{id}", also: ["profile:{id}", "feed:{id}:page", "follows:{id}"]}
  - {of: "profile:{x}", also: ["badge:{x}"]}
  - {of: "badge:{x}", also: ["user:{x}"]}
  - {of: "follows:{id}", also: ["unknown:{id}"]}
`

func TestCascade(t *testing.T) {
	t.Parallel()
	set := parse(t, social)
	one, two := &rules.Rule{Name: "one"}, &rules.Rule{Name: "two"}
	tests := []struct {
		name string
		from []rules.Target
		want string
		rep  depgraph.Report
	}{
		{"circle, tags and names of no class", []rules.Target{key(set, "user:1", one, deep)},
			"key n:user:1/0; key n:profile:1/1; key n:feed:1:page/1; tag n:follows:1/1; key n:badge:1/2; key n:unknown:1/2; tag n:unknown:1/2", depgraph.Report{Names: 6}},
		{"a version of a value is the same name", []rules.Target{key(set, "profile:1", one, deep)},
			"key n:profile:1/0; key n:badge:1/1; key n:user:1/2; key n:user:1@2/2; key n:feed:1:page/3; tag n:follows:1/3; key n:unknown:1/4; tag n:unknown:1/4", depgraph.Report{Names: 6}},
		{"off", []rules.Target{key(set, "user:1", one, rules.Cascade{Bound: true})}, "key n:user:1/0", depgraph.Report{}},
		{"depth is a bound", []rules.Target{key(set, "user:1", one, rules.Cascade{Depth: 1, Bound: true})},
			"key n:user:1/0; key n:profile:1/1; key n:feed:1:page/1; tag n:follows:1/1", depgraph.Report{Names: 3}},
		{"beyond the default depth classes are raised", []rules.Target{key(set, "user:1", one, rules.Cascade{Depth: 1})},
			"key n:user:1/0; key n:profile:1/1; key n:feed:1:page/1; tag n:follows:1/1; raise badge cascade; raise user cascade; raise profile cascade; raise feed cascade; raise * cascade",
			depgraph.Report{Names: 3, Raised: 5, DepthExceeded: true}},
		{"each rule goes as deep as it says", []rules.Target{key(set, "profile:1", one, rules.Cascade{Depth: 1, Bound: true}), key(set, "badge:2", two, rules.Cascade{Bound: true})},
			"key n:profile:1/0; key n:badge:2/0; key n:badge:1/1", depgraph.Report{Names: 1}},
		{"a key of no class and another namespace", []rules.Target{key(set, "else:1", one, deep), {Kind: rules.KindKey, Name: []byte("other:user:1"), Cascade: deep}},
			"key n:else:1/0; key other:user:1/0", depgraph.Report{}},
		{"a raised class takes its dependents along", []rules.Target{{Kind: rules.KindClass, Class: set.Class("profile"), Cascade: rules.Cascade{Depth: 1, Bound: true}, Reason: "truncate"}},
			"raise profile truncate; raise badge truncate", depgraph.Report{}},
		{"a key of no class that looks like one", []rules.Target{{Kind: rules.KindKey, Name: []byte("n:badge:7"), Cascade: rules.Cascade{Depth: 1, Bound: true}}},
			"key n:badge:7/0; key n:user:7/1; key n:user:7@2/1", depgraph.Report{Names: 1}},
		{"every class raised is all", []rules.Target{{Kind: rules.KindClass, Cascade: deep, Reason: "truncate"}}, "raise * truncate", depgraph.Report{}},
		{"several tags are followed one by one", []rules.Target{{Kind: rules.KindAllTags, Names: [][]byte{[]byte("n:follows:1"), []byte("n:follows:2")}, Cascade: deep}},
			"all tags /0; key n:unknown:1/1; tag n:unknown:1/1; key n:unknown:2/1; tag n:unknown:2/1", depgraph.Report{Names: 4}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			ts := rules.Targets{List: tt.from}
			rep := depgraph.New(set).NewWalker(depgraph.Limits{}).Cascade(&ts, 0, nil)
			if got := show(&ts); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			if rep != tt.rep {
				t.Errorf("report %+v, want %+v", rep, tt.rep)
			}
		})
	}
}

// Added targets carry what they came from, and earlier changes are left alone.
func TestCascadeInherits(t *testing.T) {
	t.Parallel()
	set := parse(t, social)
	r := &rules.Rule{Name: "r"}
	first := key(set, "user:9", r, deep)
	second := key(set, "profile:1", r, rules.Cascade{Depth: 1, Bound: true})
	second.Action = rules.Stale
	ts := rules.Targets{List: []rules.Target{first, second}}
	depgraph.New(set).NewWalker(depgraph.Limits{}).Cascade(&ts, 1, nil)
	if len(ts.List) != 3 {
		t.Fatalf("targets %s", show(&ts))
	}
	got := ts.List[2]
	if got.Rule != r || got.Action != rules.Stale || got.X != second.X || got.Depth != 1 || got.Class != set.Class("badge") {
		t.Errorf("got %+v", got)
	}
}

func TestCascadeWithoutDependenciesDoesNotAllocate(t *testing.T) {
	set := parse(t, "version: 1\nentries: {a: {key: 'a:{id}'}}\n")
	w := depgraph.New(set).NewWalker(depgraph.Limits{})
	ts := rules.Targets{List: []rules.Target{key(set, "a:1", nil, deep)}}
	if n := testing.AllocsPerRun(100, func() { w.Cascade(&ts, 0, nil) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// A chain that never ends is cut at the default depth and raised, not followed.
func TestCascadeGrowingNamesEnd(t *testing.T) {
	t.Parallel()
	set := parse(t, "version: 1\nentries: {a: {key: 'a:{id}'}}\ndependencies:\n- {of: 'a:{id}', also: ['a:x{id}']}\n")
	ts := rules.Targets{List: []rules.Target{key(set, "a:1", nil, deep)}}
	rep := depgraph.New(set).NewWalker(depgraph.Limits{}).Cascade(&ts, 0, nil)
	if rep != (depgraph.Report{Names: 16, Raised: 1, DepthExceeded: true}) || !strings.HasSuffix(show(&ts), "key a:xxxxxxxx1/8; tag a:xxxxxxxx1/8; raise * cascade") {
		t.Errorf("report %+v, targets %s", rep, show(&ts))
	}
}

// graph is a random set of dependencies between the classes c0, c1, ...
func randomGraph(r *rand.Rand, classes, edges int) (yaml string, next map[int][]int) {
	var b strings.Builder
	b.WriteString("version: 1\nnamespace: n\nentries:\n")
	for i := range classes {
		fmt.Fprintf(&b, "  c%d: {key: 'c%d:{id}'}\n", i, i)
	}
	b.WriteString("dependencies:\n")
	next = map[int][]int{}
	for range edges {
		from, to := r.IntN(classes), r.IntN(classes)
		next[from] = append(next[from], to)
		fmt.Fprintf(&b, "  - {of: 'c%d:{id}', also: ['c%d:{id}']}\n", from, to)
	}
	return b.String(), next
}

// naive is the distance of every class within depth of start, by the textbook.
func naive(next map[int][]int, start, depth int) map[int]int {
	dist := map[int]int{start: 0}
	queue := []int{start}
	for len(queue) > 0 {
		at := queue[0]
		queue = queue[1:]
		if dist[at] == depth {
			continue
		}
		for _, n := range next[at] {
			if _, ok := dist[n]; !ok {
				dist[n] = dist[at] + 1
				queue = append(queue, n)
			}
		}
	}
	return dist
}

// The cascade over random graphs with circles reaches what a plain breadth
// first search reaches, at the same distances, each name once; what a limit
// keeps it from reaching has its class raised, or lies beyond a bound.
func TestCascadeEqualsNaiveSearch(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for round := range 300 {
		classes := 1 + r.IntN(30)
		yaml, next := randomGraph(r, classes, 1+r.IntN(3*classes))
		set := parse(t, yaml)
		c := rules.Cascade{Depth: r.IntN(10), Bound: r.IntN(2) == 0}
		limit := 0
		if r.IntN(3) == 0 {
			limit = 1 + r.IntN(10)
		}
		start := r.IntN(classes)
		ts := rules.Targets{List: []rules.Target{key(set, fmt.Sprintf("c%d:42", start), nil, c)}}
		rep := depgraph.New(set).NewWalker(depgraph.Limits{Names: limit}).Cascade(&ts, 0, nil)

		names, raised := map[string]int{}, map[string]bool{}
		for i := range ts.List {
			x := &ts.List[i]
			if x.Kind == rules.KindClass {
				raised[x.ClassName()] = true
				continue
			}
			if _, twice := names[string(x.Name)]; twice {
				t.Fatalf("round %d: %s twice", round, x.Name)
			}
			names[string(x.Name)] = x.Depth
		}
		within := naive(next, start, c.Depth)
		all := naive(next, start, 1<<30)
		for class, dist := range all {
			name := fmt.Sprintf("n:c%d:42", class)
			_, inDepth := within[class]
			got, has := names[name]
			switch {
			case has && (!inDepth || got != dist):
				t.Fatalf("round %d: %s at %d; search says %d, within the depth: %v\n%s", round, name, got, dist, inDepth, yaml)
			case !has && inDepth && !raised[fmt.Sprint("c", class)]:
				t.Fatalf("round %d: %s was neither reached nor raised (limit %d, %+v)\n%s%s", round, name, limit, rep, yaml, show(&ts))
			case !has && !inDepth && !c.Bound && c.Depth > 0 && !raised[fmt.Sprint("c", class)]:
				t.Fatalf("round %d: %s beyond the default depth %d was not raised\n%s%s", round, name, c.Depth, yaml, show(&ts))
			case !inDepth && c.Bound && raised[fmt.Sprint("c", class)]:
				t.Fatalf("round %d: c%d lies beyond the bound %d and was raised\n%s%s", round, class, c.Depth, yaml, show(&ts))
			}
		}
		if limit == 0 {
			if rep.FanOutExceeded || rep.Names != len(within)-1 || len(names) != len(within) {
				t.Fatalf("round %d: report %+v, want %d names", round, rep, len(within)-1)
			}
		} else if rep.Names > limit {
			t.Fatalf("round %d: %d names, limit %d", round, rep.Names, limit)
		}
		if got, want := rep.DepthExceeded && !rep.FanOutExceeded, !c.Bound && c.Depth > 0 && len(all) > len(within) && !rep.FanOutExceeded; got != want {
			t.Fatalf("round %d: depth exceeded %v, want %v", round, got, want)
		}
		for n := range names {
			if !strings.HasSuffix(n, ":42") {
				t.Fatalf("round %d: name %s was made up", round, n)
			}
		}
	}
}

// A Walker may be used for one change after another.
func TestWalkerIsReused(t *testing.T) {
	t.Parallel()
	set := parse(t, social)
	w := depgraph.New(set).NewWalker(depgraph.Limits{Names: 7})
	var ts rules.Targets
	for i := range 50 {
		ts.Reset()
		ts.List = append(ts.List, key(set, fmt.Sprint("user:", i), nil, deep))
		if rep := w.Cascade(&ts, 0, nil); rep != (depgraph.Report{Names: 6}) {
			t.Fatalf("change %d: %+v", i, rep)
		}
	}
}

func BenchmarkCascade(b *testing.B) {
	set := parse(b, social)
	w := depgraph.New(set).NewWalker(depgraph.Limits{})
	start := key(set, "user:1", nil, deep)
	var ts rules.Targets
	b.ReportAllocs()
	for b.Loop() {
		ts.Reset()
		ts.List = append(ts.List, start)
		w.Cascade(&ts, 0, nil)
	}
}

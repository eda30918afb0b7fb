package depgraph_test

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"testing"

	"github.com/lethe-cache/lethe/depgraph"
	"github.com/lethe-cache/lethe/rules"
)

// bigGraph is a random graph of numbers, and the same as edges between names. A
// name belongs to one of 16 classes, by its number; those of class15 are tags.
type bigGraph struct {
	next [][]int32
	set  *rules.Set
}

const bigClasses = 16

func bigName(v int) string {
	if v%bigClasses == bigClasses-1 {
		return "tag:" + strconv.Itoa(v)
	}
	return "c" + strconv.Itoa(v%bigClasses) + ":" + strconv.Itoa(v)
}

func newBigGraph(tb testing.TB, r *rand.Rand, nodes, edges int) *bigGraph {
	yaml := "version: 1\nnamespace: n\nentries:\n"
	for i := range bigClasses - 1 {
		yaml += fmt.Sprintf("  c%d: {key: 'c%d:{id}'}\n", i, i)
	}
	yaml += "  other: {key: 'other:{id}', tags: ['tag:{id}']}\n"
	g := &bigGraph{next: make([][]int32, nodes)}
	names := make([]string, nodes)
	for v := range names {
		names[v] = bigName(v)
	}
	list := make([]rules.Edge, edges)
	for i := range list {
		from, to := r.IntN(nodes), r.IntN(nodes)
		if i%100 == 0 {
			to = from // the smallest circle
		}
		g.next[from] = append(g.next[from], int32(to))
		list[i] = rules.Edge{ID: int64(i + 1), Of: names[from], Also: []string{names[to]}}
	}
	set, problems := parse(tb, yaml).WithEdges(list)
	if len(problems) > 0 {
		tb.Fatal(problems[0])
	}
	g.set = set
	return g
}

// distances is a breadth first search over numbers; -1 is not reached.
func (g *bigGraph) distances(root int) []int {
	dist := make([]int, len(g.next))
	for i := range dist {
		dist[i] = -1
	}
	dist[root] = 0
	level := []int32{int32(root)}
	for d := 1; len(level) > 0; d++ {
		var following []int32
		for _, v := range level {
			for _, n := range g.next[v] {
				if dist[n] < 0 {
					dist[n] = d
					following = append(following, n)
				}
			}
		}
		level = following
	}
	return dist
}

func (g *bigGraph) root(v int, c rules.Cascade) rules.Target {
	t := key(g.set, bigName(v), nil, c)
	if v%bigClasses == bigClasses-1 {
		t.Kind, t.Class = rules.KindTag, nil
	}
	return t
}

// A cascade over 10^6 edges with circles reaches what a search over numbers
// reaches, at the same distances, within bounds of depth and of names; what lies
// beyond a limit is reported, and its classes are raised.
func TestCascadeOverAMillionEdges(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 2))
	const nodes, edges = 300_000, 1_000_000
	g := newBigGraph(t, r, nodes, edges)
	graph := depgraph.New(g.set)
	if graph.Len() != edges {
		t.Fatalf("%d edges, want %d", graph.Len(), edges)
	}
	unlimited := depgraph.Limits{Names: 2 * nodes}
	for _, tt := range []struct {
		name   string
		c      rules.Cascade
		limits depgraph.Limits
	}{
		{"everything", rules.Cascade{Depth: rules.CascadeDepthMax, Bound: true}, unlimited},
		{"a bound", rules.Cascade{Depth: 5, Bound: true}, unlimited},
		{"the default depth", rules.Cascade{Depth: rules.CascadeDepthDefault}, unlimited},
		{"the default fan-out", rules.Cascade{Depth: rules.CascadeDepthMax, Bound: true}, depgraph.Limits{}},
		{"both", rules.Cascade{Depth: rules.CascadeDepthDefault}, depgraph.Limits{Names: 100}},
	} {
		walker := graph.NewWalker(tt.limits)
		var ts rules.Targets
		root := r.IntN(nodes)
		ts.List = append(ts.List, g.root(root, tt.c))
		rep := walker.Cascade(&ts, 0, nil)
		if msg := g.compare(root, &ts, rep, tt.c, tt.limits); msg != "" {
			t.Errorf("%s from %s, %+v: %s", tt.name, bigName(root), rep, msg)
		}
	}
}

func (g *bigGraph) compare(root int, ts *rules.Targets, rep depgraph.Report, c rules.Cascade, limits depgraph.Limits) string {
	got := make([]int, len(g.next))
	for i := range got {
		got[i] = -1
	}
	raised := map[string]bool{}
	for i := range ts.List {
		x := &ts.List[i]
		if x.Kind == rules.KindClass {
			raised[x.ClassName()] = true
			continue
		}
		name := string(x.Name)
		v := 0
		for k := len(name) - 1; name[k] != ':'; k-- {
			v, _ = strconv.Atoi(name[k:])
		}
		if name != "n:"+bigName(v) || got[v] >= 0 {
			return fmt.Sprintf("%s was made up or is there twice", name)
		}
		got[v] = x.Depth
	}
	limit := limits.Names
	if limit == 0 {
		limit = depgraph.FanOutDefault
	}
	within, deeper := 0, false
	for v, d := range g.distances(root) {
		switch {
		case d < 0 && got[v] >= 0, d >= 0 && got[v] >= 0 && (got[v] != d || d > c.Depth):
			return fmt.Sprintf("%s is reached at %d, want %d", bigName(v), got[v], d)
		case d < 0 || d > c.Depth && c.Bound:
			continue
		}
		if d <= c.Depth {
			within++
		}
		deeper = deeper || d > c.Depth
		if got[v] < 0 && !raised["*"] && (v%bigClasses == bigClasses-1 || !raised[fmt.Sprint("c", v%bigClasses)]) {
			return fmt.Sprintf("%s at %d is neither reached nor raised: %v", bigName(v), d, raised)
		}
	}
	over := within-1 > limit
	switch {
	case over != rep.FanOutExceeded, !over && deeper != rep.DepthExceeded, !over && rep.Names != within-1, over && rep.Names != limit:
		return fmt.Sprintf("want %d names, of %d at most, beyond the depth: %v", within-1, limit, deeper)
	case (over || deeper) != (rep.Raised > 0) || rep.Raised != len(raised):
		return fmt.Sprintf("%d classes are raised", len(raised))
	}
	return ""
}

// BenchmarkWalk is a walk over a random graph of 10^6 edges: it costs what it
// reaches, and the names are all that is remembered.
func BenchmarkWalk(b *testing.B) {
	g := newBigGraph(b, rand.New(rand.NewPCG(1, 2)), 300_000, 1_000_000)
	graph := depgraph.New(g.set)
	for _, depth := range []int{1, 4, 8, rules.CascadeDepthMax} {
		walker := graph.NewWalker(depgraph.Limits{Names: 1_000_000})
		var ts rules.Targets
		b.Run(fmt.Sprint("depth=", depth), func(b *testing.B) {
			b.ReportAllocs()
			names := 0
			for i := 0; b.Loop(); i++ {
				ts.Reset()
				ts.List = append(ts.List, g.root(1000+i%100, rules.Cascade{Depth: depth, Bound: true}))
				names += walker.Cascade(&ts, 0, nil).Names
			}
			b.ReportMetric(float64(names)/float64(b.N), "names/op")
			if names > 0 {
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(names), "ns/name")
			}
		})
	}
}

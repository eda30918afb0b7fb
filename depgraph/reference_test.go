package depgraph_test

import (
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/depgraph"
	"github.com/lethe-cache/lethe/rules"
)

// refEdge is an edge as the reference sees it: functions instead of templates
// and conditions.
type refEdge struct {
	leads func(name string) (to []string, ok bool)
	when  func(name string, depth int, rule, op string) bool
}

// world is a random set of dependencies, in both forms.
type world struct {
	set   *rules.Set
	edges []refEdge
	names []string
	text  strings.Builder // of the edges, for people
}

const (
	worldClasses = 5 // c0 to c4 are classes, z0 and z1 are not
	worldIDs     = 6
)

func form(r *rand.Rand) string {
	if r.IntN(4) == 0 {
		return fmt.Sprint("z", r.IntN(2))
	}
	return fmt.Sprint("c", r.IntN(worldClasses))
}

func id(name string) string { return name[strings.IndexByte(name, ':')+1:] }

// randomCondition is a condition, and what it means.
func randomCondition(r *rand.Rand, literal bool) (string, func(name string, depth int, rule, op string) bool) {
	k := r.IntN(4)
	switch r.IntN(8) {
	case 0:
		return fmt.Sprintf("depth < %d", k), func(_ string, depth int, _, _ string) bool { return depth < k }
	case 1:
		return `rule == "one"`, func(_ string, _ int, rule, _ string) bool { return rule == "one" }
	case 2:
		return `op == "insert" && table == "public.t"`, func(_ string, _ int, _, op string) bool { return op == "insert" }
	case 3:
		if !literal {
			return fmt.Sprintf(`id == "%d"`, k), func(name string, _ int, _, _ string) bool { return id(name) == fmt.Sprint(k) }
		}
	case 4:
		if !literal { // of x, it is an error
			return fmt.Sprintf("int(id) >= %d", k), func(name string, _ int, _, _ string) bool {
				n, err := strconv.Atoi(id(name))
				return err != nil || n >= k
			}
		}
	}
	return "", func(string, int, string, string) bool { return true }
}

func newWorld(t *testing.T, r *rand.Rand) *world {
	w := &world{}
	var yaml strings.Builder
	yaml.WriteString("version: 1\nnamespace: n\nentries:\n")
	for i := range worldClasses {
		fmt.Fprintf(&yaml, "  c%d: {key: 'c%d:{id}'}\n", i, i)
	}
	for _, f := range []string{"c0", "c1", "c2", "c3", "c4", "z0", "z1"} {
		for i := range worldIDs {
			w.names = append(w.names, fmt.Sprint(f, ":", i))
		}
		w.names = append(w.names, f+":x")
	}
	var edges []rules.Edge
	for i := range 1 + r.IntN(25) {
		e := rules.Edge{ID: int64(i + 1)}
		var ref refEdge
		if literal := r.IntN(2) == 0; literal {
			e.Of = w.names[r.IntN(len(w.names))]
			for range 1 + r.IntN(3) {
				e.Also = append(e.Also, w.names[r.IntN(len(w.names))])
			}
			e.When, ref.when = randomCondition(r, true)
			ref.leads = func(name string) ([]string, bool) { return e.Also, name == e.Of }
		} else {
			from := form(r)
			e.Of = from + ":{id}"
			var to []string
			for range 1 + r.IntN(2) {
				to = append(to, form(r))
				e.Also = append(e.Also, to[len(to)-1]+":{id}")
			}
			fixed := w.names[r.IntN(len(w.names))]
			e.Also = append(e.Also, fixed)
			e.When, ref.when = randomCondition(r, false)
			ref.leads = func(name string) (out []string, ok bool) {
				for _, f := range to {
					out = append(out, f+":"+id(name))
				}
				return append(out, fixed), strings.HasPrefix(name, from+":")
			}
		}
		fmt.Fprintf(&w.text, "%s -> %s when %q\n", e.Of, e.Also, e.When)
		w.edges = append(w.edges, ref)
		edges = append(edges, e)
	}
	set, problems := parse(t, yaml.String()).WithEdges(edges)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	w.set = set
	return w
}

// search is the distance of every name within depth of the roots, by the
// textbook. A condition is asked once, where the name is nearest.
func (w *world) search(roots []string, depth int, rule, op string) map[string]int {
	dist := map[string]int{}
	var queue []string
	for _, n := range roots {
		if _, ok := dist[n]; !ok {
			dist[n] = 0
			queue = append(queue, n)
		}
	}
	for len(queue) > 0 {
		at := queue[0]
		queue = queue[1:]
		if dist[at] == depth {
			continue
		}
		for _, e := range w.edges {
			to, ok := e.leads(at)
			if !ok || !e.when(at, dist[at], rule, op) {
				continue
			}
			for _, n := range to {
				if _, ok := dist[n]; !ok {
					dist[n] = dist[at] + 1
					queue = append(queue, n)
				}
			}
		}
	}
	return dist
}

// begin is what one rule names, and how far it goes.
type begin struct {
	rule  *rules.Rule
	roots []string
}

// The cascade over random graphs of names and forms, with conditions, circles,
// several rules, bounds and stale_beyond reaches what a plain search reaches, as
// deep and with the action that the depth asks for; what a limit keeps it from
// has its class raised.
func TestCascadeEqualsReference(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	for round := range 400 {
		w := newWorld(t, r)
		op := []change.Op{change.Insert, change.Update}[r.IntN(2)]
		c := &change.Change{Op: op, Table: &change.Table{Schema: "public", Name: "t"}}
		var begins []begin
		var ts rules.Targets
		for _, name := range []string{"one", "two", "three"}[:1+r.IntN(3)] {
			b := begin{rule: &rules.Rule{Name: name, Cascade: rules.Cascade{Depth: r.IntN(7), Bound: r.IntN(2) == 0}}}
			if r.IntN(2) == 0 {
				b.rule.Cascade.StaleFrom = 1 + r.IntN(4)
			}
			for range 1 + r.IntN(3) {
				root := w.names[r.IntN(len(w.names))]
				b.roots = append(b.roots, root)
				ts.List = append(ts.List, key(w.set, root, b.rule, b.rule.Cascade))
				if strings.HasPrefix(root, "z") { // of no class: a tag as well
					tag := ts.List[len(ts.List)-1]
					tag.Kind = rules.KindTag
					ts.List = append(ts.List, tag)
				}
			}
			begins = append(begins, b)
		}
		limit := 0
		if r.IntN(3) == 0 {
			limit = 1 + r.IntN(12)
		}
		walker := depgraph.New(w.set).NewWalker(depgraph.Limits{Names: limit})
		rep := walker.Cascade(&ts, 0, c)
		if msg := w.compare(begins, &ts, rep, op.String(), limit); msg != "" {
			t.Fatalf("round %d, limit %d, %s, %+v: %s\n%s%s", round, limit, op, rep, msg, w.text.String(), show(&ts))
		}
	}
}

func (w *world) compare(begins []begin, ts *rules.Targets, rep depgraph.Report, op string, limit int) string {
	raised, total := map[string]bool{}, 0
	reached := map[*rules.Rule]map[string]*rules.Target{}
	for i := range ts.List {
		x := &ts.List[i]
		if x.Kind == rules.KindClass {
			raised[x.ClassName()] = true
			continue
		}
		if reached[x.Rule] == nil {
			reached[x.Rule] = map[string]*rules.Target{}
		}
		id := x.Kind.String() + " " + strings.TrimPrefix(string(x.Name), "n:")
		if reached[x.Rule][id] != nil && x.Depth > 0 {
			return "twice: " + id
		}
		reached[x.Rule][id] = x
		if x.Depth > 0 {
			total++
		}
	}
	if total != rep.Names || limit > 0 && total > limit {
		return fmt.Sprintf("%d names", total)
	}
	deeper := false
	for _, b := range begins {
		c := b.rule.Cascade
		within := w.search(b.roots, c.Depth, b.rule.Name, op)
		all := within
		if !c.Bound && c.Depth > 0 {
			all = w.search(b.roots, 1<<30, b.rule.Name, op)
		}
		deeper = deeper || len(all) > len(within)
		want := 0
		for name, dist := range all {
			class := name[:strings.IndexByte(name, ':')]
			isRaised := raised["*"] || raised[class]
			ids := []string{"key " + name}
			if strings.HasPrefix(name, "z") {
				ids = append(ids, "tag "+name)
			}
			_, inDepth := within[name]
			for _, id := range ids {
				got := reached[b.rule][id]
				if inDepth {
					want++
				}
				switch {
				case got == nil && !isRaised:
					return fmt.Sprintf("rule %s neither reaches %s nor raises its class", b.rule.Name, id)
				case got == nil && limit == 0 && inDepth:
					return fmt.Sprintf("rule %s does not reach %s", b.rule.Name, id)
				case got == nil:
				case !inDepth || got.Depth != dist:
					return fmt.Sprintf("rule %s reaches %s at %d, want %d", b.rule.Name, id, got.Depth, dist)
				case (got.Action == rules.Stale) != (c.StaleFrom > 0 && dist >= c.StaleFrom):
					return fmt.Sprintf("rule %s: %s at %d is %s", b.rule.Name, id, dist, got.Action)
				}
			}
		}
		if len(reached[b.rule]) > want {
			return fmt.Sprintf("rule %s reaches %d names, want %d", b.rule.Name, len(reached[b.rule]), want)
		}
	}
	switch {
	case limit == 0 && rep.FanOutExceeded:
		return "no limit was exceeded"
	case limit == 0 && rep.DepthExceeded != deeper:
		return fmt.Sprintf("depth exceeded, want %v", deeper)
	case (rep.Raised > 0) != (len(raised) > 0):
		return "raises are not reported"
	case rep.Raised > 0 && !rep.DepthExceeded && !rep.FanOutExceeded:
		return "raises without a reason"
	}
	return ""
}

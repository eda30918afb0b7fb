// Package depgraph follows static dependencies: whoever invalidates a name also
// invalidates what depends on it, breadth first and within limits.
//
// What lies beyond a limit is not dropped in silence: its classes are raised.
// Only a depth that a rule gives itself is a bound beyond which nothing is
// touched.
package depgraph

import (
	"github.com/lethe-cache/lethe/internal/keytext"
	"github.com/lethe-cache/lethe/rules"
)

// FanOutDefault is how many names one change may reach.
const FanOutDefault = 10_000

// Graph holds the dependencies of a rule set. It is immutable and safe for
// concurrent use; a Walker follows it.
type Graph struct {
	set    *rules.Set
	prefix []byte // namespace and colon
	edges  []edge
	// byClass are the edges that keys of a class may have. all are for tags and
	// for keys without a class, which may look like anything.
	byClass map[*rules.Class][]int
	all     []int
}

// edge is one dependency.
type edge struct {
	dep     *rules.Dependency
	columns []string // of the pattern's captures
	to      []target
}

// target is one name that depends.
type target struct {
	template *rules.Template
	// captures are the indexes of the values, one for each placeholder.
	captures []int
	// What the name is invalidated as. A form that is neither a class's key
	// nor a declared tag may be either.
	key, tag bool
}

// New builds the graph of a set's dependencies.
func New(set *rules.Set) *Graph {
	g := &Graph{set: set, byClass: map[*rules.Class][]int{}}
	if set.Namespace != "" {
		g.prefix = []byte(set.Namespace + ":")
	}
	for i, d := range set.Dependencies {
		e := edge{dep: d, columns: d.Of.Placeholders()}
		for _, a := range d.Also {
			e.to = append(e.to, newTarget(set, d, a))
		}
		g.edges = append(g.edges, e)
		g.all = append(g.all, i)
	}
	for _, c := range set.Entries {
		for i := range g.edges {
			if of := g.edges[i].dep.Of; of.Class == c || of.Class == nil && of.Pattern().Unify(c.Key.Pattern()) {
				g.byClass[c] = append(g.byClass[c], i)
			}
		}
	}
	return g
}

func newTarget(set *rules.Set, d *rules.Dependency, a *rules.Template) target {
	t := target{template: a, key: a.Class != nil, tag: set.TagForm(a)}
	if !t.key && !t.tag {
		t.key, t.tag = true, true
	}
	of := d.Of.Placeholders()
	for _, p := range a.Placeholders() {
		for i, o := range of {
			if o == p {
				t.captures = append(t.captures, i)
				break
			}
		}
	}
	return t
}

// Len is the number of dependencies.
func (g *Graph) Len() int { return len(g.edges) }

// candidates are the edges that a name may have.
func (g *Graph) candidates(t *rules.Target) []int {
	if t.Kind == rules.KindKey && t.Class != nil {
		return g.byClass[t.Class]
	}
	return g.all
}

// Limits bound a cascade. Zero fields take the defaults.
type Limits struct {
	// Names is how many names one change may reach; default FanOutDefault.
	Names int
}

// NewWalker returns a walker of the graph. It holds scratch memory: one for
// each goroutine.
func (g *Graph) NewWalker(l Limits) *Walker {
	if l.Names <= 0 {
		l.Names = FanOutDefault
	}
	return &Walker{graph: g, limits: l, seen: map[string]struct{}{},
		captures: make([][]byte, 0, keytext.MaxPlaceholders)}
}

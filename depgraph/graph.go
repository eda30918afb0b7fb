// Package depgraph follows static dependencies: whoever invalidates a name also
// invalidates what depends on it, breadth first and within limits.
//
// What lies beyond a limit is not dropped in silence: its classes are raised.
// Only a depth that a rule gives itself is a bound beyond which nothing is
// touched.
//
// A walk costs what it reaches, whatever else there is: the dependencies of a
// name are found by its text, or by the literal text that it begins with.
package depgraph

import (
	"slices"
	"strings"

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
	// literals are the edges from one name, by that name; patterns those from
	// names of a form, by the literal text before the first placeholder; lengths
	// are those of these texts, ascending.
	literals map[string][]int32
	patterns map[string][]int32
	lengths  []int
}

// edge is one dependency.
type edge struct {
	dep *rules.Dependency
	to  []*target
}

// target is one name that depends.
type target struct {
	template *rules.Template
	// captures are the indexes of the values, one for each placeholder.
	captures []int
	// What the name is invalidated as. A form that is neither a class's key
	// nor a declared tag may be either.
	key, tag bool
	// byName: the form is no class's, but some name of it may be a key of one.
	byName bool
}

// New builds the graph of a set's dependencies.
func New(set *rules.Set) *Graph {
	g := &Graph{set: set, edges: make([]edge, 0, len(set.Dependencies)), literals: map[string][]int32{}, patterns: map[string][]int32{}}
	if set.Namespace != "" {
		g.prefix = []byte(set.Namespace + ":")
	}
	// Names that many depend on, or that depend on many, stand in memory once.
	literals := map[*rules.Template]*target{}
	for i, d := range set.Dependencies {
		e := edge{dep: d, to: make([]*target, len(d.Also))}
		for k, a := range d.Also {
			if a.Pattern().Placeholders() > 0 {
				e.to[k] = newTarget(set, d, a)
				continue
			}
			if literals[a] == nil {
				literals[a] = newTarget(set, d, a)
			}
			e.to[k] = literals[a]
		}
		g.edges = append(g.edges, e)
		prefix := d.Of.Pattern().Prefix()
		if d.Of.Pattern().Placeholders() == 0 {
			g.literals[prefix] = append(g.literals[prefix], int32(i))
			continue
		}
		g.patterns[prefix] = append(g.patterns[prefix], int32(i))
		if at, ok := slices.BinarySearch(g.lengths, len(prefix)); !ok {
			g.lengths = slices.Insert(g.lengths, at, len(prefix))
		}
	}
	return g
}

func newTarget(set *rules.Set, d *rules.Dependency, a *rules.Template) *target {
	t := &target{template: a, key: a.Class != nil, tag: set.TagForm(a)}
	if !t.key && !t.tag {
		t.key, t.tag = true, true
	}
	if t.key && a.Class == nil && a.Pattern().Placeholders() > 0 {
		t.byName = slices.ContainsFunc(set.Entries, func(c *rules.Class) bool { return c.Key.Pattern().Unify(a.Pattern()) })
	}
	if a.Pattern().Placeholders() == 0 {
		return t
	}
	of := d.Of.Placeholders()
	for _, p := range a.Placeholders() {
		t.captures = append(t.captures, slices.Index(of, p))
	}
	return t
}

// Len is the number of dependencies.
func (g *Graph) Len() int { return len(g.edges) }

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
	return &Walker{graph: g, limits: l, seen: newNames(), forms: map[reachKey]struct{}{},
		captures: make([][]byte, 0, keytext.MaxPlaceholders)}
}

// reachKey names what Reach is asked. What stands for itself counts as any name
// of its class, or as any that has none: see rules.Set.Reach.
type reachKey struct {
	class *rules.Class
	shape string // of a template without a class
	steps int
}

// form is what is asked instead of a template: there are few of them, and 10^6
// names.
func form(t *rules.Template, steps int) reachKey {
	switch {
	case t.Class != nil:
		return reachKey{class: t.Class, steps: steps}
	case t.Pattern().Placeholders() == 0:
		return reachKey{steps: steps}
	}
	return reachKey{shape: strings.Join(t.Pattern().Literals(), "\x00"), steps: steps}
}

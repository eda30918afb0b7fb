package rules

import (
	"slices"
	"sync"
)

// Reach returns the classes that the cascade can come to from a name of the
// form of start, following at most depth dependencies; start's own class is not
// among them unless it is come back to. all is true if a name without a class
// can be reached, a tag among them, whose entries may be of any class.
//
// It works on the forms of names, not on names: one that stands for itself counts
// as any of its class. It knows nothing of conditions, and errs on the side of
// more.
func (s *Set) Reach(start *Template, depth int) (classes []*Class, all bool) {
	g := s.edges.of(s)
	classSeen := make([]bool, len(s.Entries))
	add := func(c *Class) {
		if !classSeen[c.ordinal] {
			classSeen[c.ordinal] = true
			classes = append(classes, c)
		}
	}
	followed := make([]bool, len(g.nodes))
	frontier := g.alike(start)
	for ; depth > 0 && len(frontier) > 0; depth-- {
		var next []int
		for _, u := range frontier {
			if followed[u] {
				continue
			}
			followed[u] = true
			for _, v := range g.nodes[u].next {
				n := &g.nodes[v]
				if n.class != nil {
					add(n.class)
				} else {
					all = true
					for _, c := range n.carriers {
						add(c)
					}
				}
				next = append(append(next, v), n.alike...)
			}
		}
		frontier = next
	}
	return classes, all
}

// formGraph is the dependencies between forms of names: few, whatever the number
// of names.
type formGraph struct {
	once    sync.Once
	nodes   []formNode
	classes map[*Class]int
	shapes  map[string]int
	// literals are the names without a class from which dependencies start; they
	// are one node, -1 if there are none.
	literals map[string]struct{}
	names    int
}

// formNode is the names of one form.
type formNode struct {
	class    *Class
	template *Template // nil of the names
	carriers []*Class  // of a tag of the form
	// next are the nodes that depend on it, alike those that may stand for the
	// same names.
	next, alike []int
}

// of returns the graph, which is made when it is first asked for.
func (g *formGraph) of(s *Set) *formGraph {
	g.once.Do(func() { g.build(s) })
	return g
}

func (g *formGraph) build(s *Set) {
	g.classes, g.shapes, g.literals, g.names = map[*Class]int{}, map[string]int{}, map[string]struct{}{}, -1
	for _, c := range s.Entries {
		g.classes[c] = len(g.nodes)
		g.nodes = append(g.nodes, formNode{class: c, template: c.Key})
	}
	tags := map[string][]*Class{}
	for _, c := range s.Entries {
		for _, t := range c.Tags {
			tags[t.shape()] = addClass(tags[t.shape()], c)
		}
	}
	type arrow struct{ from, to int }
	there := map[arrow]bool{}
	for _, d := range s.Dependencies {
		u := g.node(d.Of)
		if u == g.names {
			g.literals[d.Of.Pattern().Prefix()] = struct{}{}
		}
		for _, a := range d.Also {
			v := g.node(a)
			if a.Class == nil {
				for _, c := range tags[a.shape()] {
					g.nodes[v].carriers = addClass(g.nodes[v].carriers, c)
				}
			}
			if !there[arrow{u, v}] {
				there[arrow{u, v}] = true
				g.nodes[u].next = append(g.nodes[u].next, v)
			}
		}
	}
	for u := range g.nodes {
		if n := &g.nodes[u]; n.template != nil {
			n.alike = g.others(n.template, u)
		} else {
			for v := range g.nodes {
				if g.nodes[v].class == nil && v != u && g.someName(g.nodes[v].template) {
					n.alike = append(n.alike, v)
				}
			}
		}
	}
}

// node is that of a form, which is added if it is not there.
func (g *formGraph) node(t *Template) int {
	if t.Class != nil {
		return g.classes[t.Class]
	}
	if t.Pattern().Placeholders() == 0 {
		if g.names < 0 {
			g.names = len(g.nodes)
			g.nodes = append(g.nodes, formNode{})
		}
		return g.names
	}
	shape := t.shape()
	u, ok := g.shapes[shape]
	if !ok {
		u = len(g.nodes)
		g.shapes[shape] = u
		g.nodes = append(g.nodes, formNode{template: t})
	}
	return u
}

// alike are the nodes that names of the form of t may be of.
func (g *formGraph) alike(t *Template) []int {
	if t.Class != nil {
		u := g.classes[t.Class]
		return append([]int{u}, g.nodes[u].alike...)
	}
	if t.Pattern().Placeholders() > 0 {
		if u, ok := g.shapes[t.shape()]; ok {
			return append([]int{u}, g.nodes[u].alike...)
		}
	}
	return g.others(t, -1)
}

// others are the nodes but u whose names may be of the form of t. A key has one
// class.
func (g *formGraph) others(t *Template, u int) []int {
	var out []int
	for v := range g.nodes {
		n := &g.nodes[v]
		switch {
		case v == u || t.Class != nil && n.class != nil:
		case n.template != nil && n.template.Pattern().Unify(t.Pattern()), n.template == nil && t.Class == nil && g.someName(t):
			out = append(out, v)
		}
	}
	return out
}

// someName reports whether a name that dependencies start from has the form of t.
func (g *formGraph) someName(t *Template) bool {
	if t.Pattern().Placeholders() == 0 {
		_, ok := g.literals[t.Pattern().Prefix()]
		return ok
	}
	for name := range g.literals {
		if t.Pattern().Match([]byte(name)) {
			return true
		}
	}
	return false
}

// appliesTo reports whether a name of the form of t may be one that others
// depend on by d.
func (d *Dependency) appliesTo(t *Template) bool {
	if t.Class != nil && d.Of.Class != nil && t.Class != d.Of.Class {
		return false
	}
	return d.Of.Pattern().Unify(t.Pattern())
}

// TagForm reports whether some entry or rule uses tags of the form of t, or,
// if t is one name, such a tag.
func (s *Set) TagForm(t *Template) bool {
	one := t.Pattern().Placeholders() == 0
	same := func(o *Template) bool {
		return o.shape() == t.shape() || one && o.Pattern().Match([]byte(t.Pattern().Prefix()))
	}
	if slices.ContainsFunc(s.Entries, func(c *Class) bool { return slices.ContainsFunc(c.Tags, same) }) {
		return true
	}
	return slices.ContainsFunc(s.Rules, func(r *Rule) bool {
		return slices.ContainsFunc(r.Tags, func(ts TagSet) bool { return slices.ContainsFunc(ts.All, same) })
	})
}

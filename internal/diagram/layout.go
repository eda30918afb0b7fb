package diagram

import (
	"cmp"
	"slices"
)

// layout is the graph in layers, after Sugiyama, Tagawa and Toda ("Methods for
// Visual Understanding of Hierarchical System Structures", 1981): circles are
// cut, every node goes one layer behind the farthest that leads to it, long
// arrows get a bend in each layer that they cross, and the order within layers
// is improved by barycentres.
type layout struct {
	layers [][]*cell
	// routes are the cells of each edge of the graph, from its source on; those
	// that go back are reversed.
	routes [][]*cell
}

// cell is a node, or the bend of an arrow (node -1).
type cell struct {
	node         int
	layer, order int
	up, down     []*cell
	weight       float64
	x, y, w, h   float64
}

// sweeps is how often the order within layers is improved.
const sweeps = 24

func newLayout(g *Graph) *layout {
	back := g.backEdges()
	depth := g.depths(back)
	l := &layout{}
	cells := make([]*cell, len(g.nodes))
	for i := range g.nodes {
		cells[i] = l.add(&cell{node: i, layer: depth[i]})
	}
	for i, e := range g.edges {
		from, to := cells[e.from], cells[e.to]
		if back[i] {
			from, to = to, from
		}
		route := []*cell{from}
		for from.layer+1 < to.layer {
			bend := l.add(&cell{node: -1, layer: from.layer + 1})
			join(from, bend)
			route = append(route, bend)
			from = bend
		}
		if from != to { // an arrow to itself
			join(from, to)
		}
		l.routes = append(l.routes, append(route, to))
	}
	l.order()
	return l
}

func (l *layout) add(c *cell) *cell {
	for len(l.layers) <= c.layer {
		l.layers = append(l.layers, nil)
	}
	c.order = len(l.layers[c.layer])
	l.layers[c.layer] = append(l.layers[c.layer], c)
	return c
}

func join(from, to *cell) {
	from.down = append(from.down, to)
	to.up = append(to.up, from)
}

// backEdges are those that close a circle, found depth first.
func (g *Graph) backEdges() []bool {
	const (
		fresh = iota
		open
		done
	)
	back := make([]bool, len(g.edges))
	out := make([][]int, len(g.nodes))
	for i, e := range g.edges {
		out[e.from] = append(out[e.from], i)
	}
	state := make([]byte, len(g.nodes))
	// A stack of its own: rules may depend on each other in a very long chain.
	type frame struct{ node, next int }
	for start := range g.nodes {
		if state[start] != fresh {
			continue
		}
		state[start] = open
		stack := []frame{{node: start}}
		for len(stack) > 0 {
			f := &stack[len(stack)-1]
			if f.next == len(out[f.node]) {
				state[f.node] = done
				stack = stack[:len(stack)-1]
				continue
			}
			i := out[f.node][f.next]
			f.next++
			switch to := g.edges[i].to; state[to] {
			case open:
				back[i] = true
			case fresh:
				state[to] = open
				stack = append(stack, frame{node: to})
			}
		}
	}
	return back
}

// depths is the length of the longest way to each node, circles cut.
func (g *Graph) depths(back []bool) []int {
	depth := make([]int, len(g.nodes))
	ways := make([]int, len(g.nodes))
	for i, e := range g.edges {
		if !back[i] {
			ways[e.to]++
		}
	}
	var ready []int
	for i := range g.nodes {
		if ways[i] == 0 {
			ready = append(ready, i)
		}
	}
	out := make([][]int, len(g.nodes))
	for i, e := range g.edges {
		if !back[i] {
			out[e.from] = append(out[e.from], e.to)
		}
	}
	for len(ready) > 0 {
		n := ready[0]
		ready = ready[1:]
		for _, to := range out[n] {
			depth[to] = max(depth[to], depth[n]+1)
			if ways[to]--; ways[to] == 0 {
				ready = append(ready, to)
			}
		}
	}
	return depth
}

// order sweeps down and up, and keeps the order with the fewest crossings.
func (l *layout) order() {
	best, least := l.snapshot(), l.crossings()
	for i := range sweeps {
		if least == 0 {
			return
		}
		if i%2 == 0 {
			for _, layer := range l.layers[1:] {
				settle(layer, func(c *cell) []*cell { return c.up })
			}
		} else {
			for k := len(l.layers) - 2; k >= 0; k-- {
				settle(l.layers[k], func(c *cell) []*cell { return c.down })
			}
		}
		if n := l.crossings(); n < least {
			best, least = l.snapshot(), n
		}
	}
	l.layers = best
	for _, layer := range l.layers {
		for i, c := range layer {
			c.order = i
		}
	}
}

func (l *layout) snapshot() [][]*cell {
	out := make([][]*cell, len(l.layers))
	for i, layer := range l.layers {
		out[i] = slices.Clone(layer)
	}
	return out
}

// settle orders a layer by the mean place of each cell's neighbours; those
// without keep theirs.
func settle(layer []*cell, neighbours func(*cell) []*cell) {
	for _, c := range layer {
		c.weight = float64(c.order)
		if near := neighbours(c); len(near) > 0 {
			sum := 0
			for _, n := range near {
				sum += n.order
			}
			c.weight = float64(sum) / float64(len(near))
		}
	}
	slices.SortStableFunc(layer, func(a, b *cell) int { return cmp.Compare(a.weight, b.weight) })
	for i, c := range layer {
		c.order = i
	}
}

// crossings counts the pairs of arrows that cross, by inversions: with the
// arrows between two layers in the order of their sources, each pair of targets
// that is out of order is one.
func (l *layout) crossings() int {
	total := 0
	for k := 0; k+1 < len(l.layers); k++ {
		tree := make([]int, len(l.layers[k+1])+1) // Fenwick's, of targets seen
		seen := 0
		for _, c := range l.layers[k] {
			targets := make([]int, len(c.down))
			for i, d := range c.down {
				targets[i] = d.order
			}
			slices.Sort(targets)
			for _, t := range targets {
				total += seen
				for i := t + 1; i > 0; i -= i & -i {
					total -= tree[i]
				}
			}
			for _, t := range targets {
				seen++
				for i := t + 1; i < len(tree); i += i & -i {
					tree[i]++
				}
			}
		}
	}
	return total
}

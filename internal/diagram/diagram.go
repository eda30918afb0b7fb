// Package diagram draws directed graphs in layers: as SVG by a layout of its
// own, and as the sources of Mermaid and Graphviz.
package diagram

import (
	"slices"
)

// Node is a box.
type Node struct {
	// Kind chooses shape and colour, one of the constants.
	Kind  Kind
	Label string
	// Detail is a second, smaller line; may be empty.
	Detail string
}

// Kind says what a node stands for.
type Kind byte

// The kinds of nodes.
const (
	Table Kind = iota
	Rule
	Entry
	Tag
)

// names of the kinds, as classes of SVG and Mermaid.
var kindNames = [...]string{"table", "rule", "entry", "tag"}

// edge is an arrow between two nodes.
type edge struct {
	from, to int
	label    string
	dashed   bool
}

// Graph is a directed graph. The zero Graph is empty. Not safe for concurrent
// use.
type Graph struct {
	nodes []Node
	edges []edge
	index map[Node]int
}

// Node returns the number of a node, and adds it if it is not there.
func (g *Graph) Node(n Node) int {
	key := Node{Kind: n.Kind, Label: n.Label}
	if i, ok := g.index[key]; ok {
		return i
	}
	if g.index == nil {
		g.index = map[Node]int{}
	}
	g.nodes = append(g.nodes, n)
	g.index[key] = len(g.nodes) - 1
	return len(g.nodes) - 1
}

// Edge adds an arrow, unless the same is there.
func (g *Graph) Edge(from, to int, label string) { g.add(edge{from, to, label, false}) }

// DashedEdge adds an arrow with a dashed line, unless the same is there.
func (g *Graph) DashedEdge(from, to int, label string) { g.add(edge{from, to, label, true}) }

func (g *Graph) add(e edge) {
	if !slices.Contains(g.edges, e) {
		g.edges = append(g.edges, e)
	}
}

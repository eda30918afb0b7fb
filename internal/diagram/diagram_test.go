package diagram

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

func sample() *Graph {
	g := &Graph{}
	products := g.Node(Node{Kind: Table, Label: "public.products"})
	reviews := g.Node(Node{Kind: Table, Label: "public.reviews"})
	page := g.Node(Node{Kind: Rule, Label: "product page", Detail: `changed("price") && new.price < 5`})
	rating := g.Node(Node{Kind: Rule, Label: "rating"})
	product := g.Node(Node{Kind: Entry, Label: "product", Detail: "product:{id}"})
	category := g.Node(Node{Kind: Tag, Label: "category:{category_id}"})
	list := g.Node(Node{Kind: Entry, Label: `list "a\b" #1`})
	g.Edge(products, page, "insert, update")
	g.Edge(reviews, rating, "all")
	g.Edge(page, product, "")
	g.Edge(page, category, "")
	g.Edge(rating, product, "")
	g.Edge(category, list, "")
	g.Edge(product, list, "")
	g.Edge(products, list, "") // crosses two layers
	g.Edge(list, product, "")  // a circle
	g.Edge(list, list, "")
	g.Edge(page, product, "") // is there already
	g.DashedEdge(product, category, "id > 5")
	g.DashedEdge(product, rating, "")
	g.DashedEdge(product, rating, "") // is there already
	return g
}

func TestGolden(t *testing.T) {
	t.Parallel()
	for name, write := range map[string]func(*Graph, io.Writer) error{"sample.svg": (*Graph).SVG, "sample.mmd": (*Graph).Mermaid, "sample.dot": (*Graph).DOT} {
		var b bytes.Buffer
		if err := write(sample(), &b); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(path, b.Bytes(), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(b.Bytes(), want) {
			t.Errorf("%s differs; look at it after go test -update:\n%s", name, b.Bytes())
		}
	}
}

func random(r *rand.Rand) *Graph {
	g := &Graph{}
	n := 1 + r.IntN(25)
	for i := range n {
		g.Node(Node{Kind: Kind(i % 4), Label: fmt.Sprint("n", i), Detail: []string{"", "detail"}[r.IntN(2)]})
	}
	for range r.IntN(3 * n) {
		g.Edge(r.IntN(n), r.IntN(n), "")
	}
	return g
}

// Whatever the graph: each node is drawn once, arrows lead from layer to next
// layer, no two boxes of a layer overlap, all is inside, and it is XML.
func TestLayout(t *testing.T) {
	t.Parallel()
	for seed := range uint64(300) {
		g := random(rand.New(rand.NewPCG(seed, 0)))
		l := newLayout(g)
		width, height := l.place(g)
		seen := map[int]int{}
		for k, layer := range l.layers {
			var below float64
			for i, c := range layer {
				if c.node >= 0 {
					seen[c.node]++
				}
				if c.layer != k || c.order != i {
					t.Fatalf("seed %d: cell of layer %d, order %d stands at %d, %d", seed, c.layer, c.order, k, i)
				}
				if c.y < below || c.x < 0 || c.x+c.w > width || c.y+c.h > height {
					t.Fatalf("seed %d: box %+v overlaps or is outside of %v x %v", seed, c, width, height)
				}
				below = c.y + c.h
			}
		}
		for i := range g.nodes {
			if seen[i] != 1 {
				t.Fatalf("seed %d: node %d is there %d times", seed, i, seen[i])
			}
		}
		for i, route := range l.routes {
			for j := 1; j < len(route); j++ {
				if route[j] != route[j-1] && route[j].layer != route[j-1].layer+1 {
					t.Fatalf("seed %d: edge %d goes from layer %d to %d", seed, i, route[j-1].layer, route[j].layer)
				}
			}
		}
		if got, want := l.crossings(), slowCrossings(l); got != want {
			t.Fatalf("seed %d: %d crossings, want %d", seed, got, want)
		}
		var b bytes.Buffer
		if err := g.SVG(&b); err != nil {
			t.Fatal(err)
		}
		d := xml.NewDecoder(&b)
		for {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
	}
}

// slowCrossings compares every two arrows.
func slowCrossings(l *layout) (n int) {
	for _, layer := range l.layers {
		for i, a := range layer {
			for _, b := range layer[i+1:] {
				for _, x := range a.down {
					for _, y := range b.down {
						if x.order > y.order {
							n++
						}
					}
				}
			}
		}
	}
	return n
}

// The order is improved: two arrows that cross as written need not.
func TestOrderUncrosses(t *testing.T) {
	t.Parallel()
	g := &Graph{}
	var top, bottom []int
	for i := range 6 {
		top = append(top, g.Node(Node{Kind: Table, Label: fmt.Sprint("t", i)}))
	}
	for i := range 6 {
		bottom = append(bottom, g.Node(Node{Kind: Rule, Label: fmt.Sprint("r", i)}))
	}
	for i := range 6 {
		g.Edge(top[i], bottom[(i*5+3)%6], "")
	}
	if n := newLayout(g).crossings(); n != 0 {
		t.Errorf("%d crossings are left, want 0", n)
	}
}

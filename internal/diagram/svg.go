package diagram

import (
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"strings"
	"unicode/utf8"
)

// Measures of a drawing, in pixels. Widths of text are estimated: the font is
// the reader's.
const (
	charWidth   = 7.2
	smallWidth  = 5.8
	boxPadding  = 12.0
	boxHeight   = 28.0
	detailExtra = 14.0
	layerGap    = 70.0
	cellGap     = 14.0
	bendHeight  = 6.0
	margin      = 24.0
)

const svgStyle = `text{font:12px ui-monospace,Menlo,Consolas,monospace;fill:#1b1f24}text.detail{font-size:10px;fill:#57606a}text.edge{font-size:10px;fill:#57606a;paint-order:stroke;stroke:#fff;stroke-width:3px}
rect{stroke-width:1.2}.table rect{fill:#ddf4ff;stroke:#0969da}.rule rect{fill:#fff8c5;stroke:#9a6700}.entry rect{fill:#dafbe1;stroke:#1a7f37}.tag rect{fill:#fbefff;stroke:#8250df}
path{fill:none;stroke:#6e7781;stroke-width:1.2}`

// SVG draws the graph from left to right.
func (g *Graph) SVG(w io.Writer) error {
	l := newLayout(g)
	width, height := l.place(g)
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%.0f" height="%.0f" viewBox="0 0 %.0f %.0f">`+"\n", width, height, width, height)
	fmt.Fprintf(&b, "<style>%s</style>\n", svgStyle)
	b.WriteString(`<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto-start-reverse"><path d="M0 0L8 4L0 8z" style="fill:#6e7781;stroke:none"/></marker></defs>` + "\n")
	back := g.backEdges()
	for i := range g.edges {
		l.draw(&b, g, i, back[i])
	}
	for _, layer := range l.layers {
		for _, c := range layer {
			if c.node >= 0 {
				drawBox(&b, &g.nodes[c.node], c)
			}
		}
	}
	b.WriteString("</svg>\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// place gives every cell its coordinates, and returns the size of the whole.
func (l *layout) place(g *Graph) (width, height float64) {
	heights := make([]float64, len(l.layers))
	gaps := l.gaps(g)
	x := margin
	for k, layer := range l.layers {
		var widest float64
		for _, c := range layer {
			c.h = bendHeight
			if c.node >= 0 {
				n := &g.nodes[c.node]
				c.w = 2*boxPadding + math.Max(charWidth*float64(utf8.RuneCountInString(n.Label)), smallWidth*float64(utf8.RuneCountInString(n.Detail)))
				c.h = boxHeight
				if n.Detail != "" {
					c.h += detailExtra
				}
			}
			widest = math.Max(widest, c.w)
			heights[k] += c.h + cellGap
		}
		for _, c := range layer {
			c.x = x
			if c.node < 0 {
				c.w = widest
			}
		}
		height = math.Max(height, heights[k])
		x += widest + gaps[k]
	}
	for k, layer := range l.layers {
		y := margin + (height-heights[k])/2
		for _, c := range layer {
			c.y = y
			y += c.h + cellGap
		}
	}
	return x - gaps[len(gaps)-1] + margin, height + 2*margin - cellGap
}

// gaps is the room behind each layer: the labels of arrows that leave it fit.
func (l *layout) gaps(g *Graph) []float64 {
	gaps := make([]float64, max(len(l.layers), 1))
	for k := range gaps {
		gaps[k] = layerGap
	}
	for i, route := range l.routes {
		k := route[0].layer
		gaps[k] = math.Max(gaps[k], smallWidth*float64(utf8.RuneCountInString(g.edges[i].label))+2*boxPadding)
	}
	return gaps
}

func drawBox(b *strings.Builder, n *Node, c *cell) {
	fmt.Fprintf(b, `<g class="%s"><rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" rx="5"/>`, kindNames[n.Kind], c.x, c.y, c.w, c.h)
	fmt.Fprintf(b, `<text x="%.1f" y="%.1f">%s</text>`, c.x+boxPadding, c.y+18, escape(n.Label))
	if n.Detail != "" {
		fmt.Fprintf(b, `<text class="detail" x="%.1f" y="%.1f">%s</text>`, c.x+boxPadding, c.y+33, escape(n.Detail))
	}
	b.WriteString("</g>\n")
}

// draw is one arrow, a curve from cell to cell.
func (l *layout) draw(b *strings.Builder, g *Graph, i int, back bool) {
	route := l.routes[i]
	from := route[0]
	if len(route) == 2 && from == route[1] { // to itself: a loop at its side
		x, y := from.x+from.w, from.y+from.h/2
		fmt.Fprintf(b, `<path d="M%.1f %.1fc20 -14 20 14 0 4" marker-end="url(#arrow)"/>`+"\n", x, y-2)
		return
	}
	var d strings.Builder
	x, y := from.x+from.w, from.y+from.h/2
	fmt.Fprintf(&d, "M%.1f %.1f", x, y)
	for _, c := range route[1:] {
		cx, cy := c.x, c.y+c.h/2
		mid := (x + cx) / 2
		fmt.Fprintf(&d, "C%.1f %.1f %.1f %.1f %.1f %.1f", mid, y, mid, cy, cx, cy)
		if c.node < 0 {
			fmt.Fprintf(&d, "H%.1f", c.x+c.w)
		}
		x, y = c.x+c.w, cy
	}
	end := "end"
	if back {
		end = "start"
	}
	dashed := ""
	if g.edges[i].dashed {
		dashed = ` stroke-dasharray="5 3"`
	}
	fmt.Fprintf(b, `<path d="%s" marker-%s="url(#arrow)"%s/>`+"\n", d.String(), end, dashed)
	if label := g.edges[i].label; label != "" {
		// In the gap, wherever the box ends.
		to := route[1]
		fmt.Fprintf(b, `<text class="edge" x="%.1f" y="%.1f" text-anchor="middle">%s</text>`+"\n",
			to.x-l.gaps(g)[from.layer]/2, (from.y+from.h/2+to.y+to.h/2)/2-3, escape(label))
	}
}

func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a Builder does not fail
	return b.String()
}

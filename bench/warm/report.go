package main

import (
	"fmt"
	"strings"
	"time"
)

// report is what came out.
type report struct {
	rows    int
	took    time.Duration // from the start of the process to 200
	warming time.Duration // of that with rows before it
	points  []point
	machine string
}

// point is what happened between two samples, in a second.
type point struct {
	at                 float64 // seconds
	rows, transactions float64
	active             float64
}

func newReport(o options, samples []sample) report {
	r := report{rows: o.rows, took: samples[len(samples)-1].at, machine: cores()}
	first := samples[0].at
	for _, s := range samples {
		if s.rows == 0 {
			first = s.at
		}
	}
	r.warming = max(r.took-first, time.Millisecond)
	for i := 1; i < len(samples); i++ {
		a, b := samples[i-1], samples[i]
		d := (b.at - a.at).Seconds()
		r.points = append(r.points, point{at: b.at.Seconds(), rows: float64(b.rows-a.rows) / d, transactions: max(0, b.statements-a.statements) / d, active: float64(b.active)})
	}
	return r
}

func (r report) text() string {
	var transactions, active float64
	for _, p := range r.points {
		transactions, active = max(transactions, p.transactions), active+p.active
	}
	return fmt.Sprintf("%d entries: ready after %.1f s, %.0f entries/s while warming; %.1f active backends on average, %.0f transactions/s at most (%s)\n",
		r.rows, r.took.Seconds(), float64(r.rows)/r.warming.Seconds(), active/float64(max(len(r.points), 1)), transactions, r.machine)
}

const (
	wide, high         = 760, 160
	left, below, space = 70, 24, 60
)

// svg draws rows/s, transactions/s and active backends over time, below each
// other.
func (r report) svg() string {
	var b strings.Builder
	panels := []struct {
		name, color string
		of          func(point) float64
	}{
		{"entries/s", "#2563eb", func(p point) float64 { return p.rows }},
		{"transactions/s of the database", "#b45309", func(p point) float64 { return p.transactions }},
		{"active backends of Lethe", "#15803d", func(p point) float64 { return p.active }},
	}
	total := len(panels)*(high+space) + 20
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12">`+"\n", wide+left+20, total, wide+left+20, total)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="#ffffff"/>`+"\n")
	end := r.took.Seconds()
	for i, panel := range panels {
		top := i*(high+space) + 30
		most := 1.0
		for _, p := range r.points {
			most = max(most, panel.of(p))
		}
		fmt.Fprintf(&b, `<text x="%d" y="%d" fill="#111827" font-weight="bold">%s</text>`+"\n", left, top-8, panel.name)
		for q := range 3 {
			y := top + high - q*high/2
			fmt.Fprintf(&b, `<line x1="%d" y1="%d" x2="%d" y2="%d" stroke="#e5e7eb"/><text x="%d" y="%d" text-anchor="end" fill="#4b5563">%.0f</text>`+"\n", left, y, left+wide, y, left-6, y+4, most*float64(q)/2)
		}
		for q := range 5 {
			x := left + q*wide/4
			fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="middle" fill="#4b5563">%.0f s</text>`+"\n", x, top+high+below-8, end*float64(q)/4)
		}
		fmt.Fprintf(&b, `<polyline fill="none" stroke="%s" stroke-width="1.5" points="`, panel.color)
		for _, p := range r.points {
			fmt.Fprintf(&b, "%.1f,%.1f ", left+p.at/end*wide, float64(top+high)-panel.of(p)/most*high)
		}
		b.WriteString("\"/>\n")
	}
	b.WriteString("</svg>\n")
	return b.String()
}

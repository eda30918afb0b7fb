package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lethe-cache/lethe/invalidator"
	"github.com/lethe-cache/lethe/rules"
	"github.com/lethe-cache/lethe/stream"
)

// demoView prints what the worker does, as it does it, and keeps the numbers
// for the summary. It is safe for concurrent use.
type demoView struct {
	out io.Writer

	mu            sync.Mutex
	began         time.Time
	live          bool
	next          time.Time // the next line is not printed before
	changes       int
	invalidations int
	raises        int
	letters       int
	latencies     []time.Duration
	waiting       map[string][]chan struct{} // by the name that is waited for
}

// demoLines is how often a change is printed at most: what is faster can not
// be read.
const demoLines = 250 * time.Millisecond

func newDemoView(out io.Writer) *demoView {
	return &demoView{out: out, waiting: map[string][]chan struct{}{}}
}

func (v *demoView) observer() invalidator.Observer {
	return invalidator.Observer{
		Applied:    v.applied,
		Raised:     func(invalidator.Raised) { v.count(&v.raises) },
		DeadLetter: func(stream.DeadLetter) { v.count(&v.letters) },
	}
}

func (v *demoView) count(n *int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	*n++
}

// changed counts a change that the demonstration committed.
func (v *demoView) changed() { v.count(&v.changes) }

// start begins the printed part.
func (v *demoView) start() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.began, v.live = time.Now(), true
	fmt.Fprintf(v.out, "\n%6s  %-32s %-32s %-42s %s\n", "TIME", "CHANGE", "RULE", "FORGOTTEN", "AFTER COMMIT")
}

func (v *demoView) stop() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.live = false
}

func (v *demoView) applied(a invalidator.Applied) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.invalidations++
	if a.Latency > 0 {
		v.latencies = append(v.latencies, a.Latency)
	}
	for _, name := range a.Names {
		for _, c := range v.waiting[name] {
			close(c)
		}
		delete(v.waiting, name)
	}
	now := time.Now()
	if !v.live || now.Before(v.next) {
		return
	}
	v.next = now.Add(demoLines)
	what := strings.Join(a.Names, " & ")
	if a.Kind != rules.KindKey {
		what = a.Kind.String() + " " + what
	}
	if a.Depth > 0 {
		what += fmt.Sprintf(" (cascade %d)", a.Depth)
	}
	fmt.Fprintf(v.out, "%5.1fs  %-32s %-32s %-42s %s\n", now.Sub(v.began).Seconds(),
		a.Op.String()+" "+a.Table, a.Rule, what, milliseconds(a.Latency))
}

// forgotten returns a channel that is closed when the name has been
// invalidated the next time.
func (v *demoView) forgotten(name string) <-chan struct{} {
	v.mu.Lock()
	defer v.mu.Unlock()
	c := make(chan struct{})
	v.waiting[name] = append(v.waiting[name], c)
	return c
}

// demoNumbers are what the summary tells.
type demoNumbers struct {
	changes, invalidations, raises, letters int
	p50, p99                                time.Duration
}

func (v *demoView) numbers() demoNumbers {
	v.mu.Lock()
	defer v.mu.Unlock()
	sorted := slices.Clone(v.latencies)
	slices.Sort(sorted)
	return demoNumbers{
		changes: v.changes, invalidations: v.invalidations, raises: v.raises, letters: v.letters,
		p50: quantile(sorted, 0.50), p99: quantile(sorted, 0.99),
	}
}

// quantile of sorted values, the nearest rank.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}

func milliseconds(d time.Duration) string {
	return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond))
}

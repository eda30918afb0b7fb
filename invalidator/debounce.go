package invalidator

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/stream"
)

// What ends a window before its time. A window holds the watermark, and with it
// what the log keeps in memory: it must be over long before that is full, or the
// stream would stand still for the sake of a sweep that nobody is in a hurry for.
const (
	windowChanges = 1 << 14
	windowBytes   = 4 << 20
	// windowTags is how many tags a window has; so many different ones are no
	// burst of a few.
	windowTags = 1000
	// windowParts bounds the open purges of a window: each of them costs every
	// reader a comparison.
	windowParts = 8
)

// window is the time in which purges of rules with one debounce join one sweep.
//
// A purge is opened at once, whoever joins: from then on no reader of the client
// takes an entry of its tags for a hit unless its stamp covers the purge's
// commit, and no entry registers that lacks it. What waits is the work, and the
// watermark with it: the mark of the first batch that joined has the window
// among its tasks, and all later ones stand behind it in the ledger. A crash
// before the sweep has acknowledged none of them, so they come again; what was
// left open is struck off once the watermark has passed it (H14).
type window struct {
	debounce time.Duration
	due      time.Time
	mark     *mark
	groups   []*windowGroup
}

// windowGroup is what becomes one purge: tags of one kind of rule, or one set of
// tags that an entry must carry all of.
type windowGroup struct {
	all   bool
	asks  rewarmAsks
	parts []coherence.Purge // open, in Redis
	tags  map[string]struct{}
	x     change.Position
}

// heldUp is what has passed since the first of the windows that are open.
type heldUp struct{ changes, bytes int }

// window returns the one of a debounce, and nil if none is open.
func (l *lane) window(debounce time.Duration) *window {
	for _, w := range l.windows {
		if w.debounce == debounce {
			return w
		}
	}
	return nil
}

// newWindows counts the windows that purges will open.
func (l *lane) newWindows(late []purge) (n int) {
	var fresh []time.Duration
	for i := range late {
		if d := late[i].debounce; l.window(d) == nil && !slices.Contains(fresh, d) {
			fresh = append(fresh, d)
		}
	}
	return len(fresh)
}

// join puts opened purges into their windows. m is the batch's mark, with a task
// for each window that it opens.
func (l *lane) join(ctx context.Context, late []purge, m *mark) error {
	joined := map[*window]bool{}
	for i := range late {
		p := &late[i]
		w := l.window(p.debounce)
		if w == nil {
			w = &window{debounce: p.debounce, due: time.Now().Add(p.debounce), mark: m}
			l.windows = append(l.windows, w)
			joined[w] = true
			l.w.metrics.pending.WithLabelValues("debounce").Inc()
		}
		if !joined[w] {
			joined[w] = true
			l.w.metrics.coalesced.Inc()
		}
		if err := w.group(p).add(ctx, l, p.Purge); err != nil {
			return err
		}
	}
	return nil
}

// group finds the group of a purge. The rewarming of what a sweep finds has
// waited with the sweep, and does not wait again.
func (w *window) group(p *purge) *windowGroup {
	asks := p.asks
	asks.delay = 0
	for _, g := range w.groups {
		if g.all != p.All || g.asks != asks {
			continue
		}
		if !g.all || len(g.tags) == len(p.Tags) && !slices.ContainsFunc(p.Tags, func(t string) bool { _, ok := g.tags[t]; return !ok }) {
			return g
		}
	}
	g := &windowGroup{all: p.All, asks: asks, tags: map[string]struct{}{}}
	w.groups = append(w.groups, g)
	return g
}

// add takes an open purge in. Too many become one.
func (g *windowGroup) add(ctx context.Context, l *lane, p coherence.Purge) error {
	g.parts = append(g.parts, p)
	g.x = g.x.Max(p.X)
	for _, t := range p.Tags {
		g.tags[t] = struct{}{}
	}
	if len(g.parts) < windowParts {
		return nil
	}
	return l.w.retry(ctx, "open purge", func(ctx context.Context) error { return g.merge(ctx, l.w, l.batch.v) })
}

// whole is the purge of the group: of all its tags, with the greatest X.
func (g *windowGroup) whole() coherence.Purge {
	tags := make([]string, 0, len(g.tags))
	for t := range g.tags {
		tags = append(tags, t)
	}
	slices.SortFunc(tags, strings.Compare)
	return coherence.Purge{X: g.x, Tags: tags, All: g.all}
}

// merge opens the whole and then closes the parts, which it contains: whoever is
// told that one of them is swept has been told of the whole before. It may be
// repeated.
func (g *windowGroup) merge(ctx context.Context, w *Worker, v change.Position) error {
	whole := g.whole()
	if err := w.store.OpenPurge(ctx, whole, v); err != nil {
		return err
	}
	for i := range g.parts {
		tags := slices.Compact(slices.Sorted(slices.Values(g.parts[i].Tags)))
		if g.parts[i].X == whole.X && slices.Equal(tags, whole.Tags) {
			continue // it is the whole
		}
		if err := w.store.ClosePurge(ctx, g.parts[i], v); err != nil {
			return err
		}
	}
	g.parts = []coherence.Purge{whole}
	return nil
}

// weigh counts a batch that passes while windows are open.
func (l *lane) weigh(deliveries []stream.Delivery) {
	if len(l.windows) == 0 {
		l.held = heldUp{}
		return
	}
	const perRecord, perChange, perValue = 256, 160, 32 // as the log in memory counts
	for i := range deliveries {
		r := deliveries[i].Record
		l.held.bytes += perRecord
		if r == nil {
			continue
		}
		l.held.changes += len(r.Changes)
		for k := range r.Changes {
			c := &r.Changes[k]
			l.held.bytes += perChange + len(c.Content)
			for _, row := range []change.Row{c.Old, c.New} {
				for n := range row {
					l.held.bytes += perValue + len(row[n].Bytes)
				}
			}
		}
	}
}

// nextWindow is when the next window is due; ok is false if none is open.
func (l *lane) nextWindow() (due time.Time, ok bool) {
	for i, w := range l.windows {
		if i == 0 || w.due.Before(due) {
			due = w.due
		}
	}
	return due, len(l.windows) > 0
}

// endWindows sweeps what is due, or everything where there is no more time.
func (l *lane) endWindows(ctx context.Context, all bool) error {
	all = all || l.held.changes >= windowChanges || l.held.bytes >= windowBytes
	now := time.Now()
	for len(l.windows) > 0 {
		i := slices.IndexFunc(l.windows, func(w *window) bool { return all || !now.Before(w.due) || w.wide() })
		if i < 0 {
			return nil
		}
		if ctx.Err() != nil { // told to hurry: it comes again
			return context.Cause(ctx)
		}
		w := l.windows[i]
		l.w.hook("window")
		if err := l.sweepWindow(ctx, w); err != nil {
			return err
		}
		l.windows = slices.Delete(l.windows, i, i+1)
		l.w.metrics.pending.WithLabelValues("debounce").Dec()
	}
	l.held = heldUp{}
	return nil
}

func (w *window) wide() bool {
	n := 0
	for _, g := range w.groups {
		n += len(g.tags)
	}
	return n > windowTags
}

// sweepWindow starts the sweep of a window. The purges are opened once more, by
// their whole: a node that lost writes meanwhile may have lost them.
func (l *lane) sweepWindow(ctx context.Context, w *window) error {
	purges := make([]purge, len(w.groups))
	for i, g := range w.groups {
		purges[i] = purge{Purge: g.whole(), asks: g.asks, group: g}
	}
	return l.sweepBeside(ctx, purges, l.batch.v, w.mark)
}

// dropWindows forgets the windows of a lane that ends without having swept them:
// what they are for is delivered again.
func (l *lane) dropWindows() {
	l.w.metrics.pending.WithLabelValues("debounce").Sub(float64(len(l.windows)))
	l.windows = nil
}

package invalidator

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/rules"
)

// Beyond keeps what was forgotten for caches beyond Redis, and returns once it is
// safe: the log may forget it then. It is called by one goroutine for each
// partition, and called again with the same, or more, after an error.
type Beyond func(context.Context, Forgotten) error

// Forgotten is what some batches have invalidated, each name once, namespace
// included. Redis holds none of it any more, sweeps and walks included, and the
// broadcasts are sent.
type Forgotten struct {
	// Keys by the name of their class; "" has those of none.
	Keys map[string][]string
	Tags []string
	// Classes were raised; "*" is every class, and then nothing else is said.
	Classes []string
	// X is the greatest position of all that.
	X change.Position
}

// forgottenMost is how many names a partition collects before it says that
// everything was forgotten: memory must not grow while nobody takes them.
const forgottenMost = 200_000

// gathering collects names. The zero value is ready.
type gathering struct {
	keys          map[string]string // name -> class
	tags, classes map[string]struct{}
	x             change.Position
}

func (g *gathering) empty() bool { return len(g.keys)+len(g.tags)+len(g.classes) == 0 }

// all reports whether everything is forgotten.
func (g *gathering) all() bool {
	_, all := g.classes["*"]
	return all
}

func (g *gathering) key(name, class string) {
	if g.all() {
		return
	}
	if g.keys == nil {
		g.keys = map[string]string{}
	}
	g.keys[name] = class
	g.bound()
}

func (g *gathering) tag(name string) {
	if g.all() {
		return
	}
	if g.tags == nil {
		g.tags = map[string]struct{}{}
	}
	g.tags[name] = struct{}{}
	g.bound()
}

func (g *gathering) class(name string) {
	if name == "*" {
		g.keys, g.tags, g.classes = nil, nil, map[string]struct{}{name: {}}
		return
	}
	if g.all() {
		return
	}
	if g.classes == nil {
		g.classes = map[string]struct{}{}
	}
	g.classes[name] = struct{}{}
}

func (g *gathering) bound() {
	if len(g.keys)+len(g.tags) > forgottenMost {
		g.class("*")
	}
}

// targets adds what rules asked for, in memory of its own.
func (g *gathering) targets(list []rules.Target) {
	for i := range list {
		t := &list[i]
		g.x = g.x.Max(t.X)
		switch t.Kind {
		case rules.KindKey:
			class := ""
			if t.Class != nil {
				class = t.Class.Name
			}
			g.key(string(t.Name), class)
		case rules.KindTag:
			g.tag(string(t.Name))
		case rules.KindAllTags:
			// What carries all of them carries the first: too much is
			// forgotten, since no edge knows intersections.
			if len(t.Names) > 0 {
				g.tag(string(t.Names[0]))
			}
		case rules.KindClass:
			g.class(t.ClassName())
		}
	}
}

func (g *gathering) raises(list []coherence.RaiseRequest) {
	for i := range list {
		g.x = g.x.Max(list[i].X)
		for _, c := range list[i].Classes {
			g.class(c)
		}
	}
}

func (g *gathering) merge(o *gathering) {
	if o == nil {
		return
	}
	g.x = g.x.Max(o.x)
	for c := range o.classes {
		g.class(c)
	}
	for t := range o.tags {
		g.tag(t)
	}
	for k, c := range o.keys {
		g.key(k, c)
	}
}

func (g *gathering) forgotten() Forgotten {
	f := Forgotten{X: g.x, Tags: slices.Sorted(maps.Keys(g.tags)), Classes: slices.Sorted(maps.Keys(g.classes))}
	if len(g.keys) > 0 {
		f.Keys = map[string][]string{}
		for k, c := range g.keys {
			f.Keys[c] = append(f.Keys[c], k)
		}
		for _, keys := range f.Keys {
			slices.Sort(keys)
		}
	}
	return f
}

// owed are the batches of a lane that are done in Redis and not acknowledged,
// because what they forgot is not safe with Beyond yet.
//
// The watermark does not wait for it: readers of the client are served by Redis
// alone. What is not acknowledged comes again after a crash, below the
// watermark then, so that Redis is spared it; Lane.change tells it all the same.
//
// It is safe for concurrent use.
type owed struct {
	mu sync.Mutex
	// open are the batches in order. The first of them is number `first` of all
	// that ever were; those below number `safe` are safe.
	open        []int64
	first, safe int
	// untold is what the batches behind those that are being told forgot; late
	// belongs to the next batch, whichever it is.
	untold, late gathering
	telling      bool
}

// owe takes over a batch that is done. start says that the caller has to start
// telling.
func (o *owed) owe(offset int64, g *gathering) (start bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.untold.merge(g)
	o.untold.merge(&o.late)
	o.late = gathering{}
	o.open = append(o.open, offset)
	start = !o.telling
	o.telling = true
	return start
}

// waiting returns how many batches are not acknowledged.
func (o *owed) waiting() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.open)
}

// lateFor adds what no batch forgot: a redo, a loss found at the start. It goes
// with the next batch. If the process dies between that batch's watermark and
// this, it is not told: a second fault within moments of the first.
func (o *owed) lateFor(classes []string, keys map[string]string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, c := range classes {
		o.late.class(c)
	}
	for k, c := range keys {
		o.late.key(k, c)
	}
}

// isLate reports whether something waits for the next batch.
func (o *owed) isLate() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return !o.late.empty()
}

// take merges into g what is to be told now; end numbers the batch behind the
// last one whose share that is. ok is false if there is none: telling is over.
func (o *owed) take(g *gathering) (end int, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	end = o.first + len(o.open)
	if end == o.safe || len(o.open) == 0 {
		o.telling = false
		return 0, false
	}
	g.merge(&o.untold)
	o.untold = gathering{}
	return end, true
}

// told says that the batches below number end are safe.
func (o *owed) told(end int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.safe = end
}

// due returns the last batch that may be acknowledged.
func (o *owed) due() (offset int64, ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	n := o.safe - o.first
	if n <= 0 {
		return 0, false
	}
	offset = o.open[n-1]
	o.open = append(o.open[:0], o.open[n:]...)
	o.first = o.safe
	return offset, true
}

// tellEvery is the least time between two calls of Beyond for one partition:
// under load many batches share one.
const tellEvery = 50 * time.Millisecond

// acknowledge ends a batch that is done with all its effects: at once, or when
// what it forgot is safe with Beyond.
func (l *lane) acknowledge(ctx context.Context, last mark) error {
	if last.forgot.empty() && !l.owed.isLate() && l.owed.waiting() == 0 {
		return l.ack(ctx, last.offset)
	}
	if l.owed.owe(last.offset, &last.forgot) {
		l.sweeps.Go(func() { l.tell(l.ctx) })
	}
	return nil
}

// acknowledgeTold acknowledges the batches that are safe with Beyond.
func (l *lane) acknowledgeTold(ctx context.Context) error {
	offset, ok := l.owed.due()
	if !ok {
		return nil
	}
	return l.ack(ctx, offset)
}

func (l *lane) ack(ctx context.Context, offset int64) error {
	l.noteRules(ctx, offset)
	l.w.hook("ack")
	if err := l.p.Ack(ctx, offset); err != nil {
		return fmt.Errorf("acknowledge offset %d: %w", offset, err)
	}
	return nil
}

// tell hands Beyond what is owed until nothing is.
func (l *lane) tell(ctx context.Context) {
	var g gathering
	for {
		end, ok := l.owed.take(&g)
		if !ok {
			return
		}
		begun := time.Now()
		err := l.w.retry(ctx, "tell beyond", func(ctx context.Context) error {
			tell := l.w.beyond()
			if tell == nil || g.empty() {
				return nil // nobody is left who wants to know
			}
			return tell(ctx, g.forgotten())
		})
		if err != nil {
			return // the lane has ended: not acknowledged, so delivered again
		}
		g = gathering{}
		l.owed.told(end)
		l.led.poke()
		if pause(ctx, tellEvery-time.Since(begun)) != nil {
			return
		}
	}
}

// beyond is who is to be told, nil if there is nobody.
func (w *Worker) beyond() Beyond {
	if w.cfg.Beyond == nil {
		return nil
	}
	return w.cfg.Beyond()
}

// tellRedone tells what a redo has forgotten again: an origin that read what the
// lost node still had may have answered an edge with it. One lane is enough.
func (w *Worker) tellRedone(due missedWork) {
	lanes := w.eachLane()
	if w.beyond() == nil || len(lanes) == 0 {
		return
	}
	plan := w.cfg.Rules().Plan
	keys := make(map[string]string, len(due.keys))
	for i := range due.keys {
		class := ""
		if c := plan.ClassOf([]byte(due.keys[i].Name)); c != nil {
			class = c.Name
		}
		keys[due.keys[i].Name] = class
	}
	lanes[0].owed.lateFor(due.classes, keys)
}

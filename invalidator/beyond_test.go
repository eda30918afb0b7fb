package invalidator

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
)

// beyond is a cache beyond Redis: it keeps what it was told.
type beyond struct {
	mu    sync.Mutex
	names map[string]int
	calls int
	// before is asked first; an error is what Beyond returns.
	before func(ctx context.Context, f Forgotten) error
}

func (b *beyond) tell(ctx context.Context, f Forgotten) error {
	if b.before != nil {
		if err := b.before(ctx, f); err != nil {
			return err
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.names == nil {
		b.names = map[string]int{}
	}
	b.calls++
	for _, n := range namesOf(f) {
		b.names[n]++
	}
	return nil
}

// namesOf renders what was forgotten: "key product product:1", "tag category:1",
// "class raw".
func namesOf(f Forgotten) []string {
	var out []string
	local := func(n string) string { _, n, _ = strings.Cut(n, ":"); return n }
	for class, keys := range f.Keys {
		for _, k := range keys {
			out = append(out, strings.TrimSpace("key "+class)+" "+local(k))
		}
	}
	for _, t := range f.Tags {
		out = append(out, "tag "+local(t))
	}
	for _, c := range f.Classes {
		out = append(out, "class "+c)
	}
	return out
}

func (b *beyond) want(t *testing.T, want ...string) {
	t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	got := slices.Sorted(maps.Keys(b.names))
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("told %q, want %q", got, want)
	}
}

func (b *beyond) has(name string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.names[name] > 0
}

func (b *beyond) config(c *Config) { c.Beyond = func() Beyond { return b.tell } }

// started brings a world up and forgets what the start has told: a Redis that
// never saw the partition looks like one that lost it.
func (b *beyond) started(w *world) *running {
	r := w.ready()
	w.hand(w.lsn+51, nil)
	w.settle()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.names, b.calls = nil, 0
	return r
}

// Whoever stands beyond Redis is told when nothing of it is left in Redis: the
// members of a tag are swept, plain classes are walked.
func TestBeyondIsToldBehindRedis(t *testing.T) {
	t.Parallel()
	b := &beyond{}
	w := newWorld(t, worldConfig{cfg: func(c *Config) { b.config(c); c.SweepBatch = 1 }})
	b.started(w)
	var seen []string
	b.before = func(_ context.Context, f Forgotten) error {
		for _, local := range []string{"product:1", "product:2", "product:3", "raw:1", "raw:2"} {
			s, err := w.look(local)
			if err != nil {
				return err
			}
			if s == "v" {
				seen = append(seen, fmt.Sprintf("%q while %s is there", namesOf(f), local))
			}
		}
		return nil
	}
	for i := 1; i <= 3; i++ {
		w.cache("product:"+itoa(i), "v", "category:7", "brand:x")
	}
	w.cache("raw:1", "v")
	w.cache("raw:2", "v")
	changes := []change.Change{update("categories", "7"), update("deals", "8", "x"), update("raws", "1")}
	w.hand(w.lsn+200, w.nextCommit(changes...), change.Raise{Cause: "c", Reason: change.ReasonManual, Classes: []string{"raw"}})
	w.settle()
	b.want(t, "tag category:7", "tag category:8", "key raw raw:1", "class raw")
	if len(seen) > 0 {
		t.Errorf("told %q", seen)
	}
	w.wantState("product:2", "absent")
	w.wantState("raw:2", "absent")
}

// The log keeps what was not told; readers and the watermark do not wait for it.
func TestBeyondHoldsTheLogAlone(t *testing.T) {
	t.Parallel()
	b := &beyond{}
	w := newWorld(t, worldConfig{cfg: b.config})
	r := b.started(w)
	open := make(chan struct{})
	b.before = func(ctx context.Context, _ Forgotten) error {
		select {
		case <-open:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	w.cache("product:1", "v")
	before := w.log.Durable()
	w.commit(update("products", "1", "n"))
	x := w.x()
	w.cache("product:2", "v")
	w.commit(update("products", "2", "n"))
	harness.Eventually(t, patience, func() error {
		marks, err := w.store.ReadWatermarks(t.Context(), watermarkField(0, 1))
		if err == nil && !x.Less(marks[0].Position) {
			err = fmt.Errorf("watermark %v, want one above %v", marks[0].Position, x)
		}
		return err
	})
	w.wantState("product:1", "absent")
	if got := w.log.Durable(); got != before {
		t.Errorf("batch %d acknowledged, want none above %d: nobody has been told", got, before)
	}
	close(open)
	w.settle()
	b.want(t, "key product product:1", "key kept kept:1", "key raw raw:1", "key product product:2", "key kept kept:2", "key raw raw:2")
	r.drain()
}

// What can not be told now is told later, with everything that came meanwhile.
func TestBeyondIsAskedAgain(t *testing.T) {
	t.Parallel()
	b := &beyond{}
	w := newWorld(t, worldConfig{cfg: b.config})
	b.started(w)
	fails := 3
	b.before = func(context.Context, Forgotten) error {
		if fails--; fails >= 0 {
			return errors.New("not now")
		}
		return nil
	}
	w.commit(update("loose", "1"))
	w.commit(update("loose", "2"))
	w.settle()
	b.want(t, "key loose:1", "key loose:2")
}

// With nobody to be told nothing is collected, and batches are acknowledged as
// they are done; from the moment there is somebody, changes are told.
func TestBeyondMayComeLater(t *testing.T) {
	t.Parallel()
	b := &beyond{}
	var mu sync.Mutex
	there := false
	w := newWorld(t, worldConfig{cfg: func(c *Config) {
		c.Beyond = func() Beyond {
			mu.Lock()
			defer mu.Unlock()
			if !there {
				return nil
			}
			return b.tell
		}
	}})
	w.ready()
	w.commit(update("loose", "1"))
	w.settle()
	b.want(t)
	mu.Lock()
	there = true
	mu.Unlock()
	w.commit(update("loose", "2"))
	w.settle()
	b.want(t, "key loose:2")
}

// telling is the step at which Beyond is told; the watermark is written then. It
// returns when the end of its worker has reached it.
func (c *crashing) telling(ctx context.Context, _ Forgotten) error {
	last := c.step == "telling" && c.left.Load() == 1
	c.hook("telling")
	if last {
		<-ctx.Done()
	}
	return ctx.Err()
}

// The worker is killed between Redis and the telling, at each step; the next one
// tells, although Redis has nothing left to do.
func TestBeyondIsToldAfterACrash(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"planned", "keys", "broadcast", "open", "close", "walk", "watermark", "telling", "ack"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			b := &beyond{}
			w := newWorld(t, worldConfig{cfg: b.config})
			b.started(w).drain()
			w.newLog()
			c := &crashing{step: step, died: make(chan struct{})}
			c.left.Store(1)
			b.before = c.telling
			first := w.worker(func(k *Worker) {
				c.worker = k
				k.hook = c.hook
			})
			w.hand(w.lsn+200, w.nextCommit(update("products", "1", "n"), update("categories", "7")),
				change.Raise{Cause: "c", Reason: change.ReasonManual, Classes: []string{"raw"}})
			select {
			case <-c.died:
			case <-time.After(patience):
				t.Fatal("the worker never came to this step")
			}
			first.kill()
			w.worker()
			w.settle()
			b.want(t, "key product product:1", "key kept kept:1", "key raw raw:1", "tag category:7", "class raw")
		})
	}
}

// What is told again below the watermark is looked up again, and its cascade is
// followed: Redis needs neither any more.
func TestBeyondIsToldOfLookupsAndCascades(t *testing.T) {
	t.Parallel()
	b, f := &beyond{}, &finder{}
	w := newWorld(t, worldConfig{rules: lookupRules, cfg: func(c *Config) { b.config(c); c.Lookup = f.lookup }})
	b.started(w).drain()
	w.newLog()
	c := &crashing{step: "telling", died: make(chan struct{})}
	c.left.Store(1)
	b.before = c.telling
	first := w.worker(func(k *Worker) { c.worker = k })
	w.commit(update("things", "7"))
	select {
	case <-c.died:
	case <-time.After(patience):
		t.Fatal("nobody was told")
	}
	first.kill()
	w.worker()
	w.settle()
	b.want(t, "key product product:c7", "key page page:c7", "key product product:7")
	if calls := f.asked(); len(calls) != 2 {
		t.Errorf("%d calls of lookups, want one for each worker", len(calls))
	}
}

// What a redo forgets again is told again: the origin may have answered from
// what the lost master had kept.
func TestBeyondIsToldOfARedo(t *testing.T) {
	t.Parallel()
	b := &beyond{}
	w := newWorld(t, worldConfig{cfg: b.config})
	r := b.started(w)
	w.commit(update("loose", "1"))
	w.settle()
	b.mu.Lock()
	b.names = nil
	b.mu.Unlock()
	r.nodes.mu.Lock()
	r.nodes.back = []*coherence.NodeLostError{{Node: "none", Cause: causeWatermark}}
	r.nodes.mu.Unlock()
	if _, err := r.redo(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.hand(w.lsn+60, nil)
	w.settle()
	if !b.has("class *") {
		t.Errorf("told %v, want that everything was forgotten", b.names)
	}
}

// What is collected while nobody takes it is bounded: everything then.
func TestBeyondIsBounded(t *testing.T) {
	t.Parallel()
	var g gathering
	for i := range forgottenMost + 1 {
		g.key("shop:loose:"+itoa(i), "")
	}
	g.tag("shop:t")
	g.class("raw")
	var more gathering
	more.key("shop:k", "")
	g.merge(&more)
	if got := g.forgotten(); !slices.Equal(got.Classes, []string{"*"}) || len(got.Keys)+len(got.Tags) > 0 {
		t.Errorf("%d keys, tags %q, classes %q, want everything", len(got.Keys), got.Tags, got.Classes)
	}
}

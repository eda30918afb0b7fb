package invalidator

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

// The debounce of the category's rule is so long that what happens in a test
// happens in its window, unless something ends it.
const debounceRules = `
version: 1
namespace: %s
entries:
  product: {key: "product:{id}", tags: ["category:{category_id}", "brand:{brand}"]}
rules:
  - {name: later, table: public.categories, tags: ["category:{id}"], debounce: 10s}
  - {name: both, table: public.deals, tags: {all: ["category:{category_id}", "brand:{brand}"]}, debounce: 10s}
  - {name: soon, table: public.hints, tags: ["category:{id}"], debounce: 50ms}
  - {name: at once, table: public.loose, tags: ["category:{id}"]}
  - {name: keys, table: public.things, keys: ["product:{id}"], debounce: 10s}
`

// longDebounce is what a test makes of a debounce of 10 s, the longest that rules
// may have: such a window ends for a reason or not in this test. Ten seconds of
// fifty batches are over on a machine that has other things to do.
const longDebounce = 24 * time.Hour

// steps counts the steps of a worker by name.
type steps struct{ members, closed, windows atomic.Int32 }

func (s *steps) hook(step string) {
	switch step {
	case "members":
		s.members.Add(1)
	case "close":
		s.closed.Add(1)
	case "window":
		s.windows.Add(1)
	}
}

func debounceWorld(t *testing.T, cfg func(*Config)) (*world, *steps) {
	t.Helper()
	return newWorld(t, worldConfig{rules: debounceRules, debounce: longDebounce, cfg: func(c *Config) {
		c.Metrics = NewMetrics(nil)
		if cfg != nil {
			cfg(c)
		}
	}}), &steps{}
}

// opened waits until the purges that are open cover a position, and returns them.
func (w *world) opened(t *testing.T, x change.Position) []string {
	t.Helper()
	var list []string
	harness.Eventually(t, patience, func() error {
		control, err := w.store.Control(t.Context())
		if err != nil {
			return err
		}
		list = nil
		var most change.Position
		for _, p := range control.Purges {
			most = most.Max(p.X)
			list = append(list, fmt.Sprint(p.Tags))
		}
		if most.Less(x) {
			return fmt.Errorf("purges are open up to %v, want %v", most, x)
		}
		return nil
	})
	return list
}

// A burst of changes of one tag is one sweep. The tag is purged for readers from
// the first change on; the watermark waits; and a stop does not.
func TestDebounceIsOneSweep(t *testing.T) {
	t.Parallel()
	w, s := debounceWorld(t, nil)
	r := w.ready(func(k *Worker) { k.hook = s.hook })
	w.cache("product:1", "old", "category:5")
	before := w.mark(t)
	w.commit(update("categories", "5"))
	first := w.x()
	if list := w.opened(t, first); len(list) != 1 {
		t.Errorf("open purges %v, want the one", list)
	}
	batches := 1
	for range 50 {
		var changes []change.Change
		for range 20 {
			changes = append(changes, update("categories", "5"))
		}
		w.commit(changes...)
		batches++
		if batches%10 == 0 { // at least so many batches of their own
			w.opened(t, w.x())
		}
	}
	if list := w.opened(t, w.x()); len(list) > windowParts {
		t.Errorf("%d purges are open for one tag, want at most %d", len(list), windowParts)
	}
	// What is made in the window lacks none of its changes, and is swept all the
	// same: the purge has the greatest X.
	if got := w.mark(t); !got.Less(first) || got.Less(before) {
		t.Errorf("the watermark is %v, want it below the first purge, %v", got, first)
	}
	if s.members.Load() != 0 || s.windows.Load() != 0 {
		t.Errorf("%d looks for members and %d ends of windows in the window", s.members.Load(), s.windows.Load())
	}
	if n := testutil.ToFloat64(w.cfg.Metrics.coalesced); n < 5 || n > 50 {
		t.Errorf("%v sweeps coalesced, want one for each batch but the first", n)
	}
	r.drain() // does not wait for the window
	if got := s.closed.Load(); got != 1 {
		t.Errorf("%d sweeps, want 1", got)
	}
	w.wantState("product:1", "absent")
	if got := w.mark(t); got.Less(w.x()) {
		t.Errorf("the watermark is %v after the sweep, want it past %v", got, w.x())
	}
	if control, err := w.store.Control(t.Context()); err != nil || len(control.Purges) > 0 {
		t.Errorf("open purges %v, %v: want none", control.Purges, err)
	}
	if n := testutil.ToFloat64(w.cfg.Metrics.pending.WithLabelValues("debounce")); n != 0 {
		t.Errorf("%v windows open after the end", n)
	}
}

// A window ends by itself, while the stream is silent. Others go on.
func TestDebounceEnds(t *testing.T) {
	t.Parallel()
	w, s := debounceWorld(t, nil)
	w.ready(func(k *Worker) { k.hook = s.hook })
	w.cache("product:1", "old", "category:5")
	w.cache("product:2", "old", "category:6")
	w.commit(update("hints", "5"))
	w.settle()
	w.wantState("product:1", "absent")
	w.commit(update("categories", "6"), update("hints", "5"))
	harness.Eventually(t, patience, harness.True("the short window is over", func() bool { return s.closed.Load() >= 2 }))
	w.wantState("product:2", "old")
}

// Keys are forgotten at once, whatever their rule's debounce, and what other
// rules ask of the same tag is not kept waiting.
func TestDebounceKeepsNothingElseWaiting(t *testing.T) {
	t.Parallel()
	w, s := debounceWorld(t, nil)
	w.ready(func(k *Worker) { k.hook = s.hook })
	w.cache("product:1", "old")
	w.cache("product:2", "old", "category:5")
	w.commit(update("things", "1"))
	w.settle()
	w.wantState("product:1", "absent")
	w.commit(update("categories", "5"), update("loose", "5"))
	harness.Eventually(t, patience, func() error {
		if got, err := w.look("product:2"); err != nil || got != "absent" {
			return fmt.Errorf("product:2 is %q (%v)", got, err)
		}
		return nil
	})
	if got := w.mark(t); !got.Less(w.x()) {
		t.Errorf("the watermark is %v: it does not wait for the window", got)
	}
}

// The stream goes on while a window is open, however many batches pass, and a
// window is given up where the stream would stop for it.
func TestDebounceDoesNotStopTheStream(t *testing.T) {
	t.Parallel()
	w, s := debounceWorld(t, func(c *Config) { c.UnsettledMax = 4 })
	w.ready(func(k *Worker) { k.hook = s.hook })
	w.cache("product:99", "old", "category:5")
	w.commit(update("categories", "5"))
	w.opened(t, w.x())
	gone := func(local string) {
		t.Helper()
		harness.Eventually(t, patience, func() error {
			if got, err := w.look(local); err != nil || got != "absent" {
				return fmt.Errorf("%s is %q (%v)", local, got, err)
			}
			return nil
		})
	}
	for i := range 12 { // one batch each
		local := "product:" + itoa(i)
		w.cache(local, "old")
		w.commit(update("things", itoa(i)))
		gone(local)
	}
	if s.windows.Load() != 0 {
		t.Error("batches that wait for nothing have ended the window")
	}
	// Batches with sweeps of their own do count, and the ledger is small.
	for i := range 6 {
		local := "product:" + itoa(100+i)
		w.cache(local, "old", "category:"+itoa(100+i))
		w.commit(update("loose", itoa(100+i)))
		gone(local)
	}
	harness.Eventually(t, patience, harness.True("the window ends", func() bool { return s.windows.Load() == 1 }))
	gone("product:99")
	w.settle()
}

// Before the log's memory is full of what waits for a window, the window ends.
func TestDebounceIsBounded(t *testing.T) {
	t.Parallel()
	for name, changes := range map[string]func() []change.Change{
		"changes": func() (out []change.Change) {
			for range windowChanges {
				out = append(out, update("hints", "NULL"))
			}
			return out
		},
		"bytes": func() []change.Change {
			return []change.Change{update("products", "1", string(slices.Repeat([]byte("x"), windowBytes)))}
		},
		"tags": func() (out []change.Change) {
			for i := range windowTags + 1 {
				out = append(out, update("categories", itoa(i)))
			}
			return out
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w, s := debounceWorld(t, nil)
			w.ready(func(k *Worker) { k.hook = s.hook })
			w.commit(update("categories", "5"))
			w.opened(t, w.x())
			w.commit(changes()...)
			harness.Eventually(t, patience, harness.True("the window ends", func() bool { return s.windows.Load() > 0 }))
		})
	}
}

// Tags of many kinds and sets of them join too, and few purges stay open.
func TestDebounceOfManyTags(t *testing.T) {
	t.Parallel()
	w, s := debounceWorld(t, nil)
	r := w.ready(func(k *Worker) { k.hook = s.hook })
	w.cache("product:both", "old", "category:1", "brand:b")
	w.cache("product:one", "old", "brand:b")
	for i := range 20 {
		w.cache("product:"+itoa(i), "old", "category:"+itoa(10+i))
		w.commit(update("categories", itoa(10+i)), update("deals", "1", "b"))
		if list := w.opened(t, w.x()); len(list) > 2*windowParts+2 {
			t.Fatalf("%d purges open: %v", len(list), list)
		}
	}
	r.drain()
	if got := s.closed.Load(); got != 2 {
		t.Errorf("%d sweeps, want one of the tags and one of the pair", got)
	}
	for i := range 20 {
		w.wantState("product:"+itoa(i), "absent")
	}
	w.wantState("product:both", "absent")
	w.wantState("product:one", "old")
	if control, err := w.store.Control(t.Context()); err != nil || len(control.Purges) > 0 {
		t.Errorf("open purges %v, %v: want none", control.Purges, err)
	}
}

// A worker that dies in the window has acknowledged nothing of it: all of it
// comes again.
func TestDebounceAndDeath(t *testing.T) {
	t.Parallel()
	w, s := debounceWorld(t, nil)
	r := w.ready(func(k *Worker) { k.hook = s.hook })
	w.cache("product:1", "old", "category:5")
	w.commit(update("categories", "5"))
	x := w.x()
	w.opened(t, x)
	w.commit(update("things", "2")) // behind it, and done
	r.kill()
	if s.windows.Load() != 0 || w.log.Durable() >= w.seq {
		t.Fatalf("%d windows ended, batch %d of %d acknowledged: want none of them", s.windows.Load(), w.log.Durable(), w.seq)
	}
	again := w.worker()
	w.opened(t, x)
	harness.Eventually(t, patience, func() error {
		if testutil.ToFloat64(w.cfg.Metrics.pending.WithLabelValues("debounce")) != 1 {
			return errors.New("the window is not open again")
		}
		return nil
	})
	again.drain()
	w.wantState("product:1", "absent")
	harness.Eventually(t, patience, harness.True("all is acknowledged", func() bool { return w.log.Durable() >= w.seq }))
}

// A Redis that loses everything in the window gets the purge again before it is
// swept.
func TestDebounceAndALostNode(t *testing.T) {
	t.Parallel()
	rd := harness.NewRedis(t, servers.RedisConfig{})
	w := newWorld(t, worldConfig{rules: debounceRules, debounce: longDebounce, url: rd.URL(), cfg: func(c *Config) { c.Metrics = NewMetrics(nil) }})
	s := &steps{}
	r := w.ready(func(k *Worker) { k.hook = s.hook })
	w.cache("product:1", "old", "category:5")
	w.commit(update("categories", "5"))
	w.opened(t, w.x())
	if err := w.rdb.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, patience, harness.True("the loss is noticed and redone", func() bool { return testutil.ToFloat64(w.cfg.Metrics.nodesLost) > 0 }))
	from := len(w.messages())
	r.drain()
	if kinds := w.kinds(from); !slices.Equal(kinds, []string{"p category:5", "s category:5"}) {
		t.Errorf("messages %q, want the purge to be opened again, and its end", kinds)
	}
	if s.closed.Load() != 1 {
		t.Errorf("%d sweeps, want 1", s.closed.Load())
	}
}

package client

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
)

var errBroken = errors.New("broken")

func broken(context.Context, *Load) (int64, error) { return 0, errBroken }

// An invalidation with action stale: the value is served at once, by every
// process, while one of them loads.
func TestStaleEntryIsServedWhileOneLoads(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	all := w.opened(3, StaleFor(time.Hour))
	mustGet(t, all[0], "item:1", w.reads())
	all[0].c.fills.Wait()
	w.wantLoads(1)
	w.stale("item:1", 110)
	h := newHeld()
	for _, e := range all {
		w.live(e.c)
		for range 20 {
			w.want("read", mustGet(t, e, "item:1", h.load(w, 2, nil)), int64(1))
		}
	}
	<-h.began
	for _, e := range all {
		if s := e.c.Stats().Classes["item"]; s.Stale != 20 || s.StaleAge.Count != 20 {
			t.Errorf("stale reads: %d, with an age %d; want 20", s.Stale, s.StaleAge.Count)
		}
		if inL1(e, "item:1") {
			t.Error("the stale value is in L1")
		}
	}
	// The others see that one loads, and leave it alone; one that looks after the
	// load is over may load once more.
	harness.Eventually(t, 10*time.Second, harness.True("one load is under way", func() bool {
		n := int64(0)
		for _, e := range all {
			n += e.c.counts.flights.Load()
		}
		return n == 1
	}))
	close(h.release)
	for _, e := range all {
		e.c.fills.Wait() // whichever of them loads
	}
	for _, e := range all {
		w.want("read after it", mustGet(t, e, "item:1", h.load(w, 3, nil)), int64(2))
	}
	w.wantLoads(1)
}

// Each case makes the value unfit to be served stale.
func TestStaleEntryIsNotServed(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		opts  []Option
		make  func(w *world)
		token bool
	}{
		"without StaleFor": {},
		"beyond StaleFor": {
			opts: []Option{StaleFor(time.Hour)},
			make: func(w *world) { w.rewrite("item:1", func(h *coherence.Header) { h.StaleSince = in(-time.Hour) }) },
		},
		"after its greatest age": {
			opts: []Option{StaleFor(time.Hour)},
			make: func(w *world) { w.rewrite("item:1", func(h *coherence.Header) { h.HardExpiry = in(-time.Second) }) },
		},
		"of a class that was raised": {
			opts: []Option{StaleFor(time.Hour)},
			make: func(w *world) {
				_, err := w.worker.Raise(w.ctx(), coherence.RaiseRequest{Cause: "test", Reason: change.ReasonManual, Classes: []string{"item"}, X: at(120)})
				w.must(err)
			},
		},
		"to one who wants his own write": {opts: []Option{StaleFor(time.Hour)}, token: true},
		"that can not be read": {
			opts: []Option{StaleFor(time.Hour)},
			make: func(w *world) { w.rewrite("item:1", func(h *coherence.Header) { h.Codec = 200 }) },
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			a, b := w.open(Options{}, hooks{}), w.open(Options{L1Bytes: -1, TokenWait: time.Millisecond}, hooks{})
			w.get(t.Context(), w.items(a), "item:1")
			e := w.items(b, c.opts...)
			w.stale("item:1", 110)
			if c.make != nil {
				c.make(w)
			}
			w.live(b)
			w.row.Store(2)
			ctx := t.Context()
			if c.token {
				ctx = b.After(ctx, at(150).String())
			}
			w.want("read", w.get(ctx, e, "item:1"), int64(2))
			w.want("stale reads", b.Stats().Classes["item"].Stale, uint64(0))
		})
	}
}

// rewrite changes the header of an entry as it lies in Redis.
func (w *world) rewrite(key string, f func(*coherence.Header)) {
	w.t.Helper()
	rdb := redis.NewClient(&redis.Options{Addr: w.addr})
	defer rdb.Close()
	b, err := rdb.Get(w.ctx(), w.name(key)).Bytes()
	w.must(err)
	h, payload, err := coherence.Parse(b)
	w.must(err)
	f(&h)
	b, err = h.Append(nil, payload)
	w.must(err)
	w.must(rdb.Set(w.ctx(), w.name(key), b, redis.KeepTTL).Err())
}

// What an invalidation took out of L1 is served while a load goes on, and when
// it fails; from the first invalidation on, no longer than StaleFor.
func TestDroppedValueIsServedWhileLoading(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e := w.opened(1, StaleFor(time.Hour))[0]
	mustGet(t, e, "item:1", w.reads())
	e.c.fills.Wait()
	w.write("item:1", 110)
	w.live(e.c)
	if inL1(e, "item:1") {
		t.Fatal("the value is in L1")
	}
	h := newHeld()
	for range 10 {
		w.want("read during the load", mustGet(t, e, "item:1", h.load(w, 0, errBroken)), int64(1))
	}
	<-h.began
	close(h.release)
	e.c.fills.Wait()
	w.want("read after it failed", mustGet(t, e, "item:1", broken), int64(1))
	e.c.fills.Wait()
	first := e.buried("item:1").since
	w.write("item:1", 120)
	w.live(e.c)
	w.want("since when it is stale, after a second invalidation", e.buried("item:1").since, first)

	e.exhume("item:1").buried -= time.Hour
	if v, err := e.Get(t.Context(), "item:1", broken); !errors.Is(err, errBroken) {
		t.Errorf("beyond StaleFor: %d, %v", v, err)
	}
	w.want("read", mustGet(t, e, "item:1", w.reads()), int64(3))
	e.c.fills.Wait()
	if e.buried("item:1") != nil && e.exhume("item:1") != nil {
		t.Error("the old value is still there beside the new one")
	}
}

// exhume is the entry of L1 that was dropped.
func (e *Class[T]) exhume(key string) *l1Entry {
	return e.c.l1.find(l1Key{key: key, version: e.cl.l1Version}.burial())
}

// An epoch says that something may have been missed since the broadcast was
// heard last, so that is since when what it voided counts as stale.
func TestEpochBuriesValues(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e := w.opened(1, StaleFor(time.Hour))[0]
	other := w.items(e.c) // without StaleFor: nothing of it is kept
	mustGet(t, e, "item:1", w.reads())
	mustGet(t, other, "item:2", w.reads())
	e.c.fills.Wait()
	e.c.bump("test")
	heard := e.c.lastHeard()
	w.live(e.c)
	harness.Eventually(t, 10*time.Second, harness.True("L1 was cleared", func() bool { return e.exhume("item:1") != nil }))
	if got := e.exhume("item:1").buried; got > heard {
		t.Errorf("it counts from %v, later than the broadcast was heard last (%v)", got, heard)
	}
	if other.exhume("item:2") != nil {
		t.Error("a value of a class without StaleFor was kept")
	}
	e.c.bump("again")
	w.live(e.c)
	if ent := e.exhume("item:1"); ent == nil || ent.buried > heard {
		t.Errorf("after a second epoch: %+v", ent)
	}
	// The value is also in Redis, as it should: only what is gone there is
	// served from here.
	w.unlink("item:1", 110)
	w.want("read", mustGet(t, e, "item:1", broken), int64(1))
	e.c.fills.Wait()
	// A raise ends it: nobody knows since when such a value is wrong.
	_, err := w.worker.Raise(w.ctx(), coherence.RaiseRequest{Cause: "test", Reason: change.ReasonManual, Classes: []string{"item"}, X: at(120)})
	w.must(err)
	w.live(e.c)
	if v, err := e.Get(t.Context(), "item:1", broken); !errors.Is(err, errBroken) {
		t.Errorf("after a raise: %d, %v", v, err)
	}
}

// Redis is gone and the database too. L1 is not served as such, but as stale.
func TestDeafClientServesStale(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e := w.opened(1, StaleFor(time.Hour))[0]
	mustGet(t, e, "item:1", w.reads())
	e.c.fills.Wait()
	w.deafen(e.c)
	w.unlink("item:1", 110)
	v, m, err := e.read(t.Context(), "item:1", nil, []func(context.Context, *Load) (int64, error){broken}, e.c.now())
	if v != 1 || err != nil || m.layer != LayerStale || m.cacheable {
		t.Errorf("got %d, %v, %+v; want the old value, as a stale one", v, err, m)
	}
	e.c.fills.Wait()
	e.c.lastLive.Add(-int64(time.Hour))
	if v, err := e.Get(t.Context(), "item:1", broken); !errors.Is(err, errBroken) {
		t.Errorf("long after: %d, %v", v, err)
	}
}

// With SoftTimeout a reader waits that long for the new value, then takes the
// stale one, and the load goes on.
func TestSoftTimeoutOverStaleValue(t *testing.T) {
	t.Parallel()
	for _, soft := range []time.Duration{20 * time.Millisecond, time.Minute} {
		t.Run(soft.String(), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			e := w.opened(1, StaleFor(time.Hour), SoftTimeout(soft), HardTimeout(10*time.Minute))[0]
			mustGet(t, e, "item:1", w.reads())
			e.c.fills.Wait()
			w.write("item:1", 110)
			w.live(e.c)
			if soft == time.Minute {
				w.want("read that has time", mustGet(t, e, "item:1", w.reads()), int64(2))
				e.c.fills.Wait()
				w.write("item:1", 120)
				w.live(e.c)
				w.want("read whose load fails", mustGet(t, e, "item:1", broken), int64(2))
				return
			}
			h := newHeld()
			w.want("read that has not", mustGet(t, e, "item:1", h.load(w, 2, nil)), int64(1))
			s := e.c.Stats().Classes["item"]
			w.want("soft timeouts", s.SoftTimeouts, uint64(1))
			close(h.release)
			e.c.fills.Wait()
			w.want("read after the load", mustGet(t, e, "item:1", broken), int64(2))
		})
	}
}

// What is made of a stale value or of a default is not cached.
func TestSubstitutesAreNotCached(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	e := Entries[int64](c, "item", StaleFor(time.Hour))
	d := Entries[int64](c, "item", Default(int64(9)))
	whole := Entries[int64](c, "whole")
	w.live(c)
	mustGet(t, e, "item:1", w.reads())
	c.fills.Wait()
	w.write("item:1", 110)
	w.live(c)
	for key, part := range map[string]func(context.Context) (int64, error){
		"whole:stale":   func(ctx context.Context) (int64, error) { return e.Get(ctx, "item:1", broken) },
		"whole:default": func(ctx context.Context) (int64, error) { return d.Get(ctx, "item:2", broken) },
	} {
		v, err := whole.Get(t.Context(), key, func(ctx context.Context, _ *Load) (int64, error) { return part(ctx) })
		if err != nil || v == 0 {
			t.Errorf("%s: %d, %v", key, v, err)
		}
		c.fills.Wait()
		if _, ok := w.header(key); ok || inL1(whole, key) {
			t.Errorf("%s is cached", key)
		}
	}
	w.want("refused", fmt.Sprint(c.Stats().Classes["whole"].Refused), "map[part:2]")
}

func TestDefault(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{TokenWait: time.Millisecond}, hooks{})
	e := Entries[int64](c, "item", Default(int64(9)), MaxLoads(1))
	w.live(c)
	w.want("the load fails", mustGet(t, e, "item:1", broken), int64(9))
	w.want("the load panics", mustGet(t, e, "item:1", func(context.Context, *Load) (int64, error) { panic("ouch") }), int64(9))
	if v, err := e.Get(c.After(t.Context(), at(500).String()), "item:1", broken); v != 9 || err != nil {
		t.Errorf("under a token: %d, %v", v, err)
	}
	if _, err := e.Get(t.Context(), "item:1", func(context.Context, *Load) (int64, error) { return 0, ErrNotFound }); !errors.Is(err, ErrNotFound) {
		t.Errorf("what does not exist: %v", err)
	}
	if _, err := e.Get(t.Context(), "item:1"); !errors.Is(err, ErrNoLoader) {
		t.Errorf("without a loader: %v", err)
	}
	if _, err := e.Refresh(t.Context(), "item:1", broken); !errors.Is(err, errBroken) {
		t.Errorf("Refresh: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := e.Get(ctx, "item:1", func(ctx context.Context, _ *Load) (int64, error) { <-ctx.Done(); return 0, ctx.Err() }); !errors.Is(err, context.Canceled) {
		t.Errorf("a reader who has gone: %v", err)
	}
	h := newHeld()
	var wg sync.WaitGroup
	wg.Go(func() { mustGet(t, e, "item:2", h.load(w, 1, nil)) })
	<-h.began
	e.cl.turns.mu.Lock()
	e.cl.turns.bound = 0
	e.cl.turns.mu.Unlock()
	w.want("overloaded", mustGet(t, e, "item:3", w.reads()), int64(9))
	close(h.release)
	wg.Wait()
	if s := c.Stats().Classes["item"]; s.Defaults != 4 || s.Overloaded != 1 {
		t.Errorf("%d defaults, %d overloaded; want 4, 1", s.Defaults, s.Overloaded)
	}
}

func TestSoftTimeoutOverDefault(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e := w.opened(1, Default(int64(9)), SoftTimeout(10*time.Millisecond))[0]
	h := newHeld()
	w.want("read", mustGet(t, e, "item:1", h.load(w, 2, nil)), int64(9))
	close(h.release)
	e.c.fills.Wait()
	w.want("read after the load", mustGet(t, e, "item:1", broken), int64(2))
}

// A loader that does not heed its context: those who wait have their answer,
// and those who come do not wait for it.
func TestHardTimeout(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e := w.opened(1, HardTimeout(50*time.Millisecond))[0]
	e.cl.took = loadTime{} // nobody is to wait long for the lease of the one that hangs
	e.cl.took.note(time.Millisecond)
	h := newHeld()
	cause := make(chan error, 1)
	hangs := func(ctx context.Context, l *Load) (int64, error) {
		v, err := h.load(w, 1, nil)(ctx, l)
		cause <- context.Cause(ctx)
		return v, err
	}
	_, err := e.Get(t.Context(), "item:1", hangs)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "HardTimeout (50ms)") {
		t.Errorf("got %v", err)
	}
	e.cl.hard = time.Minute // this read is not to end by it
	w.want("read of another", mustGet(t, e, "item:1", func(context.Context, *Load) (int64, error) { return 2, nil }), int64(2))
	close(h.release)
	e.c.fills.Wait()
	if err := <-cause; !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the loader's context ended with %v", err)
	}
	w.want("hard timeouts", e.c.Stats().Classes["item"].HardTimeouts, uint64(1))
	// One that heeds it.
	e.cl.hard = 50 * time.Millisecond
	_, err = e.Get(t.Context(), "item:2", func(ctx context.Context, _ *Load) (int64, error) { <-ctx.Done(); return 0, ctx.Err() })
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "HardTimeout (50ms)") {
		t.Errorf("got %v", err)
	}
	e.c.fills.Wait()
	w.want("hard timeouts", e.c.Stats().Classes["item"].HardTimeouts, uint64(2))
	d := Entries[int64](e.c, "item", HardTimeout(10*time.Millisecond), Default(int64(9)))
	w.want("with a default", mustGet(t, d, "item:3", func(ctx context.Context, _ *Load) (int64, error) { <-ctx.Done(); return 0, ctx.Err() }), int64(9))
}

func TestCloseEndsLoads(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	open := func(before, after time.Duration) *Class[int64] {
		c := w.open(Options{}, hooks{grace: [2]time.Duration{before, after}})
		e := Entries[int64](c, "item")
		w.live(c)
		return e
	}
	e := open(20*time.Millisecond, time.Minute)
	began := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := e.Get(t.Context(), "item:1", func(ctx context.Context, _ *Load) (int64, error) {
			close(began)
			<-ctx.Done()
			return 0, ctx.Err()
		})
		if !errors.Is(err, ErrClosed) {
			t.Errorf("got %v, want ErrClosed", err)
		}
	})
	<-began
	w.must(e.c.Close())
	wg.Wait()

	e = open(20*time.Millisecond, 20*time.Millisecond)
	h := newHeld()
	wg.Go(func() {
		if _, err := e.Get(t.Context(), "item:2", h.load(w, 1, nil)); !errors.Is(err, ErrClosed) {
			t.Errorf("got %v, want ErrClosed", err)
		}
	})
	<-h.began
	if err := e.c.Close(); err == nil || !strings.Contains(err.Error(), "1 loads go on") {
		t.Errorf("Close: %v, want that one load goes on", err)
	}
	wg.Wait()
	// Reads go to the database, as long as they like.
	w.want("read after Close", mustGet(t, e, "item:3", w.reads()), int64(1))
	close(h.release)
	e.c.fills.Wait()
}

// While the broadcast is not heard, nobody can say whether a load that began
// some time ago has missed a write.
func TestDeafReaderJoinsOnlyYoungLoads(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e := w.opened(1)[0]
	w.deafen(e.c)
	h := newHeld()
	var wg sync.WaitGroup
	wg.Go(func() { mustGet(t, e, "item:1", h.load(w, 1, nil)) })
	<-h.began
	e.cl.mu.Lock()
	f := e.cl.flights["item:1"].(*flight[int64])
	f.began = e.c.now() // however slow this machine is
	young := e.joinable(f, w.name("item:1"))
	f.began -= l1Life
	e.cl.mu.Unlock()
	w.want("a load that began just now is joined", young, true)
	w.unlink("item:1", 110)
	w.row.Store(2)
	w.want("read after a write nobody told of", mustGet(t, e, "item:1", w.reads()), int64(2))
	close(h.release)
	wg.Wait()
}

func TestMistakenServing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	for name, opts := range map[string][]Option{
		"SoftTimeout is":             {SoftTimeout(0), Default(int64(1))},
		"HardTimeout is":             {HardTimeout(-1)},
		"StaleFor is":                {StaleFor(0)},
		"StaleWhileRevalidate is":    {StaleWhileRevalidate(0)},
		"EarlyRefresh is":            {EarlyRefresh(0)},
		"Default is a string":        {Default("x")},
		"want less than HardTimeout": {SoftTimeout(time.Hour), Default(int64(1))},
		"there is nothing to return": {SoftTimeout(time.Second)},
	} {
		if _, err := Entries[int64](c, "item", opts...).Get(t.Context(), "item:1"); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("got %v, want %q", err, name)
		}
	}
}

// A stale value is looked at once more when it is returned: the load that was
// waited for took its time.
func TestSpareAges(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e := w.opened(1, StaleFor(time.Hour))[0]
	now := e.c.now()
	for name, c := range map[string]struct {
		sp   spare[int64]
		want bool
	}{
		"young":                  {spare[int64]{since: now - time.Minute, meta: meta{expiry: in(time.Hour)}}, true},
		"without end":            {spare[int64]{since: now - time.Minute}, true},
		"too old":                {spare[int64]{since: now - time.Hour}, false},
		"past its greatest age":  {spare[int64]{since: now - time.Minute, meta: meta{expiry: in(-time.Second)}}, false},
		"from a clock far ahead": {spare[int64]{since: now + time.Minute}, true},
	} {
		_, m, ok := e.instead(&c.sp)
		if ok != c.want {
			t.Errorf("%s: served %v, want %v", name, ok, c.want)
		}
		if ok && (m.layer != LayerStale || m.cacheable || m.age < 0) {
			t.Errorf("%s: %+v", name, m)
		}
	}
}

// Every answer of Redis is overtaken by an invalidation: what may be served stale
// is, and nobody waits for a load.
func TestStaleIsServedInAStorm(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var storm atomic.Bool
	x := uint64(110)
	var c *Client
	c = w.open(Options{L1Bytes: -1}, hooks{answered: func(name string) {
		if !storm.Load() {
			return
		}
		before := c.marks.seq.Load()
		w.stale("item:1", x)
		x += 10
		harness.Eventually(t, 20*time.Second, harness.True("the invalidation is heard of", func() bool { return c.marks.seq.Load() > before }))
	}})
	e := w.items(c, StaleFor(time.Hour))
	w.live(c)
	mustGet(t, e, "item:1", w.reads())
	c.fills.Wait()
	loads := w.loads.Load()
	storm.Store(true)
	h := newHeld() // the load behind the reader's back
	w.want("read in the storm", mustGet(t, e, "item:1", h.load(w, 2, nil)), int64(1))
	w.want("again", mustGet(t, e, "item:1", h.load(w, 3, nil)), int64(1))
	if s := c.Stats().Classes["item"]; s.Stale != 2 || s.Loaded != 1 {
		t.Errorf("stale %d and loaded %d, want 2 and the first", s.Stale, s.Loaded)
	}
	storm.Store(false)
	close(h.release)
	c.fills.Wait()
	if got := w.loads.Load() - loads; got > 1 {
		t.Errorf("%d loads", got)
	}
}

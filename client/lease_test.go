package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
)

// slowLoads makes a class believe that its loads are slow, so that its leases
// live as long as they can, whatever the machine does.
func slowLoads(e *Class[int64]) { e.cl.took.note(time.Hour) }

// held is a load that goes on until it is let, whatever becomes of its context;
// it fails then if that has ended.
type held struct {
	began, release chan struct{}
	once           sync.Once
}

func newHeld() *held { return &held{began: make(chan struct{}), release: make(chan struct{})} }

func (h *held) load(w *world, result int64, err error) func(context.Context, *Load) (int64, error) {
	return func(ctx context.Context, _ *Load) (int64, error) {
		w.loads.Add(1)
		h.once.Do(func() { close(h.began) })
		<-h.release
		if ctx.Err() != nil {
			return 0, context.Cause(ctx)
		}
		return result, err
	}
}

// waits waits until a load of a Client waits for the lease of another.
func (w *world) waits(c *Client) {
	w.t.Helper()
	harness.Eventually(w.t, 10*time.Second, harness.True("it waits for the lease of another", func() bool {
		return c.Stats().Classes["item"].LeaseWaiting > 0
	}))
}

// Three processes' worth of readers of one key that was just invalidated cause
// one load.
func TestHerdAcrossClients(t *testing.T) {
	t.Parallel()
	const clients, readers = 3, 330
	w := newWorld(t)
	var all [clients]*Class[int64]
	for i := range all {
		c := w.open(Options{}, hooks{})
		all[i] = Entries[int64](c, "item")
		w.live(c)
		slowLoads(all[i])
		w.want("before", mustGet(t, all[i], "item:1", w.reads()), int64(1))
		c.fills.Wait()
	}
	w.wantLoads(1)
	w.write("item:1", 110)
	h := newHeld()
	var wg sync.WaitGroup
	for _, e := range all {
		w.live(e.c)
		for range readers {
			wg.Go(func() {
				v, err := e.Get(t.Context(), "item:1", h.load(w, 2, nil))
				if v != 2 || err != nil {
					t.Errorf("got %d, %v", v, err)
				}
			})
		}
	}
	harness.Eventually(t, 30*time.Second, func() error {
		var joined, waiting int
		for _, e := range all {
			joined += int(e.c.Stats().Classes["item"].Coalesced)
			waiting += e.c.Stats().Classes["item"].LeaseWaiting
		}
		if joined != clients*(readers-1) || waiting != clients-1 {
			return fmt.Errorf("%d joined and %d wait for a lease, want %d and %d", joined, waiting, clients*(readers-1), clients-1)
		}
		return nil
	})
	close(h.release)
	wg.Wait()
	w.wantLoads(1)
}

func (w *world) reads() func(context.Context, *Load) (int64, error) {
	return func(context.Context, *Load) (int64, error) {
		w.loads.Add(1)
		return w.row.Load(), nil
	}
}

func mustGet(t *testing.T, e *Class[int64], key string, load func(context.Context, *Load) (int64, error)) int64 {
	t.Helper()
	v, err := e.Get(t.Context(), key, load)
	if err != nil {
		t.Fatalf("Get(%q): %v", key, err)
	}
	return v
}

// opened are n clients of a world, with classes whose leases live long.
func (w *world) opened(n int, opts ...Option) []*Class[int64] {
	w.t.Helper()
	all := make([]*Class[int64], n)
	for i := range all {
		c := w.open(Options{}, hooks{})
		all[i] = Entries[int64](c, "item", opts...)
		w.live(c)
		slowLoads(all[i])
	}
	return all
}

// The holder of a lease hangs. One of those who wait takes over, the other goes
// on waiting, and what the first one loads in the end is still taken.
func TestDeadHolderIsReplacedByOne(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	all := w.opened(3)
	dead, waiting := all[0], all[1:]
	dead.cl.took = loadTime{}
	dead.cl.took.note(time.Millisecond) // its lease lives as short as can be
	hangs, loads := newHeld(), newHeld()
	var wg, first sync.WaitGroup
	first.Go(func() { mustGet(t, dead, "item:1", hangs.load(w, 1, nil)) })
	<-hangs.began
	before, _ := w.raw("item:1")
	for _, e := range waiting {
		wg.Go(func() {
			if v, err := e.Get(t.Context(), "item:1", loads.load(w, 2, nil)); v != 2 || err != nil {
				t.Errorf("got %d, %v; want what was loaded in place of the holder", v, err)
			}
		})
	}
	<-loads.began
	after, _ := w.raw("item:1")
	if before.Lease == after.Lease || before.Incarnation != after.Incarnation {
		t.Errorf("the take-over made of %+v: %+v", before, after)
	}
	for _, e := range waiting {
		harness.Eventually(t, 10*time.Second, harness.True("one loads, the other waits", func() bool {
			return waits(all[1])+waits(all[2]) == 1 && e.c.Stats().Flights == 1
		}))
	}
	close(loads.release)
	wg.Wait()
	w.wantLoads(2)
	w.want("take-overs", taken(waiting), uint64(1))
	close(hangs.release)
	first.Wait()
	dead.c.fills.Wait()
	w.want("fills of the holder before", dead.c.Stats().Classes["item"].Fills, uint64(1))
}

func waits(e *Class[int64]) int { return e.c.Stats().Classes["item"].LeaseWaiting }

func taken(all []*Class[int64]) (n uint64) {
	for _, e := range all {
		n += e.c.Stats().Classes["item"].LeaseTakeovers
	}
	return n
}

// raw is the header of an entry, whatever its state.
func (w *world) raw(key string) (h coherence.Header, ok bool) {
	w.t.Helper()
	rdb := redis.NewClient(&redis.Options{Addr: w.addr})
	defer rdb.Close()
	b, err := rdb.Get(w.ctx(), w.name(key)).Bytes()
	if err != nil {
		return h, false
	}
	h, _, err = coherence.Parse(b)
	w.must(err)
	return h, true
}

// stale makes a value in Redis stale, and tells everybody.
func (w *world) stale(key string, x uint64) {
	w.t.Helper()
	_, err := w.worker.Invalidate(w.ctx(), []coherence.Invalidation{{Name: w.name(key), X: at(x), Action: coherence.ActionStale}})
	w.must(err)
	_, _, err = w.worker.Broadcast(w.ctx(), coherence.Message{Kind: coherence.KindKeys, X: at(x), V: w.v, Names: []string{w.name(key)}})
	w.must(err)
}

// Values that are not to be cached are loaded side by side: the second reader
// has waited for the first one in vain, and nobody waits for the second.
func TestUncacheableLoadsAreNotInARow(t *testing.T) {
	t.Parallel()
	for _, state := range []coherence.State{coherence.StateEmpty, coherence.StateStale} {
		t.Run(string(state), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			all := w.opened(4)
			if state == coherence.StateStale {
				mustGet(t, all[0], "item:1", w.reads())
				all[0].c.fills.Wait()
				w.stale("item:1", 110)
				for _, e := range all {
					w.live(e.c)
				}
			}
			h, others := newHeld(), newHeld()
			var wg sync.WaitGroup
			var running atomic.Int64
			uncacheable := func(h *held) func(context.Context, *Load) (int64, error) {
				load := h.load(w, 1, nil)
				return func(ctx context.Context, l *Load) (int64, error) {
					l.DoNotCache()
					running.Add(1)
					return load(ctx, l)
				}
			}
			wg.Go(func() { mustGet(t, all[0], "item:1", uncacheable(h)) })
			<-h.began
			for _, e := range all[1:] {
				wg.Go(func() { mustGet(t, e, "item:1", uncacheable(others)) })
				w.waits(e.c)
			}
			w.want("loads while the first one goes on", running.Load(), int64(1))
			close(h.release)
			harness.Eventually(t, 10*time.Second, func() error {
				if n := running.Load(); n != 4 {
					return fmt.Errorf("%d loads have begun, want all 4 at one time", n)
				}
				return nil
			})
			close(others.release)
			wg.Wait()
		})
	}
}

// A load that fails gives its lease back: one of the others loads at once.
func TestFailedLoadGivesLeaseBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	all := w.opened(3)
	broken := errors.New("broken")
	h, next := newHeld(), newHeld()
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := all[0].Get(t.Context(), "item:1", h.load(w, 0, broken)); !errors.Is(err, broken) {
			t.Errorf("got %v, want the loader's error", err)
		}
	})
	<-h.began
	lease, _ := w.raw("item:1")
	for _, e := range all[1:] {
		wg.Go(func() { mustGet(t, e, "item:1", next.load(w, 1, nil)) })
		w.waits(e.c)
	}
	close(h.release)
	<-next.began
	if late := time.Since(time.UnixMicro(lease.Lease.Until)); late > 0 {
		t.Errorf("the others waited until the lease was over, and %v", late)
	}
	close(next.release)
	wg.Wait()
	w.wantLoads(2)
}

// An invalidation takes the empty entry and its lease with it: who waits for a
// load that began before must not get its value, and need not wait.
func TestInvalidationEndsLease(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	all := w.opened(2)
	h := newHeld()
	var wg sync.WaitGroup
	wg.Go(func() { mustGet(t, all[0], "item:1", h.load(w, 1, nil)) })
	<-h.began
	got := make(chan int64, 1)
	wg.Go(func() { got <- mustGet(t, all[1], "item:1", w.reads()) })
	w.waits(all[1].c)
	w.write("item:1", 110)
	w.want("read that waited", <-got, int64(2))
	close(h.release)
	wg.Wait()
	all[0].c.fills.Wait()
	if v, err := all[0].Get(t.Context(), "item:1"); v != 2 || err != nil {
		t.Errorf("after it: %d, %v; want 2", v, err)
	}
}

// A reader who goes away takes its lease back with it.
func TestCancelledLoadGivesLeaseBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	all := w.opened(2)
	ctx, cancel := context.WithCancel(t.Context())
	loading := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := all[0].Get(ctx, "item:1", func(ctx context.Context, _ *Load) (int64, error) {
			close(loading)
			<-ctx.Done()
			return 0, ctx.Err()
		})
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
	})
	<-loading
	lease, _ := w.raw("item:1")
	cancel()
	wg.Wait()
	mustGet(t, all[1], "item:1", w.reads())
	if late := time.Since(time.UnixMicro(lease.Lease.Until)); late > 0 {
		t.Errorf("the next reader waited until the lease was over, and %v", late)
	}
}

// What is decided about a lease, and where clocks enter.
func TestLeaseDecisions(t *testing.T) {
	t.Parallel()
	now := 100 * time.Second
	ahead := func(d time.Duration) coherence.Lease {
		return coherence.Lease{Holder: [8]byte{1}, Until: time.Now().Add(d).UnixMicro()}
	}
	open := func(d time.Duration) coherence.Lease { return coherence.OpenLease(time.Now().Add(d)) }
	for name, c := range map[string]struct {
		lease      coherence.Lease
		state      coherence.State
		after      time.Duration // since the lease was seen
		began      time.Duration
		background bool
		want       step
	}{
		"none, empty":                   {state: coherence.StateEmpty, want: stepLoad},
		"none, stale":                   {state: coherence.StateStale, want: stepClaim},
		"alive":                         {lease: ahead(5 * time.Second), want: stepWait},
		"over":                          {lease: ahead(5 * time.Second), after: 5 * time.Second, want: stepClaim},
		"clock far ahead":               {lease: ahead(-time.Hour), want: stepWait},
		"clock far ahead, over":         {lease: ahead(-time.Hour), after: leaseMin, want: stepClaim},
		"clock far behind":              {lease: ahead(time.Hour), after: leaseMax - 1, want: stepWait},
		"clock far behind, over":        {lease: ahead(time.Hour), after: leaseMax, want: stepClaim},
		"given back":                    {lease: coherence.FreeLease(time.Now().Add(5 * time.Second)), want: stepClaim},
		"background, given back":        {lease: coherence.FreeLease(time.Now().Add(5 * time.Second)), background: true, want: stepWait},
		"background, given back before": {lease: coherence.FreeLease(time.Time{}), background: true, want: stepClaim},
		"open":                          {lease: open(5 * time.Second), want: stepLoad},
		"open, over":                    {lease: open(-1), want: stepClaim},
		"open, clock far behind":        {lease: open(time.Hour), want: stepClaim},
		"in all too long":               {lease: ahead(5 * time.Second), began: leaseTotal, want: stepLoad},
		"background, alive":             {lease: ahead(5 * time.Second), background: true, want: stepWait},
		"background, over":              {lease: ahead(-1), background: true, want: stepClaim},
		"background, clock far behind":  {lease: ahead(time.Hour), background: true, want: stepClaim},
	} {
		cl := &class{serving: newServing()}
		w := waiting{cl: cl, began: now - c.began, background: c.background}
		if c.state == 0 {
			c.state = coherence.StateEmpty
		}
		h := &coherence.Header{State: c.state, Lease: c.lease}
		got := w.next(now, h)
		if c.after > 0 {
			got = w.next(now+c.after, h)
		}
		if got != c.want {
			t.Errorf("%s: got %d, want %d", name, got, c.want)
		}
	}
	short := waiting{cl: &class{serving: serving{hard: 2 * time.Second}}}
	if got := short.next(time.Second, &coherence.Header{State: coherence.StateEmpty, Lease: ahead(5 * time.Second)}); got != stepLoad {
		t.Errorf("half of HardTimeout has gone: got %d, want to load", got)
	}
}

func TestLeaseLength(t *testing.T) {
	t.Parallel()
	var l loadTime
	steps := []struct{ took, want time.Duration }{
		{0, leaseUnknown},
		{time.Second, 3 * time.Second},
		{2 * time.Second, 6 * time.Second}, // at once
		{0, 2 * 7 * 3 * time.Second / 8},   // an eighth down
		{time.Hour, leaseMax},
	}
	for i, s := range steps {
		if i > 0 {
			l.note(s.took)
		}
		if got := l.lease(); got != s.want {
			t.Errorf("after %v: lease of %v, want %v", s.took, got, s.want)
		}
	}
	for range 300 {
		l.note(time.Microsecond)
	}
	if got := l.lease(); got != leaseMin {
		t.Errorf("after many fast loads: lease of %v, want %v", got, leaseMin)
	}
}

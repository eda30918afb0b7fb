package client

import (
	"context"
	"errors"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
)

// The formula by value: ln(e^-n) is -n, so a read draws n times the cost.
func TestEarlyFormula(t *testing.T) {
	t.Parallel()
	const expiry, cost = 100 * time.Second, time.Second
	for _, c := range []struct {
		now    time.Duration
		beta   float64
		random float64
		want   bool
	}{
		{90 * time.Second, 1, math.Exp(-10.001), true},
		{90 * time.Second, 1, math.Exp(-9.999), false},
		{90 * time.Second, 2, math.Exp(-5.001), true},
		{90 * time.Second, 2, math.Exp(-4.999), false},
		{90 * time.Second, 0.5, math.Exp(-20.001), true},
		{90 * time.Second, 0.5, math.Exp(-19.999), false},
		{99 * time.Second, 1, 1, false}, // ln 1 is 0
		{100 * time.Second, 1, 1, true},
	} {
		if got := early(c.now, expiry, cost, c.beta, c.random); got != c.want {
			t.Errorf("at %v with beta %v and ln(rand) %.3f: %v, want %v", c.now, c.beta, math.Log(c.random), got, c.want)
		}
	}
}

// -ln(rand) is distributed exponentially, so a read that comes g before the end
// refreshes with the probability e^(-g / (cost beta)).
func TestEarlyStatistics(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	s := newServing()
	s.random = func() float64 { return 1 - r.Float64() }
	const n = 200_000
	for _, beta := range []float64{0.5, 1, 3} {
		s.beta = beta
		for _, gap := range []float64{0.1, 0.5, 1, 2, 4} {
			const cost = 40 * time.Millisecond
			expiry := time.Hour
			now := expiry - time.Duration(gap*beta*float64(cost))
			hits := 0
			for range n {
				if wants, isEarly := s.wants(now, expiry, cost); wants && isEarly {
					hits++
				}
			}
			want := n * math.Exp(-gap)
			if sigma := math.Sqrt(want * (1 - math.Exp(-gap))); math.Abs(float64(hits)-want) > 5*sigma {
				t.Errorf("beta %v, %v costs before the end: %d of %d refresh, want about %.0f", beta, gap, hits, n, want)
			}
		}
	}
}

// Before the moment from which a read draws, no draw could have been enough.
func TestEarliestLeavesNothingOut(t *testing.T) {
	t.Parallel()
	const least = 1.0 / (1 << 53)
	s := serving{beta: 1.5, random: func() float64 { return least }}
	for _, cost := range []time.Duration{time.Microsecond, time.Second, time.Hour} {
		expiry := 1000 * time.Hour
		from := s.earliest(expiry, cost)
		if early(from, expiry, cost, s.beta, least) {
			t.Errorf("cost %v: a draw at %v is enough, and before it nobody draws", cost, from)
		}
		if wants, _ := s.wants(expiry-36*cost, expiry, cost); !wants {
			t.Errorf("cost %v: the least draw is not enough 36 costs before the end", cost)
		}
	}
	if got := s.earliest(0, math.MaxInt64); got > 0 {
		t.Errorf("a cost without end: %v", got)
	}
	if wants, isEarly := s.wants(5, 5, 0); !wants || isEarly {
		t.Errorf("at the end itself: %v, %v", wants, isEarly)
	}
}

// fill stores a value in Redis with the times and costs of a header.
func (w *world) fill(key string, value string, h coherence.Header) {
	w.t.Helper()
	b, err := w.worker.Begin(w.ctx(), coherence.BeginRequest{Name: w.name(key), Known: w.known()})
	w.must(err)
	h.Codec, h.ValueVersion = coherence.CodecJSON, 1
	reason, err := w.worker.Fill(w.ctx(), coherence.FillRequest{Ticket: b.Ticket, Header: h, Payload: []byte(value)})
	w.must(err)
	if reason != coherence.Stored {
		w.t.Fatalf("fill: %v", reason)
	}
}

func (w *world) known() coherence.Known {
	w.t.Helper()
	ctl, err := w.worker.Control(w.ctx(), "item")
	w.must(err)
	return ctl.Known("item")
}

func in(d time.Duration) int64 { return time.Now().Add(d).UnixMicro() }

// dice is a source of random numbers that a test turns.
type dice struct{ bits atomic.Uint64 }

func (d *dice) set(f float64)   { d.bits.Store(math.Float64bits(f)) }
func (d *dice) random() float64 { return math.Float64frombits(d.bits.Load()) }

// A load of ten seconds, and a minute to go: a draw of seven loads is enough,
// one of one load is not. In L1 and in Redis.
func TestEarlyRefresh(t *testing.T) {
	t.Parallel()
	for _, layer := range []string{"L1", "L2"} {
		t.Run(layer, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			o := Options{}
			if layer == "L2" {
				o.L1Bytes = -1
			}
			c := w.open(o, hooks{})
			e := w.items(c, EarlyRefresh(1))
			var d dice
			e.cl.random = d.random
			w.fill("item:1", "1", coherence.Header{Filled: in(-time.Hour), SoftExpiry: in(time.Minute), HardExpiry: in(time.Minute), LoadCost: 10e6})
			w.row.Store(2)
			d.set(math.Exp(-1))
			for range 5 {
				w.want("read", w.get(t.Context(), e, "item:1"), int64(1))
			}
			w.wantLoads(0)
			w.want("in L1", inL1(e, "item:1"), layer == "L1")
			d.set(math.Exp(-7))
			w.want("read that refreshes", w.get(t.Context(), e, "item:1"), int64(1))
			w.wantLoads(1)
			w.want("read after it", w.get(t.Context(), e, "item:1"), int64(2))
			w.wantLoads(0)
			s := c.Stats().Classes["item"]
			w.want("early refreshes", s.EarlyRefreshes, uint64(1))
			w.want("refreshes", s.Refreshes, uint64(1))
		})
	}
}

// Between its TTL and its greatest age a value is served, and loaded again once,
// whoever reads it and wherever.
func TestStaleWhileRevalidate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.fill("item:1", "1", coherence.Header{Filled: in(-time.Hour), SoftExpiry: in(-time.Second), HardExpiry: in(time.Hour)})
	all := w.opened(3, StaleWhileRevalidate(time.Hour))
	h := newHeld()
	var wg sync.WaitGroup
	for _, e := range all {
		for range 100 {
			wg.Go(func() {
				if v := mustGet(t, e, "item:1", h.load(w, 2, nil)); v != 1 {
					t.Errorf("got %d, want what is served meanwhile", v)
				}
			})
		}
	}
	wg.Wait()
	<-h.began
	for _, e := range all[:] {
		harness.Eventually(t, 10*time.Second, harness.True("who does not load has ended", func() bool { return e.c.Stats().Flights <= 1 }))
	}
	close(h.release)
	for _, e := range all {
		e.c.fills.Wait()
	}
	w.wantLoads(1)
	for _, e := range all {
		// The others find in Redis what one has loaded, and need no load.
		e.cl.mu.Lock()
		if ent := e.c.l1.find(l1Key{key: "item:1", version: e.cl.l1Version}); ent != nil {
			ent.pause.Store(0)
		}
		e.cl.mu.Unlock()
		mustGet(t, e, "item:1", w.reads())
		e.c.fills.Wait()
		w.want("read after it", mustGet(t, e, "item:1", w.reads()), int64(2))
	}
	w.wantLoads(0)
}

func TestHardExpiryEndsValue(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	e := w.items(c, StaleWhileRevalidate(time.Hour), StaleFor(time.Hour))
	w.fill("item:1", "1", coherence.Header{Filled: in(-time.Hour), SoftExpiry: in(-time.Minute), HardExpiry: in(-time.Millisecond)})
	w.row.Store(2)
	w.want("read of a value past its greatest age", w.get(t.Context(), e, "item:1"), int64(2))
}

func TestTimesOfFill(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	e := w.items(c, TTL(time.Hour), StaleWhileRevalidate(30*time.Minute), NegativeTTL(time.Minute))
	w.get(t.Context(), e, "item:1")
	h, ok := w.header("item:1")
	if !ok {
		t.Fatal("nothing was filled")
	}
	w.want("soft expiry", time.Duration(h.SoftExpiry-h.Filled)*time.Microsecond, time.Hour)
	w.want("hard expiry", time.Duration(h.HardExpiry-h.Filled)*time.Microsecond, 90*time.Minute)
	rdb := redis.NewClient(&redis.Options{Addr: w.addr})
	defer rdb.Close()
	if ttl := rdb.PTTL(t.Context(), w.name("item:1")).Val(); ttl <= 80*time.Minute || ttl > 90*time.Minute {
		t.Errorf("Redis keeps it for %v, want about 90 minutes", ttl)
	}
	_, err := e.Get(t.Context(), "item:2", func(context.Context, *Load) (int64, error) { return 0, ErrNotFound })
	if !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v", err)
	}
	c.fills.Wait()
	h, _ = w.header("item:2")
	w.want("what does not exist", time.Duration(h.HardExpiry-h.Filled)*time.Microsecond, time.Minute)
}

// A refresh takes no place that a reader could need.
func TestRefreshDoesNotDisplaceReaders(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.fill("item:1", "1", coherence.Header{Filled: in(-time.Hour), SoftExpiry: in(-time.Second), HardExpiry: in(time.Hour)})
	e := w.opened(1, MaxLoads(1))[0]
	h := newHeld()
	var wg sync.WaitGroup
	wg.Go(func() { mustGet(t, e, "item:2", h.load(w, 5, nil)) })
	<-h.began
	w.want("read", mustGet(t, e, "item:1", w.reads()), int64(1))
	w.want("waiting", e.cl.turns.queued(), 0)
	s := e.c.Stats().Classes["item"]
	w.want("skipped", s.RefreshesSkipped, uint64(1))
	w.want("refreshes", s.Refreshes, uint64(0))
	close(h.release)
	wg.Wait()
	e.c.fills.Wait()
	w.wantLoads(1)
	if !e.cl.turns.try() {
		t.Error("the place among the loads was not given back")
	}
	e.cl.turns.release()
}

// A refresh that fails is not tried again by each read that follows.
func TestFailedRefreshIsGivenTime(t *testing.T) {
	t.Parallel()
	for _, layer := range []string{"L1", "L2"} {
		t.Run(layer, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			o := Options{}
			if layer == "L2" {
				o.L1Bytes = -1
			}
			c := w.open(o, hooks{})
			e := Entries[int64](c, "item")
			w.live(c)
			slowLoads(e)
			w.fill("item:1", "1", coherence.Header{Filled: in(-time.Hour), SoftExpiry: in(-time.Second), HardExpiry: in(time.Hour)})
			for range 20 {
				w.want("read", mustGet(t, e, "item:1", func(context.Context, *Load) (int64, error) {
					w.loads.Add(1)
					return 0, errors.New("broken")
				}), int64(1))
				c.fills.Wait()
			}
			w.wantLoads(1)
			if !e.cl.turns.try() {
				t.Error("no place among the loads is free")
			}
			e.cl.turns.release()
		})
	}
}

// A reader who comes to a refresh that another process does is not sent away
// with it.
func TestReaderJoinsRefresh(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	all := w.opened(2, StaleFor(time.Hour), MaxLoads(1))
	e := all[1]
	mustGet(t, all[0], "item:1", w.reads())
	all[0].c.fills.Wait()
	w.want("read", mustGet(t, e, "item:1", w.reads()), int64(1))
	w.write("item:1", 110)
	w.live(all[0].c)
	w.live(e.c)
	// One process loads; the other begins a refresh, and finds the lease. In
	// that moment a reader joins who has nothing to return.
	h := newHeld()
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = all[0].Refresh(t.Context(), "item:1", h.load(w, 2, nil)) })
	<-h.began
	e.cl.mu.Lock() // the refresh can not end before the reader is there
	f := &flight[int64]{background: true, turned: e.cl.turns.try(), detached: true, filled: -1, waiters: 1}
	e.start(t.Context(), "item:1", f, w.reads(), &scope{}, true)
	e.cl.flights["item:1"] = f
	e.cl.mu.Unlock()
	got := make(chan int64, 1)
	wg.Go(func() {
		v, _, err := e.await(t.Context(), "item:1", f, nil)
		if err != nil {
			t.Error(err)
		}
		got <- v
	})
	w.waits(e.c)
	if !e.cl.turns.try() {
		t.Error("it keeps its place among the loads while it waits")
	} else {
		e.cl.turns.release()
	}
	close(h.release)
	w.want("read", <-got, int64(2))
	wg.Wait()
}

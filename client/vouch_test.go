package client

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
)

// pace is the part of a worker that dates the watermark: pulses, answers, and
// watermarks on the masters.
type pace struct {
	w *world
	// insert is where the primary writes, done the watermark.
	insert, done atomic.Uint64
	// beating, answering, writing: what goes on.
	beating, answering atomic.Bool
	mark               func(done uint64) error
	count              atomic.Uint64
	mu                 sync.Mutex // held during a beat
}

const paceEvery = 10 * time.Millisecond

// keepPace sends pulses until the test ends.
func (w *world) keepPace() *pace {
	w.t.Helper()
	p := &pace{w: w}
	p.insert.Store(60)
	p.done.Store(90)
	p.beating.Store(true)
	p.answering.Store(true)
	p.mark = func(done uint64) error {
		return w.worker.WriteWatermarks(w.ctx(), coherence.PartitionStep, at(done), change.Position{})
	}
	ctx, cancel := context.WithCancel(w.ctx())
	over := make(chan struct{})
	go func() {
		defer close(over)
		t := time.NewTicker(paceEvery)
		defer t.Stop()
		var last coherence.Pulse
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
				p.mu.Lock()
				if p.beating.Load() {
					last = p.beat(last)
				}
				p.mu.Unlock()
			}
		}
	}()
	w.t.Cleanup(func() { cancel(); <-over })
	return p
}

func (p *pace) beat(last coherence.Pulse) coherence.Pulse {
	next := coherence.NewPulse()
	if p.answering.Load() {
		next.Answer, next.Of = at(p.insert.Load()-40), last.Token
	}
	done := p.done.Load()
	err := errors.Join(p.mark(done), p.w.worker.Heartbeat(p.w.ctx(), coherence.Message{V: at(100), W: at(done)}, next))
	if err != nil {
		p.w.t.Errorf("beat: %v", err)
	}
	p.count.Add(1)
	return next
}

// stop ends the beats; none is under way when it returns.
func (p *pace) stop() {
	p.mu.Lock()
	p.beating.Store(false)
	p.mu.Unlock()
}

func (p *pace) goOn() { p.beating.Store(true) }

// staleBound is the MaxStale of these tests: long beside the period of the
// pulses, so that a busy machine does not break what should hold.
const staleBound = 1500 * time.Millisecond

// reads a key until want comes from the loader or the cache, and checks that
// nothing else was served to a read that began later than staleBound after t0.
func (w *world) until(e *Class[int64], key string, t0 time.Duration, want int64) {
	w.t.Helper()
	harness.Eventually(w.t, 20*time.Second, func() error {
		began := e.c.now()
		got := w.get(w.t.Context(), e, key)
		if got == want {
			return nil
		}
		if began >= t0+staleBound {
			w.t.Fatalf("got %d %v after it was replaced by %d, the bound is %v", got, began-t0, want, staleBound)
		}
		return fmt.Errorf("got %d, want %d", got, want)
	})
}

// untilHit reads a key until the cache serves it.
func (w *world) untilHit(e *Class[int64], key string) {
	w.t.Helper()
	harness.Eventually(w.t, 20*time.Second, func() error {
		w.loads.Store(0)
		w.get(w.t.Context(), e, key)
		if n := w.loads.Load(); n > 0 {
			return fmt.Errorf("%d loads", n)
		}
		return nil
	})
}

// hitsAfter reads a key until the cache serves it to a read after a moment.
func (w *world) hitsAfter(e *Class[int64], key string, moment time.Duration) {
	w.t.Helper()
	harness.Eventually(w.t, 20*time.Second, func() error {
		began := e.c.now()
		w.loads.Store(0)
		w.get(w.t.Context(), e, key)
		if n := w.loads.Load(); n > 0 || began < moment {
			return fmt.Errorf("%d loads %v before the moment", n, moment-began)
		}
		return nil
	})
}

// vouched waits until every master is.
func (w *world) vouched(c *Client) {
	w.t.Helper()
	harness.Eventually(w.t, 20*time.Second, harness.True("all masters are vouched for", func() bool {
		return c.vouching.looked.Load() && c.allVouched(staleBound)
	}))
}

// In each of these a commit is not heard of by anybody.
func TestMaxStale(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ stop, goOn func(p *pace) }{
		// No worker is alive.
		"heartbeats stop": {
			stop: (*pace).stop,
			goOn: (*pace).goOn,
		},
		// The reader is dead, or the log stalls: v and w stand still while the
		// primary writes.
		"the watermark stops": {
			stop: func(p *pace) { p.insert.Store(1000) },
			goOn: func(p *pace) { p.done.Store(1000) },
		},
		// The worker does not reach the primary.
		"the primary does not answer": {
			stop: func(p *pace) { p.answering.Store(false) },
			goOn: func(p *pace) { p.answering.Store(true) },
		},
	} {
		for _, layer := range []string{"L1", "L2"} {
			t.Run(name+"/"+layer, func(t *testing.T) {
				t.Parallel()
				w := newWorld(t)
				p := w.keepPace()
				o := Options{L1Bytes: -1}
				if layer == "L1" {
					o.L1Bytes = 1 << 20
				}
				w.get(t.Context(), w.items(w.open(o, hooks{})), "item:1")
				w.wantLoads(1)
				client := w.open(o, hooks{})
				e := w.items(client, MaxStale(staleBound))
				w.vouched(client)
				w.untilHit(e, "item:1")
				w.want("read", w.get(t.Context(), e, "item:1"), int64(1))

				c.stop(p)
				beats := p.count.Load()
				if name != "heartbeats stop" { // the answer under way was to what was before
					harness.Eventually(t, 10*time.Second, harness.True("two beats", func() bool { return p.count.Load() > beats+1 }))
				}
				t0 := client.now()
				w.row.Add(1)
				w.until(e, "item:1", t0, 2)
				if layer == "L2" {
					if n := client.Stats().Classes["item"].Untrusted; n == 0 {
						t.Error("nothing was counted as untrusted")
					}
				}
				// A token that the watermark has passed makes no difference.
				w.row.Add(1)
				token := change.Position{Era: testEra, LSN: 80}.String()
				if layer == "L2" {
					w.want("read under After", w.get(client.After(t.Context(), token), e, "item:1"), int64(3))
				}
				// Nobody invalidated it, so once all is well it is served again.
				w.row.Store(2)
				w.get(t.Context(), e, "item:1")
				c.goOn(p)
				w.vouched(client)
				w.untilHit(e, "item:1")
				if m := client.Stats().MasterAge; len(m) != 1 || m[w.addr] <= 0 || m[w.addr] > client.now() {
					t.Errorf("ages of masters: %+v", m)
				}
			})
		}
	}
}

// What this process loaded itself is served while nobody vouches for anything,
// for no longer than the bound.
func TestMaxStaleOwnLoad(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.keepPace().stop()
	c := w.open(Options{}, hooks{})
	e := w.items(c, MaxStale(staleBound))
	t0 := c.now()
	w.get(t.Context(), e, "item:1")
	w.wantLoads(1)
	w.want("read again", w.get(t.Context(), e, "item:1"), int64(1))
	if n := w.loads.Load(); n > 0 && c.now() < t0+staleBound {
		t.Errorf("%d loads of what was loaded less than %v ago", n, staleBound)
	}
	t0 = c.now()
	w.row.Add(1)
	w.until(e, "item:1", t0, 2)
	w.want("in redis", func() bool { _, ok := w.header("item:1"); return ok }(), true)
}

// The watermark and v stand still, and so does the primary: that is how an idle
// database looks. It is served from the cache for as long as somebody says so.
func TestMaxStaleIdle(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.keepPace()
	c := w.open(Options{}, hooks{})
	e := w.items(c, MaxStale(staleBound))
	w.vouched(c)
	w.get(t.Context(), e, "item:1")
	w.hitsAfter(e, "item:1", c.now()+3*staleBound)
}

// Workers that do not answer pulses, or can not: the default does not count, a
// bound that was asked for does.
func TestMaxStaleUndated(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.keepPace().answering.Store(false)
	w.get(t.Context(), w.items(w.open(Options{}, hooks{})), "item:1")
	w.loads.Store(0)
	c := w.open(Options{MaxStale: MaxStaleDefault, L1Bytes: -1}, hooks{})
	c.vouching.strict = false // as if it was not asked for
	harness.Eventually(t, 10*time.Second, harness.True("a look", c.vouching.looked.Load))
	w.get(t.Context(), w.items(c), "item:1")
	w.wantLoads(0)
	w.get(t.Context(), w.items(c, MaxStale(time.Hour)), "item:1")
	w.wantLoads(1)
	w.get(t.Context(), w.items(c, MaxStale(-1)), "item:1")
	w.wantLoads(0)
}

// With StaleFor what nobody vouches for is better than an error, for a while.
func TestMaxStaleWithStaleFor(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.keepPace()
	w.get(t.Context(), w.items(w.open(Options{}, hooks{})), "item:1")
	broken := errors.New("broken")
	fail := LoadWith(func(context.Context, string, *Load) (int64, error) { return 0, broken })
	for layer, bytes := range map[string]int64{"L2": -1, "L1": 1 << 20} {
		c := w.open(Options{L1Bytes: bytes}, hooks{})
		e := Entries[int64](c, "item", fail, MaxStale(staleBound), StaleFor(time.Hour))
		short := Entries[int64](c, "item", fail, MaxStale(staleBound), StaleFor(time.Millisecond))
		w.live(c)
		harness.Eventually(t, 20*time.Second, func() error { _, err := e.Get(t.Context(), "item:1"); return err })
		p.stop()
		harness.Eventually(t, 20*time.Second, func() error {
			if _, err := short.Get(t.Context(), "item:1"); !errors.Is(err, broken) {
				return fmt.Errorf("got %v, want that nothing is served", err)
			}
			return nil
		})
		v, err := e.Get(t.Context(), "item:1")
		w.must(err)
		w.want(layer, v, int64(1))
		if got := c.Stats().Classes["item"].Stale; got == 0 {
			t.Errorf("%s: it was not served as stale", layer)
		}
		p.goOn()
	}
}

// Another server answers under the address: what was known of the old one does
// not count, and neither does what a look at it brings later.
func TestMaxStaleForgetsServer(t *testing.T) {
	t.Parallel()
	c := &Client{news: make(chan struct{})}
	v := &c.vouching
	v.kick, v.masters = make(chan struct{}, 1), map[string]*master{}
	v.dates.answers = []datedPosition{{position: at(50), since: 7}}
	m := v.master("a")
	cl := &class{maxStale: 2, strict: true}
	c.classes = map[string][]*class{"item": {cl}}
	learn := func(p coherence.MasterProof, resets uint64) {
		p.Node = "a"
		v.list([]coherence.MasterProof{p})
		v.learn(m, &p, resets)
		c.trustLocked()
	}
	check := func(what string, want bool) {
		t.Helper()
		if got := m.vouched(8, 2); got != want || (cl.trusted.Load() == 9) != want {
			t.Errorf("%s: vouched for is %v until %d, want %v", what, got, cl.trusted.Load(), want)
		}
	}
	one := coherence.MasterProof{RunID: "one", W: at(60)}
	learn(one, 0)
	check("a watermark that covers the answer", true)
	if m.vouched(9, 2) {
		t.Error("it is vouched for longer than it should be")
	}
	c.distrust("a")
	check("another server", false)
	learn(one, 0)
	check("what was asked before", false)
	two := coherence.MasterProof{RunID: "two", W: at(60)}
	learn(two, 1)
	check("the new server", true)
	for name, p := range map[string]coherence.MasterProof{
		"other run_id": {RunID: "three", W: at(40)}, "went back": {RunID: "two", W: at(40)}, "nothing": {RunID: "two"},
	} {
		learn(p, 1)
		check(name, false)
		learn(two, 1)
		check("again", true)
	}
	p := one
	p.Err = errors.New("no answer")
	learn(p, 1)
	check("no answer", true) // yet
}

// One master of a cluster is not told anything any more: its keys are passed by,
// the others' are not.
func TestMaxStaleOfOneMaster(t *testing.T) {
	t.Parallel()
	w, rdb := newClusterWorld(t)
	store := w.worker
	marks, err := store.ReadWatermarks(t.Context(), coherence.PartitionStep)
	w.must(err)
	var frozen atomic.Value // the address of the master that hears nothing
	frozen.Store("")
	p := w.keepPace()
	p.mu.Lock()
	p.mark = func(done uint64) error {
		var errs []error
		for _, m := range marks {
			at := at(done)
			if m.Node == frozen.Load() {
				at = change.Position{Era: testEra, LSN: 90}
			}
			errs = append(errs, rdb.HSet(w.ctx(), store.Layout().Watermark(m.LeastSlot), fmt.Sprint(coherence.PartitionStep), at.String()+"|"+m.Current).Err())
		}
		return errors.Join(errs...)
	}
	p.mu.Unlock()
	c, err := Open(t.Context(), Options{Redis: rdb, Namespace: w.ns, RedisTimeout: 5 * time.Second, L1Bytes: -1})
	w.must(err)
	t.Cleanup(func() { _ = c.Close() })
	e := w.items(c, MaxStale(staleBound))
	keys := map[string][]string{} // by master
	for i := range 20 {
		key := fmt.Sprint("item:", i)
		w.untilHit(e, key)
		node := c.masterOf(c.full(key)).name
		keys[node] = append(keys[node], key)
	}
	if len(keys) != 3 {
		t.Fatalf("the keys fell on %d masters", len(keys))
	}
	node := marks[1].Node
	frozen.Store(node)
	p.insert.Store(1000) // the primary writes, and
	p.done.Store(1000)   // all masters but one are told
	beats := p.count.Load()
	harness.Eventually(t, 10*time.Second, harness.True("two beats", func() bool { return p.count.Load() > beats+1 }))
	t0 := c.now()
	w.row.Add(1)
	w.until(e, keys[node][0], t0, 2)
	for other, its := range keys {
		if other != node {
			w.hitsAfter(e, its[0], t0+2*staleBound)
		}
	}
	for name, age := range c.Stats().MasterAge {
		if trusted := age >= 0 && age < staleBound; trusted != (name != node) {
			t.Errorf("master %s may be %v old, the one that hears nothing is %s", name, age, node)
		}
	}
	frozen.Store("")
	w.untilHit(e, keys[node][0])
}

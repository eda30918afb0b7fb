package client

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
)

func TestBreaker(t *testing.T) {
	t.Parallel()
	var b breaker
	now := time.Duration(1)
	fail := func() (opened bool) { return b.done(now, true) }
	if !b.allow(now, false) || !b.allow(now, true) {
		t.Fatal("a breaker that has seen nothing refuses")
	}
	for i := range breakerFailures {
		if !b.allow(now, false) {
			t.Fatalf("it refuses after %d failures", i)
		}
		if opened := fail(); opened != (i == breakerFailures-1) {
			t.Errorf("failure %d: opened %v", i, opened)
		}
		if b.allow(now, true) {
			t.Error("what follows on a question without an answer is asked")
		}
	}
	var waits []time.Duration
	for range 6 {
		begun := now
		for !b.allow(now, false) {
			now += time.Millisecond
		}
		waits = append(waits, now-begun)
		if b.allow(now, false) {
			t.Error("two may try at a time")
		}
		if fail() {
			t.Error("it opened again")
		}
	}
	if got, want := fmt.Sprint(waits), "[200ms 400ms 800ms 1s 1s 1s]"; got != want {
		t.Errorf("waits: got %s, want %s", got, want)
	}
	now += time.Second
	if !b.allow(now, false) {
		t.Fatal("nobody may try")
	}
	b.release() // it says nothing
	if !b.allow(now, false) {
		t.Fatal("nobody else may try")
	}
	b.done(now, false)
	if !b.allow(now, false) || !b.allow(now, true) {
		t.Error("it refuses after an answer")
	}
	for range breakerFailures {
		fail()
	}
	b.heal()
	if !b.allow(now, true) {
		t.Error("it refuses although it was healed")
	}
}

// A read that finds Redis silent waits for that once, not at each step.
func TestOneTimeoutPerRead(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	proxy := harness.Proxy(t, w.addr)
	direct := w.addr
	w.addr = proxy.Addr()
	c := w.open(Options{RedisTimeout: 100 * time.Millisecond, L1Bytes: -1}, hooks{})
	w.addr = direct
	e := w.items(c)
	w.get(t.Context(), e, "item:1")
	proxy.Blackhole(true)
	errs := c.Stats().RedisErrors
	for i := range uint64(breakerFailures) {
		w.get(t.Context(), e, "item:2")
		w.want("steps that waited", c.Stats().RedisErrors-errs, i+1)
	}
	skipped := c.Stats().RedisSkipped
	w.get(t.Context(), e, "item:2")
	if c.Stats().RedisSkipped == skipped {
		t.Error("Redis is asked, however often it does not answer")
	}
	harness.Eventually(t, 10*time.Second, harness.True("the client is blind", func() bool { return c.State() == Blind }))
	proxy.Blackhole(false)
	w.live(c) // the control data was read: nobody needs to try
	w.get(t.Context(), e, "item:1")
	w.loads.Store(0)
	w.get(t.Context(), e, "item:1")
	w.wantLoads(0)
}

// One node of a cluster does not answer: its keys are not asked for, the others
// are.
func TestBreakerPerNode(t *testing.T) {
	t.Parallel()
	w, rdb := newClusterWorld(t)
	c, err := Open(t.Context(), Options{Redis: rdb, Namespace: w.ns, RedisTimeout: 5 * time.Second, L1Bytes: -1, MaxStale: -1})
	w.must(err)
	t.Cleanup(func() { _ = c.Close() })
	e := w.items(c)
	keys := map[*redis.Client]string{}
	for i := range 20 {
		key := fmt.Sprint("item:", i)
		w.get(t.Context(), e, key)
		keys[c.owners[coherence.Slot(c.full(key))].Load()] = key
	}
	if len(keys) != 3 {
		t.Fatalf("the keys fell on %d nodes", len(keys))
	}
	var dead *redis.Client
	for node := range keys {
		// The node of the control data would take the others with it.
		if node != c.owners[coherence.Slot(c.layout.Control("source"))].Load() {
			dead = node
		}
	}
	dead.AddHook(failing{errors.New("cut")})
	for range breakerFailures + 5 {
		for node, key := range keys {
			w.loads.Store(0)
			w.get(t.Context(), e, key)
			if loaded := w.loads.Load() > 0; loaded != (node == dead) {
				t.Errorf("%s, its node dead %v: loaded %v", key, node == dead, loaded)
			}
		}
	}
	s := c.Stats()
	if s.RedisErrors < breakerFailures || s.RedisSkipped == 0 {
		t.Errorf("%d errors, %d skipped", s.RedisErrors, s.RedisSkipped)
	}
}

package client

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

// swallow drops the messages that a test chooses, as a network or an overfull
// buffer does.
func swallow(drop func(m *coherence.Message) bool) hooks {
	return hooks{received: func(r *received) bool {
		if r.body == "" {
			return true
		}
		m, err := coherence.ParseMessage([]byte(r.body))
		return err != nil || !drop(&m)
	}}
}

func TestGapIsReplayed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	lost := false
	c := w.open(Options{}, swallow(func(m *coherence.Message) bool {
		if m.Kind == coherence.KindKeys && !lost {
			lost = true
			return true
		}
		return false
	}))
	e := w.items(c)
	w.get(t.Context(), e, "item:1")
	w.get(t.Context(), e, "item:2")
	epochs := c.Stats().Epochs
	w.invalidate("item:1", 110) // lost
	w.invalidate("item:3", 111) // shows the gap
	w.live(c)
	if inL1(e, "item:1") {
		t.Error("what the lost message named is still in L1")
	}
	if !inL1(e, "item:2") {
		t.Error("a replay forgot everything")
	}
	w.want("epochs", c.Stats().Epochs, epochs)
}

// A heartbeat shows that the last message was lost.
func TestHeartbeatShowsLoss(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, swallow(func(m *coherence.Message) bool { return m.Kind == coherence.KindKeys }))
	e := w.items(c)
	w.get(t.Context(), e, "item:1")
	w.invalidate("item:1", 110)
	w.beat(120, 115)
	w.heard(c, 115)
	w.live(c)
	w.want("gaps", c.Stats().Gaps, uint64(1))
	if inL1(e, "item:1") {
		t.Error("what the lost message named is still in L1")
	}
}

// Without any heartbeat the Client looks by itself.
func TestMissedHeartbeatReplays(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, swallow(func(m *coherence.Message) bool { return m.Kind == coherence.KindKeys }))
	e := w.items(c)
	w.get(t.Context(), e, "item:1")
	w.invalidate("item:1", 110)
	w.live(c) // waits for the number: only a replay brings it
	if inL1(e, "item:1") {
		t.Error("what the lost message named is still in L1")
	}
}

func TestStreamTooShortBeginsEpoch(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, swallow(func(m *coherence.Message) bool { return m.Kind == coherence.KindKeys }))
	e := w.items(c)
	w.get(t.Context(), e, "item:1")
	w.invalidate("item:1", 110)
	rdb := redis.NewClient(&redis.Options{Addr: w.addr})
	defer rdb.Close()
	w.must(rdb.XTrimMaxLen(t.Context(), w.worker.Layout().Control("stream"), 0).Err())
	epochs := c.Stats().Epochs
	w.beat(120, 115)
	w.heard(c, 115)
	w.live(c)
	if inL1(e, "item:1") {
		t.Error("an epoch left an entry in L1")
	}
	w.want("epochs", c.Stats().Epochs, epochs+1)
}

// Redis lost control and counts from the beginning.
func TestControlLostBeginsEpoch(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	e := w.items(c)
	w.invalidate("item:7", 101)
	w.get(t.Context(), e, "item:1")
	w.live(c)
	epochs := c.Stats().Epochs
	rdb := redis.NewClient(&redis.Options{Addr: w.addr})
	defer rdb.Close()
	l := w.worker.Layout()
	w.must(rdb.Del(t.Context(), l.Control("last"), l.Control("stream")).Err())
	w.beat(120, 115)
	harness.Eventually(t, 10*time.Second, harness.True("an epoch", func() bool { return c.Stats().Epochs > epochs }))
	w.live(c)
	if inL1(e, "item:1") {
		t.Error("an entry of the epoch before is served")
	}
}

// A record that changed without its message shows in the digest.
func TestDigestBeginsEpoch(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	w.beat(120, 115)
	w.heard(c, 115)
	epochs := c.Stats().Epochs
	rdb := redis.NewClient(&redis.Options{Addr: w.addr})
	defer rdb.Close()
	w.must(rdb.HSet(t.Context(), w.worker.Layout().Control("last"), "digest", "00000000deadbeef").Err())
	w.beat(130, 116)
	harness.Eventually(t, 10*time.Second, harness.True("an epoch", func() bool { return c.Stats().Epochs > epochs }))
	w.live(c)
	w.beat(140, 117)
	w.heard(c, 117)
	w.want("epochs", c.Stats().Epochs, epochs+1)
}

// More messages than fit into the queue while the handler is busy.
func TestOverflowIsReplayed(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	came := make(chan struct{}, 16)
	c := w.open(Options{}, hooks{queue: 1, received: func(r *received) bool {
		if r.body != "" {
			came <- struct{}{}
		}
		return true
	}})
	e := w.items(c)
	w.get(t.Context(), e, "item:3")
	gaps := c.Stats().Gaps
	c.mu.Lock() // the handler waits, with one message in its hands
	for i := range 4 {
		w.invalidate(fmt.Sprint("item:", i+1), 110)
		<-came // so that the one before was queued, or dropped
	}
	c.mu.Unlock()
	w.live(c)
	// A message may also overflow while the first gap is replayed.
	if got := c.Stats().Gaps; got <= gaps {
		t.Errorf("gaps: got %d, want more than %d", got, gaps)
	}
	if inL1(e, "item:3") {
		t.Error("what the lost message named is still in L1")
	}
}

// The handler does not come to handle anything: L1's life ends by itself.
func TestLifeEndsWithoutPong(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	e := w.items(c)
	w.get(t.Context(), e, "item:1")
	c.mu.Lock()
	harness.Eventually(t, l1Life+time.Second, harness.True("L1 is not used", func() bool { return !inL1(e, "item:1") }))
	c.mu.Unlock()
}

func TestReconnectReplays(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	proxy := harness.Proxy(t, w.addr)
	direct := w.addr
	w.addr = proxy.Addr()
	c := w.open(Options{}, hooks{})
	w.addr = direct
	e := w.items(c)
	w.get(t.Context(), e, "item:1")
	w.get(t.Context(), e, "item:2")
	epochs := c.Stats().Epochs
	proxy.Refuse(true)
	harness.Eventually(t, 10*time.Second, harness.True("the client is blind", func() bool { return c.State() == Blind }))
	w.write("item:1", 110) // not heard
	if inL1(e, "item:1") {
		t.Error("L1 is used without a subscription")
	}
	proxy.Refuse(false)
	w.live(c)
	if inL1(e, "item:1") {
		t.Error("what was invalidated meanwhile is still in L1")
	}
	if !inL1(e, "item:2") {
		t.Error("a reconnection forgot everything")
	}
	w.want("epochs", c.Stats().Epochs, epochs)
}

// A half-open network: nothing arrives and nothing fails.
func TestSilenceEndsLife(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	proxy := harness.Proxy(t, w.addr)
	direct := w.addr
	w.addr = proxy.Addr()
	c := w.open(Options{RedisTimeout: 50 * time.Millisecond}, hooks{})
	w.addr = direct
	e := w.items(c)
	w.get(t.Context(), e, "item:1")
	proxy.Blackhole(true)
	deaf := c.now() // no PING that is sent from here on is answered
	w.write("item:1", 110)
	harness.Eventually(t, 10*time.Second, harness.True("L1 is not used", func() bool { return !inL1(e, "item:1") }))
	if until := time.Duration(c.lastLive.Load()); until > deaf+l1Life {
		t.Errorf("L1 was to be used for %v, its life is %v", until-deaf, l1Life)
	}
	// Reads go on, with the database.
	w.want("read", w.get(t.Context(), e, "item:1"), int64(2))
	proxy.Blackhole(false)
	w.live(c)
	w.want("read", w.get(t.Context(), e, "item:1"), int64(2))
}

// Another server under the address, with the same data as far as one can see.
func TestMasterChangeEpoch(t *testing.T) {
	t.Parallel()
	old := harness.NewRedis(t, servers.RedisConfig{})
	w := newWorldAt(t, old.Addr(), testSource)
	proxy := harness.Proxy(t, old.Addr())
	w.addr = proxy.Addr()
	c := w.open(Options{}, hooks{})
	w.addr = old.Addr()
	e := w.items(c)
	w.get(t.Context(), e, "item:1")
	epochs := c.Stats().Epochs

	replica := harness.NewRedisReplica(t, old)
	rdb := redis.NewClient(&redis.Options{Addr: replica.Addr()})
	defer rdb.Close()
	last := w.worker.Layout().Control("last")
	harness.Eventually(t, 20*time.Second, func() error {
		if n, err := rdb.Exists(t.Context(), last).Result(); n != 1 {
			return fmt.Errorf("the replica has no copy yet: %v", err)
		}
		return nil
	})
	w.must(rdb.ReplicaOf(t.Context(), "NO", "ONE").Err())
	proxy.SetTarget(replica.Addr())
	proxy.Cut()
	harness.Eventually(t, 10*time.Second, harness.True("an epoch", func() bool { return c.Stats().Epochs > epochs }))
	harness.Eventually(t, 10*time.Second, harness.True("live", func() bool { return c.State() == Live }))
	if inL1(e, "item:1") {
		t.Error("an entry of another master's time is served from L1")
	}
}

func TestReplicaIsRefused(t *testing.T) {
	t.Parallel()
	w := newWorldAt(t, harness.NewRedis(t, servers.RedisConfig{}).Addr(), testSource)
	master := harness.NewRedis(t, servers.RedisConfig{})
	replica := harness.NewRedisReplica(t, master)
	rdb := redis.NewClient(&redis.Options{Addr: replica.Addr()})
	defer rdb.Close()
	c, err := Open(t.Context(), Options{Redis: rdb, Namespace: w.ns, OpenTimeout: 300 * time.Millisecond})
	w.must(err)
	defer c.Close()
	w.want("state", c.State(), Blind)
	if _, err := c.data.Get(t.Context(), "x").Result(); !errors.Is(err, errReplica) {
		t.Errorf("got %v, want that it is a replica", err)
	}
	ring := redis.NewRing(&redis.RingOptions{Addrs: map[string]string{"a": w.addr}})
	defer ring.Close()
	if _, err := Open(t.Context(), Options{Redis: ring}); err == nil {
		t.Error("a ring is accepted")
	}
}

// Redis is away, at Open and later: reads come from the loader.
func TestRedisAway(t *testing.T) {
	t.Parallel()
	server := harness.NewRedis(t, servers.RedisConfig{})
	w := newWorldAt(t, server.Addr(), testSource)
	proxy := harness.Proxy(t, server.Addr())
	proxy.Refuse(true)
	rdb := redis.NewClient(&redis.Options{Addr: proxy.Addr()})
	defer rdb.Close()
	c, err := Open(t.Context(), Options{Redis: rdb, Namespace: w.ns, OpenTimeout: 50 * time.Millisecond})
	w.must(err)
	t.Cleanup(func() { _ = c.Close() })
	e := Entries[int64](c, "item", LoadWith(w.loader()))
	for range 20 {
		w.want("read", w.get(t.Context(), e, "item:1"), int64(1))
	}
	w.wantLoads(20)
	proxy.Refuse(false)
	w.live(c)
	harness.Eventually(t, 10*time.Second, func() error { // the breaker gives Redis time
		if w.get(t.Context(), e, "item:1"); !inL1(e, "item:1") {
			return errors.New("not in L1")
		}
		return nil
	})
}

package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

// newSentinelWorld is a namespace on a master and a replica behind a Sentinel,
// with a Client that finds them through it.
func newSentinelWorld(t *testing.T) (w *world, c *Client, master, replica *servers.Redis) {
	t.Helper()
	master = harness.NewRedis(t, servers.RedisConfig{})
	replica = harness.NewRedisReplica(t, master)
	sentinel := harness.NewSentinel(t, master, 1)
	store, err := coherence.Dial(t.Context(), sentinel.URL(), coherence.Options{Namespace: "shop"})
	if err != nil {
		t.Fatal(err)
	}
	w = &world{t: t, ns: "shop", addr: master.Addr(), worker: store}
	_, err = store.SetSource(t.Context(), testSource)
	w.must(err)
	_, err = store.Seed(t.Context(), func(context.Context) (change.Position, error) { return at(50), nil })
	w.must(err)
	w.row.Store(1)
	w.beat(100, 90)
	rdb := redis.NewFailoverClient(&redis.FailoverOptions{MasterName: sentinel.Name(), SentinelAddrs: sentinel.Addrs()})
	c, err = Open(t.Context(), Options{Redis: rdb, Namespace: w.ns, RedisTimeout: 5 * time.Second, MaxStale: -1})
	w.must(err)
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		_, _ = rdb.Close(), store.Close()
	})
	w.live(c)
	return w, c, master, replica
}

// redo is what the workers do when a master is another: see NODE LOST. The
// commands may still meet the dead one.
func (w *world) redo(lost *coherence.NodeLostError, replay func(context.Context) error) {
	w.t.Helper()
	ctx := coherence.DuringRedo(w.ctx(), lost)
	harness.Eventually(w.t, 30*time.Second, func() error {
		_, err := w.worker.SetSource(ctx, testSource)
		if err == nil {
			_, err = w.worker.Seed(ctx, func(context.Context) (change.Position, error) { return at(50), nil })
		}
		if err == nil {
			err = replay(ctx)
		}
		if err == nil {
			_, _, err = w.worker.Broadcast(ctx, coherence.Message{Kind: coherence.KindEpoch, V: w.v})
		}
		if err == nil {
			err = w.worker.Acknowledge(w.ctx(), lost)
		}
		return err
	})
}

// The master behind a Sentinel is killed, and the replica that takes its place
// has not heard of the last invalidation. The Client follows, and once the
// workers have done it again no old value is served, from L1 or Redis.
func TestSentinelFailover(t *testing.T) {
	t.Parallel()
	w, c, master, replica := newSentinelWorld(t)
	e := w.items(c)
	w.get(t.Context(), e, "item:1")
	w.get(t.Context(), e, "item:2")
	if !inL1(e, "item:1") {
		t.Fatal("the value is not in L1")
	}
	copyOf := redis.NewClient(&redis.Options{Addr: replica.Addr()})
	defer copyOf.Close()
	harness.Eventually(t, 20*time.Second, func() error {
		if n, err := copyOf.Exists(t.Context(), w.name("item:1"), w.name("item:2")).Result(); n != 2 {
			return fmt.Errorf("the replica has %d of 2 entries: %w", n, err)
		}
		return nil
	})
	epochs := c.Stats().Epochs
	master.Kill()
	w.row.Store(2) // committed; what was told of it died with the master

	var l *coherence.NodeLostError
	harness.Eventually(t, 60*time.Second, func() error {
		_, _, err := w.worker.Broadcast(w.ctx(), coherence.Message{Kind: coherence.KindHeartbeat, V: w.v, W: at(90)})
		if errors.As(err, &l) {
			return nil
		}
		return fmt.Errorf("no loss was noticed: %w", err)
	})
	w.redo(l, func(ctx context.Context) error {
		_, err := w.worker.Invalidate(ctx, []coherence.Invalidation{{Name: w.name("item:1"), X: at(110)}, {Name: w.name("item:2"), X: at(110)}})
		return err
	})
	harness.Eventually(t, 60*time.Second, func() error {
		if s := c.State(); s != Live || c.Stats().Epochs == epochs {
			return fmt.Errorf("the client is %v after %d epochs, %d before", s, c.Stats().Epochs, epochs)
		}
		return nil
	})
	w.live(c)
	w.want("item:1", w.get(t.Context(), e, "item:1"), int64(2))
	w.want("item:2", w.get(t.Context(), e, "item:2"), int64(2))
	// The subscription is that of the new master.
	w.invalidate("item:1", 120)
	w.live(c)
	w.row.Store(3)
	w.want("item:1", w.get(t.Context(), e, "item:1"), int64(3))
}

// An address comes to mean another server, and the one before lives: Sentinel
// or a name in DNS do that. What is connected to it would go on being answered,
// and its broadcast would be silent.
func TestAnotherServerEndsConnections(t *testing.T) {
	t.Parallel()
	w := newWorldAt(t, harness.NewRedis(t, servers.RedisConfig{}).Addr(), testSource)
	other := harness.NewRedis(t, servers.RedisConfig{}).Addr()
	var to atomic.Pointer[string]
	to.Store(&w.addr)
	rdb := redis.NewClient(&redis.Options{
		Addr: "redis.example:6379", ClientName: "tested",
		Dialer: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, *to.Load())
		},
	})
	defer rdb.Close()
	c, err := Open(t.Context(), Options{Redis: rdb, Namespace: w.ns, RedisTimeout: 5 * time.Second, MaxStale: -1})
	w.must(err)
	defer c.Close()
	w.live(c)
	e := w.items(c)
	w.get(t.Context(), e, "item:1")
	before := redis.NewClient(&redis.Options{Addr: w.addr})
	defer before.Close()
	connected := func() int {
		list, err := before.ClientList(t.Context()).Result()
		w.must(err)
		return strings.Count(list, "name=tested")
	}
	if connected() < 2 {
		t.Fatalf("%d connections, want those of data and of the subscription", connected())
	}
	epochs := c.Stats().Epochs
	to.Store(&other)
	// More than one read at a time needs a new connection.
	held := []*redis.Conn{}
	for range 2 * connected() {
		if cn := c.data.(*redis.Client).Conn(); c.Stats().Epochs == epochs {
			_ = cn.Ping(t.Context()).Err()
			held = append(held, cn)
		}
	}
	for _, cn := range held {
		_ = cn.Close()
	}
	if c.Stats().Epochs == epochs {
		t.Fatal("the other server was not seen")
	}
	harness.Eventually(t, 10*time.Second, func() error {
		if n := connected(); n > 0 {
			return fmt.Errorf("%d connections to the server of before", n)
		}
		return nil
	})
	harness.Eventually(t, 10*time.Second, harness.True("live", func() bool { return c.State() == Live }))
}

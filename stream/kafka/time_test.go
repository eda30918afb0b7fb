package kafka_test

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/lethe-cache/lethe/stream"
	"github.com/lethe-cache/lethe/stream/kafka"
	"github.com/lethe-cache/lethe/stream/streamtest"
)

func contextFor(t *testing.T, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), d)
}

// wire is a network whose connections can be made deaf: they neither end nor
// carry anything, as when a machine disappears.
type wire struct {
	dial func(context.Context, string, string) (net.Conn, error)
	deaf atomic.Bool
}

func (w *wire) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	if w.deaf.Load() {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	c, err := w.dial(ctx, network, address)
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c, wire: w}, nil
}

type conn struct {
	net.Conn
	wire *wire
}

func (c *conn) Write(b []byte) (int, error) {
	if c.wire.deaf.Load() {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

// virtual runs f in a bubble with a cluster of its own and virtual time.
func virtual(t *testing.T, f func(t *testing.T, c *kfake.Cluster, cfg kafka.Config, network *kfake.VirtualNetwork)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		var network kfake.VirtualNetwork
		c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.Ports(9093), kfake.ListenFn(network.Listen))
		if err != nil {
			t.Fatal(err)
		}
		cfg := settings(t, c.ListenAddrs())
		cfg.Dial = network.DialContext
		f(t, c, cfg, &network)
		c.Close()
		synctest.Wait()
	})
}

// A worker that vanishes without a word is replaced within ten seconds. (In
// real time: kafka-go's group waits for a dead connection in a mutex, which
// stops the clock of a bubble.)
func TestVanishedWorkerIsReplaced(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("left out: takes as long as a session of the group, 6 s")
	}
	c := fake(t)
	cfg := settings(t, c.ListenAddrs())
	w := writer(t, cfg)
	feed, lost := streamtest.NewFeed(), streamtest.NewSeen()
	cable := &wire{dial: (&net.Dialer{}).DialContext}
	own := cfg
	own.Dial = cable.Dial
	first := streamtest.Start(t, consumer(t, own), streamtest.Collect(lost))
	feed.Append(t, w, 50)
	lost.UntilBatches(t, 50)
	cable.deaf.Store(true)

	seen := streamtest.NewSeen()
	second := streamtest.Start(t, consumer(t, cfg), streamtest.Collect(seen))
	gone := time.Now()
	feed.Append(t, w, 50)
	seen.UntilV(t, cfg.Partitions, streamtest.V(100))
	// About 8 s; kafka-go's own settings take 30 s for the session alone.
	if took := time.Since(gone); took > 25*time.Second {
		t.Errorf("the worker was replaced after %v", took)
	}
	closeWriter(t, w)
	if err := second.Stop(); err != nil {
		t.Error(err)
	}
	cable.deaf.Store(false)
	if err := first.Stop(); err != nil {
		t.Error(err)
	}
}

// A broker that takes requests and does not answer is given up in time.
func TestDeafBrokerIsGivenUp(t *testing.T) {
	t.Parallel()
	virtual(t, func(t *testing.T, c *kfake.Cluster, cfg kafka.Config, network *kfake.VirtualNetwork) {
		cable := &wire{dial: network.DialContext}
		cfg.Dial = cable.Dial
		w := writer(t, cfg)
		feed := streamtest.NewFeed()
		feed.Append(t, w, 10)
		for w.Durable() < 10 {
			<-w.Advanced()
		}
		cable.deaf.Store(true)
		feed.Append(t, w, 10)
		<-time.After(10 * time.Second)
		if got := w.Durable(); got != 10 {
			t.Errorf("Durable is %d over a dead cable, want 10", got)
		}
		cable.deaf.Store(false)
		healed := time.Now()
		for w.Durable() < 20 {
			<-w.Advanced()
		}
		if took := time.Since(healed); took > 20*time.Second {
			t.Errorf("everything was written %v after the cable was whole again", took)
		}
		closeWriter(t, w)
		<-time.After(time.Minute)
	})
}

// Two workers share the partitions; when one leaves, the other has them all.
func TestRebalance(t *testing.T) {
	t.Parallel()
	virtual(t, func(t *testing.T, c *kfake.Cluster, cfg kafka.Config, _ *kfake.VirtualNetwork) {
		w := writer(t, cfg)
		seen, feed := streamtest.NewSeen(), streamtest.NewFeed()
		one, two := consumer(t, cfg), consumer(t, cfg)
		collect := func(ctx context.Context, p stream.Partition) error {
			seen.Reassigned(p.ID())
			return streamtest.Collect(seen)(ctx, p)
		}
		first, second := streamtest.Start(t, one, collect), streamtest.Start(t, two, collect)
		until := func(what string, done func() bool) {
			for range 600 {
				if done() {
					return
				}
				<-time.After(100 * time.Millisecond)
			}
			t.Errorf("%s: not within a minute; %d and %d", what, one.Assigned(), two.Assigned())
		}
		until("two and two", func() bool { return one.Assigned() == 2 && two.Assigned() == 2 })
		feed.Append(t, w, 50)
		seen.UntilBatches(t, 50)
		if err := first.Stop(); err != nil {
			t.Error(err)
		}
		until("none and four", func() bool { return one.Assigned() == 0 && two.Assigned() == 4 })
		feed.Append(t, w, 50)
		seen.UntilBatches(t, 100)
		seen.UntilV(t, cfg.Partitions, streamtest.V(100))
		closeWriter(t, w)
		if err := second.Stop(); err != nil {
			t.Error(err)
		}
		seen.Check(t)
		<-time.After(time.Minute)
	})
}

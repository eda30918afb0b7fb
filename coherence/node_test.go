package coherence

import (
	"context"
	"errors"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

// lost waits for the loss of a node to be noticed by a command.
func (b *bench) lost() *NodeLostError {
	b.t.Helper()
	var lost *NodeLostError
	harness.Eventually(b.t, 10*time.Second, func() error {
		_, err := b.Invalidate(b.ctx(), []Invalidation{{Name: b.name("probe"), X: at(1)}})
		if errors.As(err, &lost) {
			return nil
		}
		return errors.Join(errors.New("not noticed"), err)
	})
	if !errors.Is(lost, ErrNodeLost) {
		b.t.Fatalf("%v is not ErrNodeLost", lost)
	}
	return lost
}

// A server that was restarted is noticed before the first command that it is
// sent, and takes none but the redo's until that is done.
func TestRunIDChangeRaisesTags(t *testing.T) {
	t.Parallel()
	server := harness.NewRedis(t, servers.RedisConfig{})
	var told atomic.Int64
	b := seeded(on(t, server, Options{OnNodeLost: func(*NodeLostError) { told.Add(1) }}))
	must(t, b.WriteWatermarks(b.ctx(), 3, at(500), change.Position{}))
	marks, err := b.ReadWatermarks(b.ctx(), 3)
	must(t, err)
	if len(marks) != 1 || marks[0].Lost() || marks[0].Position != at(500) {
		t.Fatalf("watermarks %+v", marks)
	}

	must(t, server.Stop())
	must(t, server.Start(b.ctx()))
	lost := b.lost()
	if lost.Cause != "run_id" || lost.Old == lost.New || told.Load() != 1 || len(b.Lost()) != 1 {
		t.Errorf("lost %+v, told %d times", lost, told.Load())
	}
	if keys, err := b.freshClient(server).Keys(b.ctx(), "*").Result(); err != nil || len(keys) != 0 {
		t.Fatalf("keys %q (%v): a command was applied before the notice", keys, err)
	}
	if _, err := b.Begin(b.ctx(), BeginRequest{Name: b.name("k"), Known: known(1)}); !errors.Is(err, ErrNodeLost) {
		t.Errorf("begin on a lost node: %v", err)
	}
	if err := b.WriteWatermarks(b.ctx(), 3, at(600), change.Position{}); !errors.Is(err, ErrNodeLost) {
		t.Errorf("watermark on a lost node: %v", err)
	}

	redo := DuringRedo(b.ctx(), lost)
	marks, err = b.ReadWatermarks(redo, 3)
	must(t, err)
	if !marks[0].Lost() || marks[0].Found {
		t.Errorf("watermarks after the loss: %+v", marks)
	}
	_, err = b.SetSource(redo, change.Source{Era: testEra, SystemID: 7, Timeline: 1})
	must(t, err)
	if got, err := b.Raise(redo, RaiseRequest{Cause: "run_id " + lost.New, Reason: change.ReasonNodeLost, Classes: []string{"tagged"}}); err != nil || len(got) != 1 {
		t.Fatalf("raise in the redo: %v %v", got, err)
	}
	must(t, b.WriteWatermarks(redo, 3, at(400), change.Position{}))
	must(t, b.Acknowledge(b.ctx(), lost))
	must(t, b.Acknowledge(b.ctx(), lost)) // twice is fine
	marks, err = b.ReadWatermarks(b.ctx(), 3)
	must(t, err)
	if marks[0].Lost() || marks[0].Position != at(400) || len(b.Lost()) != 0 {
		t.Errorf("after the redo: %+v, lost %v", marks, b.Lost())
	}
	b.put(b.name("k"), 100)
}

// freshClient is a client that asks nobody who he is.
func (b *bench) freshClient(server *servers.Redis) *redis.Client {
	c := redis.NewClient(&redis.Options{Addr: server.Addr(), MaintNotificationsConfig: noMaintenance()})
	b.t.Cleanup(func() { _ = c.Close() })
	return c
}

// The watermark tells a worker that starts whether the master is still the one
// it was written on.
func TestRunIDChangeWhileDown(t *testing.T) {
	t.Parallel()
	server := harness.NewRedis(t, servers.RedisConfig{Args: []string{"--appendonly", "yes", "--appendfsync", "always"}})
	b := seeded(on(t, server, Options{Namespace: "shop"}))
	must(t, b.WriteWatermarks(b.ctx(), 0, at(500), change.Position{}))
	must(t, b.Store.Close())
	must(t, server.Stop())
	must(t, server.Start(t.Context()))

	b = on(t, server, Options{Namespace: "shop"})
	marks, err := b.ReadWatermarks(b.ctx(), 0)
	must(t, err)
	if !marks[0].Found || marks[0].Position != at(500) || !marks[0].Lost() {
		t.Errorf("watermark of before the restart: %+v, want it found and lost", marks[0])
	}
	b.invalidate(Invalidation{Name: b.name("k"), X: at(1)}) // nothing to acknowledge: the Store met this one
}

// A registration that the replica never got: nobody sees it missing, but the
// change of master is seen.
func TestRegLostInFailover(t *testing.T) {
	t.Parallel()
	master := harness.NewRedis(t, servers.RedisConfig{})
	replica := harness.NewRedisReplica(t, master)
	proxy, err := servers.NewProxy(master.Addr())
	must(t, err)
	t.Cleanup(func() { _ = proxy.Close() })
	b := &bench{t: t}
	b.dial("redis://"+proxy.Addr(), Options{Namespace: "shop"})
	b.rdb = b.freshClient(replica)
	seeded(b)
	must(t, b.WriteWatermarks(b.ctx(), 0, at(50), change.Position{}))
	direct := b.freshClient(master)
	if n := direct.Wait(b.ctx(), 1, 5*time.Second).Val(); n != 1 {
		t.Fatalf("WAIT: %d replicas", n)
	}
	must(t, b.freshClient(replica).ReplicaOf(b.ctx(), "no", "one").Err())
	if got := b.register("shop:t", "shop:k", 100); got != Stored {
		t.Fatalf("register on the old master: %v", got)
	}
	// The fail-over: connections end, the address leads to the new master.
	proxy.SetTarget(replica.Addr())
	proxy.Cut()
	lost := b.lost()
	redo := DuringRedo(b.ctx(), lost)
	if members, _, err := b.Members(redo, "shop:t", 0, 10); err != nil || len(members) != 0 {
		t.Errorf("members on the new master: %v %v; the test did not lose the registration", members, err)
	}
	marks, err := b.ReadWatermarks(redo, 0)
	must(t, err)
	if !marks[0].Found || marks[0].Position != at(50) || !marks[0].Lost() {
		t.Errorf("watermark %+v: position is as it was, the run_id is not", marks[0])
	}
	must(t, b.Acknowledge(b.ctx(), lost))

	// Back to the first master, which has the same run_id as ever: it missed
	// everything since.
	proxy.SetTarget(master.Addr())
	proxy.Cut()
	if again := b.lost(); again.New != lost.Old {
		t.Errorf("lost %+v, want the first master again", again)
	}
}

func TestAcknowledgeRefusesStranger(t *testing.T) {
	t.Parallel()
	var id atomic.Value
	id.Store("one")
	b := seeded(open(t, onMini, Options{RunID: func(context.Context, string) (string, error) { return id.Load().(string), nil }}))
	if err := b.Check(b.ctx()); err != nil {
		t.Fatalf("Check: %v", err)
	}
	id.Store("two")
	var lost *NodeLostError
	if err := b.Check(b.ctx()); !errors.As(err, &lost) || lost.New != "two" {
		t.Fatalf("Check: %v", err)
	}
	id.Store("three")
	redo := DuringRedo(b.ctx(), lost)
	if err := b.Acknowledge(b.ctx(), lost); !errors.As(err, &lost) || lost.New != "three" {
		t.Fatalf("Acknowledge of two, when three answers: %v", err)
	}
	if _, err := b.Invalidate(redo, []Invalidation{{Name: "k", X: at(1)}}); !errors.Is(err, ErrNodeLost) {
		t.Errorf("the redo for two passed on three: %v", err)
	}
	must(t, b.Acknowledge(b.ctx(), lost))
	// And the first one again is a stranger as well.
	id.Store("one")
	if err := b.Check(b.ctx()); !errors.Is(err, ErrNodeLost) {
		t.Errorf("Check: %v", err)
	}
}

func TestWatermarkNeverLower(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		for _, c := range []struct{ write, want uint64 }{{100, 100}, {50, 100}, {1<<53 + 1, 1<<53 + 1}, {1 << 53, 1<<53 + 1}} {
			must(t, b.WriteWatermarks(b.ctx(), 1, at(c.write), change.Position{}))
			marks, err := b.ReadWatermarks(b.ctx(), 1)
			must(t, err)
			if marks[0].Position != at(c.want) || marks[0].Lost() {
				t.Errorf("wrote %d: %+v, want %d", c.write, marks[0], c.want)
			}
		}
		marks, err := b.ReadWatermarks(b.ctx(), 2)
		must(t, err)
		if marks[0].Found || !marks[0].Lost() {
			t.Errorf("another partition: %+v", marks[0])
		}
	})
}

// The watermark goes with the message of a batch that has nothing to come
// after it, and not where it could be lost or come too early.
func TestBroadcastKeysMarks(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		send := func(p, before uint64) ([]string, bool, error) {
			return b.BroadcastKeys(b.ctx(), Message{Names: []string{b.name("k")}, X: at(p - 1), V: at(p)},
				&Mark{Partition: 3, Position: at(p), Before: change.Position{Era: 1, LSN: change.LSN(before)}})
		}
		want := func(p uint64) {
			t.Helper()
			marks, err := b.ReadWatermarks(b.ctx(), 3)
			must(t, err)
			if marks[0].Position != at(p) || marks[0].Lost() {
				t.Errorf("watermark %+v, want %d", marks[0], p)
			}
		}
		must(t, b.WriteWatermarks(b.ctx(), 3, at(50), change.Position{}))
		if named, marked, err := send(100, 50); err != nil || !marked || named != nil {
			t.Errorf("marked %v, named %q, %v", marked, named, err)
		}
		want(100)
		if _, marked, err := send(80, 100); err != nil || !marked {
			t.Errorf("marked %v, %v: it stands higher", marked, err)
		}
		want(100)
		var lost *NodeLostError
		if _, marked, err := send(120, 110); marked || !errors.As(err, &lost) || lost.Cause != CauseWatermark {
			t.Errorf("marked %v, %v: want a master that went back", marked, err)
		}
		want(100)
		before := b.control().Number
		must(t, b.AddNamed(b.ctx(), "product", "page"))
		named, marked, err := send(130, 100)
		slices.Sort(named)
		if err != nil || marked || !slices.Equal(named, []string{"page", "product"}) {
			t.Errorf("marked %v, named %q, %v: a purge is to come", marked, named, err)
		}
		want(100)
		if got := b.control(); got.Number != before+1 || got.V != at(130) {
			t.Errorf("number %d, v %v after %d", got.Number, got.V, before)
		}
	})
}

func TestContextAndClose(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0") // accepts, and says nothing
	must(t, err)
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := Dial(ctx, "redis://"+l.Addr().String(), Options{}); err == nil {
		t.Error("dialled a server that says nothing")
	}
	b := seeded(open(t, onMini, Options{}))
	must(t, b.Store.Close())
	must(t, b.Store.Close())
	if _, err := b.Invalidate(t.Context(), []Invalidation{{Name: "k", X: at(1)}}); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

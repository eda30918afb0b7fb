package client

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

const testEra = 1

var testSource = change.Source{Era: testEra, SystemID: 7, Timeline: 1}

func at(lsn uint64) change.Position { return change.Position{Era: testEra, LSN: change.LSN(lsn)} }

// world is a namespace with a worker made of the protocol's own calls.
type world struct {
	t      *testing.T
	ns     string
	addr   string
	worker *coherence.Store
	v      change.Position
	// load counts the loads of a class made by entries, which return row.
	loads atomic.Int64
	row   atomic.Int64
}

var worlds atomic.Int64

// newWorld is a namespace whose source is recorded and whose table is open,
// with v = 100.
func newWorld(t *testing.T) *world {
	t.Helper()
	return newWorldAt(t, harness.Redis(t).Addr(), testSource)
}

func newWorldAt(t *testing.T, addr string, source change.Source) *world {
	t.Helper()
	w := &world{t: t, ns: fmt.Sprintf("%s-%d", harness.Namespace(t), worlds.Add(1)), addr: addr}
	store, err := coherence.Dial(t.Context(), "redis://"+addr, coherence.Options{Namespace: w.ns})
	w.must(err)
	t.Cleanup(func() { _ = store.Close() })
	w.worker = store
	_, err = store.SetSource(t.Context(), source)
	w.must(err)
	_, err = store.Seed(t.Context(), func(context.Context) (change.Position, error) { return change.Position{Era: source.Era, LSN: 50}, nil })
	w.must(err)
	w.row.Store(1)
	w.beat(100, 90)
	return w
}

// newClusterWorld is newWorldAt on a cluster of three masters of its own.
func newClusterWorld(t *testing.T) (*world, *redis.ClusterClient) {
	t.Helper()
	cluster := harness.NewRedisCluster(t, 3)
	store, err := coherence.Dial(t.Context(), cluster.URL(), coherence.Options{Namespace: "shop"})
	if err != nil {
		t.Fatal(err)
	}
	rdb := redis.NewClusterClient(&redis.ClusterOptions{Addrs: cluster.Addrs()})
	t.Cleanup(func() { _, _ = rdb.Close(), store.Close() })
	w := &world{t: t, ns: "shop", worker: store}
	_, err = store.SetSource(t.Context(), testSource)
	w.must(err)
	_, err = store.Seed(t.Context(), func(context.Context) (change.Position, error) { return at(50), nil })
	w.must(err)
	w.row.Store(1)
	w.beat(100, 90)
	return w, rdb
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// ctx outlives the test's own, for cleanups.
func (w *world) ctx() context.Context { return context.Background() }

func (w *world) name(key string) string { return w.worker.Layout().Name(key) }

// beat sends a heartbeat.
func (w *world) beat(v, done uint64) {
	w.t.Helper()
	w.v = at(v)
	_, _, err := w.worker.Broadcast(w.ctx(), coherence.Message{Kind: coherence.KindHeartbeat, V: w.v, W: at(done)})
	w.must(err)
}

// unlink forgets a key in Redis, as a worker does before it tells anybody.
func (w *world) unlink(key string, x uint64) {
	w.t.Helper()
	_, err := w.worker.Invalidate(w.ctx(), []coherence.Invalidation{{Name: w.name(key), X: at(x)}})
	w.must(err)
}

// invalidate forgets a key and tells everybody.
func (w *world) invalidate(key string, x uint64) {
	w.t.Helper()
	w.unlink(key, x)
	_, _, err := w.worker.Broadcast(w.ctx(), coherence.Message{Kind: coherence.KindKeys, X: at(x), V: w.v, Names: []string{w.name(key)}})
	w.must(err)
}

// write changes the row and invalidates it at x; readers see it from then on.
func (w *world) write(key string, x uint64) {
	w.t.Helper()
	w.row.Add(1)
	w.invalidate(key, x)
}

func (w *world) purge(x uint64, tags ...string) coherence.Purge {
	p := coherence.Purge{X: at(x)}
	for _, tag := range tags {
		p.Tags = append(p.Tags, w.name(tag))
	}
	return p
}

// header reads an entry as it is in Redis.
func (w *world) header(key string) (h coherence.Header, ok bool) {
	w.t.Helper()
	rdb := redis.NewClient(&redis.Options{Addr: w.addr})
	defer rdb.Close()
	raw, err := rdb.Get(w.ctx(), w.name(key)).Bytes()
	if err != nil {
		return h, false
	}
	h, _, err = coherence.Parse(raw)
	w.must(err)
	return h, h.State == coherence.StateValue
}

// open makes a Client that is live.
func (w *world) open(o Options, h hooks) *Client {
	w.t.Helper()
	rdb := redis.NewClient(&redis.Options{Addr: w.addr})
	o.Redis, o.Namespace = rdb, w.ns
	if o.RedisTimeout == 0 {
		o.RedisTimeout = 5 * time.Second // what is tested is not the machine's speed
	}
	if o.MaxStale == 0 {
		o.MaxStale = -1 // this worker sends pulses only where a test asks for them
	}
	c, err := open(w.ctx(), o, h)
	w.must(err)
	w.t.Cleanup(func() {
		if err := c.Close(); err != nil {
			w.t.Errorf("Close: %v", err)
		}
		_ = rdb.Close()
	})
	w.live(c)
	return c
}

// item is the class of most tests: the row that the database has.
func (w *world) items(c *Client, opts ...Option) *Class[int64] {
	w.t.Helper()
	e := Entries[int64](c, "item", append([]Option{LoadWith(w.loader())}, opts...)...)
	w.live(c)
	return e
}

// live waits until a Client has caught up with what was broadcast.
func (w *world) live(c *Client) {
	w.t.Helper()
	ctl, err := w.worker.Control(w.ctx())
	w.must(err)
	harness.Eventually(w.t, 10*time.Second, func() error {
		if s := c.State(); s != Live {
			return fmt.Errorf("the client is %v", s)
		}
		if v := c.view.Load(); v.control.Number < ctl.Number {
			return fmt.Errorf("the client has heard %d of %d", v.control.Number, ctl.Number)
		}
		return nil
	})
}

// heard waits until a Client has handled v, which travels with every message.
func (w *world) heard(c *Client, done uint64) {
	w.t.Helper()
	harness.Eventually(w.t, 10*time.Second, func() error {
		if v := c.view.Load(); v.control.V.Less(w.v) || v.control.W.Less(at(done)) {
			return fmt.Errorf("the client knows v %v, w %v", v.control.V, v.control.W)
		}
		return nil
	})
}

func (w *world) get(ctx context.Context, e *Class[int64], key string) int64 {
	w.t.Helper()
	v, err := e.Get(ctx, key)
	if err != nil {
		w.t.Fatalf("Get(%q): %v", key, err)
	}
	e.c.fills.Wait() // what follows on the read is done
	return v
}

func (w *world) want(what string, got, want any) {
	w.t.Helper()
	if got != want {
		w.t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

// wantLoads checks how many loads there were since the last time.
func (w *world) wantLoads(want int64) {
	w.t.Helper()
	if got := w.loads.Swap(0); got != want {
		w.t.Errorf("loads: got %d, want %d", got, want)
	}
}

// gate is a redis hook that holds back the answer to one GET.
type gate struct {
	armed    atomic.Bool
	answered chan struct{}
	release  chan struct{}
}

func holdGet(c *Client) *gate {
	g := &gate{answered: make(chan struct{}), release: make(chan struct{})}
	c.data.(*redis.Client).AddHook(g)
	return g
}

func (g *gate) DialHook(next redis.DialHook) redis.DialHook { return next }
func (g *gate) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return next
}

func (g *gate) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		if cmd.Name() == "get" && g.armed.CompareAndSwap(true, false) {
			close(g.answered)
			<-g.release
		}
		return err
	}
}

// during reads a key and runs f between the answer of Redis and its use.
func (w *world) during(ctx context.Context, g *gate, e *Class[int64], key string, f func()) int64 {
	w.t.Helper()
	g.armed.Store(true)
	var got int64
	var wg sync.WaitGroup
	wg.Go(func() {
		v, err := e.Get(ctx, key)
		if err != nil {
			w.t.Errorf("Get(%q): %v", key, err)
		}
		got = v
	})
	<-g.answered
	f()
	close(g.release)
	wg.Wait()
	e.c.fills.Wait()
	return got
}

// deafen ends the subscription of a Client, as a network does.
func (w *world) deafen(c *Client) {
	w.t.Helper()
	c.cancel()
	c.wg.Wait()
	if s := c.State(); s != Blind {
		w.t.Fatalf("the client is %v", s)
	}
	c.ctx = context.Background() // fills go on
}

// loader reads the row.
func (w *world) loader() func(context.Context, string, *Load) (int64, error) {
	return func(_ context.Context, _ string, l *Load) (int64, error) {
		w.loads.Add(1)
		l.Tag("all")
		return w.row.Load(), nil
	}
}

// inL1 reports whether a read would be served from L1.
func inL1(e *Class[int64], key string) bool {
	ent, _ := e.local(key)
	return ent != nil
}

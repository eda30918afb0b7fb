package client

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
)

// meeting holds back the first take-over of a lease that each of several Clients
// sends until all of them have sent theirs.
type meeting struct {
	left atomic.Int64
	all  chan struct{}
}

func (m *meeting) join(c *Client) {
	m.left.Add(1)
	c.data.(*redis.Client).AddHook(&attendant{meeting: m})
}

type attendant struct {
	*meeting
	once sync.Once
}

func (a *attendant) DialHook(next redis.DialHook) redis.DialHook { return next }

func (a *attendant) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		a.look(cmd)
		return next(ctx, cmd)
	}
}

func (a *attendant) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		for _, cmd := range cmds {
			a.look(cmd)
		}
		return next(ctx, cmds)
	}
}

func (a *attendant) look(cmd redis.Cmder) {
	args := cmd.Args() // evalsha, script, 1, key, the lease that is there, the next, incarnation
	if cmd.Name() != "evalsha" || len(args) != 7 {
		return
	}
	seen, ok := args[4].([]byte)
	next, also := args[5].([]byte)
	if !ok || !also || len(seen) != 16 || len(next) != 16 {
		return
	}
	a.once.Do(func() {
		if a.left.Add(-1) == 0 {
			close(a.all)
		}
		<-a.all
	})
}

// Two processes see the same lease that is over, and both reach for it: one has
// it, and the other waits for what that one loads.
func TestLeaseIsTakenByOneOfTwo(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	all := w.opened(3)
	if _, err := all[2].Get(t.Context(), "item:1", broken); !errors.Is(err, errBroken) {
		t.Fatal(err)
	}
	all[2].c.fills.Wait()
	if h, ok := w.raw("item:1"); !ok || !h.Lease.IsFree() {
		t.Fatalf("the entry is %+v, want a lease that is free", h)
	}
	m := &meeting{all: make(chan struct{})}
	for _, e := range all[:2] {
		m.join(e.c)
	}
	h := newHeld()
	var wg sync.WaitGroup
	for _, e := range all[:2] {
		wg.Go(func() {
			if v, err := e.Get(t.Context(), "item:1", h.load(w, 2, nil)); v != 2 || err != nil {
				t.Errorf("got %d, %v", v, err)
			}
		})
	}
	<-h.began
	harness.Eventually(t, 10*time.Second, harness.True("one loads, the other waits", func() bool { return waits(all[0])+waits(all[1]) == 1 }))
	close(h.release)
	wg.Wait()
	w.wantLoads(1)
}

// A read that has no loader fails by itself, and nobody with it.
func TestReadWithoutLoaderIsNotJoined(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	all := w.opened(2)
	h := newHeld()
	var wg sync.WaitGroup
	wg.Go(func() { mustGet(t, all[1], "item:1", h.load(w, 1, nil)) })
	<-h.began
	e := all[0] // its loads wait for the other's lease
	wg.Go(func() {
		if _, err := e.Get(t.Context(), "item:1"); err != nil && !errors.Is(err, ErrNoLoader) {
			t.Errorf("without a loader: %v", err)
		}
	})
	harness.Eventually(t, 10*time.Second, harness.True("it waits for the lease", func() bool { return waits(e) == 1 }))
	e.cl.mu.Lock()
	_, listed := e.cl.flights["item:1"]
	e.cl.mu.Unlock()
	if listed {
		t.Error("others may join a read that has no loader")
	}
	close(h.release)
	wg.Wait()
}

// What was invalidated while nobody listened is stale since then, not since it
// was heard of.
func TestReplayedInvalidationIsAsOldAsItCanBe(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	e := w.opened(1, StaleFor(time.Hour))[0]
	mustGet(t, e, "item:1", w.reads())
	e.c.fills.Wait()
	w.deafen(e.c)
	e.c.lastLive.Store(int64(e.c.now() - 2*time.Hour)) // for a long time
	w.unlink("item:1", 110)
	e.c.mu.Lock()
	e.c.dropKey(w.name("item:1"), at(110)) // as a replay does
	e.c.mu.Unlock()
	if v, err := e.Get(t.Context(), "item:1", broken); !errors.Is(err, errBroken) {
		t.Errorf("got %d, %v; want no value that may be two hours old", v, err)
	}
}

// explosive panics where the application is asked to turn it into bytes or back.
type explosive struct{ way string }

func (x explosive) MarshalJSON() ([]byte, error) {
	if x.way == "encode" {
		panic("in MarshalJSON")
	}
	return json.Marshal(x.way)
}

func (x *explosive) UnmarshalJSON(b []byte) error {
	if err := json.Unmarshal(b, &x.way); err != nil {
		return err
	}
	if strings.HasPrefix(x.way, "decode") {
		panic("in UnmarshalJSON")
	}
	return nil
}

// A codec that panics costs the value its place in the cache, not the process.
func TestPanicOfCodec(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for _, way := range []string{"encode", "decode"} {
		load := func(context.Context, *Load) (explosive, error) { return explosive{way: way}, nil }
		for range 2 {
			c := w.open(Options{}, hooks{})
			e := Entries[explosive](c, "item")
			w.live(c)
			if v, err := e.Get(t.Context(), "item:"+way, load); v.way != way || err != nil {
				t.Errorf("%s: got %v, %v", way, v, err)
			}
			c.fills.Wait()
		}
	}
	if h, _ := w.raw("item:encode"); h.State != coherence.StateEmpty {
		t.Errorf("what can not be encoded is cached: %+v", h)
	}
}

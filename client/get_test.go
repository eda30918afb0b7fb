package client

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/internal/harness"
)

func TestReadThroughBothLayers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.open(Options{}, hooks{}), w.open(Options{}, hooks{})
	ea, eb := w.items(a), w.items(b)
	ctx := t.Context()
	w.want("first read", w.get(ctx, ea, "item:1"), int64(1))
	w.wantLoads(1)
	w.want("second read", w.get(ctx, ea, "item:1"), int64(1))
	w.want("read of another client", w.get(ctx, eb, "item:1"), int64(1))
	w.wantLoads(0)
	sa, sb := a.Stats().Classes["item"], b.Stats().Classes["item"]
	w.want("L1 hits", sa.L1Hits, uint64(1))
	w.want("L2 hits", sb.L2Hits, uint64(1))
	w.want("fills", sa.Fills, uint64(1))

	w.write("item:1", 110)
	w.beat(120, 115)
	w.heard(a, 115)
	w.heard(b, 115)
	w.want("read after a write", w.get(ctx, ea, "item:1"), int64(2))
	w.want("read of another client", w.get(ctx, eb, "item:1"), int64(2))
	w.wantLoads(1)
}

func TestPurgeReachesBothLayers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	e := w.items(c)
	w.get(t.Context(), e, "item:1")
	w.loads.Store(0)
	w.row.Add(1)
	w.must(c.InvalidateTags(t.Context(), Any("all")))
	w.live(c)
	w.beat(200, 110)
	w.heard(c, 110)
	w.want("read", w.get(t.Context(), e, "item:1"), int64(2))
	w.wantLoads(1)
	w.row.Add(1)
	w.must(c.InvalidateTags(t.Context(), All("all", "other"))) // it has only one of them
	w.live(c)
	w.want("read", w.get(t.Context(), e, "item:1"), int64(2))
	w.must(c.Invalidate(t.Context(), "item:1"))
	w.live(c)
	w.want("read", w.get(t.Context(), e, "item:1"), int64(3))
}

func TestCoalesced(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	e := Entries[int64](c, "item")
	w.live(c)
	release := make(chan struct{})
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			v, err := e.Get(t.Context(), "item:1", func(context.Context, *Load) (int64, error) {
				w.loads.Add(1)
				<-release
				return 5, nil
			})
			if v != 5 || err != nil {
				t.Errorf("got %d, %v", v, err)
			}
		})
	}
	harness.Eventually(t, 10*time.Second, func() error {
		if n := c.Stats().Classes["item"].Coalesced; n != 49 {
			return fmt.Errorf("%d wait for the load of another", n)
		}
		return nil
	})
	close(release)
	wg.Wait()
	w.wantLoads(1)
}

// A read that begins after an invalidation was handled must not get what was
// loaded before it.
func TestLoadIsNotJoinedAfterInvalidation(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	e := Entries[int64](c, "item")
	w.live(c)
	release, loading := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = e.Get(t.Context(), "item:1", func(context.Context, *Load) (int64, error) {
			v := w.row.Load()
			close(loading)
			<-release
			return v, nil
		})
	})
	<-loading
	w.write("item:1", 110)
	w.live(c)
	v, err := e.Get(t.Context(), "item:1", func(context.Context, *Load) (int64, error) { return w.row.Load(), nil })
	w.must(err)
	w.want("read after the write", v, int64(2))
	close(release)
	wg.Wait()
}

func TestWaiterFollowsItsOwnContext(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	e := Entries[int64](c, "item")
	w.live(c)
	first, cancelFirst := context.WithCancel(t.Context())
	second, cancelSecond := context.WithCancel(t.Context())
	loading, ended := make(chan struct{}), make(chan struct{})
	load := func(ctx context.Context, _ *Load) (int64, error) {
		close(loading)
		<-ctx.Done()
		close(ended)
		return 0, ctx.Err()
	}
	var wg sync.WaitGroup
	read := func(ctx context.Context) {
		wg.Go(func() {
			if _, err := e.Get(ctx, "item:1", load); !errors.Is(err, context.Canceled) {
				t.Errorf("got %v, want that it was cancelled", err)
			}
		})
	}
	read(first)
	<-loading
	read(second)
	harness.Eventually(t, 10*time.Second, harness.True("the second read waits", func() bool { return c.Stats().Classes["item"].Coalesced == 1 }))
	cancelFirst()
	harness.Eventually(t, 10*time.Second, harness.True("the first read is gone", func() bool {
		e.cl.mu.Lock()
		defer e.cl.mu.Unlock()
		f, ok := e.cl.flights["item:1"].(*flight[int64])
		return ok && f.waiters == 1
	}))
	select {
	case <-ended:
		t.Error("the load was cancelled although somebody waits")
	default:
	}
	cancelSecond()
	<-ended
	wg.Wait()
}

func TestNegative(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c, d := w.open(Options{}, hooks{}), w.open(Options{}, hooks{})
	for range 2 {
		for _, c := range []*Client{c, d} {
			e := Entries[int64](c, "item", NegativeTTL(time.Minute))
			w.live(c)
			_, err := e.Get(t.Context(), "item:9", func(context.Context, *Load) (int64, error) {
				w.loads.Add(1)
				return 0, fmt.Errorf("row 9: %w", ErrNotFound)
			})
			if !errors.Is(err, ErrNotFound) {
				t.Errorf("got %v, want ErrNotFound", err)
			}
			c.fills.Wait()
		}
	}
	w.wantLoads(1)
}

func TestLoaderErrorIsNotCached(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	e := w.items(c)
	broken := errors.New("broken")
	_, err := e.Get(t.Context(), "item:1", func(context.Context, *Load) (int64, error) { return 7, broken })
	if !errors.Is(err, broken) {
		t.Errorf("got %v, want the loader's error", err)
	}
	e.cl.mu.Lock()
	if len(e.cl.flights) > 0 {
		t.Error("a later read could join the load that failed")
	}
	e.cl.mu.Unlock()
	_, err = e.Get(t.Context(), "item:1", func(context.Context, *Load) (int64, error) { panic("ouch") })
	if err == nil || !strings.Contains(err.Error(), "ouch") {
		t.Errorf("got %v, want the panic as an error", err)
	}
	w.want("read", w.get(t.Context(), e, "item:1"), int64(1))
}

func TestOverloaded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	e := Entries[int64](c, "item", MaxLoads(1))
	w.live(c)
	release := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 9 {
		wg.Go(func() {
			_, err := e.Get(t.Context(), fmt.Sprint("item:", i), func(context.Context, *Load) (int64, error) { <-release; return 1, nil })
			if err != nil {
				t.Error(err)
			}
		})
	}
	harness.Eventually(t, 10*time.Second, harness.True("eight loads wait", func() bool { return e.cl.turns.queued() == 8 }))
	if _, err := e.Get(t.Context(), "item:x", func(context.Context, *Load) (int64, error) { return 1, nil }); !errors.Is(err, ErrOverloaded) {
		t.Errorf("got %v, want ErrOverloaded", err)
	}
	close(release)
	wg.Wait()
}

type picky struct{ Name string }

func (p *picky) Validate() error {
	if p.Name == "bad" {
		return errors.New("bad")
	}
	return nil
}

func TestUndecodableIsAMiss(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{L1Bytes: -1}, hooks{})
	text, num, pick := Entries[string](c, "item"), Entries[int64](c, "item"), Entries[picky](c, "item")
	w.live(c)
	long := strings.Repeat("compressible ", 1000)
	read := func() string {
		v, err := text.Get(t.Context(), "item:1", func(context.Context, *Load) (string, error) { return long, nil })
		w.must(err)
		c.fills.Wait()
		return v
	}
	w.want("loaded", read(), long)
	w.want("from Redis", read(), long)
	v, err := num.Get(t.Context(), "item:1", func(context.Context, *Load) (int64, error) { return 5, nil })
	w.must(err)
	c.fills.Wait()
	w.want("a string read as a number", v, int64(5))
	for range 2 {
		p, err := pick.Get(t.Context(), "item:2", func(context.Context, *Load) (picky, error) {
			w.loads.Add(1)
			return picky{"bad"}, nil
		})
		w.must(err)
		c.fills.Wait()
		w.want("value", p.Name, "bad")
	}
	w.wantLoads(2)
	s := c.Stats().Classes["item"]
	if s.Undecodable < 2 || s.L2Hits != 1 {
		t.Errorf("undecodable %d, L2 hits %d: want at least 2, and 1", s.Undecodable, s.L2Hits)
	}
}

func TestMistakesAreErrors(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	for _, o := range []Option{TTL(0), Jitter(2), NegativeTTL(0), MaxValue(0), MaxLoads(0), WithCodec(nil), LoadWith(func(context.Context, string, *Load) (string, error) { return "", nil })} {
		if _, err := Entries[int64](c, "item", o).Get(t.Context(), "item:1"); err == nil {
			t.Error("a mistaken option is no error")
		}
	}
	e := Entries[int64](c, "item")
	if _, err := e.Get(t.Context(), ""); err == nil {
		t.Error("an empty key is no error")
	}
	if _, err := e.Get(t.Context(), "item:1"); !errors.Is(err, ErrNoLoader) {
		t.Errorf("got %v, want ErrNoLoader", err)
	}
	if _, err := Open(t.Context(), Options{}); err == nil {
		t.Error("Open without Redis succeeds")
	}
}

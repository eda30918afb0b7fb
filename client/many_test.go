package client

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/internal/harness"
)

// shelf is a table of rows by key, and a batch loader that remembers what it
// was asked for.
type shelf struct {
	mu    sync.Mutex
	rows  map[string]int64
	calls [][]string
	// before and after run around the reading of the rows, outside of mu.
	before, after func(ctx context.Context, keys []string, l *BatchLoad) error
}

func newShelf(n int) *shelf {
	s := &shelf{rows: map[string]int64{}}
	for i := 1; i <= n; i++ {
		s.rows[fmt.Sprint("item:", i)] = int64(i)
	}
	return s
}

func (s *shelf) load(ctx context.Context, keys []string, l *BatchLoad) (map[string]int64, error) {
	s.mu.Lock()
	s.calls = append(s.calls, slices.Sorted(slices.Values(keys)))
	s.mu.Unlock()
	var err error
	if s.before != nil {
		err = s.before(ctx, keys, l)
	}
	out := map[string]int64{}
	s.mu.Lock()
	for _, k := range keys {
		if v, ok := s.rows[k]; ok {
			out[k] = v
		}
	}
	s.mu.Unlock()
	if s.after != nil {
		err = errors.Join(err, s.after(ctx, keys, l))
	}
	return out, err
}

func (s *shelf) set(key string, v int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rows[key] = v
}

// wantCalls checks what was asked for since the last time: keys joined by
// spaces, one string for each call.
func (s *shelf) wantCalls(t *testing.T, want ...string) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	var got []string
	for _, c := range s.calls {
		got = append(got, strings.ReplaceAll(strings.Join(c, " "), "item:", ""))
	}
	slices.Sort(got)
	s.calls = nil
	if !slices.Equal(got, want) {
		t.Errorf("loads: got %q, want %q", got, want)
	}
}

func (w *world) shelved(c *Client, s *shelf, opts ...Option) *Class[int64] {
	w.t.Helper()
	e := Entries[int64](c, "item", append([]Option{LoadManyWith(s.load)}, opts...)...)
	w.live(c)
	return e
}

// many reads keys and returns the values as text, in the order of the keys.
func (w *world) many(ctx context.Context, e *Class[int64], keys ...int) string {
	w.t.Helper()
	got, err := e.GetMany(ctx, itemKeys(keys...))
	w.must(err)
	e.c.fills.Wait()
	return manyText(got)
}

func itemKeys(keys ...int) (out []string) {
	for _, k := range keys {
		out = append(out, fmt.Sprint("item:", k))
	}
	return out
}

func manyText(got map[string]int64) string {
	var text []string
	for _, k := range slices.Sorted(maps.Keys(got)) {
		text = append(text, strings.TrimPrefix(k, "item:")+"="+strconv.FormatInt(got[k], 10))
	}
	return strings.Join(text, " ")
}

func TestGetMany(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.open(Options{}, hooks{}), w.open(Options{}, hooks{})
	s := newShelf(5)
	ea, eb := w.shelved(a, s), w.shelved(b, s)
	ctx := t.Context()
	w.want("values", w.many(ctx, ea, 1, 2, 9, 2, 1), "1=1 2=2")
	s.wantCalls(t, "1 2 9")
	w.want("values", w.many(ctx, ea, 1, 2, 3), "1=1 2=2 3=3")
	s.wantCalls(t, "3")
	w.want("values of another client", w.many(ctx, eb, 1, 2, 3, 4), "1=1 2=2 3=3 4=4")
	s.wantCalls(t, "4")
	w.want("no keys", w.many(ctx, ea), "")
	// Get goes through the same loader and the same cache.
	w.want("read", w.get(ctx, ea, "item:4"), int64(4))
	s.wantCalls(t)
	w.want("read", w.get(ctx, ea, "item:5"), int64(5))
	s.wantCalls(t, "5")
	if _, err := ea.Get(ctx, "item:9"); !errors.Is(err, ErrNotFound) {
		t.Errorf("got %v, want ErrNotFound", err)
	}
	st := b.Stats().Classes["item"]
	w.want("L2 hits", st.L2Hits, uint64(3))
	w.want("loads", st.Loads, uint64(1))

	s.set("item:2", 20)
	w.invalidate("item:2", 110)
	w.live(a)
	w.live(b)
	s.wantCalls(t, "9")
	w.want("values after a write", w.many(ctx, ea, 1, 2, 3), "1=1 2=20 3=3")
	s.wantCalls(t, "2")
	// The loader of the call wins.
	got, err := ea.GetMany(ctx, []string{"item:7"}, func(context.Context, []string, *BatchLoad) (map[string]int64, error) {
		return map[string]int64{"item:7": 70, "item:8": 80}, nil
	})
	w.must(err)
	w.want("values", manyText(got), "7=70")
}

// The round trips of a batch are those of one key.
func TestGetManyCosts(t *testing.T) {
	t.Parallel()
	w, line := costs(t)
	c := w.open(Options{}, hooks{})
	s := newShelf(9)
	s.after = func(_ context.Context, keys []string, l *BatchLoad) error {
		for _, k := range keys {
			l.Tag(k, "all")
		}
		return nil
	}
	e := w.shelved(c, s)
	w.many(t.Context(), e, 8, 9) // connections, scripts
	line.take()
	w.many(t.Context(), e, 1, 2, 3)
	want := []string{"get+get+get", "set+set+set", "evalsha+evalsha+evalsha", "evalsha+evalsha+evalsha"}
	if got := line.take(); !slices.Equal(got, want) {
		t.Errorf("trips: got %q, want %q", got, want)
	}
	w.many(t.Context(), e, 1, 2, 3)
	if got := line.take(); len(got) != 0 {
		t.Errorf("trips of hits in L1: %q", got)
	}
}

func TestGetManyCoalesces(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	s := newShelf(4)
	began, release := make(chan struct{}, 2), make(chan struct{})
	s.before = func(context.Context, []string, *BatchLoad) error { began <- struct{}{}; <-release; return nil }
	e := w.shelved(c, s)
	var wg sync.WaitGroup
	wg.Go(func() { w.want("first batch", w.many(t.Context(), e, 1, 2), "1=1 2=2") })
	<-began
	// 2 is under way; 3 is not, and is loaded at once.
	wg.Go(func() { w.want("second batch", w.many(t.Context(), e, 2, 3), "2=2 3=3") })
	<-began
	for range 5 {
		wg.Go(func() { w.want("single read", w.get(t.Context(), e, "item:3"), int64(3)) })
	}
	harness.Eventually(t, 10*time.Second, func() error {
		if n := c.Stats().Classes["item"].Coalesced; n != 6 {
			return fmt.Errorf("%d wait for the load of another", n)
		}
		return nil
	})
	close(release)
	wg.Wait()
	s.wantCalls(t, "1 2", "3")

	// The other way round: a batch waits for a single load.
	h := newHeld()
	wg.Go(func() { w.want("single", mustGet(t, e, "item:8", h.load(w, 80, nil)), int64(80)) })
	<-h.began
	wg.Go(func() { w.want("batch", w.many(t.Context(), e, 4, 8), "4=4 8=80") })
	harness.Eventually(t, 10*time.Second, harness.True("it waits", func() bool { return c.Stats().Classes["item"].Coalesced == 7 }))
	close(h.release)
	wg.Wait()
	s.wantCalls(t, "4")
	e.cl.mu.Lock()
	defer e.cl.mu.Unlock()
	w.want("flights", len(e.cl.flights), 0)
}

// What is loaded by another process is waited for by itself; the rest of the
// batch is loaded at once.
func TestGetManyWaitsForLeases(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.open(Options{}, hooks{}), w.open(Options{}, hooks{})
	s := newShelf(3)
	loaded := make(chan struct{}, 1)
	s.after = func(context.Context, []string, *BatchLoad) error { loaded <- struct{}{}; return nil }
	ea, eb := w.shelved(a, s), w.shelved(b, s)
	slowLoads(ea)
	slowLoads(eb)
	h := newHeld()
	var wg sync.WaitGroup
	wg.Go(func() { mustGet(t, ea, "item:2", h.load(w, 22, nil)) })
	<-h.began
	wg.Go(func() { w.want("batch", w.many(t.Context(), eb, 1, 2, 3), "1=1 2=22 3=3") })
	<-loaded
	w.waits(b)
	s.wantCalls(t, "1 3")
	close(h.release)
	wg.Wait()
	s.wantCalls(t)
	w.wantLoads(1)

	// A lease that was given up is claimed with the others.
	gone := newHeld()
	close(gone.release)
	_, err := ea.Get(t.Context(), "item:1", gone.load(w, 0, errors.New("broken")))
	if err != nil {
		t.Errorf("item:1 was cached: %v", err)
	}
	for _, k := range itemKeys(1, 2, 3) {
		w.invalidate(k, 120)
	}
	w.live(a)
	w.live(b)
	if _, err := ea.Get(t.Context(), "item:1", gone.load(w, 0, errors.New("broken"))); err == nil {
		t.Error("the load did not fail")
	}
	a.fills.Wait()
	w.want("batch", w.many(t.Context(), eb, 1, 3), "1=1 3=3")
	s.wantCalls(t, "1 3")
	w.want("leases waited for", b.Stats().Classes["item"].LeaseWaits, uint64(1))
}

func TestGetManyErrors(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	s := newShelf(3)
	broken := errors.New("broken")
	s.after = func(_ context.Context, keys []string, _ *BatchLoad) error {
		if slices.Contains(keys, "item:2") {
			return &BatchError{Keys: map[string]error{"item:2": broken}}
		}
		return nil
	}
	e := w.shelved(c, s)
	got, err := e.GetMany(t.Context(), []string{"item:1", "item:2", "", "item:3", "item:9"})
	w.want("values", manyText(got), "1=1 3=3")
	var some *BatchError
	if !errors.As(err, &some) || len(some.Keys) != 2 || !errors.Is(some.Keys["item:2"], broken) || !errors.Is(some.Keys[""], ErrKey) || !errors.Is(err, broken) {
		t.Errorf("got %v, want the errors of item:2 and of the empty key", err)
	}
	c.fills.Wait()
	w.want("in L1", fmt.Sprint(inL1(e, "item:1"), inL1(e, "item:2"), inL1(e, "item:3")), "true false true")
	if _, err := e.Get(t.Context(), "item:2"); !errors.Is(err, broken) {
		t.Errorf("got %v, want the key's error", err)
	}
	for name, load := range map[string]batchLoader[int64]{
		"error": func(context.Context, []string, *BatchLoad) (map[string]int64, error) {
			return map[string]int64{"item:7": 1}, broken
		},
		"panic": func(context.Context, []string, *BatchLoad) (map[string]int64, error) { panic("ouch") },
	} {
		got, err := e.GetMany(t.Context(), itemKeys(1, 7, 8), load)
		w.want(name, manyText(got), "1=1")
		if !errors.As(err, &some) || len(some.Keys) != 2 {
			t.Errorf("%s: got %v, want the errors of two keys", name, err)
		}
	}
	c.fills.Wait()
	if _, ok := w.header("item:7"); ok {
		t.Error("the value beside an error was cached")
	}
	got, err = Entries[int64](c, "item", FailWhileNotLive()).GetMany(t.Context(), itemKeys(1))
	w.must(err)
	w.want("values", manyText(got), "1=1")
	if _, err := Entries[int64](c, "bare").GetMany(t.Context(), []string{"bare:1"}); !errors.Is(err, ErrNoLoader) {
		t.Errorf("got %v, want ErrNoLoader", err)
	}
	for _, o := range []Option{LoadManyWith[int64](nil), MaxBatch(0), LoadManyWith(func(context.Context, []string, *BatchLoad) (map[string]string, error) { return nil, nil })} {
		if _, err := Entries[int64](c, "item", o).GetMany(t.Context(), itemKeys(1)); err == nil {
			t.Error("a mistaken option is no error")
		}
	}
}

// What Get would return in place of an error, or of a wait, GetMany does for
// each key.
func TestGetManyInstead(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	s := newShelf(3)
	s.after = func(context.Context, []string, *BatchLoad) error { return errors.New("broken") }
	e := w.shelved(c, s, Default[int64](-1))
	w.want("values", w.many(t.Context(), e, 1, 2), "1=-1 2=-1")
	release := make(chan struct{})
	s.after = func(context.Context, []string, *BatchLoad) error { <-release; return nil }
	e = w.shelved(c, s, Default[int64](-1), SoftTimeout(time.Millisecond))
	got, err := e.GetMany(t.Context(), itemKeys(1, 2))
	w.must(err)
	w.want("values", manyText(got), "1=-1 2=-1")
	close(release)
	c.fills.Wait()
	w.want("values", w.many(t.Context(), e, 1, 2), "1=1 2=2")
}

// An invalidation of one key of a batch, while it is loaded, refuses the fill of
// that key and no other's.
func TestGetManyRefusesOneFill(t *testing.T) {
	t.Parallel()
	for name, at := range map[string]func(s *shelf, h *hooks, f func()){
		"between reading and the fill": func(s *shelf, _ *hooks, f func()) {
			s.after = func(context.Context, []string, *BatchLoad) error { f(); return nil }
		},
		"between the fill and L1": func(_ *shelf, h *hooks, f func()) {
			var once sync.Once
			h.filled = func(string) { once.Do(f) }
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			s := newShelf(3)
			var c *Client
			var h hooks
			at(s, &h, func() {
				s.set("item:2", 20)
				w.invalidate("item:2", 110)
				w.live(c)
			})
			c = w.open(Options{}, h)
			e := w.shelved(c, s)
			w.want("values", w.many(t.Context(), e, 1, 2, 3), "1=1 2=2 3=3")
			s.after = nil
			for i, want := range []bool{true, false, true} {
				key := fmt.Sprint("item:", i+1)
				_, there := w.header(key)
				w.want(key+" in Redis", there, want)
				w.want(key+" in L1", inL1(e, key), want)
			}
			w.want("values", w.many(t.Context(), e, 1, 2, 3), "1=1 2=20 3=3")
		})
	}
}

// A read that begins after an invalidation does not join the batch.
func TestGetManyIsNotJoinedAfterInvalidation(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	s := newShelf(3)
	read, release := make(chan struct{}), make(chan struct{})
	var second atomic.Bool
	s.after = func(context.Context, []string, *BatchLoad) error {
		if !second.Swap(true) {
			close(read)
			<-release
		}
		return nil
	}
	e := w.shelved(c, s)
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = e.GetMany(t.Context(), itemKeys(1, 2)) })
	<-read
	s.set("item:2", 20)
	w.invalidate("item:2", 110)
	w.live(c)
	got, err := e.GetMany(t.Context(), itemKeys(2, 3))
	w.must(err)
	w.want("values after the write", manyText(got), "2=20 3=3")
	close(release)
	wg.Wait()
}

func TestGetManyPerKey(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	s := newShelf(6)
	s.after = func(_ context.Context, _ []string, l *BatchLoad) error {
		l.Tag("item:1", "red", "blue")
		l.Tag("item:2", "blue")
		l.TTL("item:2", time.Minute)
		l.DoNotCache("item:3")
		return nil
	}
	e := w.shelved(c, s)
	w.many(t.Context(), e, 1, 2, 3, 4)
	names := func(key string) (out []string) {
		h, _ := w.header(key)
		for _, n := range h.Names {
			out = append(out, strings.TrimPrefix(n.Name, w.name("")))
		}
		return out
	}
	w.want("names of 1", fmt.Sprint(names("item:1")), "[red blue]")
	w.want("names of 2", fmt.Sprint(names("item:2")), "[blue]")
	w.want("names of 4", fmt.Sprint(names("item:4")), "[]")
	h, _ := w.header("item:2")
	if ttl := time.Until(time.UnixMicro(h.HardExpiry)); ttl > time.Minute {
		t.Errorf("the time to live of item:2 is %v", ttl)
	}
	if _, ok := w.header("item:3"); ok {
		t.Error("item:3 was cached")
	}
	s.after = nil
	s.wantCalls(t, "1 2 3 4")
	w.must(c.InvalidateTags(t.Context(), Any("red")))
	w.live(c)
	w.many(t.Context(), e, 1, 2, 3, 4)
	s.wantCalls(t, "1 3")

	// What is said of a key that is not in the batch was meant for one that is.
	s.after = func(_ context.Context, _ []string, l *BatchLoad) error { l.Tag("itme:5", "red"); return nil }
	w.many(t.Context(), e, 5, 6)
	w.want("refused", c.Stats().Classes["item"].Refused["foreign_key"], uint64(2))
}

func TestGetManyNegative(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c, d := w.open(Options{}, hooks{}), w.open(Options{}, hooks{})
	s := newShelf(1)
	for range 2 {
		for _, c := range []*Client{c, d} {
			e := w.shelved(c, s, NegativeTTL(time.Minute))
			w.want("values", w.many(t.Context(), e, 1, 8, 9), "1=1")
		}
	}
	s.wantCalls(t, "1 8 9")
}

package client

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
)

// The tests of this file are the client's part of PROTOCOL section 5. Each
// fails when the guard that it is named after is taken out.

// A stale entry lies in Redis while a purge is open: readers are ahead of the
// sweep.
func TestOpenPurgeBlocksHit(t *testing.T) {
	t.Parallel()
	for _, state := range []State{Live, Blind} {
		t.Run(state.String(), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			a, b := w.open(Options{}, hooks{}), w.open(Options{}, hooks{})
			w.get(t.Context(), w.items(a), "item:1")
			e := w.items(b)
			p := w.purge(110, "all")
			w.row.Add(1)
			if state == Live {
				w.must(w.worker.OpenPurge(w.ctx(), p, w.v))
				w.live(b)
			} else {
				w.deafen(b)
				w.must(w.worker.OpenPurge(w.ctx(), p, w.v))
			}
			w.want("read during the sweep", w.get(t.Context(), e, "item:1"), int64(2))
		})
	}
}

// The answer of a GET is from before the sweep and is used after its end.
func TestSweptMarksGet(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.open(Options{}, hooks{}), w.open(Options{}, hooks{})
	w.get(t.Context(), w.items(a), "item:1")
	e := w.items(b)
	g := holdGet(b)
	p := w.purge(110, "all")
	w.row.Add(1)
	w.must(w.worker.OpenPurge(w.ctx(), p, w.v))
	w.live(b)
	got := w.during(t.Context(), g, e, "item:1", func() {
		w.unlink("item:1", 110)
		w.must(w.worker.ClosePurge(w.ctx(), p, w.v))
		w.live(b)
	})
	w.want("read", got, int64(2))
	w.want("read after it", w.get(t.Context(), e, "item:1"), int64(2))
}

// A Client that does not know of the purge (control lost the list) hears only
// that it is over.
func TestSweptDropsL1(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	e := w.items(c)
	w.get(t.Context(), e, "item:1")
	if !inL1(e, "item:1") {
		t.Fatal("the entry is not in L1")
	}
	w.must(w.worker.ClosePurge(w.ctx(), w.purge(95, "all"), w.v))
	w.live(c)
	if !inL1(e, "item:1") {
		t.Error("an entry whose stamp covers the purge was dropped")
	}
	w.must(w.worker.ClosePurge(w.ctx(), w.purge(110, "all"), w.v))
	w.live(c)
	if inL1(e, "item:1") {
		t.Error("the entry is still in L1")
	}
}

// An invalidation is handled between the answer of a GET and its use.
func TestL1GetInFlight(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.open(Options{}, hooks{}), w.open(Options{}, hooks{})
	w.get(t.Context(), w.items(a), "item:1")
	e := w.items(b)
	got := w.during(t.Context(), holdGet(b), e, "item:1", func() {
		w.write("item:1", 110)
		w.live(b)
	})
	w.want("read", got, int64(2))
	w.want("read after it", w.get(t.Context(), e, "item:1"), int64(2))
}

// slowJSON runs a function in the middle of a decoding.
type slowJSON struct {
	JSON
	f atomic.Pointer[func()]
}

func (s *slowJSON) Decode(data []byte, v any) error {
	if f := s.f.Swap(nil); f != nil {
		(*f)()
	}
	return s.JSON.Decode(data, v)
}

// The same between the look at the answer and the store into L1.
func TestL1GetInFlightAtStore(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.open(Options{}, hooks{}), w.open(Options{}, hooks{})
	w.get(t.Context(), w.items(a), "item:1")
	codec := &slowJSON{}
	e := w.items(b, WithCodec(codec))
	f := func() {
		w.write("item:1", 110)
		w.live(b)
	}
	codec.f.Store(&f)
	w.get(t.Context(), e, "item:1") // began before the write: either value
	w.want("read after it", w.get(t.Context(), e, "item:1"), int64(2))
}

// An invalidation is handled between an accepted fill and L1's store.
func TestL1OwnFill(t *testing.T) {
	t.Parallel()
	for name, message := range map[string]func(w *world){
		"key": func(w *world) { w.write("item:1", 110) },
		"purge": func(w *world) {
			w.row.Add(1)
			p := w.purge(110, "all")
			w.must(w.worker.OpenPurge(w.ctx(), p, w.v))
			w.unlink("item:1", 110)
			w.must(w.worker.ClosePurge(w.ctx(), p, w.v))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			var c *Client
			var once atomic.Bool
			c = w.open(Options{}, hooks{filled: func(string) {
				if once.CompareAndSwap(false, true) {
					message(w)
					w.live(c)
				}
			}})
			e := w.items(c)
			w.get(t.Context(), e, "item:1")
			w.want("read after the write", w.get(t.Context(), e, "item:1"), int64(2))
		})
	}
}

// A fill that is refused by Redis does not enter L1 either.
func TestUnstampedReaderExact(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	e := Entries[int64](c, "item")
	w.live(c)
	// The loader knows nothing of stamps. What it reads is overtaken by a
	// write before it returns.
	v, err := e.Get(t.Context(), "item:1", func(context.Context, *Load) (int64, error) {
		v := w.row.Load()
		w.row.Add(1)
		w.unlink("item:1", 110)
		return v, nil
	})
	w.must(err)
	c.fills.Wait()
	w.want("read that began before the write", v, int64(1))
	if _, ok := w.header("item:1"); ok {
		t.Error("the old value was filled")
	}
	if inL1(e, "item:1") {
		t.Error("the old value is in L1")
	}
	v, err = e.Get(t.Context(), "item:1", func(context.Context, *Load) (int64, error) { return w.row.Load(), nil })
	w.must(err)
	w.want("read after the write", v, int64(2))
}

func TestEpochVoidsFills(t *testing.T) {
	t.Parallel()
	t.Run("L2", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		var c *Client
		c = w.open(Options{}, hooks{loaded: func(string) { c.bump("test") }})
		w.get(t.Context(), w.items(c), "item:1")
		if _, ok := w.header("item:1"); ok {
			t.Error("a fill of the epoch before was sent")
		}
		w.want("refused", c.Stats().Classes["item"].Refused["epoch"], uint64(1))
	})
	t.Run("L1", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		var c *Client
		c = w.open(Options{}, hooks{filled: func(string) {
			c.bump("test")
			w.live(c)
		}})
		e := w.items(c)
		w.get(t.Context(), e, "item:1")
		if c.l1.find(l1Key{key: "item:1"}) != nil {
			t.Error("a fill of the epoch before is in L1")
		}
	})
	t.Run("hit", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		a, b := w.open(Options{}, hooks{}), w.open(Options{}, hooks{})
		w.get(t.Context(), w.items(a), "item:1")
		e := w.items(b)
		got := w.during(t.Context(), holdGet(b), e, "item:1", func() {
			w.row.Add(1)
			w.unlink("item:1", 110)
			_, _, err := w.worker.Broadcast(w.ctx(), coherence.Message{Kind: coherence.KindEpoch})
			w.must(err)
			w.live(b)
		})
		w.want("read", got, int64(2))
	})
	t.Run("stale", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		c := w.open(Options{}, hooks{})
		e := w.items(c, StaleWhileNotLive(1<<40))
		w.get(t.Context(), e, "item:1")
		w.deafen(c)
		if !inL1(e, "item:1") {
			t.Fatal("the entry is not served while the client is blind")
		}
		c.bump("test")
		if inL1(e, "item:1") {
			t.Error("an entry of the epoch before is served")
		}
	})
	t.Run("entries", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t)
		c := w.open(Options{}, hooks{})
		e := w.items(c)
		w.get(t.Context(), e, "item:1")
		// Without a message for the key: the epoch alone has to forget it.
		_, _, err := w.worker.Broadcast(w.ctx(), coherence.Message{Kind: coherence.KindEpoch})
		w.must(err)
		w.live(c)
		if inL1(e, "item:1") {
			t.Error("an entry of the epoch before is served")
		}
	})
}

// A fill carries the generation that was known before the load.
func TestGenerationAtBegin(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var c *Client
	raised := false
	c = w.open(Options{}, hooks{loaded: func(string) {
		if !raised {
			raised = true
			w.row.Add(1)
			_, err := w.worker.Raise(w.ctx(), coherence.RaiseRequest{Cause: "test", Reason: change.ReasonManual, Classes: []string{"item"}, X: at(110)})
			w.must(err)
			w.live(c)
		}
	}})
	e := w.items(c)
	w.get(t.Context(), e, "item:1")
	w.want("read after the raise", w.get(t.Context(), e, "item:1"), int64(2))
	w.wantLoads(2)
}

// The value of a load in which something must not be cached is handed to its
// readers only.
func TestDoNotCache(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	e := Entries[int64](c, "item")
	w.live(c)
	for range 2 {
		_, err := e.Get(t.Context(), "item:1", func(_ context.Context, l *Load) (int64, error) {
			w.loads.Add(1)
			l.DoNotCache()
			return 1, nil
		})
		w.must(err)
		e.cl.mu.Lock()
		if len(e.cl.flights) > 0 {
			t.Error("a later read could join the load")
		}
		e.cl.mu.Unlock()
		c.fills.Wait()
	}
	w.wantLoads(2)
}

// A value that was made from others has the least stamp and all the names.
func TestCompositeMinStampAllNames(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	inner := w.items(c)
	outer := Entries[int64](c, "page")
	w.live(c)
	w.get(t.Context(), inner, "item:1") // stamp 100
	w.beat(200, 90)
	w.heard(c, 90)
	page := func(ctx context.Context, l *Load) (int64, error) {
		v, err := inner.Get(ctx, "item:1")
		l.Tag("pages")
		return 10 * v, err
	}
	read := func() int64 {
		v, err := outer.Get(t.Context(), "page:1", page)
		w.must(err)
		c.fills.Wait()
		return v
	}
	w.want("page", read(), int64(10))
	if _, ok := w.header("page:1"); ok {
		t.Error("a composite was cached before the workers know that its part is a name")
	}
	w.beat(200, 91) // echoes the class
	w.heard(c, 91)
	w.want("page", read(), int64(10))
	h, ok := w.header("page:1")
	if !ok {
		t.Fatalf("the composite was not cached: %v", c.Stats().Classes["page"].Refused)
	}
	w.want("stamp", h.Stamp, at(100))
	want := map[coherence.Name]bool{
		{Kind: coherence.NameTag, Name: w.name("pages")}: true, {Kind: coherence.NameTag, Name: w.name("all")}: true,
		{Kind: coherence.NameKey, Name: w.name("item:1")}: true, {Kind: coherence.NameClass, Name: "item"}: true,
	}
	for _, n := range h.Names {
		n.Generation = 0
		if !want[n] {
			t.Errorf("name %v %q is too many", n.Kind, n.Name)
		}
		delete(want, n)
	}
	for n := range want {
		t.Errorf("name %v %q is missing", n.Kind, n.Name)
	}
	// L1: what drops the part drops the whole.
	if !inL1(outer, "page:1") {
		t.Fatal("the composite is not in L1")
	}
	w.write("item:1", 210)
	w.live(c)
	if inL1(outer, "page:1") {
		t.Error("the composite outlived its part in L1")
	}
}

// The generation of a part's class counts as well.
func TestCompositeOfRaisedClass(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	Entries[int64](c, "item")
	outer := Entries[int64](c, "page")
	w.live(c)
	w.must(w.worker.AddNamed(w.ctx(), "item"))
	w.beat(200, 91)
	w.heard(c, 91)
	read := func() int64 {
		v, err := outer.Get(t.Context(), "page:1", func(_ context.Context, l *Load) (int64, error) {
			l.DependsOn("item:1")
			return w.row.Load(), nil
		})
		w.must(err)
		c.fills.Wait()
		return v
	}
	read()
	if !inL1(outer, "page:1") {
		t.Fatalf("not in L1: %v", c.Stats().Classes["page"].Refused)
	}
	w.row.Add(1)
	_, err := w.worker.Raise(w.ctx(), coherence.RaiseRequest{Cause: "test", Reason: change.ReasonManual, Classes: []string{"item"}, X: at(210)})
	w.must(err)
	w.live(c)
	w.want("page", read(), int64(2))
}

// w is compared before the question is sent: the answer may be older than w.
func TestRywWBeforeGet(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.open(Options{}, hooks{}), w.open(Options{}, hooks{})
	w.get(t.Context(), w.items(a), "item:1")
	e := w.items(b)
	token := change.Position{Era: testEra, LSN: 150 + 40}.String() // bound 150
	got := w.during(b.After(t.Context(), token), holdGet(b), e, "item:1", func() {
		w.row.Add(1)
		w.unlink("item:1", 150) // and no message: nothing but w tells
		w.beat(200, 160)
		w.heard(b, 160)
	})
	w.want("read your write", got, int64(2))
}

// In an idle database w stays up to 40 bytes below the insert position.
func TestRywIdlePageBoundary(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	e := w.items(c)
	w.get(t.Context(), e, "item:1")
	w.wantLoads(1)
	w.beat(8192, 8192-24)
	w.heard(c, 8192-24)
	token := change.Position{Era: testEra, LSN: 8192}.String()
	w.want("read", w.get(c.After(t.Context(), token), e, "item:1"), int64(1))
	w.wantLoads(0)
	later := change.Position{Era: testEra, LSN: 9000}.String()
	w.row.Add(1) // its invalidation is late: the database is asked
	w.want("read", w.get(c.After(t.Context(), later), e, "item:1"), int64(2))
	w.wantLoads(1)
	w.get(c.After(t.Context(), "nonsense"), e, "item:1")
	w.wantLoads(1)
}

// What is served stale, or could not be read, is no part of what is cached.
func TestStalePartIsNotCached(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	part := w.items(c, StaleWhileNotLive(1<<40))
	whole := Entries[int64](c, "page")
	w.live(c)
	w.must(w.worker.AddNamed(w.ctx(), "item"))
	w.beat(200, 91)
	w.heard(c, 91)
	w.get(t.Context(), part, "item:1")
	w.deafen(c)
	for key, inner := range map[string]func(context.Context) error{
		"page:stale": func(ctx context.Context) error { _, err := part.Get(ctx, "item:1"); return err },
		"page:error": func(ctx context.Context) error {
			_, err := part.Get(ctx, "item:2", func(context.Context, *Load) (int64, error) { return 0, errors.New("broken") })
			if err == nil {
				t.Error("an inner error was lost")
			}
			return nil
		},
	} {
		_, err := whole.Get(t.Context(), key, func(ctx context.Context, _ *Load) (int64, error) { return 1, inner(ctx) })
		w.must(err)
		c.fills.Wait()
		if _, ok := w.header(key); ok {
			t.Errorf("%s was cached", key)
		}
	}
	w.want("refused", c.Stats().Classes["page"].Refused["part"], uint64(2))
}

func TestNotLivePolicies(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	e, stale, fail := w.items(c), w.items(c, StaleWhileNotLive(1<<40)), w.items(c, FailWhileNotLive())
	w.get(t.Context(), e, "item:1")
	w.deafen(c)
	w.want("stale", w.get(t.Context(), stale, "item:1"), int64(1))
	w.write("item:1", 110)
	w.want("stale", w.get(t.Context(), stale, "item:1"), int64(1))
	w.want("bypass", w.get(t.Context(), e, "item:1"), int64(2))
	if _, err := fail.Get(t.Context(), "item:1"); !errors.Is(err, ErrNotLive) {
		t.Errorf("got %v, want ErrNotLive", err)
	}
}

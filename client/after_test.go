package client

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
)

// awaited opens a Client that has an hour for what a token names, and counts its
// reads that begin to wait for w.
func (w *world) awaited(o Options) (c *Client, waits *atomic.Int64) {
	w.t.Helper()
	waits = &atomic.Int64{}
	o.TokenWait = time.Hour
	return w.open(o, hooks{awaiting: func() { waits.Add(1) }}), waits
}

// Where Redis has no value there is nothing to wait for: a load that begins now
// holds the write. No worker says anything in this test, so a read that waited
// would wait for an hour.
func TestAfterLoadsWhatIsGoneAtOnce(t *testing.T) {
	t.Parallel()
	for name, lose := range map[string]func(w *world){
		"unlinked": func(w *world) { w.unlink("item:1", 150) },
		"begun by another": func(w *world) {
			w.unlink("item:1", 150)
			_, err := w.worker.Begin(w.ctx(), coherence.BeginRequest{Name: w.name("item:1")})
			w.must(err)
		},
		"stale":   func(w *world) { w.stale("item:1", 150) },
		"expired": func(w *world) { w.rewrite("item:1", func(h *coherence.Header) { h.HardExpiry = 1 }) },
		"of a lower generation": func(w *world) {
			w.rewrite("item:1", func(h *coherence.Header) { h.Generation-- })
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			a := w.open(Options{}, hooks{})
			w.get(t.Context(), w.items(a), "item:1")
			c, waits := w.awaited(Options{})
			e := w.items(c, StaleFor(time.Hour))
			w.row.Store(2)
			lose(w)
			ctx, cancel := context.WithTimeoutCause(c.After(t.Context(), tokenAt(160)), tokenPatience, errors.New("it waits"))
			defer cancel()
			w.loads.Store(0)
			w.want("under the token", w.get(ctx, e, "item:1"), int64(2))
			w.want("of many", w.many(ctx, e, 7), "7=2") // nobody has ever asked for that
			w.wantLoads(2)
			w.want("reads that waited", waits.Load(), int64(0))
		})
	}
}

// tokenPatience is how long what must not wait for anybody may take.
const tokenPatience = time.Minute

// A value that w may vouch for is waited for, and then served without a load; one
// whose stamp has the write needs neither.
func TestAfterWaitsForWhatIsThere(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.open(Options{}, hooks{})
	w.get(t.Context(), w.items(a), "item:1")
	w.get(t.Context(), w.items(a), "item:2")
	c, waits := w.awaited(Options{L1Bytes: -1})
	e := w.items(c)
	w.loads.Store(0)
	w.want("by its stamp", w.get(c.After(t.Context(), tokenAt(60)), e, "item:1"), int64(1))
	w.want("reads that waited", waits.Load(), int64(0))
	ctx := c.After(t.Context(), tokenAt(160))
	for _, read := range []func(){
		func() { w.want("one", w.get(ctx, e, "item:1"), int64(1)) },
		func() { w.want("many", w.many(c.After(t.Context(), tokenAt(260)), e, 1, 2), "1=1 2=1") },
	} {
		before := waits.Load()
		var wg sync.WaitGroup
		wg.Go(read)
		harness.Eventually(t, tokenPatience, harness.True("the read waits", func() bool { return waits.Load() > before }))
		w.beat(300+uint64(before)*100, 200+uint64(before)*100)
		wg.Wait()
	}
	w.wantLoads(0)
	w.want("reads that waited", waits.Load(), int64(2))
}

// The same of a plain value, which has no stamp.
func TestAfterPlainAtOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a := w.open(Options{}, hooks{})
	w.get(t.Context(), w.plains(a), "item:1")
	c, waits := w.awaited(Options{L1Bytes: -1})
	e := w.plains(c)
	ctx := c.After(t.Context(), tokenAt(160))
	w.row.Store(2)
	w.unlinkPlain("item:1", 150)
	w.loads.Store(0)
	w.want("one that is gone", w.get(ctx, e, "item:1"), int64(2))
	w.want("reads that waited", waits.Load(), int64(0))
	w.wantLoads(1)
	var wg sync.WaitGroup
	wg.Go(func() { w.want("one that is there", w.get(ctx, e, "item:1"), int64(2)) })
	harness.Eventually(t, tokenPatience, harness.True("the read waits", func() bool { return waits.Load() > 0 }))
	w.beat(300, 200)
	wg.Wait()
	w.wantLoads(0)
}

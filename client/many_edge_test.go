package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
)

func TestGetManyAfter(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{TokenWait: 20 * time.Millisecond}, hooks{})
	s := newShelf(3)
	e := w.shelved(c, s)
	w.many(t.Context(), e, 1, 2)
	s.wantCalls(t, "1 2")
	early := change.Position{Era: testEra, LSN: 80}.String() // w has passed it
	w.want("values", w.many(c.After(t.Context(), early), e, 1, 2), "1=1 2=2")
	s.wantCalls(t)
	later := change.Position{Era: testEra, LSN: 9000}.String()
	s.set("item:1", 10) // its invalidation is late: the database is asked
	w.want("values", w.many(c.After(t.Context(), later), e, 1, 2), "1=10 2=2")
	s.wantCalls(t, "1 2")
	// The wait ends as soon as w has passed the token.
	patient := w.open(Options{TokenWait: time.Minute}, hooks{})
	pe := w.shelved(patient, s)
	var wg sync.WaitGroup
	wg.Go(func() { w.want("values", w.many(patient.After(t.Context(), later), pe, 1, 2), "1=10 2=2") })
	w.invalidate("item:1", 8000)
	w.beat(9500, 9400)
	wg.Wait()
	s.wantCalls(t, "1") // 2 was served from Redis
}

func TestGetManyCancelled(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	s := newShelf(2)
	began, ended := make(chan struct{}), make(chan struct{})
	s.before = func(ctx context.Context, _ []string, _ *BatchLoad) error {
		close(began)
		<-ctx.Done()
		close(ended)
		return ctx.Err()
	}
	e := w.shelved(c, s)
	first, cancelFirst := context.WithCancel(t.Context())
	second, cancelSecond := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	read := func(ctx context.Context, f func(context.Context) error) {
		wg.Go(func() {
			if err := f(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("got %v, want that it was cancelled", err)
			}
		})
	}
	read(first, func(ctx context.Context) error { _, err := e.GetMany(ctx, itemKeys(1, 2)); return err })
	<-began
	read(second, func(ctx context.Context) error { _, err := e.Get(ctx, "item:2"); return err })
	harness.Eventually(t, 10*time.Second, harness.True("the second read waits", func() bool { return c.Stats().Classes["item"].Coalesced == 1 }))
	cancelFirst()
	harness.Eventually(t, 10*time.Second, harness.True("the first read is gone", func() bool {
		e.cl.mu.Lock()
		defer e.cl.mu.Unlock()
		f, ok := e.cl.flights["item:2"].(*flight[int64])
		return ok && f.waiters == 1 && e.cl.flights["item:1"] == nil
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

// Without a batch loader every key is loaded by itself, and none is turned away
// because of the others.
func TestGetManyWithSingleLoader(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	var running, most atomic.Int64
	e := Entries[int64](c, "item", MaxLoads(2), LoadWith(func(_ context.Context, key string, _ *Load) (int64, error) {
		w.loads.Add(1)
		n := running.Add(1)
		defer running.Add(-1)
		for had := most.Load(); n > had && !most.CompareAndSwap(had, n); had = most.Load() {
		}
		return strconv.ParseInt(strings.TrimPrefix(key, "item:"), 10, 64)
	}))
	w.live(c)
	keys := make([]int, 40) // more than may run and wait
	for i := range keys {
		keys[i] = i
	}
	got, err := e.GetMany(t.Context(), itemKeys(keys...))
	w.must(err)
	w.want("values", len(got), 40)
	w.want("a value", got["item:39"], int64(39))
	w.wantLoads(40)
	if n := most.Load(); n > 2 {
		t.Errorf("%d loads at a time", n)
	}
}

func TestGetManyMaxBatch(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	s := newShelf(5)
	e := w.shelved(c, s, MaxBatch(2))
	w.want("values", w.many(t.Context(), e, 1, 2, 3, 4, 5), "1=1 2=2 3=3 4=4 5=5")
	s.wantCalls(t, "1 2", "3 4", "5")
}

// While the broadcast is not heard, hits are checked against the control data:
// once for the batch.
func TestGetManyNotLive(t *testing.T) {
	t.Parallel()
	w, line := costs(t)
	a, b := w.open(Options{}, hooks{}), w.open(Options{}, hooks{})
	s := newShelf(3)
	s.after = func(_ context.Context, _ []string, l *BatchLoad) error { l.Tag("item:2", "red"); return nil }
	w.many(t.Context(), w.shelved(a, s), 1, 2, 3)
	e := w.shelved(b, s)
	w.deafen(b)
	line.take()
	w.want("values", w.many(t.Context(), e, 1, 2, 3), "1=1 2=2 3=3")
	s.wantCalls(t, "1 2 3")
	got := slices.DeleteFunc(line.take(), func(trip string) bool { return !strings.HasPrefix(trip, "get") && !strings.HasPrefix(trip, "evalsha") })
	if want := []string{"get+get+get", "evalsha"}; !slices.Equal(got, want) {
		t.Errorf("trips: got %q, want %q", got, want)
	}
	s.set("item:2", 20)
	w.must(w.worker.OpenPurge(w.ctx(), w.purge(110, "red"), w.v))
	w.want("values during a purge", w.many(t.Context(), e, 1, 2, 3), "1=1 2=20 3=3")
}

// Entries that a batch loader reads are parts of every key of the batch.
func TestGetManyComposite(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	part := w.items(c)
	pages := Entries[int64](c, "page")
	w.live(c)
	w.must(w.worker.AddNamed(w.ctx(), "item"))
	w.beat(200, 91)
	w.heard(c, 91)
	load := func(ctx context.Context, keys []string, _ *BatchLoad) (map[string]int64, error) {
		parts, err := part.GetMany(ctx, []string{"item:1", "item:2"})
		out := map[string]int64{}
		for _, k := range keys {
			out[k] = parts["item:1"]
		}
		return out, err
	}
	_, err := pages.GetMany(t.Context(), []string{"page:1", "page:2"}, load)
	w.must(err)
	c.fills.Wait()
	for _, key := range []string{"page:1", "page:2"} {
		h, ok := w.header(key)
		want := []coherence.Name{{Kind: coherence.NameKey, Name: w.name("item:1")}, {Kind: coherence.NameKey, Name: w.name("item:2")}}
		for _, n := range want {
			if !ok || !slices.Contains(h.Names, n) {
				t.Errorf("%s has the names %v, want %v among them", key, h.Names, n)
			}
		}
	}
}

// The statement of a batch stamps all its keys, or refuses them all.
func TestGetManyFromDatabase(t *testing.T) {
	t.Parallel()
	w, p := newDatabase(t, harness.Database(t))
	_, err := p.Exec(t.Context(), "INSERT INTO item VALUES (2, 20), (3, 30)")
	w.must(err)
	c := w.open(Options{Database: p}, hooks{})
	statement := "SELECT id, value FROM item WHERE 'item:' || id = ANY($1)"
	load := func(ctx context.Context, keys []string, l *BatchLoad) (map[string]int64, error) {
		rows, err := l.Query(ctx, statement, keys)
		if err != nil {
			return nil, err
		}
		defer rows.Close()
		out := map[string]int64{}
		for rows.Next() {
			var id, v int64
			if err := rows.Scan(&id, &v); err != nil {
				return nil, err
			}
			out[fmt.Sprint("item:", id)] = v
		}
		return out, rows.Err()
	}
	e := Entries[int64](c, "item", LoadManyWith(load))
	w.live(c)
	w.want("values", w.many(t.Context(), e, 1, 2, 3, 4), "1=1 2=20 3=30")
	for _, key := range itemKeys(1, 2, 3) {
		h, ok := w.header(key)
		w.want("stored", ok, true)
		w.want("stamp", h.Stamp, at(100))
		w.unlink(key, 110)
	}
	_, _, err = w.worker.Broadcast(w.ctx(), coherence.Message{Kind: coherence.KindEpoch})
	w.must(err)
	w.live(c)
	statement = "UPDATE item SET value = value + 1 WHERE 'item:' || id = ANY($1) RETURNING id, value"
	w.want("values", w.many(t.Context(), e, 1, 2), "1=2 2=21")
	w.want("refused", c.Stats().Classes["item"].Refused["own_xid"], uint64(2))
	for _, key := range itemKeys(1, 2) {
		if _, ok := w.header(key); ok || inL1(e, key) {
			t.Errorf("%s was cached", key)
		}
	}
}

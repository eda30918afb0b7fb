package client

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// costs is a world whose Clients go through a wire.
func costs(t *testing.T) (*world, *wire) {
	t.Helper()
	w := newWorld(t)
	line := newWire(t, w.addr)
	w.addr = line.listener.Addr().String()
	return w, line
}

// tagged is a class whose loader names as many tags as asked for.
func tagged(c *Client, w *world, tags int) *Class[int64] {
	return Entries[int64](c, "item", LoadWith(func(_ context.Context, _ string, l *Load) (int64, error) {
		for i := range tags {
			l.Tag(fmt.Sprintf("tag:%d", i))
		}
		return w.row.Load(), nil
	}))
}

// TestMissCostsOneTripMoreThanCacheAside: the budget of the design, counted on
// the wire. Without protection a miss is GET and, after the load, SET. Begin is
// one more, and with tags register is one further, however many tags there are.
func TestMissCostsOneTripMoreThanCacheAside(t *testing.T) {
	t.Parallel()
	w, line := costs(t)
	aside := redis.NewClient(&redis.Options{Addr: w.addr})
	t.Cleanup(func() { _ = aside.Close() })
	cacheAside := func(key string) {
		t.Helper()
		if err := aside.Get(w.ctx(), w.name(key)).Err(); err != redis.Nil { //nolint:errorlint // it is never wrapped
			t.Fatalf("get %s: %v", key, err)
		}
		w.must(aside.Set(w.ctx(), w.name(key), w.row.Load(), 0).Err())
	}
	cacheAside("aside:0") // connects
	line.take()
	cacheAside("aside:1")
	bare := line.take()
	if want := []string{"get", "set"}; !slices.Equal(bare, want) {
		t.Fatalf("cache-aside: %v, want %v", bare, want)
	}

	c := w.open(Options{}, hooks{})
	for tags, want := range map[int][]string{
		0: {"get", "set", "evalsha"},
		1: {"get", "set", "evalsha", "evalsha"},
		3: {"get", "set", "evalsha+evalsha+evalsha", "evalsha"},
	} {
		e := tagged(c, w, tags)
		w.live(c)
		w.get(w.ctx(), e, fmt.Sprintf("item:warm:%d", tags)) // connections, scripts
		line.take()
		key := fmt.Sprintf("item:%d", tags)
		w.get(w.ctx(), e, key)
		if got := line.take(); !slices.Equal(got, want) {
			t.Errorf("a miss with %d tags: %v, want %v", tags, got, want)
		}
		if _, ok := w.header(key); !ok {
			t.Errorf("with %d tags nothing was filled: the trips were for nothing", tags)
		}
		line.take()
		w.get(w.ctx(), e, key)
		if got := line.take(); len(got) != 0 {
			t.Errorf("a hit in L1: %v, want none", got)
		}
	}
}

// TestMissCostsItsCallerTwoTrips: register and fill are made after the caller
// has its value.
func TestMissCostsItsCallerTwoTrips(t *testing.T) {
	t.Parallel()
	w, line := costs(t)
	loaded, release := make(chan struct{}, 1), make(chan struct{})
	hold := false
	c := w.open(Options{}, hooks{loaded: func(string) {
		if hold {
			loaded <- struct{}{}
			<-release
		}
	}})
	e := tagged(c, w, 1)
	w.live(c)
	w.get(w.ctx(), e, "item:warm")
	hold = true // no load is under way
	line.take()
	ctx, cancel := context.WithTimeout(w.ctx(), 30*time.Second) // one that waits for the fill waits for ever
	defer cancel()
	if v, err := e.Get(ctx, "item:1"); v != 1 || err != nil {
		close(release)
		t.Fatalf("Get = %d, %v", v, err)
	}
	<-loaded
	if got, want := line.take(), []string{"get", "set"}; !slices.Equal(got, want) {
		t.Errorf("before the caller had its value: %v, want %v", got, want)
	}
	close(release)
	c.fills.Wait()
	if got, want := line.take(), []string{"evalsha", "evalsha"}; !slices.Equal(got, want) {
		t.Errorf("after it: %v, want %v", got, want)
	}
}

// TestL2HitCostsOneTrip: as much as a bare GET.
func TestL2HitCostsOneTrip(t *testing.T) {
	t.Parallel()
	w, line := costs(t)
	c := w.open(Options{L1Bytes: -1}, hooks{})
	e := tagged(c, w, 1)
	w.live(c)
	w.get(w.ctx(), e, "item:1")
	line.take()
	w.get(w.ctx(), e, "item:1")
	if got, want := line.take(), []string{"get"}; !slices.Equal(got, want) {
		t.Errorf("a hit in Redis: %v, want %v", got, want)
	}
}

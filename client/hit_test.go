package client

import (
	"context"
	"encoding/json"
	"errors"
	"math"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
)

// priced is a value of the size that values have.
type priced struct {
	ID      int64     `json:"id"`
	Name    string    `json:"name"`
	Text    string    `json:"text"`
	Price   float64   `json:"price"`
	Tags    []string  `json:"tags"`
	Updated time.Time `json:"updated"`
}

// hitsInRedis is a hit in Redis, and what it is compared with: GET and decoding
// by the same library. Each reads under a context.
func hitsInRedis(t *testing.T, o Options) (e *Class[*priced], ours, bare func(context.Context)) {
	t.Helper()
	w := newWorld(t)
	value := &priced{ID: 1, Name: "name", Text: string(make([]byte, 64)), Price: 1.5, Tags: []string{"a", "b"}, Updated: time.Unix(1700000000, 0).UTC()}
	c := w.open(o, hooks{})
	e = Entries[*priced](c, "priced", LoadWith(func(context.Context, string, *Load) (*priced, error) {
		w.loads.Add(1)
		return value, nil
	}))
	w.live(c)
	if _, err := e.Get(w.ctx(), "priced:1"); err != nil {
		t.Fatal(err)
	}
	c.fills.Wait()
	w.wantLoads(1)
	raw, err := json.Marshal(value)
	w.must(err)
	rdb := redis.NewClient(&redis.Options{Addr: w.addr, Protocol: 2, ContextTimeoutEnabled: true, MaxRetries: -1})
	t.Cleanup(func() { _ = rdb.Close() })
	w.must(rdb.Set(w.ctx(), w.name("bare:1"), raw, 0).Err())
	name := w.name("bare:1")
	t.Cleanup(func() { w.wantLoads(0) })
	return e, func(ctx context.Context) {
			if v, err := e.Get(ctx, "priced:1"); err != nil || v == nil {
				t.Errorf("got %v, %v", v, err)
			}
		}, func(ctx context.Context) {
			raw, err := rdb.Get(ctx, name).Bytes()
			var v *priced
			if err := errors.Join(err, json.Unmarshal(raw, &v)); err != nil {
				t.Error(err)
			}
		}
}

// TestL2HitAllocatesLittleMore than GET and decoding: the key with the namespace,
// and four for the context with the time limit (itself, the library's in it, how
// that is cancelled, and the channel that go-redis asks it for). One is saved, the
// look at the socket that go-redis takes before each command.
func TestL2HitAllocatesLittleMore(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	const more = 4
	_, ours, bare := hitsInRedis(t, Options{L1Bytes: -1})
	canceled, cancel := context.WithCancel(t.Context())
	defer cancel()
	for what, ctx := range map[string]context.Context{"no end": context.Background(), "an end": canceled} {
		// What goes on besides counts too, so the least of a few.
		a, b := math.Inf(1), math.Inf(1)
		for range 5 {
			a = min(a, testing.AllocsPerRun(200, func() { ours(ctx) }))
			b = min(b, testing.AllocsPerRun(200, func() { bare(ctx) }))
		}
		if a > b+more {
			t.Errorf("a context with %s: a hit in Redis allocates %v times, GET and decoding %v times; want %d more at most", what, a, b, more)
		}
	}
}

// TestL2HitTakesNoLock of the Client, which is held while a message is handled,
// however large that is.
func TestL2HitTakesNoLock(t *testing.T) {
	t.Parallel()
	e, ours, _ := hitsInRedis(t, Options{L1Bytes: -1})
	c := e.c
	done := make(chan struct{})
	c.mu.Lock()
	c.liveUntil.Store(math.MaxInt64) // however long this takes
	go func() {
		defer close(done)
		ours(context.Background())
	}()
	select {
	case <-done:
		c.mu.Unlock()
	case <-time.After(time.Minute):
		c.mu.Unlock()
		<-done
		t.Error("a hit in Redis waits for Client.mu")
	}
}

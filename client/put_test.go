package client

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/coherence"
)

// puts is a class whose misses are counted: a read that loads was not served
// what was put.
func (w *world) puts(c *Client) *Class[int64] {
	return w.items(c)
}

func (w *world) put(e *Class[int64], at Moment, v int64, opts ...PutOption) bool {
	w.t.Helper()
	stored, err := e.Put(w.ctx(), at, "item:1", v, opts...)
	w.must(err)
	return stored
}

func TestPut(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.open(Options{}, hooks{}), w.open(Options{}, hooks{})
	ea, eb := w.puts(a), w.puts(b)
	at100 := a.Moment()
	w.want("stored", w.put(ea, at100, 7, PutTags("red"), PutTTL(time.Minute)), true)
	h, _ := w.header("item:1")
	w.want("stamp", h.Stamp, at(100))
	if ttl := time.Until(time.UnixMicro(h.HardExpiry)); ttl > time.Minute {
		t.Errorf("time to live is %v, want a minute", ttl)
	}
	w.want("in L1", inL1(ea, "item:1"), true)
	w.want("read", w.get(t.Context(), ea, "item:1"), int64(7))
	w.want("read of another client", w.get(t.Context(), eb, "item:1"), int64(7))
	// Over what is there already, the same Moment again.
	w.want("stored", w.put(ea, at100, 7), true)
	w.wantLoads(0)
	w.write("item:1", 110)
	w.live(a)
	w.want("read after a write", w.get(t.Context(), ea, "item:1"), int64(2))
	w.want("fills", a.Stats().Classes["item"].Fills, uint64(3))
}

// What happened between the Moment and the Put, and whether a value that was
// read between the two may still be stored.
func TestPutRefused(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		between func(w *world, c *Client)
		opts    []PutOption
		reason  string // "" for stored
	}{
		"nothing": {between: func(*world, *Client) {}},
		"an invalidation that the value reflects": {between: func(w *world, _ *Client) { w.unlink("item:1", 99) }},
		"an invalidation": {
			between: func(w *world, _ *Client) { w.unlink("item:1", 110) },
			reason:  "table",
		},
		// v has passed it since: the stamp is the Moment's.
		"an invalidation and a heartbeat": {
			between: func(w *world, c *Client) {
				w.unlink("item:1", 110)
				w.beat(200, 190)
				w.heard(c, 190)
			},
			reason: "table",
		},
		// A commit at v itself is not below it.
		"an invalidation at v": {
			between: func(w *world, _ *Client) { w.unlink("item:1", 100) },
			reason:  "table",
		},
		"a purge of its tag": {
			between: func(w *world, c *Client) {
				p := w.purge(110, "red")
				w.must(w.worker.OpenPurge(w.ctx(), p, w.v))
				w.must(w.worker.ClosePurge(w.ctx(), p, w.v))
				w.live(c)
			},
			opts:   []PutOption{PutTags("red")},
			reason: "table",
		},
		"a raise": {
			between: func(w *world, c *Client) { w.raise(c, "item") },
			reason:  "generation",
		},
		"an epoch": {
			between: func(w *world, c *Client) { c.bump("test"); w.live(c) },
			reason:  "epoch",
		},
		"a key of nobody's class": {
			between: func(*world, *Client) {},
			opts:    []PutOption{PutDependsOn("nobody:1")},
			reason:  "unknown_class",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			cl := w.open(Options{}, hooks{})
			e := w.puts(cl)
			m := cl.Moment()
			c.between(w, cl)
			w.want("stored", w.put(e, m, 7, c.opts...), c.reason == "")
			_, there := w.header("item:1")
			w.want("in Redis", there, c.reason == "")
			w.want("in L1", inL1(e, "item:1"), c.reason == "")
			if c.reason != "" {
				w.want("refused", cl.Stats().Classes["item"].Refused[c.reason], uint64(1))
			}
			want := int64(1)
			if c.reason == "" {
				want = 7
			}
			w.want("read", w.get(t.Context(), e, "item:1"), want)
		})
	}
}

// raise raises a class beyond everything known, with a bound that every stamp
// covers: as after a lost slot whose gap holds a commit that v has passed.
func (w *world) raise(c *Client, class string) {
	w.t.Helper()
	_, err := w.worker.Raise(w.ctx(), coherence.RaiseRequest{Cause: "test-" + w.ns, Reason: "test", Classes: []string{class}, X: at(60), Bound: at(60)})
	w.must(err)
	w.live(c)
}

// The generation is that of the Moment: a raise that comes while the Put is
// under way is not outlived.
func TestPutGenerationOfTheMoment(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var c *Client
	var once sync.Once
	c = w.open(Options{}, hooks{loaded: func(string) { once.Do(func() { w.raise(c, "item") }) }})
	e := w.puts(c)
	w.put(e, c.Moment(), 7)
	w.want("in L1", inL1(e, "item:1"), false)
	w.want("read", w.get(t.Context(), e, "item:1"), int64(1))
	w.wantLoads(1)
}

// The invalidation comes between the registration's ticket and the fill, or
// between the fill and L1's store.
func TestPutOvertaken(t *testing.T) {
	t.Parallel()
	for name, hook := range map[string]func(h *hooks, f func(string)){
		"before the fill": func(h *hooks, f func(string)) { h.loaded = f },
		"before L1":       func(h *hooks, f func(string)) { h.filled = f },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			var c *Client
			var h hooks
			var once sync.Once
			hook(&h, func(string) {
				once.Do(func() {
					w.write("item:1", 110)
					w.live(c)
				})
			})
			c = w.open(Options{}, h)
			e := w.puts(c)
			w.put(e, c.Moment(), 7)
			w.want("in L1", inL1(e, "item:1"), false)
			w.want("read", w.get(t.Context(), e, "item:1"), int64(2))
		})
	}
}

func TestPutMistakes(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.open(Options{}, hooks{}), w.open(Options{}, hooks{})
	e := w.puts(a)
	for _, m := range []Moment{{}, b.Moment()} {
		if _, err := e.Put(t.Context(), m, "item:1", 1); err == nil {
			t.Error("a Moment that is not this Client's is no error")
		}
	}
	if _, err := e.Put(t.Context(), a.Moment(), "", 1); err == nil {
		t.Error("an empty key is no error")
	}
	w.deafen(a)
	w.must(a.Close())
	w.want("stored after Close", w.put(e, a.Moment(), 1), false)
}

// No worker, no Redis: nothing is stored, and nothing fails.
func TestPutWithoutRedis(t *testing.T) {
	t.Parallel()
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	defer rdb.Close()
	c, err := Open(context.Background(), Options{Redis: rdb, OpenTimeout: time.Nanosecond})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	e := Entries[int64](c, "item")
	if stored, err := e.Put(t.Context(), c.Moment(), "item:1", 1); stored || err != nil {
		t.Errorf("got %v, %v", stored, err)
	}
}

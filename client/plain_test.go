package client

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
)

// plains is a plain class of the row that the database has.
func (w *world) plains(c *Client, opts ...Option) *Class[int64] {
	w.t.Helper()
	load := func(context.Context, string, *Load) (int64, error) {
		w.loads.Add(1)
		return w.row.Load(), nil
	}
	e := Entries[int64](c, "item", append([]Option{Plain(), LoadWith(load)}, opts...)...)
	w.live(c)
	return e
}

func (w *world) redis() *redis.Client {
	w.t.Helper()
	rdb := redis.NewClient(&redis.Options{Addr: w.addr})
	w.t.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

// bare is what a program in another language reads; "" is nothing.
func (w *world) bare(key string) string {
	w.t.Helper()
	return w.redis().Get(w.ctx(), w.name(key)).Val()
}

// unlinkPlain is unlink for plain entries.
func (w *world) unlinkPlain(key string, x uint64) {
	w.t.Helper()
	_, err := w.worker.Invalidate(w.ctx(), []coherence.Invalidation{{Name: w.name(key), X: at(x), Plain: true}})
	w.must(err)
}

func (w *world) tellKey(key string, x uint64) {
	w.t.Helper()
	_, _, err := w.worker.Broadcast(w.ctx(), coherence.Message{Kind: coherence.KindKeys, X: at(x), V: w.v, Names: []string{w.name(key)}})
	w.must(err)
}

// raiseAt raises the class because of a commit at x.
func (w *world) raiseAt(c *Client, class string, x uint64) {
	w.t.Helper()
	_, err := w.worker.Raise(w.ctx(), coherence.RaiseRequest{
		Cause: fmt.Sprint("raise at ", x), Reason: change.ReasonManual, Classes: []string{class}, X: at(x), Bound: at(x + 10),
	})
	w.must(err)
	w.live(c)
}

// walk is what the workers do after a raise, up to the second one.
func (w *world) walk(c *Client) {
	w.t.Helper()
	w.must(w.worker.Walk(w.ctx(), []string{w.name("item:*")}, nil))
	_, err := w.worker.Raise(w.ctx(), coherence.RaiseRequest{Cause: "walked", Reason: "walked", Classes: []string{"item"}})
	w.must(err)
	w.live(c)
}

// What is in Redis is what any program expects there, and what it filled there
// is read.
func TestPlain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.open(Options{}, hooks{}), w.open(Options{}, hooks{})
	ea, eb := w.plains(a), w.plains(b)
	w.row.Store(42)
	w.want("value", w.get(t.Context(), ea, "item:1"), int64(42))
	w.want("in Redis", w.bare("item:1"), "42")
	w.want("of another process", w.get(t.Context(), eb, "item:1"), int64(42))
	w.wantLoads(1)
	w.want("in L1 of its loader", inL1(ea, "item:1"), true)
	w.want("in L1 of its reader", inL1(eb, "item:1"), true)
	if ttl := w.redis().PTTL(t.Context(), w.name("item:1")).Val(); ttl <= 0 || ttl > TTLDefault {
		t.Errorf("it lives for %v, want up to %v", ttl, TTLDefault)
	}
	w.row.Store(43)
	w.unlinkPlain("item:1", 110)
	w.tellKey("item:1", 110)
	w.live(a)
	w.live(b)
	for _, e := range []*Class[int64]{ea, eb} {
		w.want("in L1", inL1(e, "item:1"), false)
		w.want("after the write", w.get(t.Context(), e, "item:1"), int64(43))
	}
	w.wantLoads(1)
	w.must(w.redis().Set(t.Context(), w.name("item:2"), "7", 0).Err())
	w.want("somebody else's", w.get(t.Context(), ea, "item:2"), int64(7))
	w.must(w.redis().Set(t.Context(), w.name("item:3"), "no number", 0).Err())
	w.want("nobody's", w.get(t.Context(), ea, "item:3"), int64(43))
	w.want("undecodable", a.Stats().Classes["item"].Undecodable > 0, true)
	w.want("in its place", w.bare("item:3"), "43")
}

// How old a value of Redis is can not be told, so L1 keeps it for less.
func TestPlainL1Expiry(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.open(Options{}, hooks{}), w.open(Options{}, hooks{})
	ea, eb := w.plains(a), w.plains(b)
	w.get(t.Context(), ea, "item:1")
	w.get(t.Context(), eb, "item:1")
	own, _ := ea.local("item:1")
	read, _ := eb.local("item:1")
	if own == nil || read == nil {
		t.Fatal("it is not in L1")
	}
	if got := own.expires - a.now(); got <= TTLDefault/2 || got > TTLDefault {
		t.Errorf("its loader keeps it for %v, want %v", got, TTLDefault)
	}
	if got := read.expires - b.now(); got <= 0 || got > TTLDefault/plainL1Share {
		t.Errorf("its reader keeps it for %v, want up to %v", got, TTLDefault/plainL1Share)
	}
}

// Nothing is compressed, and MaxValue holds for what is stored and what is read.
func TestPlainSize(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	long := strings.Repeat("long ", 1000)
	loads := 0
	load := func(context.Context, string, *Load) (string, error) { loads++; return long, nil }
	e := Entries[string](c, "item", Plain(), LoadWith(load), MaxValue(6000))
	w.live(c)
	read := func(key string) {
		t.Helper()
		got, err := e.Get(t.Context(), key)
		w.must(err)
		w.want("value", got, long)
		c.fills.Wait()
	}
	read("item:1")
	w.want("in Redis", w.bare("item:1"), `"`+long+`"`)
	w.must(w.redis().Set(t.Context(), w.name("item:2"), `"`+strings.Repeat("x", 6000)+`"`, 0).Err())
	read("item:2")
	w.want("loads", loads, 2)
	long += strings.Repeat("longer", 1000)
	w.unlinkPlain("item:1", 110)
	w.tellKey("item:1", 110)
	w.live(c)
	read("item:1")
	w.want("in Redis", w.bare("item:1"), "")
	w.want("refused", c.Stats().Classes["item"].Refused["oversize"], uint64(1))
}

func TestPlainOptions(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	for name, o := range map[string]Option{
		"NegativeTTL": NegativeTTL(time.Second), "StaleFor": StaleFor(time.Second),
		"StaleWhileRevalidate": StaleWhileRevalidate(time.Second), "EarlyRefresh": EarlyRefresh(1),
	} {
		_, err := Entries[int64](c, "item", Plain(), o).Get(t.Context(), "item:1")
		if err == nil || !strings.Contains(err.Error(), "Plain with "+name) {
			t.Errorf("%s: got %v, want an error about it", name, err)
		}
	}
	e := w.plains(c)
	if stored, err := e.Put(t.Context(), c.Moment(), "item:1", 1); stored || !errors.Is(err, errPlainPut) {
		t.Errorf("Put: got %v, %v, want an error", stored, err)
	}
	w.want("in Redis", w.bare("item:1"), "")
}

// A fill is refused, by Redis and by L1, if the key was invalidated after BEGIN.
func TestPlainFillRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	told := false
	c := w.open(Options{}, hooks{loaded: func(string) {
		if !told {
			told = true
			w.row.Add(1)
			w.unlinkPlain("item:1", 110)
		}
	}})
	e := w.plains(c)
	w.want("what was read before", w.get(t.Context(), e, "item:1"), int64(1))
	w.want("in Redis", w.bare("item:1"), "")
	w.want("in L1", inL1(e, "item:1"), false)
	w.want("refused", c.Stats().Classes["item"].Refused["absent"], uint64(1))
	w.want("read after it", w.get(t.Context(), e, "item:1"), int64(2))
	w.want("in Redis", w.bare("item:1"), "2")
}

// An answer that an invalidation overtook is asked for again, and one that a
// raise overtook is not served; neither comes into L1.
func TestPlainGetInFlight(t *testing.T) {
	t.Parallel()
	for name, overtake := range map[string]func(*world, *Client){
		"an invalidation": func(w *world, c *Client) {
			w.row.Add(1)
			w.unlinkPlain("item:1", 110)
			w.tellKey("item:1", 110)
			w.live(c)
		},
		"a raise": func(w *world, c *Client) {
			w.row.Add(1)
			w.raiseAt(c, "item", 110)
		},
		"a raise that was walked": func(w *world, c *Client) {
			w.row.Add(1)
			w.raiseAt(c, "item", 110)
			w.walk(c)
			w.beat(200, 190)
			w.heard(c, 190)
		},
		"an epoch": func(w *world, c *Client) {
			w.row.Add(1)
			w.unlinkPlain("item:1", 110)
			c.bump("test")
			w.live(c)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			filler, c := w.open(Options{}, hooks{}), w.open(Options{}, hooks{})
			w.get(t.Context(), w.plains(filler), "item:1")
			e := w.plains(c)
			got := w.during(t.Context(), holdGet(c), e, "item:1", func() { overtake(w, c) })
			w.want("read", got, int64(2))
			w.want("read after it", w.get(t.Context(), e, "item:1"), int64(2))
		})
	}
}

// After a raise nothing from before it is served, although it is in Redis until
// the walk comes to it; then Redis is used again.
func TestPlainRaise(t *testing.T) {
	t.Parallel()
	for _, class := range []string{"item", "*"} {
		w := newWorld(t)
		a, b := w.open(Options{}, hooks{}), w.open(Options{}, hooks{})
		ea, eb := w.plains(a), w.plains(b)
		w.get(t.Context(), ea, "item:1")
		w.get(t.Context(), ea, "item:2")
		w.wantLoads(2)
		w.row.Add(1)
		w.raiseAt(a, class, 110)
		w.live(b)
		w.want("in Redis", w.bare("item:1"), "1")
		for range 2 { // the second time from L1
			w.want("of one", w.get(t.Context(), ea, "item:1"), int64(2))
			w.want("of another", w.get(t.Context(), eb, "item:1"), int64(2))
			w.want("of many", w.many(t.Context(), eb, 1, 2), "1=2 2=2")
		}
		w.wantLoads(3)
		w.walk(a)
		w.live(b)
		// The walk has ended, and w has not said so yet.
		w.want("of one", w.get(t.Context(), ea, "item:1"), int64(2))
		w.wantLoads(1)
		w.beat(200, 190)
		w.heard(a, 190)
		w.heard(b, 190)
		w.want("of another", w.get(t.Context(), eb, "item:1"), int64(2))
		w.wantLoads(0)
	}
}

// A Client that hears nothing does not serve what may be from before a raise
// that it has not heard of.
func TestPlainRaiseUnheard(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.open(Options{}, hooks{}), w.open(Options{}, hooks{})
	ea, eb := w.plains(a), w.plains(b)
	w.get(t.Context(), ea, "item:1")
	w.deafen(b)
	w.wantLoads(1)
	w.want("before", w.get(t.Context(), eb, "item:1"), int64(1))
	w.wantLoads(0)
	w.row.Add(1)
	w.raiseAt(a, "item", 110)
	w.want("after", w.get(t.Context(), eb, "item:1"), int64(2))
	w.want("after, of many", w.many(t.Context(), eb, 1), "1=2")
}

// Read your writes: a plain value shows nothing, so only w says that it will do.
func TestPlainAfter(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.open(Options{TokenWait: time.Millisecond}, hooks{}), w.open(Options{TokenWait: time.Millisecond}, hooks{})
	ea, eb := w.plains(a), w.plains(b)
	w.get(t.Context(), ea, "item:1")
	w.wantLoads(1)
	w.row.Add(1) // committed at 100, told to nobody yet
	ctx := b.After(t.Context(), tokenAt(160))
	w.want("under the token", w.get(ctx, eb, "item:1"), int64(2))
	w.wantLoads(1)
	w.want("of many", w.many(ctx, eb, 1), "1=2")
	w.wantLoads(1)
	w.unlinkPlain("item:1", 150)
	w.tellKey("item:1", 150)
	w.live(a)
	w.get(t.Context(), ea, "item:1")
	w.beat(200, 190)
	w.heard(b, 190)
	w.wantLoads(1)
	w.want("when w has passed", w.get(ctx, eb, "item:1"), int64(2))
	w.want("of many", w.many(ctx, eb, 1), "1=2")
	w.wantLoads(0)
}

// A purge reaches a plain value at the sweep, and what is being filled too.
func TestPlainTags(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.open(Options{}, hooks{}), w.open(Options{}, hooks{})
	ea, eb := w.plains(a, LoadWith(w.loader())), w.plains(b)
	w.get(t.Context(), ea, "item:1")
	w.get(t.Context(), eb, "item:1")
	w.want("in Redis", w.bare("item:1"), "1")
	w.row.Add(1)
	p := w.purge(110, "all")
	w.must(w.worker.OpenPurge(w.ctx(), p, w.v))
	w.live(a)
	w.live(b)
	w.want("in L1 of its loader, who knows the tag", inL1(ea, "item:1"), false)
	members, _, err := w.worker.Members(w.ctx(), w.name("all"), 0, 0)
	w.must(err)
	w.want("members", fmt.Sprint(members), fmt.Sprint([]string{w.name("item:1")}))
	w.unlinkPlain("item:1", 110)
	w.tellKey("item:1", 110)
	w.must(w.worker.ClosePurge(w.ctx(), p, w.v))
	w.live(a)
	w.live(b)
	w.want("in L1 of its reader", inL1(eb, "item:1"), false)
	w.want("after the sweep", w.get(t.Context(), eb, "item:1"), int64(2))
	// Whoever began before the purge is not registered after it.
	w.want("refused", w.get(t.Context(), ea, "item:2"), int64(2))
	w.want("in Redis", w.bare("item:2"), "")
	w.want("refused", a.Stats().Classes["item"].Refused["table"], uint64(1))
}

// What a header would have to carry is not cached.
func TestPlainParts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	part := Entries[int64](c, "part", LoadWith(w.loader()))
	e := w.plains(c)
	whole := Entries[int64](c, "whole")
	w.beat(100, 90)
	w.live(c)
	made := func(l func(context.Context, *Load) (int64, error), e *Class[int64], key, reason string) {
		t.Helper()
		if _, err := e.Get(t.Context(), key, l); err != nil {
			t.Fatal(err)
		}
		c.fills.Wait()
		w.want("in Redis", w.bare(key), "")
		w.want("in L1", inL1(e, key), false)
		w.want("refused", c.Stats().Classes[e.cl.name].Refused[reason], uint64(1))
	}
	made(func(ctx context.Context, _ *Load) (int64, error) { return part.Get(ctx, "part:1") }, e, "item:1", "plain_composite")
	for i, before := range []func(){
		func() {},
		func() { w.get(t.Context(), e, "item:9") },
		func() { c.bump("test"); w.live(c) },
	} {
		before()
		key := fmt.Sprint("whole:", i)
		if _, err := whole.Get(t.Context(), key, func(ctx context.Context, _ *Load) (int64, error) { return e.Get(ctx, "item:9") }); err != nil {
			t.Fatal(err)
		}
		c.fills.Wait()
		w.want("composite in L1", inL1(whole, key), false)
		if _, there := w.header(key); there {
			t.Error("what was made of a plain value is in Redis")
		}
	}
	w.want("refused", c.Stats().Classes["whole"].Refused["plain_part"], uint64(3))
}

func TestPlainDependsOn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	Entries[int64](c, "part")
	e := w.plains(c)
	_, err := e.Get(t.Context(), "item:1", func(_ context.Context, l *Load) (int64, error) {
		l.DependsOn("part:1")
		return 1, nil
	})
	w.must(err)
	c.fills.Wait()
	w.want("in Redis", w.bare("item:1"), "")
	w.want("refused", c.Stats().Classes["item"].Refused["plain_composite"], uint64(1))
}

// One reader of a process loads for those of others: the lease stands beside
// the value.
func TestPlainLease(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.open(Options{}, hooks{}), w.open(Options{}, hooks{})
	ea, eb := w.plains(a), w.plains(b)
	loading, release := make(chan struct{}), make(chan struct{})
	held := func(context.Context, *Load) (int64, error) {
		w.loads.Add(1)
		close(loading)
		<-release
		return 5, nil
	}
	got := make(chan int64, 3)
	read := func(e *Class[int64], load ...func(context.Context, *Load) (int64, error)) {
		v, err := e.Get(t.Context(), "item:1", load...)
		if err != nil {
			t.Error(err)
		}
		got <- v
	}
	go read(ea, held)
	<-loading
	go read(eb)
	harness.Eventually(t, 10*time.Second, func() error {
		if waits(eb) != 1 {
			return errors.New("nobody waits for the lease")
		}
		return nil
	})
	close(release)
	for range 2 {
		w.want("value", <-got, int64(5))
	}
	a.fills.Wait()
	b.fills.Wait()
	w.wantLoads(1)

	// The value is gone and its ticket is not: who comes takes the lease over.
	w.must(w.redis().Del(t.Context(), w.name("item:1")).Err())
	a.bump("test")
	w.live(a)
	w.want("value", w.get(t.Context(), ea, "item:1"), int64(1))
	w.wantLoads(1)
	w.want("in Redis", w.bare("item:1"), "1")
}

// The lease of one who gave up is free at once.
func TestPlainLeaseGivenBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	e := w.plains(c)
	broken := errors.New("broken")
	if _, err := e.Get(t.Context(), "item:1", func(context.Context, *Load) (int64, error) { return 0, broken }); !errors.Is(err, broken) {
		t.Fatalf("got %v", err)
	}
	c.fills.Wait()
	raw, err := w.redis().Get(t.Context(), w.worker.Layout().Ticket(w.name("item:1"))).Bytes()
	w.must(err)
	h, _, err := coherence.Parse(raw)
	w.must(err)
	w.want("free", h.Lease.IsFree(), true)
}

func TestPlainGetMany(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.open(Options{}, hooks{}), w.open(Options{}, hooks{})
	s := newShelf(4)
	ea, eb := w.shelved(a, s, Plain()), w.shelved(b, s, Plain())
	w.want("values", w.many(t.Context(), ea, 1, 2), "1=1 2=2")
	w.want("in Redis", w.bare("item:2"), "2")
	w.want("values", w.many(t.Context(), eb, 1, 2, 3), "1=1 2=2 3=3")
	s.wantCalls(t, "1 2", "3")
	if stored, err := ea.Refresh(t.Context(), "item:1"); err != nil || stored != 1 {
		t.Errorf("Refresh: %v, %v", stored, err)
	}
	a.fills.Wait()
	s.set("item:1", 11)
	w.unlinkPlain("item:1", 110)
	w.tellKey("item:1", 110)
	w.live(a)
	w.live(b)
	w.want("values", w.many(t.Context(), eb, 1, 2, 3), "1=11 2=2 3=3")
	w.want("values", w.many(t.Context(), ea, 1, 2, 3), "1=11 2=2 3=3")
}

// A value that may be too old by MaxStale is passed by.
func TestPlainMaxStale(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.open(Options{}, hooks{}), w.open(Options{}, hooks{})
	w.get(t.Context(), w.plains(a), "item:1")
	w.row.Add(1)
	e := w.plains(b, MaxStale(time.Hour)) // this worker answers no pulse
	w.want("value", w.get(t.Context(), e, "item:1"), int64(2))
	w.want("untrusted", b.Stats().Classes["item"].Untrusted > 0, true)
}

// A standby may miss what a raise is about, and the value would not show it.
func TestPlainStandby(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	e := w.plains(c)
	_, err := e.Get(t.Context(), "item:1", func(_ context.Context, l *Load) (int64, error) {
		l.mu.Lock() // as Query does on a standby that has replayed everything
		defer l.mu.Unlock()
		l.standby = true
		l.own.add(at(100))
		return 1, nil
	})
	w.must(err)
	c.fills.Wait()
	w.want("in Redis", w.bare("item:1"), "")
	w.want("in L1", inL1(e, "item:1"), false)
	w.want("refused", c.Stats().Classes["item"].Refused["plain_standby"], uint64(1))
}

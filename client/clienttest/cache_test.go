package clienttest

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lethe-cache/lethe/client"
	"github.com/lethe-cache/lethe/internal/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

// shop is an application: a row and what reads it through the cache.
type shop struct {
	t     *testing.T
	ct    *Cache
	row   atomic.Int64
	loads atomic.Int64
	class *client.Class[int64]
}

func newShop(t *testing.T, ct *Cache, c *client.Client, opts ...client.Option) *shop {
	t.Helper()
	s := &shop{t: t, ct: ct}
	s.row.Store(1)
	s.class = client.Entries[int64](c, "product", append([]client.Option{client.LoadWith(s.load)}, opts...)...)
	ct.Settle()
	return s
}

func (s *shop) load(_ context.Context, key string, l *client.Load) (int64, error) {
	s.loads.Add(1)
	l.Tag("category:lamps", "of:"+key)
	return s.row.Load(), nil
}

// get reads, and waits for what the read has begun.
func (s *shop) get(ctx context.Context, key string) int64 {
	s.t.Helper()
	v, err := s.class.Get(ctx, key)
	if err != nil {
		s.t.Fatalf("Get(%q): %v", key, err)
	}
	s.ct.Wait()
	return v
}

func (s *shop) want(what string, got, want any) {
	s.t.Helper()
	if got != want {
		s.t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

func (s *shop) wantLoads(want int64) {
	s.t.Helper()
	s.want("loads", s.loads.Swap(0), want)
}

// everywhere runs a test by the machine's clock and in a bubble, where a
// goroutine or a lock that is not of the bubble would hang it.
func everywhere(t *testing.T, test func(t *testing.T)) {
	t.Run("clock", func(t *testing.T) { t.Parallel(); test(t) })
	t.Run("bubble", func(t *testing.T) { synctest.Test(t, test) })
}

func TestInvalidate(t *testing.T) {
	everywhere(t, func(t *testing.T) {
		ct := New(t, Options{Client: client.Options{Namespace: "shop"}})
		s := newShop(t, ct, ct.Client)
		s.want("first", s.get(t.Context(), "product:1"), int64(1))
		s.want("second", s.get(t.Context(), "product:1"), int64(1))
		s.wantLoads(1)
		got := ct.Stats().Classes["product"]
		s.want("hits", got.L1Hits+got.L2Hits, uint64(1))
		s.want("fills", got.Fills, uint64(1))
		s.get(t.Context(), "product:2")
		s.wantLoads(1)

		s.row.Store(2)
		ct.Invalidate("product:1")
		s.want("after the commit", s.get(t.Context(), "product:1"), int64(2))
		s.want("of another key", s.get(t.Context(), "product:2"), int64(1))
		s.wantLoads(1)
	})
}

func TestTwoClients(t *testing.T) {
	everywhere(t, func(t *testing.T) {
		ct := New(t)
		a, b := newShop(t, ct, ct.Client), newShop(t, ct, ct.Open(client.Options{}))
		a.get(t.Context(), "product:1")
		b.want("b reads what a has filled", b.get(t.Context(), "product:1"), int64(1))
		b.wantLoads(0)
		a.row.Store(2)
		b.row.Store(2)
		ct.Invalidate("product:1")
		b.want("b after the commit", b.get(t.Context(), "product:1"), int64(2))
		a.want("a after the commit", a.get(t.Context(), "product:1"), int64(2))
		s := a.loads.Load() + b.loads.Load()
		a.want("loads of both", s, int64(2))
	})
}

func TestVersions(t *testing.T) {
	everywhere(t, func(t *testing.T) {
		ct := New(t)
		s := newShop(t, ct, ct.Client, client.Version(3))
		// Another process fills Redis; this one's L1 is not what is tested.
		o := newShop(t, ct, ct.Open(client.Options{L1Bytes: -1}), client.Version(3))
		s.get(t.Context(), "product:1")
		s.row.Store(2)
		o.row.Store(2)
		ct.Invalidate("product:1")
		s.want("by the other client", o.get(t.Context(), "product:1"), int64(2))
		s.want("by the first", s.get(t.Context(), "product:1"), int64(2))
	})
}

func TestPurgeAndRaise(t *testing.T) {
	everywhere(t, func(t *testing.T) {
		ct := New(t)
		s := newShop(t, ct, ct.Client)
		s.get(t.Context(), "product:1")
		s.get(t.Context(), "product:2")
		s.wantLoads(2)
		ct.Purge("of:product:1")
		s.get(t.Context(), "product:1")
		s.get(t.Context(), "product:2")
		s.wantLoads(1)
		ct.Purge("category:lamps", "nothing")
		s.get(t.Context(), "product:1")
		s.get(t.Context(), "product:2")
		s.wantLoads(2)
		ct.Raise("product")
		s.get(t.Context(), "product:1")
		s.get(t.Context(), "product:2")
		s.wantLoads(2)
		ct.Raise("other")
		s.get(t.Context(), "product:1")
		s.wantLoads(0)
	})
}

// What the loader read before the commit is returned and not cached.
func TestInvalidateDuringLoad(t *testing.T) {
	everywhere(t, func(t *testing.T) {
		ct := New(t)
		s := newShop(t, ct, ct.Client)
		reading, goOn := make(chan struct{}), make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			v, err := s.class.Get(t.Context(), "product:1", func(context.Context, *client.Load) (int64, error) {
				v := s.row.Load()
				close(reading)
				<-goOn
				return v, nil
			})
			s.want("error of the slow reader", err, error(nil))
			s.want("the slow reader", v, int64(1))
		})
		<-reading
		s.row.Store(2)
		ct.Invalidate("product:1")
		close(goOn)
		wg.Wait()
		ct.Wait()
		s.want("who reads after the commit", s.get(t.Context(), "product:1"), int64(2))
		refused := uint64(0)
		for _, n := range ct.Stats().Classes["product"].Refused {
			refused += n
		}
		s.want("refused fills", refused, uint64(1))
	})
}

// A commit that the workers have not seen: the cache may be old, except for
// those who pass the token on.
func TestCommitAndToken(t *testing.T) {
	everywhere(t, func(t *testing.T) {
		ct := New(t)
		s := newShop(t, ct, ct.Client)
		s.get(t.Context(), "product:1")
		s.row.Store(2)
		before := ct.Token()
		token := ct.Commit("product:1")
		s.want("without the token", s.get(t.Context(), "product:1"), int64(1))
		s.want("with one from before", s.get(ct.Client.After(t.Context(), before), "product:1"), int64(1))
		s.want("with the token", s.get(ct.Client.After(t.Context(), token), "product:1"), int64(2))
		s.wantLoads(2)
		ct.Settle()
		s.want("when the workers have caught up", s.get(t.Context(), "product:1"), int64(2))
		s.wantLoads(1)
		s.want("with the token, from the cache", s.get(ct.Client.After(t.Context(), token), "product:1"), int64(2))
		s.wantLoads(0)
	})
}

// Entries made from others are forgotten with them.
func TestNested(t *testing.T) {
	everywhere(t, func(t *testing.T) {
		ct := New(t)
		s := newShop(t, ct, ct.Client)
		pages := client.Entries[int64](ct.Client, "page", client.LoadWith(func(ctx context.Context, _ string, _ *client.Load) (int64, error) {
			v, err := s.class.Get(ctx, "product:1")
			return 10 * v, err
		}))
		page := func() int64 {
			v, err := pages.Get(t.Context(), "page:home")
			s.want("error", err, error(nil))
			ct.Wait()
			return v
		}
		page()
		ct.Settle() // the workers echo that keys of products are names
		s.want("page", page(), int64(10))
		s.want("fills of pages", ct.Stats().Classes["page"].Fills, uint64(1))
		s.row.Store(2)
		ct.Invalidate("product:1")
		s.want("page after the commit", page(), int64(20))
		// And in Redis, whoever has it in L1.
		if !ct.server.mini.Exists("page:home") {
			t.Error("the page is not cached again")
		}
		ct.Purge("of:product:1")
		if ct.server.mini.Exists("page:home") {
			t.Error("the page is in Redis after the tag of its part was purged")
		}
	})
}

func TestLoseNextMessage(t *testing.T) {
	// In a bubble only: what is served until the client looks by itself depends
	// on the clock.
	synctest.Test(t, func(t *testing.T) {
		ct := New(t)
		s := newShop(t, ct, ct.Client)
		s.get(t.Context(), "product:1")
		s.row.Store(2)
		ct.LoseNextMessage()
		ct.Invalidate("product:1")
		s.want("while nobody has told it", s.get(t.Context(), "product:1"), int64(1))
		ct.Settle()
		s.want("after the next heartbeat", s.get(t.Context(), "product:1"), int64(2))
		s.want("gaps", ct.Stats().Gaps, uint64(1))

		s.row.Store(3)
		ct.LoseNextMessage()
		ct.Invalidate("product:1")
		sleep(2 * time.Second) // it looks by itself when heartbeats stop
		s.want("two seconds later", s.get(t.Context(), "product:1"), int64(3))

		s.row.Store(4)
		ct.Settle()
		ct.Invalidate("product:1")
		s.want("the message after the lost one", s.get(t.Context(), "product:1"), int64(4))
	})
}

func TestBlindAndRecover(t *testing.T) {
	everywhere(t, func(t *testing.T) {
		ct := New(t)
		s := newShop(t, ct, ct.Client)
		s.get(t.Context(), "product:1")
		ct.Blind()
		s.want("state", ct.Client.State(), client.Blind)
		s.row.Store(2)
		ct.Invalidate("product:1")
		s.want("blind, after the commit", s.get(t.Context(), "product:1"), int64(2))
		s.want("from Redis", s.get(t.Context(), "product:1"), int64(2))
		s.wantLoads(2)
		ct.Recover()
		s.want("state", ct.Client.State(), client.Live)
		s.row.Store(3)
		ct.Invalidate("product:1")
		s.want("recovered", s.get(t.Context(), "product:1"), int64(3))
	})
}

func TestBlindPolicies(t *testing.T) {
	// In a bubble only: a stalled machine keeps nothing in L1.
	synctest.Test(t, func(t *testing.T) {
		ct := New(t)
		stale := newShop(t, ct, ct.Client, client.StaleWhileNotLive(time.Hour))
		strict := client.Entries[int64](ct.Client, "strict", client.FailWhileNotLive())
		ct.Settle() // another class is another epoch of L1
		stale.get(t.Context(), "product:1")
		ct.Blind()
		stale.row.Store(2)
		ct.Invalidate("product:1")
		stale.want("stale while blind", stale.get(t.Context(), "product:1"), int64(1))
		_, err := strict.Get(t.Context(), "strict:1")
		stale.want("strict fails", errors.Is(err, client.ErrNotLive), true)
		ct.Recover()
		stale.want("recovered", stale.get(t.Context(), "product:1"), int64(2))
	})
}

func TestRedisDownAndUp(t *testing.T) {
	everywhere(t, func(t *testing.T) {
		ct := New(t)
		s := newShop(t, ct, ct.Client)
		s.get(t.Context(), "product:1")
		s.wantLoads(1)
		ct.RedisDown()
		s.row.Store(2)
		ct.Invalidate("product:1")
		s.want("while down", s.get(t.Context(), "product:1"), int64(2))
		s.wantLoads(1)
		ct.RedisUp()
		s.want("state", ct.Client.State(), client.Live)
		s.want("up again", s.get(t.Context(), "product:1"), int64(2))
		s.row.Store(3)
		ct.Invalidate("product:1")
		s.want("after the next commit", s.get(t.Context(), "product:1"), int64(3))
	})
}

// In a bubble a sleep is what time is.
func TestTimePasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ct := New(t)
		s := newShop(t, ct, ct.Client, client.TTL(time.Minute))
		s.get(t.Context(), "product:1")
		sleep(59 * time.Second)
		s.get(t.Context(), "product:1")
		s.wantLoads(1)
		sleep(2 * time.Second)
		s.get(t.Context(), "product:1")
		s.wantLoads(1)
		// Redis has let it go too: an L1 that never had it proves it.
		o := newShop(t, ct, ct.Open(client.Options{}), client.TTL(time.Minute))
		sleep(61 * time.Second)
		o.get(t.Context(), "product:1")
		o.wantLoads(1)
		s.want("keys", ct.server.mini.Exists("product:1"), true)
		sleep(61 * time.Second)
		s.want("keys a minute later", ct.server.mini.Exists("product:1"), false)
	})
}

// sleep lets time pass in a bubble.
func sleep(d time.Duration) { <-time.After(d) }

// The workers of the test are dated as real ones: what MaxStale bounds is served
// from the cache as long as they work, and not when they have stopped.
func TestMaxStale(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ct := New(t)
		s := newShop(t, ct, ct.Client, client.MaxStale(5*time.Second))
		s.get(t.Context(), "product:1")
		s.wantLoads(1)
		for range 20 {
			sleep(time.Second)
			s.get(t.Context(), "product:1")
		}
		s.wantLoads(0)
		s.row.Store(2)
		ct.Commit("product:1") // and the workers do nothing more
		s.want("at first", s.get(t.Context(), "product:1"), int64(1))
		sleep(10 * time.Second)
		s.want("when the bound is over", s.get(t.Context(), "product:1"), int64(2))
	})
}

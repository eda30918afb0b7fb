package clienttest

import (
	"context"
	"slices"
	"time"

	"github.com/lethe-cache/lethe/client"
)

// Options are the settings of New.
type Options struct {
	// Client are the options of Cache.Client, as for client.Open. Redis and
	// Database must be nil. RedisTimeout and OpenTimeout are 30 s unless they are
	// set, because the speed of the machine is not what is tested.
	Client client.Options
}

// TB is what New needs of a testing.TB. A program that is no test, such as an
// example, may bring one of its own.
type TB interface {
	Cleanup(func())
	Context() context.Context
	Errorf(format string, args ...any)
	// Fatalf does not return.
	Fatalf(format string, args ...any)
	Helper()
}

// Cache is a cache in the process with controls. Its methods are for the
// goroutine of the test; the clients are for any.
type Cache struct {
	// Client is live when New returns. It is closed when the test ends.
	Client *client.Client

	t       TB
	base    client.Options
	server  *server
	worker  *worker
	clients []*client.Client
}

// patience bounds every wait: only a test that would hang meets it.
const patience = 30 * time.Second

// New makes a Cache that ends with the test, with everything it has started.
func New(t TB, o ...Options) *Cache {
	t.Helper()
	var opts Options
	if len(o) > 0 {
		opts = o[0]
	}
	ct := &Cache{t: t, base: opts.Client}
	if ct.base.Redis != nil || ct.base.Database != nil {
		t.Fatalf("clienttest: Options.Client.Redis and Database must be nil: the cache brings its own Redis and has no database")
	}
	ct.server = newServer()
	t.Cleanup(ct.server.close)
	worker, err := startWorker(context.WithoutCancel(t.Context()), ct.server, ct.base.Namespace)
	if err != nil {
		t.Fatalf("clienttest: %v", err)
	}
	ct.worker = worker
	t.Cleanup(worker.close)
	ct.Client = ct.Open(ct.base)
	return ct
}

// Open makes another Client on the same cache, as another process would. It is
// live, and closed when the test ends. The namespace is that of New.
func (ct *Cache) Open(o client.Options) *client.Client {
	ct.t.Helper()
	if o.Redis != nil || o.Database != nil {
		ct.t.Fatalf("clienttest: Redis and Database must be nil")
	}
	rdb := ct.server.dial()
	defer rdb.Close() // the Client takes its settings
	o.Redis, o.Namespace = rdb, ct.base.Namespace
	if o.RedisTimeout == 0 {
		o.RedisTimeout = patience
	}
	if o.OpenTimeout == 0 {
		o.OpenTimeout = patience
	}
	c, err := client.Open(context.WithoutCancel(ct.t.Context()), o)
	if err != nil {
		ct.t.Fatalf("clienttest: %v", err)
	}
	ct.clients = append(ct.clients, c)
	ct.t.Cleanup(func() {
		if err := c.Close(); err != nil {
			ct.t.Errorf("clienttest: %v", err)
		}
	})
	if s := c.State(); s != client.Live {
		ct.t.Fatalf("clienttest: the new client is %v", s)
	}
	// It trusts what others have filled once it has seen the workers work.
	ct.until("the new client does not know how old Redis is", func() bool {
		ct.worker.again()
		age, known := c.Stats().MasterAge[address]
		return known && age >= 0
	})
	return c
}

// Invalidate is a commit that the workers have seen and acted on: it forgets
// keys, and values made from them, and returns when every Client that hears the
// broadcast has handled it. Commits that stood behind are applied before it. Loads under way
// go on; what they read is not cached.
//
// While Redis is down it is like Commit. A key has no namespace.
func (ct *Cache) Invalidate(keys ...string) {
	ct.t.Helper()
	ct.worker.commit(commit{keys: keys})
	ct.apply()
}

// Purge is Invalidate for the entries that have at least one of the tags.
func (ct *Cache) Purge(tags ...string) {
	ct.t.Helper()
	ct.worker.commit(commit{tags: tags})
	ct.apply()
}

// Raise is Invalidate for everything of some classes, as a TRUNCATE does it.
func (ct *Cache) Raise(classes ...string) {
	ct.t.Helper()
	ct.worker.commit(commit{classes: classes})
	ct.apply()
}

// Commit is a commit that the database shows and the workers have not seen yet:
// readers may still be served what was cached before. The token names it, as
// one of Client.Wrote does: reads under Client.After contain the commit. Settle,
// or the next Invalidate, applies it.
func (ct *Cache) Commit(keys ...string) (token string) {
	return ct.worker.commit(commit{keys: keys})
}

// Token names everything that was committed so far, as Client.Wrote does.
func (ct *Cache) Token() string { return ct.worker.token() }

// Settle lets the workers catch up: it applies what was committed, sends a
// heartbeat, and returns when every Client that hears the broadcast has heard
// all of it and knows the classes of all its Entries. It ends what
// LoseNextMessage began.
func (ct *Cache) Settle() {
	ct.t.Helper()
	ct.server.keep()
	ct.apply()
}

// Wait returns when no load is under way in any Client and everything loaded
// has been cached or refused.
func (ct *Cache) Wait() {
	ct.t.Helper()
	for _, c := range ct.clients {
		ct.until("a load is still under way", func() bool { return c.Stats().Flights == 0 })
	}
}

// Stats are the counters of Client after Wait.
func (ct *Cache) Stats() client.Stats {
	ct.t.Helper()
	ct.Wait()
	return ct.Client.Stats()
}

// apply lets the worker work, and waits until everybody who can hear it has.
func (ct *Cache) apply() {
	ct.t.Helper()
	number, w, err := ct.worker.apply()
	if err != nil {
		ct.t.Fatalf("clienttest: %v", err)
	}
	if ct.server.losing() || ct.server.isDown() {
		return
	}
	for _, c := range ct.clients {
		ct.until("a client has not heard the broadcast", func() bool {
			s := c.Stats()
			// Not live is also one that reads the record of a new class.
			return s.State == client.Blind || s.State == client.Live && s.Broadcasts >= number && s.Watermark >= w
		})
	}
}

// until polls: the clients tell nobody what they have handled.
func (ct *Cache) until(what string, ok func() bool) {
	ct.t.Helper()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-limit.C:
			ct.t.Fatalf("clienttest: after %v: %s", patience, what)
		case <-tick.C:
		}
	}
}

// untilAll waits for a state of every Client that is not closed.
func (ct *Cache) untilAll(states ...client.State) {
	ct.t.Helper()
	for _, c := range ct.clients {
		ct.until("a client is not in the state that is waited for", func() bool { return slices.Contains(states, c.State()) })
	}
}

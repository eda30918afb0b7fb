package invalidator

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

// lossRules use tags in one class and purge none, so that it shows which
// classes a loss raises.
const lossRules = `
version: 1
namespace: %s
entries:
  product: { key: "product:{id}", tags: [ "category:{category_id}" ] }
  kept: { key: "kept:{id}" }
  raw: { key: "raw:{id}", mode: plain }
rules:
  - { name: kept, table: public.products, keys: [ "kept:{id}" ] }
  - { name: raw, table: public.products, keys: [ "raw:{id}" ] }
`

// lossy is a world whose Redis can fail over to a replica that missed writes.
type lossy struct {
	*world
	proxy   *servers.Proxy
	master  *servers.Redis
	replica *servers.Redis
	lost    chan string // "cause: raised classes" of each redo
}

func newLossy(t *testing.T, rules string) *lossy {
	t.Helper()
	l := &lossy{master: harness.NewRedis(t, servers.RedisConfig{}), lost: make(chan string, 16)}
	replica, err := l.master.Replica(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	l.replica = replica
	t.Cleanup(func() { _ = replica.Close() })
	l.proxy = harness.Proxy(t, l.master.Addr())
	l.world = newWorld(t, worldConfig{url: "redis://" + l.proxy.Addr() + "/0", rules: rules, cfg: func(c *Config) {
		c.Observer.NodeLost = func(_, cause string, raised []string) {
			l.lost <- fmt.Sprintf("%s: %s", cause, strings.Join(raised, ","))
		}
	}})
	return l
}

// freeze lets the replica have what was written until now, and nothing more.
func (l *lossy) freeze() {
	l.t.Helper()
	master, replica := raw(l.t, l.master), raw(l.t, l.replica)
	// The offset is compared, not WAIT asked for: that counts this client's
	// writes only.
	harness.Eventually(l.t, patience, func() error {
		want, err := strconv.Atoi(infoField(l.t, master, "master_repl_offset"))
		if err != nil {
			return err
		}
		got, err := strconv.Atoi(infoField(l.t, replica, "slave_repl_offset"))
		if err == nil && got < want {
			err = fmt.Errorf("replica at %d of %d", got, want)
		}
		return err
	})
	if err := replica.Do(l.t.Context(), "replicaof", "no", "one").Err(); err != nil {
		l.t.Fatal(err)
	}
}

// failover puts the replica in the master's place.
func (l *lossy) failover() {
	l.proxy.SetTarget(l.replica.Addr())
	l.proxy.Cut()
}

// redone waits for the redo of a loss.
func (l *lossy) redone() string {
	l.t.Helper()
	select {
	case s := <-l.lost:
		return s
	case <-time.After(patience):
		l.t.Fatal("the loss was not noticed")
		return ""
	}
}

func raw(t testing.TB, r *servers.Redis) *redis.Client {
	c := redis.NewClient(&redis.Options{Addr: r.Addr()})
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func infoField(t testing.TB, c *redis.Client, field string) string {
	t.Helper()
	info, err := c.Info(t.Context(), "replication").Result()
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(info) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok && name == field {
			return value
		}
	}
	t.Fatalf("INFO tells no %s", field)
	return ""
}

func TestRunIDChangeRaisesTags(t *testing.T) {
	t.Parallel()
	l := newLossy(t, lossRules)
	r := l.ready()
	l.cache("product:1", "v", "category:1")
	l.cache("kept:1", "v")
	l.cache("kept:2", "v")
	l.cache("raw:2", "v")
	l.commit(update("products", "7", "n"))
	l.settle() // a watermark that the replica has
	l.freeze()
	l.commit(update("products", "2", "n"))
	l.settle()
	l.wantState("kept:2", "absent")
	from := uint64(0)
	l.failover()
	if got, want := l.redone(), "run_id: product"; got != want {
		t.Errorf("redo %q, want %q", got, want)
	}
	l.wantState("product:1", "dead")
	l.wantState("kept:1", "v") // no tags: only what was applied again
	l.wantState("kept:2", "absent")
	l.wantState("raw:2", "absent")
	l.waitMessage(from, coherence.KindEpoch)
	l.waitReady(r)
	l.commit(update("products", "1", "n"))
	l.settle()
	l.wantState("kept:1", "absent")
	if got, want := l.watermark(), (change.Position{Era: 1, LSN: l.lsn + 50}); got != want {
		t.Errorf("watermark on the new master is %v, want %v", got, want)
	}
}

// What the replica's watermark lies too far behind for costs everything.
func TestRunIDChangeBeyondTheHistory(t *testing.T) {
	t.Parallel()
	l := newLossy(t, lossRules)
	l.cfg.HistoryBytes = 100
	l.ready()
	l.cache("kept:1", "v")
	l.cache("raw:1", "v")
	l.freeze()
	for i := range 20 {
		l.commit(update("products", itoa(i+2), "n"))
	}
	l.settle()
	l.failover()
	if got, want := l.redone(), "run_id: *"; got != want {
		t.Errorf("redo %q, want %q", got, want)
	}
	l.wantState("kept:1", "dead")
	harness.Eventually(t, patience, harness.True("raw:1 walked", func() bool { return l.state("raw:1") == "absent" }))
}

// The entry survived the failover, its registration did not: no purge finds it.
func TestRegLostInFailover(t *testing.T) {
	t.Parallel()
	l := newLossy(t, shopRules)
	r := l.ready()
	l.cache("product:1", "v", "category:5")
	l.freeze()
	index, header := l.store.Layout().TagIndex(l.name("category:5")), l.store.Layout().TagHeader(l.name("category:5"))
	if n, err := raw(t, l.replica).Del(t.Context(), index, header).Result(); err != nil || n != 2 {
		t.Fatalf("deleted %d of index and header, %v", n, err)
	}
	l.failover()
	l.redone()
	l.waitReady(r)
	l.commit(update("categories", "5"))
	l.settle()
	l.wantState("product:1", "dead")
}

func TestControlLostEpoch(t *testing.T) {
	t.Parallel()
	l := newLossy(t, lossRules)
	r := l.ready()
	l.cache("kept:1", "v")
	l.hand(l.lsn+50, nil, change.Raise{Cause: "c", Reason: change.ReasonManual, Classes: []string{"kept"}})
	l.settle()
	l.wantState("kept:1", "dead")
	before, err := l.store.Control(t.Context(), "kept")
	if err != nil {
		t.Fatal(err)
	}
	// The maintainer has looked since: twice the check, to be sure of one.
	harness.Eventually(t, patience, harness.True("control remembered", func() bool {
		r.nodes.mu.Lock()
		defer r.nodes.mu.Unlock()
		return r.nodes.control != nil && r.nodes.control.Classes["kept"] == before.Classes["kept"]
	}))
	l.commit(update("products", "7", "n"))
	l.settle()
	l.freeze()
	layout := l.store.Layout()
	if err := raw(t, l.replica).Del(t.Context(), layout.Control("class:kept"), layout.Control("source"), layout.Control("v"), layout.Control("last")).Err(); err != nil {
		t.Fatal(err)
	}
	l.failover()
	if got, want := l.redone(), "run_id: product"; got != want {
		t.Errorf("redo %q, want %q", got, want)
	}
	after, err := l.store.Control(t.Context(), "kept")
	if err != nil {
		t.Fatal(err)
	}
	if after.Source != testSource || after.Classes["kept"].Generation < before.Classes["kept"].Generation || after.Classes["kept"].Bound.Less(before.Classes["kept"].Bound) || after.V.Less(before.V) {
		t.Errorf("control is %+v, was %+v", after, before)
	}
	l.wantState("kept:1", "dead")
	l.waitMessage(0, coherence.KindEpoch)
	l.waitReady(r)
}

func TestRunIDChangeWhileDown(t *testing.T) {
	t.Parallel()
	l := newLossy(t, lossRules)
	first := l.ready()
	l.cache("kept:1", "v")
	l.cache("raw:1", "v")
	l.freeze()
	l.commit(update("products", "1", "n"))
	l.settle()
	first.drain()
	_ = l.store.Close()
	l.failover()
	l.newLog()
	var err error
	if l.store, err = coherence.Dial(t.Context(), "redis://"+l.proxy.Addr()+"/0", coherence.Options{Namespace: l.set.Namespace}); err != nil {
		t.Fatal(err)
	}
	l.wantState("kept:1", "v") // stale, and nothing of the log is left
	l.cfg.Store = l.store
	walk := newBlocker("walk")
	second := l.worker(func(k *Worker) { k.hook = walk.hook })
	if got, want := l.redone(), "run_id: *"; got != want {
		t.Errorf("at start %q, want %q", got, want)
	}
	l.wantState("kept:1", "dead")
	// The watermark does not pass the walk.
	walk.wait(t)
	l.hand(l.lsn+60, nil)
	l.waitV(l.lsn + 60) // it was applied, but for the walk
	if got := l.watermark(); !got.Less(change.Position{Era: 1, LSN: l.lsn + 60}) {
		t.Errorf("watermark %v passed the walk", got)
	}
	close(walk.let)
	l.settle()
	l.wantState("raw:1", "absent")
	l.waitReady(second)
	second.drain()
	// The same Redis again: nothing is forgotten.
	l.cache("kept:1", "v2")
	l.newLog()
	third := l.worker()
	l.hand(l.lsn+70, nil)
	l.settle()
	l.waitReady(third)
	l.wantState("kept:1", "v2")
}

// evict makes a server throw some keys away.
func evict(t testing.TB, rdb *redis.Client) {
	t.Helper()
	used, err := rdb.Info(t.Context(), "memory").Result()
	if err != nil {
		t.Fatal(err)
	}
	var bytes int
	for line := range strings.Lines(used) {
		_, _ = fmt.Sscanf(line, "used_memory:%d", &bytes)
	}
	if err := rdb.ConfigSet(t.Context(), "maxmemory", itoa(bytes+200<<10)).Err(); err != nil {
		t.Fatal(err)
	}
	junk := strings.Repeat("x", 4<<10)
	for i := range 200 {
		_ = rdb.Set(t.Context(), "junk:"+itoa(i), junk, 0).Err()
	}
	if err := rdb.ConfigSet(t.Context(), "maxmemory", "0").Err(); err != nil {
		t.Fatal(err)
	}
}

// evictVolatile makes a server throw away keys that nobody misses: those with a
// time to live.
func evictVolatile(t testing.TB, rdb *redis.Client) {
	t.Helper()
	if err := rdb.ConfigSet(t.Context(), "maxmemory-policy", "volatile-random").Err(); err != nil {
		t.Fatal(err)
	}
	junk := strings.Repeat("x", 4<<10)
	for i := range 50 {
		if err := rdb.Set(t.Context(), "junk:"+itoa(i), junk, time.Hour).Err(); err != nil {
			t.Fatal(err)
		}
	}
	if err := rdb.ConfigSet(t.Context(), "maxmemory", "1").Err(); err != nil {
		t.Fatal(err)
	}
	_ = rdb.Set(t.Context(), "junk:last", junk, time.Hour).Err()
	if err := rdb.ConfigSet(t.Context(), "maxmemory", "0").Err(); err != nil {
		t.Fatal(err)
	}
}

func TestIndexEvictionRaises(t *testing.T) {
	t.Parallel()
	lost := make(chan string, 64)
	server := harness.NewRedis(t, servers.RedisConfig{Args: []string{"--maxmemory-policy", "allkeys-random"}})
	w := newWorld(t, worldConfig{url: server.URL(), cfg: func(c *Config) {
		c.Observer.NodeLost = func(_, cause string, _ []string) {
			select {
			case lost <- cause:
			default:
			}
		}
	}})
	noticed := func(causes ...string) {
		t.Helper()
		select {
		case cause := <-lost:
			if !slices.Contains(causes, cause) {
				t.Errorf("cause %q, want one of %q", cause, causes)
			}
		case <-time.After(patience):
			t.Fatal("the eviction was not noticed")
		}
	}
	forgotten := func() error {
		s, err := w.look("product:1") // an error while the node is being redone
		if err == nil && s == "v" {
			err = errors.New("product:1 is still served")
		}
		return err
	}
	r := w.ready()
	w.cache("product:1", "v", "category:5")
	harness.Eventually(t, patience, harness.True("the masters were looked at", func() bool {
		r.nodes.mu.Lock()
		defer r.nodes.mu.Unlock()
		return r.nodes.control != nil
	}))
	evict(t, w.rdb)
	// Which key goes is chance: the watermark may be among them.
	noticed("evicted", causeWatermark)
	harness.Eventually(t, patience, forgotten)
}

// What goes while nobody looks, whatever it is, costs a raise at the start.
func TestEvictionWhileDownRaises(t *testing.T) {
	t.Parallel()
	for _, gone := range []string{"junk", "source", "source and watermark"} {
		t.Run(gone, func(t *testing.T) {
			t.Parallel()
			server := harness.NewRedis(t, servers.RedisConfig{Args: []string{"--maxmemory-policy", "allkeys-random"}})
			w := newWorld(t, worldConfig{url: server.URL()})
			w.ready().drain()
			w.newLog()
			w.cache("product:1", "v", "category:5")
			w.cache("raw:1", "v")
			layout := w.store.Layout()
			evictVolatile(t, w.rdb)
			if err := w.rdb.ConfigSet(t.Context(), "maxmemory-policy", "allkeys-random").Err(); err != nil {
				t.Fatal(err)
			}
			if gone != "junk" {
				if err := w.rdb.Del(t.Context(), layout.Control("source")).Err(); err != nil {
					t.Fatal(err)
				}
			}
			if gone == "source and watermark" {
				if err := w.rdb.Del(t.Context(), layout.Watermark(0)).Err(); err != nil {
					t.Fatal(err)
				}
			}
			w.wantState("product:1", "v")
			w.worker()
			w.hand(w.lsn+60, nil)
			w.settle()
			w.wantState("product:1", "dead")
			w.wantState("raw:1", "absent")
		})
	}
}

// FLUSHALL keeps the run_id; the watermark tells.
func TestFlushIsNoticed(t *testing.T) {
	t.Parallel()
	lost := make(chan string, 64)
	w := newWorld(t, worldConfig{url: harness.NewRedis(t, servers.RedisConfig{}).URL(), cfg: func(c *Config) {
		c.Observer.NodeLost = func(_, cause string, _ []string) {
			select {
			case lost <- cause:
			default:
			}
		}
	}})
	r := w.ready()
	w.cache("kept:1", "v")
	if err := w.rdb.FlushAll(t.Context()).Err(); err != nil {
		t.Fatal(err)
	}
	select {
	case cause := <-lost:
		if cause != causeWatermark {
			t.Errorf("cause %q, want %q", cause, causeWatermark)
		}
	case <-time.After(patience):
		t.Fatal("the loss was not noticed")
	}
	w.commit(update("products", "2", "n"))
	w.settle()
	w.waitReady(r)
	if src, err := w.store.Source(t.Context()); err != nil || src != testSource {
		t.Errorf("source %+v, %v", src, err)
	}
	if _, closed, err := w.store.TablePosition(t.Context(), w.name("kept:1"), 1); err != nil || closed {
		t.Errorf("table closed %v, %v", closed, err)
	}
}

// Redis goes away in the middle of a stream: nothing is lost, nothing is
// acknowledged that was not applied.
func TestRedisDownAndBack(t *testing.T) {
	t.Parallel()
	for _, how := range []string{"Refuse", "Blackhole"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			proxy := harness.Proxy(t, harness.Redis(t).Addr())
			w := newWorld(t, worldConfig{url: "redis://" + proxy.Addr() + "/0", store: func(o *coherence.Options) {
				o.ReadTimeout, o.WriteTimeout, o.DialTimeout = 200*time.Millisecond, 200*time.Millisecond, 200*time.Millisecond
			}})
			r := w.ready()
			for i := range 20 {
				w.cache("product:"+itoa(i), "v", "category:"+itoa(i))
			}
			off := proxy.Refuse
			if how == "Blackhole" {
				off = proxy.Blackhole
			}
			off(true)
			for i := range 10 {
				w.commit(update("products", itoa(i), "n"))
				w.commit(update("categories", itoa(i+10)))
			}
			acked := w.log.Durable()
			harness.Eventually(t, patience, harness.True("a call repeated", func() bool { return counted(r.metrics) > 0 }))
			if got := w.log.Durable(); got != acked {
				t.Errorf("acknowledged %d while Redis was away, was %d", got, acked)
			}
			off(false)
			w.settle()
			for i := range 20 {
				if got := w.state("product:" + itoa(i)); got != "absent" {
					t.Errorf("product:%d is %q", i, got)
				}
			}
		})
	}
}

// counted is how many calls were repeated.
func counted(m *Metrics) int {
	n := 0
	for _, call := range []string{"invalidate", "broadcast", "write watermarks", "read control", "open purge", "sweep"} {
		n += int(testutil.ToFloat64(m.retries.WithLabelValues(call)))
	}
	return n
}

func TestDrainAndHurry(t *testing.T) {
	t.Parallel()
	t.Run("DrainFinishes", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, worldConfig{})
		b := newBlocker("keys")
		r := w.ready(func(k *Worker) { k.hook = b.hook })
		w.cache("product:1", "v")
		w.commit(update("products", "1", "n"))
		b.wait(t)
		r.stop()
		close(b.let)
		r.drain()
		w.wantState("product:1", "absent")
		w.settle() // acknowledged before it ended
		if got, want := w.kinds(len(w.messages())-1), []string{"k product:1,kept:1,raw:1"}; !slices.Equal(got, want) {
			t.Errorf("last broadcast %q, want %q", got, want)
		}
	})
	t.Run("HurryAbandons", func(t *testing.T) {
		t.Parallel()
		w := newWorld(t, worldConfig{})
		b := newBlocker("broadcast")
		r := w.ready(func(k *Worker) { k.hook = b.hook })
		w.commit(update("products", "1", "n"))
		b.wait(t)
		acked := w.log.Durable()
		r.Hurry()
		close(b.let)
		r.kill()
		if got := w.log.Durable(); got != acked {
			t.Errorf("acknowledged %d after Hurry, was %d", got, acked)
		}
		w.worker()
		w.settle()
	})
	t.Run("DrainTimesOut", func(t *testing.T) {
		t.Parallel()
		proxy := harness.Proxy(t, harness.Redis(t).Addr())
		w := newWorld(t, worldConfig{url: "redis://" + proxy.Addr() + "/0", cfg: func(c *Config) { c.DrainTimeout = 50 * time.Millisecond }})
		r := w.ready()
		proxy.Refuse(true)
		w.commit(update("products", "1", "n"))
		harness.Eventually(t, patience, harness.True("a call repeated", func() bool { return counted(r.metrics) > 0 }))
		r.drain()
		proxy.Refuse(false)
		w.worker()
		w.settle()
	})
}

package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/client"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

const rewarmRules = `version: 1
namespace: ` + namespace + `
entries:
  item:
    key: item:{id}
    load: {sql: "SELECT id, name::int AS n FROM items WHERE id = ANY(@id)"}
  soft:
    key: soft:{id}
    stale_for: 10m
    load: {sql: "SELECT id, name::int AS n FROM items WHERE id = ANY(@id)"}
rules:
  - {name: items, table: public.items, keys: ["item:{id}"], action: rewarm}
  - {name: softs, table: public.items, keys: ["soft:{id}"], action: rewarm}
`

// numbered is what both classes hold: the number of the row's last write.
type numbered struct {
	ID int `json:"id"`
	N  int `json:"n"`
}

// storm is rows that are written all the time, with what is known of when.
type storm struct {
	t     *testing.T
	r     *rows
	store *coherence.Store
	rdb   *redis.Client

	mu sync.Mutex
	// sure are writes of row 0 with a position that covers them.
	sure []sureWrite
}

type sureWrite struct {
	value int
	at    change.Position
}

// write writes row 0, and every tenth time notes a position that is sure to
// cover it.
func (s *storm) write(ctx context.Context, conn *pgx.Conn) error {
	if err := s.r.write(ctx, 0); err != nil {
		return err
	}
	s.r.mu.Lock()
	v := len(s.r.returned[0]) - 1
	s.r.mu.Unlock()
	if v%10 != 0 {
		return nil
	}
	var text string
	if err := conn.QueryRow(context.WithoutCancel(ctx), "SELECT pg_current_wal_insert_lsn()::text").Scan(&text); err != nil {
		return err
	}
	lsn, err := change.ParseLSN(text)
	if err != nil {
		return err
	}
	src, err := s.store.Source(context.WithoutCancel(ctx))
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sure = append(s.sure, sureWrite{value: v, at: change.Position{Era: src.Era, LSN: change.Bound(lsn)}})
	return nil
}

// applied is the last write of row 0 that a watermark covers.
func (s *storm) applied(w change.Position) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := 0
	for _, o := range s.sure {
		if w.Covers(o.at) {
			v = o.value
		}
	}
	return v
}

// look reads an entry of row 0 as it stands in Redis, and reports whether it was
// older than what had been applied before it was looked at.
func (s *storm) look(ctx context.Context, key string) (valid bool, err error) {
	control, err := s.store.Control(ctx)
	if err != nil {
		return false, err
	}
	least := s.applied(control.W)
	raw, err := s.rdb.Get(ctx, namespace+":"+key).Bytes()
	if errors.Is(err, redis.Nil) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	h, payload, err := coherence.Parse(raw)
	if err != nil || h.State != coherence.StateValue {
		return false, err
	}
	var id, v int
	if _, err := fmt.Sscanf(string(payload), `{"id":%d,"n":%d}`, &id, &v); err != nil {
		return false, fmt.Errorf("%s is %s: %w", key, payload, err)
	}
	if v < least {
		s.t.Errorf("%s holds write %d although write %d had been applied", key, v, least)
	}
	return true, nil
}

// metric sums the samples of a metric whose labels contain all of some texts.
func (l *lethe) metric(name string, labels ...string) (sum float64) {
	l.t.Helper()
	_, body, err := l.get("/metrics")
	if err != nil {
		l.t.Fatal(err)
	}
next:
	for line := range strings.Lines(body) {
		head, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if head != name && !strings.HasPrefix(head, name+"{") {
			continue
		}
		for _, label := range labels {
			if !strings.Contains(head, label) {
				continue next
			}
		}
		v, err := strconv.ParseFloat(value, 64)
		if err != nil {
			l.t.Fatalf("%s: %v", line, err)
		}
		sum += v
	}
	return sum
}

// TestRewarmUnderWriteStorm: one row is written a thousand times a second and
// fifty others now and then, all of them are rewarmed, and the loader's source is
// a standby that lags. No entry is ever older than what has been applied, the
// loads stay below the rate that is set, readers and Lethe together load an
// entry at most once for each invalidation, and where stale values may be served
// nobody waits for a load.
func TestRewarmUnderWriteStorm(t *testing.T) {
	t.Parallel()
	const (
		rate, others = 10, 50
		lasts        = 4 * time.Second
	)
	pg := harness.NewPostgres(t, servers.PostgresConfig{})
	server := harness.NewRedis(t, servers.RedisConfig{})
	url := pg.URL("postgres")
	r := newRows(t, url, 1+others)
	standby := harness.NewStandby(t, pg, servers.StandbyConfig{Settings: map[string]string{"recovery_min_apply_delay": "250ms"}})
	env := settingsFor(t, url, rewarmRules)
	env["LETHE_REDIS_URL"], env["LETHE_WARM_URL"], env["LETHE_WARM_RATE"] = server.URL(), standby.URL("postgres"), strconv.Itoa(rate)
	l := start(t, env, "run")
	l.ready()
	began := time.Now()

	s := &storm{t: t, r: r, rdb: redis.NewClient(&redis.Options{Addr: server.Addr()})}
	t.Cleanup(func() { _ = s.rdb.Close() })
	var err error
	if s.store, err = coherence.Dial(t.Context(), server.URL(), coherence.Options{Namespace: namespace}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.store.Close() })
	load := func(ctx context.Context, key string, _ *client.Load) (numbered, error) {
		_, id, _ := strings.Cut(key, ":")
		v, err := r.load(ctx, "item:"+id, nil)
		n, _ := strconv.Atoi(id)
		return numbered{ID: n, N: v}, err
	}
	c := r.open(server.Addr(), client.Options{L1Bytes: -1, RedisTimeout: 10 * time.Second})
	items := client.Entries[numbered](c, "item", client.LoadWith(load))
	softs := client.Entries[numbered](c, "soft", client.LoadWith(load), client.StaleFor(10*time.Minute))
	harness.Eventually(t, 20*time.Second, harness.True("the client is live", func() bool { return c.State() == client.Live }))
	// The raises of a new slot are over where what was written after it is applied.
	conn := connect(t, url)
	for range 10 { // the tenth has a position
		if err := s.write(t.Context(), conn); err != nil {
			t.Fatal(err)
		}
	}
	harness.Eventually(t, 20*time.Second, func() error {
		control, err := s.store.Control(t.Context())
		if err == nil && s.applied(control.W) == 0 {
			err = errors.New("the first writes have not been applied")
		}
		return err
	})
	// Where nobody can say how old a value is, which is marked as stale by nothing,
	// it is not served stale either: MaxStale has to be known to hold.
	harness.Eventually(t, 20*time.Second, func() error {
		for node, age := range c.Stats().MasterAge {
			if age >= 0 {
				return nil
			}
			return fmt.Errorf("nobody vouches for %s", node)
		}
		return errors.New("no master is known")
	})
	// What is served stale must have been there.
	harness.Eventually(t, 20*time.Second, func() error {
		before := c.Stats().Classes["soft"].Loaded
		for id := range others + 1 {
			if _, err := softs.Get(t.Context(), fmt.Sprint("soft:", id)); err != nil {
				return err
			}
		}
		if n := c.Stats().Classes["soft"].Loaded - before; n > 0 {
			return fmt.Errorf("%d reads were loads", n)
		}
		return nil
	})
	first := c.Stats().Classes["soft"]

	tick, often := time.NewTicker(time.Millisecond), time.NewTicker(3*time.Millisecond)
	defer tick.Stop()
	defer often.Stop()
	stopWrites := background(1, func(ctx context.Context) {
		<-tick.C
		if err := s.write(ctx, conn); err != nil && ctx.Err() == nil {
			t.Errorf("write: %v", err)
		}
		if rand.N(10) == 0 {
			if err := r.write(ctx, 1+rand.N(others)); err != nil && ctx.Err() == nil {
				t.Errorf("write: %v", err)
			}
		}
	})
	stopReads := background(2, func(ctx context.Context) {
		id := rand.N(others+1) * rand.N(2) // row 0 half of the time
		ctx = context.WithoutCancel(ctx)
		_, err1 := items.Get(ctx, fmt.Sprint("item:", id))
		_, err2 := softs.Get(ctx, fmt.Sprint("soft:", id))
		if err1 != nil || err2 != nil {
			t.Errorf("read: %v, %v", err1, err2)
		}
	})
	looks, valid := 0, 0
	// Longer where the machine is so slow that nothing was filled meanwhile.
	for end := time.Now().Add(lasts); time.Now().Before(end) || valid == 0 && looks < 20_000; looks += 2 {
		<-often.C
		for _, key := range []string{"item:0", "soft:0"} {
			ok, err := s.look(t.Context(), key)
			if err != nil {
				t.Fatal(err)
			}
			if ok {
				valid++
			}
		}
	}
	stopReads()
	stopWrites()
	stats := c.Stats().Classes
	stormed := len(r.returned[0]) - 1
	// Nobody reads any more, and more is written than the rate lets load.
	stopWrites = background(1, func(ctx context.Context) {
		if err := r.write(ctx, 1+rand.N(others)); err != nil {
			t.Errorf("write: %v", err)
		}
	})
	for end := time.Now().Add(lasts / 2); time.Now().Before(end); {
		<-often.C
	}
	stopWrites()
	// What nobody reads any more is filled again all the same, with the last write.
	for id := range others + 1 {
		for _, class := range []string{"item", "soft"} {
			key := fmt.Sprintf("%s:%s:%d", namespace, class, id)
			want := fmt.Sprintf(`{"id":%d,"n":%d}`, id, len(r.returned[id])-1)
			harness.Eventually(t, 60*time.Second, func() error {
				raw, err := s.rdb.Get(t.Context(), key).Bytes()
				if errors.Is(err, redis.Nil) && len(r.returned[id]) == 1 {
					return nil // never written, nor read
				}
				if err != nil {
					return err
				}
				h, payload, err := coherence.Parse(raw)
				if err != nil || h.State != coherence.StateValue || string(payload) != want && !sameNumber(string(payload), want) {
					return fmt.Errorf("%s is %c %s (%v), want %s", key, h.State, payload, err, want)
				}
				return nil
			})
		}
	}
	loads := l.metric("lethe_fills_total") // each entry that was loaded counts once
	elapsed := time.Since(began).Seconds()
	rewarmed := l.metric("lethe_rewarm_total", `result="stored"`)
	t.Logf("%d writes of row 0 in %v, %d of %d looks found a value; %.0f entries loaded by Lethe, at most %.0f/s, in %.1f s, %.0f entries filled again; readers loaded %d and %d times, %d served stale",
		stormed, lasts, valid, looks, loads, float64(rate), elapsed, rewarmed, stats["item"].Loads, stats["soft"].Loads, stats["soft"].Stale)
	for _, class := range []string{"item", "soft"} {
		invalidations := 0.0
		for _, outcome := range []string{"deleted", "kept", "stale", "absent"} {
			invalidations += l.metric("lethe_invalidations_total", `rule="`+class+`s"`, `outcome="`+outcome+`"`)
		}
		ours := l.metric("lethe_load_seconds_count", `class="`+class+`"`)
		if got, most := ours+float64(stats[class].Loads), invalidations+others+1; got > most {
			t.Errorf("%s: %.0f loads for %.0f invalidations", class, got, invalidations)
		}
		t.Logf("%s: %.0f invalidations, loads: %.0f by Lethe, %d by readers", class, invalidations, ours, stats[class].Loads)
	}
	if most := rate*elapsed + rate/10 + others + 1; loads > most {
		t.Errorf("%.0f entries loaded in %.1f s, the rate is %d", loads, elapsed, rate)
	}
	// Where nobody vouched for a while, as on a machine that stood still, a read
	// has to wait.
	soft := stats["soft"]
	if waited, unvouched := soft.Loaded-first.Loaded, soft.Untrusted-first.Untrusted; waited > unvouched || soft.Failed != 0 {
		t.Errorf("%d reads waited for a load where a stale value may be served (%d because nobody vouched), %d failed",
			waited, unvouched, soft.Failed)
	}
	if rewarmed == 0 || stats["soft"].Stale == 0 || valid == 0 {
		t.Errorf("%.0f entries were filled again, %d reads served stale, %d looks found a value: the test shows nothing", rewarmed, stats["soft"].Stale, valid)
	}
	l.stop()
}

// sameNumber compares what a client stores with what Lethe does: the same fields.
func sameNumber(a, b string) bool {
	clean := strings.NewReplacer(" ", "", "\n", "")
	return clean.Replace(a) == clean.Replace(b)
}

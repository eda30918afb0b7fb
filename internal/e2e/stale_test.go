package e2e

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

// Each test in this file shows one way in which a cache that is emptied by a
// plain DEL goes stale, on real servers, and that Lethe's does not.

const (
	itemName = "e2e:item:1"
	readItem = `SELECT name FROM items WHERE id = 1`
)

// pair is both caches over one database with one row.
type pair struct {
	pg    *servers.Postgres
	url   string
	lethe *lethe
	cache *cache
	naive *naiveCache
}

func newPair(t *testing.T, settings map[string]string) *pair {
	t.Helper()
	pg := harness.NewPostgres(t, servers.PostgresConfig{Settings: settings})
	rdb := harness.NewRedis(t, servers.RedisConfig{})
	url := pg.URL("postgres")
	execute(t, url, itemTable, `INSERT INTO items VALUES (1, 'old')`)
	env := settingsFor(t, url, itemRules)
	env["LETHE_REDIS_URL"] = rdb.URL()
	p := &pair{pg: pg, url: url, lethe: start(t, env, "run")}
	p.lethe.ready()
	p.cache = openCache(t, rdb.URL(), "item")
	p.naive = startNaive(t, url, rdb.URL())
	return p
}

// TestStaleSlowReader: a reader that read before the change writes back after
// the invalidation.
func TestStaleSlowReader(t *testing.T) {
	t.Parallel()
	p := newPair(t, nil)
	reader := connect(t, p.url)
	ticket := p.cache.begin(itemName)
	old := queryText(t, reader, readItem)

	execute(t, p.url, `UPDATE items SET name = 'new' WHERE id = 1`)
	p.naive.waitDeleted(1)
	p.cache.invalidated(ticket)

	p.naive.set(1, old)
	if reason := p.cache.fill(ticket, old); reason != coherence.RefusedAbsent {
		t.Errorf("the slow reader's fill: %s, want it refused because the ticket is gone", reason)
	}
	p.expectOnlyNaiveStale(t, "old", "new")
}

// invalidated waits until the empty entry of a ticket is gone.
func (c *cache) invalidated(ticket coherence.Ticket) {
	c.t.Helper()
	harness.Eventually(c.t, 20*time.Second, harness.True("the ticket is gone", func() bool {
		n, err := c.redis.Exists(c.t.Context(), ticket.Name).Result()
		return err == nil && n == 0
	}))
}

// expectOnlyNaiveStale checks that the plain cache serves the old value while
// the database says otherwise, and that Lethe's does not, also after the next
// fill.
func (p *pair) expectOnlyNaiveStale(t *testing.T, stale, truth string) {
	t.Helper()
	reader := connect(t, p.url)
	if got := queryText(t, reader, readItem); got != truth {
		t.Fatalf("the database says %q, want %q", got, truth)
	}
	if got := p.naive.get(1); got != stale {
		t.Errorf("the plain DEL cache holds %q, want it stale with %q: the test does not show what it is for", got, stale)
	}
	if got, hit := p.cache.get(itemName); hit && got != truth {
		t.Errorf("Lethe serves %q, the database says %q", got, truth)
	}
	p.cache.warm(itemName, queryText(t, reader, readItem))
}

// TestStaleInvisibleCommit: the log shows a commit before the database does, so
// a reader that starts after the DEL still reads the old row.
func TestStaleInvisibleCommit(t *testing.T) {
	t.Parallel()
	p := newPair(t, nil)
	reader := connect(t, p.url)
	p.cache.warm(itemName, "old")
	p.naive.set(1, "old")

	// Nobody will ever confirm this commit: it is flushed, decoded, invisible.
	execute(t, p.url, `ALTER SYSTEM SET synchronous_standby_names = 'nobody'`, `SELECT pg_reload_conf()`)
	waiting := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		conn, err := pgx.Connect(ctx, p.url)
		if err == nil {
			_, err = conn.Exec(ctx, `UPDATE items SET name = 'new' WHERE id = 1`)
			_ = conn.Close(ctx)
		}
		waiting <- err
	}()
	p.naive.waitDeleted(1)
	seen := queryText(t, reader, readItem)
	if seen != "old" {
		t.Fatalf("the commit is visible: %q", seen)
	}
	p.naive.set(1, seen)
	// While it is invisible the old value is right, and fills of it are too.
	if got, hit := p.cache.get(itemName); !hit || got != "old" {
		t.Errorf("Lethe forgot a value that every reader still sees: %q, %v", got, hit)
	}

	execute(t, p.url, `ALTER SYSTEM RESET synchronous_standby_names`, `SELECT pg_reload_conf()`)
	if err := <-waiting; err != nil {
		t.Fatal(err)
	}
	p.cache.gone(itemName)
	p.expectOnlyNaiveStale(t, "old", "new")
}

// TestStaleLaggingStandby: a reader of a standby that lags reads the old row
// long after the DEL.
func TestStaleLaggingStandby(t *testing.T) {
	t.Parallel()
	p := newPair(t, nil)
	standby := harness.NewStandby(t, p.pg, servers.StandbyConfig{Settings: map[string]string{"recovery_min_apply_delay": "10min"}})
	reader := connect(t, standby.URL("postgres"))
	p.cache.warm(itemName, "old")
	p.naive.set(1, "old")

	execute(t, p.url, `UPDATE items SET name = 'new' WHERE id = 1`)
	p.naive.waitDeleted(1)
	p.cache.gone(itemName)

	ticket := p.cache.begin(itemName)
	replayed, err := change.ParseLSN(queryText(t, reader, `SELECT pg_last_wal_replay_lsn()::text`))
	if err != nil {
		t.Fatal(err)
	}
	old := queryText(t, reader, readItem)
	if old != "old" {
		t.Fatalf("the standby shows %q already", old)
	}
	p.naive.set(1, old)
	stamp := change.Position{Era: ticket.Known.Source.Era, LSN: replayed}
	reason := p.cache.fillFromStandby(ticket, old, stamp)
	if reason != coherence.RefusedTable && reason != coherence.RefusedBound {
		t.Errorf("the standby's old value: %s, want it refused by the LSN table", reason)
	}
	p.expectOnlyNaiveStale(t, "old", "new")
}

// TestStalePhantomAfterCrash: a commit that was visible and cached is lost in a
// crash, its xid is used again, and no message will ever say so.
func TestStalePhantomAfterCrash(t *testing.T) {
	t.Parallel()
	p := newPair(t, map[string]string{"wal_writer_delay": "10s"})
	// Somebody else may flush the commit in the moment before the crash; then
	// it is no phantom, and the attempt tells nothing.
	for attempt := 0; ; attempt++ {
		if attempt == 30 {
			t.Fatal("the commit survived thirty crashes: there is no phantom to show")
		}
		execute(t, p.url, `UPDATE items SET name = 'old' WHERE id = 1`, `CHECKPOINT`)
		p.naive.set(1, "old")
		phantom, xid := p.crashWithPhantom(t)
		if truth := queryText(t, connect(t, p.url), readItem); truth != "old" {
			continue
		}
		p.lethe.ready()
		p.cache.gone(itemName)
		again := queryText(t, connect(t, p.url), `SELECT pg_current_xact_id()::text`)
		t.Logf("xid of the lost commit %s, next one after the crash %s", xid, again)
		p.expectOnlyNaiveStale(t, phantom, "old")
		return
	}
}

// crashWithPhantom commits without a flush, has both caches store what a reader
// sees, crashes the server and starts it again.
func (p *pair) crashWithPhantom(t *testing.T) (value, xid string) {
	t.Helper()
	writer, reader := connect(t, p.url), connect(t, p.url)
	ticket := p.cache.begin(itemName)
	if _, err := writer.Exec(t.Context(), `SET synchronous_commit = off`); err != nil {
		t.Fatal(err)
	}
	err := writer.QueryRow(t.Context(), `UPDATE items SET name = 'phantom' WHERE id = 1 RETURNING name, pg_current_xact_id()::text`).Scan(&value, &xid)
	if err != nil {
		t.Fatal(err)
	}
	seen := queryText(t, reader, readItem)
	p.pg.Kill()
	if seen != value {
		t.Fatalf("a reader saw %q, want the commit", seen)
	}
	p.naive.set(1, seen)
	if reason := p.cache.fill(ticket, seen); reason != coherence.Stored {
		t.Logf("the phantom was not cached: %s", reason)
	}
	if err := p.pg.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return value, xid
}

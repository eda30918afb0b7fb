package warmer

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
	"github.com/lethe-cache/lethe/invalidator"
	"github.com/lethe-cache/lethe/migrations"

	"github.com/jackc/pgx/v5"
)

// TestServerQueueReadsAStandby: what a standby that stands still has not
// replayed is not stored from it, whatever it says; what it may show is.
func TestServerQueueReadsAStandby(t *testing.T) {
	t.Parallel()
	primary := harness.NewPostgres(t, servers.PostgresConfig{})
	url := primary.URL("postgres")
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := migrations.Apply(t.Context(), conn, migrations.Options{}); err != nil {
		t.Fatal(err)
	}
	exec := func(c *pgx.Conn, sql ...string) {
		t.Helper()
		for _, s := range sql {
			if _, err := c.Exec(t.Context(), s); err != nil {
				t.Fatalf("%s: %v", s, err)
			}
		}
	}
	exec(conn, `CREATE TABLE products (id bigint PRIMARY KEY, name text, category_id int)`,
		`INSERT INTO products SELECT i, 'p' || i, i % 2 FROM generate_series(1, 9) i`)
	standby := harness.NewStandby(t, primary, servers.StandbyConfig{})
	replica, err := pgx.Connect(t.Context(), standby.URL("postgres"))
	if err != nil {
		t.Fatal(err)
	}
	defer replica.Close(t.Context())

	b := newBundleOn(t, LoaderConfig{URL: url, StandbyURL: standby.URL("postgres")})
	b.record(t)
	q, err := NewQueue(QueueConfig{Warmer: b.Warmer, StandbyWait: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	w := &queued{bundle: b, Queue: q, t: t}
	w.run()
	// It has replayed the seed's bound, and a little more.
	exec(conn, `CREATE TABLE more ()`)
	replays := func() {
		t.Helper()
		var lsn string
		if err := conn.QueryRow(t.Context(), "SELECT pg_current_wal_insert_lsn()::text").Scan(&lsn); err != nil {
			t.Fatal(err)
		}
		harness.Eventually(t, patience, harness.True("it is replayed", func() bool {
			var ok bool
			err := replica.QueryRow(t.Context(), "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn", lsn).Scan(&ok)
			return err == nil && ok
		}))
	}
	replays()
	w.ask("product:1")
	w.wait("product", resultStored, 1)
	if h := w.header("product:1"); h.Stamp.Era != 1 || h.Stamp.LSN == 0 {
		t.Errorf("stamp %v", h.Stamp)
	}

	exec(replica, "SELECT pg_wal_replay_pause()")
	harness.Eventually(t, patience, harness.True("replay stands still", func() bool {
		var state string
		err := replica.QueryRow(t.Context(), "SELECT pg_get_wal_replay_pause_state()").Scan(&state)
		return err == nil && state == "paused"
	}))
	lsn, err := b.loader.InsertLSN(t.Context(), change.Source{})
	if err != nil {
		t.Fatal(err)
	}
	x := change.Position{Era: 1, LSN: lsn}
	exec(conn, "UPDATE products SET name = 'new' WHERE id = 1")
	w.invalidate(coherence.ActionKeep, "product:1", "product:2")
	// It is told of one commit; of the other only the table knows.
	w.askWith(invalidator.Rewarm{X: x}, "product:1")
	w.askWith(invalidator.Rewarm{}, "product:2")
	harness.Eventually(t, patience, harness.True("both were tried", func() bool {
		q.mu.Lock()
		defer q.mu.Unlock()
		one, two := q.mu.items[b.set.FullName("product:1")], q.mu.items[b.set.FullName("product:2")]
		return one != nil && one.tries >= 3 && two != nil && two.tries >= 2
	}))
	if a, c := w.value("product:1"), w.value("product:2"); strings.Contains(a, "p1") || strings.Contains(c, "p2") {
		t.Errorf("stored from a standby that is behind: %s %s", a, c)
	}
	exec(replica, "SELECT pg_wal_replay_resume()")
	w.empty()
	if got := w.value("product:1"); !strings.Contains(got, `"new"`) {
		t.Errorf("product:1 is %s after it was replayed", got)
	}

	// One that stands still for longer is passed by.
	exec(replica, "SELECT pg_wal_replay_pause()")
	q.mu.Lock()
	q.cfg.StandbyWait = time.Millisecond
	q.mu.Unlock()
	exec(conn, "UPDATE products SET name = 'newer' WHERE id = 1")
	w.invalidate(coherence.ActionKeep, "product:1")
	w.askWith(invalidator.Rewarm{X: change.Position{Era: 1, LSN: lsn + 1<<30}}, "product:1")
	w.empty()
	if got := w.value("product:1"); !strings.Contains(got, `"newer"`) {
		t.Errorf("product:1 is %s, want the primary's", got)
	}
	// So is a standby of another system.
	src := b.source
	src.SystemID++
	if err := (&batch{known: coherence.Known{Source: src}}).sameSource(b.source); !errors.Is(err, ErrOtherSource) {
		t.Errorf("another system: %v", err)
	}
}

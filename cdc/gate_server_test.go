package cdc

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lethe-cache/lethe/cdc/source"
	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

// unseen is a server behind a synchronous standby that does not exist. A
// session that asks for synchronous commits gets them written and shipped, and
// invisible until it is told not to wait any longer.
type unseen struct {
	*servers.Postgres
	url string
	c   *pgx.Conn
}

func newUnseen(t testing.TB, settings ...string) unseen {
	t.Helper()
	s := map[string]string{"synchronous_standby_names": "nobody", "synchronous_commit": "local"}
	for i := 0; i+1 < len(settings); i += 2 {
		s[settings[i]] = settings[i+1]
	}
	p := harness.NewPostgres(t, servers.PostgresConfig{Settings: s})
	c := connect(t, p.URL("postgres"))
	exec(t, c, `CREATE TABLE a (id int PRIMARY KEY, v text); CREATE TABLE b (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE a, b`)
	return unseen{p, p.URL("postgres"), c}
}

// commit runs SQL in a session that then waits for the standby. show lets the
// commit become visible and waits for the session to return.
func (u unseen) commit(t testing.TB, sql string) (show func()) {
	t.Helper()
	c := connect(t, u.url)
	exec(t, c, `SET synchronous_commit = on`)
	pid := c.PgConn().PID()
	done := make(chan error, 1)
	ctx := t.Context()
	go func() {
		_, err := c.Exec(ctx, sql)
		done <- err
	}()
	harness.Eventually(t, 10*time.Second, func() error {
		var waits bool
		err := u.c.QueryRow(t.Context(), `SELECT coalesce(wait_event = 'SyncRep', false) FROM pg_stat_activity WHERE pid = $1`, pid).Scan(&waits)
		if err == nil && !waits {
			err = errors.New("it does not wait for the standby")
		}
		return err
	})
	return sync.OnceFunc(func() {
		t.Helper()
		// The commit stands; the session only stops waiting, with a warning.
		exec(t, u.c, `SELECT pg_cancel_backend($1)`, pid)
		if err := <-done; err != nil {
			t.Errorf("%s: %v", sql, err)
		}
	})
}

// held waits until the gate holds n commits.
func (r *running) held(t testing.TB, n int) {
	t.Helper()
	harness.Eventually(t, 10*time.Second, func() error {
		if got := r.State().Held; got != n {
			return fmt.Errorf("%d commits are held, want %d", got, n)
		}
		return nil
	})
}

func TestServerGateHoldsInvisibleCommit(t *testing.T) {
	t.Parallel()
	u := newUnseen(t)
	exec(t, u.c, `INSERT INTO a VALUES (1, 'old')`)
	w := newSink()
	r := start(t, u.url, w)
	r.streaming(t)
	show := u.commit(t, `UPDATE a SET v = 'new' WHERE id = 1`)
	r.held(t, 1)
	// Overtaken by what is visible, and v stays below it.
	exec(t, u.c, `INSERT INTO b VALUES (1)`)
	w.waitEvent(t, "insert public.b id='1'")
	held := r.State().V
	w.set(func() {
		if w.has("update public.a id='1' v='new'") {
			t.Error("an invisible commit was handed on")
		}
	})
	if query[string](t, u.c, `SELECT v FROM a`) != "old" {
		t.Fatal("the commit is visible, the test shows nothing")
	}
	exec(t, u.c, `INSERT INTO b VALUES (2)`)
	w.waitEvent(t, "insert public.b id='2'")
	if v := r.State().V; v != held {
		t.Errorf("v moved from %s to %s while a commit below is held", held, v)
	}
	show()
	w.waitEvent(t, "update public.a id='1' v='new'")
	w.wait(t, "v past all", func() bool { return w.lastV() > held })
}

// TestGateHoldsInvisibleCommit is the same by its name in the protocol.
func TestGateHoldsInvisibleCommit(t *testing.T) {
	t.Parallel()
	g := newGate()
	h := g.admit(build().whole(1, "x").segment, runningXids(1))
	if len(h.rec.Changes) != 0 || g.held != 1 {
		t.Errorf("handed on %q, held %d; want nothing and 1", ids(h.rec), g.held)
	}
}

func TestTruncateRaisesAfterVisible(t *testing.T) {
	t.Parallel()
	u := newUnseen(t)
	exec(t, u.c, `INSERT INTO b VALUES (1)`)
	w := newSink()
	r := start(t, u.url, w)
	r.streaming(t)
	show := u.commit(t, `TRUNCATE b`)
	r.held(t, 1)
	exec(t, u.c, `INSERT INTO a VALUES (1)`)
	w.waitEvent(t, "insert public.a id='1' v=NULL")
	w.set(func() {
		if w.has("truncate public.b") {
			t.Error("an invisible TRUNCATE was handed on")
		}
	})
	show()
	w.waitEvent(t, "truncate public.b")
}

// The guard says in the DDL's own transaction which tables' rows it has changed
// without a row in the log: they are raised when that commit is visible.
func TestServerDDLRaisesAfterVisible(t *testing.T) {
	t.Parallel()
	u := newUnseen(t)
	exec(t, u.c, `INSERT INTO b VALUES (1)`)
	w := newSink()
	r := start(t, u.url, w)
	r.streaming(t)
	show := u.commit(t, `SELECT pg_logical_emit_message(true, 'lethe.ddl', '{"tables": ["public.b"]}')`)
	r.held(t, 1)
	exec(t, u.c, `INSERT INTO a VALUES (1)`)
	w.waitEvent(t, "insert public.a id='1' v=NULL")
	w.set(func() {
		if w.has("raise ddl public.b") {
			t.Error("tables were raised for a DDL that is not visible")
		}
	})
	show()
	w.waitEvent(t, "raise ddl public.b")
}

// News of the table of dependencies come with the commit that changes it, when
// that is visible, and once.
func TestServerDependenciesAreToldAfterVisible(t *testing.T) {
	t.Parallel()
	u := newUnseen(t)
	w := newSink()
	r := start(t, u.url, w)
	r.streaming(t)
	show := u.commit(t, `SELECT pg_logical_emit_message(true, 'lethe.dependencies', '{}'), pg_logical_emit_message(true, 'lethe.dependencies', 'whatever')`)
	r.held(t, 1)
	exec(t, u.c, `INSERT INTO a VALUES (1)`)
	w.waitEvent(t, "insert public.a id='1' v=NULL")
	w.set(func() {
		if w.has("raise dependencies ") {
			t.Error("workers were told of dependencies that are not visible")
		}
	})
	show()
	w.waitEvent(t, "raise dependencies ")
	exec(t, u.c, `INSERT INTO a VALUES (2)`)
	w.waitEvent(t, "insert public.a id='2' v=NULL")
	if n := w.count("raise dependencies "); n != 1 {
		t.Errorf("told %d times, want once", n)
	}
}

func TestGateCrashReplaysOvertaken(t *testing.T) {
	t.Parallel()
	u := newUnseen(t)
	w := newSink()
	r := start(t, u.url, w)
	r.streaming(t)
	show := u.commit(t, `INSERT INTO a VALUES (1, 'held')`)
	r.held(t, 1)
	exec(t, u.c, `INSERT INTO b VALUES (1)`)
	w.waitEvent(t, "insert public.b id='1'")
	below := r.State().V
	// Time for statuses; everything that was appended is durable.
	harness.Eventually(t, 10*time.Second, harness.True("the slot is confirmed up to v", func() bool { return r.State().Confirmed >= below }))
	r.Replay()
	w.wait(t, "the overtaker again", func() bool { return w.count("insert public.b id='1'") >= 2 })
	r.held(t, 1)
	if err := r.stop(); err != nil { // the gate dies, and its memory with it
		t.Fatal(err)
	}
	if got := query[string](t, u.c, `SELECT confirmed_flush_lsn::text FROM pg_replication_slots`); lsn(t, got) > below {
		t.Errorf("the slot is confirmed to %s, past the held commit above %s", got, below)
	}
	show()
	w2 := newSink()
	start(t, u.url, w2)
	w2.waitEvent(t, "insert public.a id='1' v='held'")
	w2.waitEvent(t, "insert public.b id='1'")
}

func lsn(t testing.TB, s string) change.LSN {
	t.Helper()
	l, err := change.ParseLSN(s)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestLostSlotRaisesTwice(t *testing.T) {
	t.Parallel()
	u := newUnseen(t)
	w := newSink()
	r := start(t, u.url, w)
	r.streaming(t)
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 10*time.Second, func() error {
		return u.Exec(t.Context(), "postgres", `SELECT pg_drop_replication_slot('testlostslotraisestwice')`)
	})
	// The server makes a slot in two phases, each of which waits for what runs.
	// What begins in the second and is flushed before its end is not decoded.
	one, two := connect(t, u.url), connect(t, u.url)
	waitsFor := func(c *pgx.Conn) {
		t.Helper()
		xid := query[uint32](t, c, `SELECT pg_current_xact_id()::xid`)
		harness.Eventually(t, 10*time.Second, func() error {
			if query[int](t, u.c, `SELECT count(*) FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted AND transactionid = $1`, xid) == 0 {
				return fmt.Errorf("the slot does not wait for transaction %d", xid)
			}
			return nil
		})
	}
	exec(t, one, `BEGIN; INSERT INTO b VALUES (11)`)
	w = newSink()
	r = start(t, u.url, w)
	waitsFor(one)
	w.waitEvent(t, "raise slot_lost *") // not only when there is a slot
	exec(t, two, `BEGIN; INSERT INTO b VALUES (12)`)
	exec(t, one, `COMMIT`)
	waitsFor(two)
	show := u.commit(t, `INSERT INTO a VALUES (1, 'gap')`)
	exec(t, two, `COMMIT`)
	w.wait(t, "the first raise", func() bool { return w.count("raise slot_lost *") == 2 })
	exec(t, u.c, `INSERT INTO b VALUES (1)`)
	w.waitEvent(t, "insert public.b id='1'")
	w.set(func() {
		if n := w.count("raise slot_lost *"); n != 2 {
			t.Errorf("%d raises while the gap's transaction is invisible, want 2", n)
		}
	})
	if s := r.State(); len(s.Raises) != 1 || s.Raises[0].Running != 1 || !s.Raises[0].Raised {
		t.Errorf("state says %+v, want one raise that waits for one transaction", s.Raises)
	}
	show()
	w.wait(t, "the second raise", func() bool { return w.count("raise slot_lost *") == 3 })
	w.set(func() {
		if w.has("insert public.a id='1' v='gap'") {
			t.Error("the gap's commit came through: the test shows nothing")
		}
	})
}

func TestPublicationGrowsRaisesTwice(t *testing.T) {
	t.Parallel()
	url := harness.Database(t)
	c, app := connect(t, url), connect(t, url)
	exec(t, c, `CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE a`)
	w := newSink()
	r := start(t, url, w)
	r.streaming(t)
	w.take()
	exec(t, app, `BEGIN; INSERT INTO b VALUES (1)`)
	exec(t, c, `ALTER PUBLICATION p ADD TABLE b`)
	done := r.Raise(change.Raise{Reason: change.ReasonPublication, Tables: []string{"public.b"}}, true)
	w.waitEvent(t, "raise publication public.b")
	exec(t, c, `INSERT INTO a VALUES (1)`)
	w.waitEvent(t, "insert public.a id='1'")
	exec(t, app, `INSERT INTO b VALUES (2); COMMIT`)
	w.wait(t, "the second raise", func() bool { return w.count("raise publication public.b") == 2 })
	<-done
	w.waitEvent(t, "insert public.b id='2'")
	got := w.take()
	for i, e := range got {
		if e == "insert public.b id='1'" {
			t.Error("the row written before the ALTER came through: the test shows nothing")
		}
		if e == "raise publication public.b" && i > 0 && strings.HasPrefix(got[i-1], "raise publication") {
			t.Error("both raises came at once")
		}
	}
}

func TestGateRefusesLowerTimeline(t *testing.T) {
	t.Parallel()
	last := identity{systemID: 7, timeline: 3}
	if err := (identity{systemID: 7, timeline: 2}).follows(last); !IsPermanent(err) {
		t.Errorf("a lower timeline: got %v, want a permanent error", err)
	}
	for _, ok := range []identity{{systemID: 7, timeline: 3}, {systemID: 7, timeline: 4}, {systemID: 8, timeline: 1}} {
		if err := ok.follows(last); err != nil {
			t.Errorf("%+v after %+v: %v", ok, last, err)
		}
	}
	if (identity{recovery: true, walLevel: "logical"}).check() == nil {
		t.Error("a server in recovery was not refused")
	}
	// And at once at the start of a process, by what others remember.
	url := harness.Database(t)
	c := connect(t, url)
	exec(t, c, `CREATE PUBLICATION p`)
	system := query[int64](t, c, `SELECT system_identifier FROM pg_control_system()`)
	r := start(t, url, newSink(), func(cfg *Config) {
		cfg.Source = source.New(cfg.Slot, cfg.Logger)
		cfg.Hints = func(context.Context) (source.Hints, error) {
			return source.Hints{Redis: change.Source{Era: 4, SystemID: uint64(system), Timeline: 9}}, nil
		}
	})
	<-r.done
	if !IsPermanent(r.err) || !strings.Contains(r.err.Error(), "old primary") {
		t.Errorf("Run returned %v, want a permanent error about an old primary", r.err)
	}
}

// maxHeld keeps the greatest that the gate held.
type maxHeld struct {
	NopObserver
	mu   sync.Mutex
	held Held
}

func (m *maxHeld) Held(h Held) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.held.Rows, m.held.Bytes = max(m.held.Rows, h.Rows), max(m.held.Bytes, h.Bytes)
	m.held.Forgotten = max(m.held.Forgotten, h.Forgotten)
}

// It runs alone: it measures the heap of the process, in which other tests keep
// changes of 30 MB.
func TestFailureMode09LargeTransactions(t *testing.T) {
	const rows = 200_000
	u := newUnseen(t)
	w := newSink()
	w.drop = true
	held := &maxHeld{}
	r := start(t, u.url, w, func(c *Config) {
		c.Observer = held
		c.HeldRows = 20_000
		c.HeldBytes = 8 << 20
	})
	r.streaming(t)
	runtime.GC()
	var before runtime.MemStats
	runtime.ReadMemStats(&before)
	exec(t, u.c, fmt.Sprintf(`INSERT INTO a SELECT i, repeat('x', 100) FROM generate_series(1, %d) i`, rows))
	w.wait(t, "all rows", func() bool { return w.rows == rows })
	held.mu.Lock()
	if held.held.Rows != 0 {
		t.Errorf("the gate held %d rows of a visible transaction", held.held.Rows)
	}
	held.mu.Unlock()

	// Invisible: its rows are forgotten, and its table raised once it is visible.
	w.set(func() { w.rows, w.drop = 0, false })
	show := u.commit(t, fmt.Sprintf(`UPDATE a SET v = 'y' WHERE id <= %d`, rows/2))
	r.held(t, 1)
	exec(t, u.c, `INSERT INTO b VALUES (1)`)
	w.waitEvent(t, "insert public.b id='1'") // all of it was read: this came behind it
	held.mu.Lock()
	h := held.held
	held.mu.Unlock()
	if h.Rows > 20_000+segmentChanges || h.Bytes > 8<<20+2*segmentSize || h.Forgotten != 1 {
		t.Errorf("held at most %+v, want at most 20000 rows and 8 MB, and one forgotten", h)
	}
	var after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 64<<20 {
		t.Errorf("the heap grew by %d MB", grown>>20)
	}
	show()
	w.waitEvent(t, "raise overflow public.a")
}

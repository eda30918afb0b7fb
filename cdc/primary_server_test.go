package cdc

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lethe-cache/lethe/internal/harness"
)

// The snapshot of a function call is taken when the call arrives, whatever the
// session's transactions are otherwise: it shows what has committed since the
// one before, and not what has not.
func TestServerSnapshotOfAFunctionCall(t *testing.T) {
	t.Parallel()
	for _, level := range []string{"read committed", "repeatable read", "serializable"} {
		t.Run(level, func(t *testing.T) {
			t.Parallel()
			url := harness.Database(t)
			app := connect(t, url)
			exec(t, app, `CREATE TABLE a (id int PRIMARY KEY)`)
			p := &pgPrimary{conn: connect(t, url)}
			exec(t, p.conn, fmt.Sprintf(`SET default_transaction_isolation = '%s'`, level))
			defer p.interruptible(t.Context())()
			over := func(xid uint64) bool {
				t.Helper()
				snap, err := p.snapshot(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				return snap.Over(xid)
			}
			for i := range 20 {
				tx, err := app.Begin(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				var xid uint64
				if _, err := tx.Exec(t.Context(), `INSERT INTO a VALUES ($1)`, i); err != nil {
					t.Fatal(err)
				}
				if err := tx.QueryRow(t.Context(), `SELECT pg_current_xact_id()::text::bigint`).Scan(&xid); err != nil {
					t.Fatal(err)
				}
				if over(xid) {
					t.Errorf("transaction %d is shown as over before its commit", xid)
				}
				// What is asked in SQL goes over the same connection in between.
				if _, err := p.insertLSN(t.Context()); err != nil {
					t.Fatal(err)
				}
				if err := tx.Commit(t.Context()); err != nil {
					t.Fatal(err)
				}
				if !over(xid) {
					t.Errorf("transaction %d is not shown as over after its commit", xid)
				}
			}
			if p.refused {
				t.Error("the server refused the function call")
			}
		})
	}
}

// What is refused is asked in SQL from then on.
func TestServerRefusedFunctionCallIsAskedInSQL(t *testing.T) {
	t.Parallel()
	p := &pgPrimary{conn: connect(t, harness.Database(t)), call: functionCall(1)} // nothing has this OID
	for range 2 {
		snap, err := p.snapshot(t.Context())
		if err != nil || snap.Xmax == 0 {
			t.Fatalf("snapshot %+v, %v", snap, err)
		}
	}
	if !p.refused {
		t.Error("a function that is not there was called")
	}
}

// A call that gets no answer ends with its context, and what the server says
// last is not lost.
func TestServerFunctionCallEnds(t *testing.T) {
	t.Parallel()
	url := harness.Database(t)
	app := connect(t, url)
	open := func() (p *pgPrimary, ctx context.Context, end func()) {
		p = &pgPrimary{conn: connect(t, url)}
		ctx, cancel := context.WithCancel(t.Context())
		stop := p.interruptible(ctx)
		end = sync.OnceFunc(func() { cancel(); stop() })
		t.Cleanup(end)
		if _, err := p.snapshot(ctx); err != nil {
			t.Fatal(err)
		}
		return p, ctx, end
	}

	p := &pgPrimary{conn: connect(t, url)}
	ctx, cancel := context.WithCancel(t.Context())
	stop := p.interruptible(ctx)
	exec(t, p.conn, `CREATE FUNCTION pg_temp.stay() RETURNS text LANGUAGE sql AS 'SELECT pg_sleep(3600)::text'`)
	p.call = functionCall(query[uint32](t, p.conn, `SELECT 'pg_temp.stay()'::regprocedure::oid`))
	p.deadline = time.Now().Add(time.Hour) // so that nothing else ends it
	done := make(chan error, 1)
	go func() {
		_, err := p.snapshot(ctx)
		done <- err
	}()
	waitForSleep(t, app, p.conn.PgConn().PID())
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("a call that was canceled: %v", err)
	}
	stop()
	exec(t, app, `SELECT pg_terminate_backend($1)`, p.conn.PgConn().PID()) // it would sleep on

	// A deadline that is set anew does not undo the end.
	p, ctx, end := open()
	end()
	p.deadline = time.Time{}
	if _, err := p.snapshot(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a call after the end: %v", err)
	}

	// The deadline of one question is not that of the next.
	p, ctx, _ = open()
	p.deadline = time.Unix(1, 0)
	if err := p.conn.PgConn().Conn().SetDeadline(p.deadline); err != nil {
		t.Fatal(err)
	}
	if _, err := p.insertLSN(ctx); err != nil {
		t.Errorf("asked in SQL behind the deadline of a call: %v", err)
	}
	if _, err := p.snapshot(ctx); err != nil {
		t.Errorf("called behind a question in SQL: %v", err)
	}

	p, ctx, _ = open()
	exec(t, app, `SELECT pg_terminate_backend($1)`, p.conn.PgConn().PID())
	harness.Eventually(t, 30*time.Second, func() error { // its last words arrive before it is gone
		if n := query[int](t, app, `SELECT count(*) FROM pg_stat_activity WHERE pid = $1`, p.conn.PgConn().PID()); n > 0 {
			return errors.New("the backend is still there")
		}
		return nil
	})
	if _, err := p.snapshot(ctx); err == nil || p.refused {
		t.Errorf("a snapshot of a server that has gone: %v, refused %v", err, p.refused)
	}
}

// waitForSleep waits until a backend is in pg_sleep.
func waitForSleep(t testing.TB, c *pgx.Conn, pid uint32) {
	t.Helper()
	harness.Eventually(t, 30*time.Second, func() error {
		if n := query[int](t, c, `SELECT count(*) FROM pg_stat_activity WHERE pid = $1 AND wait_event = 'PgSleep'`, pid); n == 0 {
			return errors.New("not there yet")
		}
		return nil
	})
}

package publication_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lethe-cache/lethe/cdc/publication"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/rules"
)

// hold opens a transaction that holds a lock until the function is called.
func (d *database) hold(sql string) (release func()) {
	d.Helper()
	conn := d.connect(d.url)
	tx, err := conn.Begin(d.Context())
	if err != nil {
		d.Fatal(err)
	}
	if _, err := tx.Exec(d.Context(), sql); err != nil {
		d.Fatal(err)
	}
	return func() {
		if err := tx.Rollback(context.Background()); err != nil && !errors.Is(err, pgx.ErrTxClosed) {
			d.Error(err)
		}
	}
}

// waiting blocks until somebody waits for a lock on table a.
func (d *database) waiting() {
	d.Helper()
	harness.Eventually(d, 10*time.Second, func() error {
		var n int
		err := d.app.QueryRow(d.Context(), `SELECT count(*) FROM pg_locks WHERE relation = 'a'::regclass AND NOT granted
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`).Scan(&n)
		if err == nil && n == 0 {
			err = errors.New("nobody waits for a lock on a")
		}
		return err
	})
}

// TestServerLocks: another session holds a lock that ours conflicts with.
func TestServerLocks(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, false, `CREATE TABLE a (id int PRIMARY KEY, x int)`, `CREATE TABLE b (id int PRIMARY KEY)`, `INSERT INTO a VALUES (1, 1)`)
	uses := []rules.TableUse{use("a", rules.OnAll, "x"), use("b", rules.OnAll)}
	// The mode of VACUUM, CREATE INDEX CONCURRENTLY, and of ALTER PUBLICATION.
	release := d.hold(`LOCK TABLE a IN SHARE UPDATE EXCLUSIVE MODE`)

	t.Run("gives up, names the table and does the others", func(t *testing.T) {
		cfg := config
		cfg.LockTimeout, cfg.Attempts = 50*time.Millisecond, 2
		c, err := publication.Sync(t.Context(), d.conn, cfg, uses)
		if e := new(pgconn.PgError); !errors.As(err, &e) || e.Code != "55P03" {
			t.Errorf("error is %v, want lock_not_available", err)
		}
		if got, want := c.Entered, []string{"public.b"}; !slices.Equal(got, want) {
			t.Errorf("entered %q, want %q", got, want)
		}
	})

	t.Run("rows are written while ours waits, and it succeeds in the end", func(t *testing.T) {
		type result struct {
			c   publication.Changes
			err error
		}
		done := make(chan result, 1)
		cfg := config
		cfg.LockTimeout = time.Minute
		go func() {
			c, err := publication.Sync(t.Context(), d.conn, cfg, uses)
			done <- result{c, err}
		}()
		d.waiting()
		// An application statement that queued behind ours would run into this.
		d.exec(`SET lock_timeout = '10ms'`)
		d.exec(`UPDATE a SET x = x + 1`)
		d.exec(`INSERT INTO a VALUES (2, 2)`)
		d.exec(`RESET lock_timeout`)
		release()
		r := <-done
		if r.err != nil {
			t.Fatal(r.err)
		}
		if got, want := r.c.Entered, []string{"public.a"}; !slices.Equal(got, want) {
			t.Errorf("entered %q, want %q", got, want)
		}
	})

	t.Run("a DDL behind ours waits no longer than LockTimeout", func(t *testing.T) {
		// Rules changed: a is to be dropped from the publication, and somebody
		// creates an index concurrently; a third wants to alter the table.
		defer d.hold(`LOCK TABLE a IN SHARE UPDATE EXCLUSIVE MODE`)()
		cfg := config
		cfg.LockTimeout, cfg.Attempts = 500*time.Millisecond, 1
		done := make(chan error, 1)
		go func() {
			_, err := publication.Sync(t.Context(), d.conn, cfg, uses[1:])
			done <- err
		}()
		d.waiting()
		// SHARE conflicts with the holder as well as with us. What is asserted
		// is that our wait is over and we are gone from the queue.
		if err := <-done; err == nil {
			t.Fatal("the publication was altered under somebody else's lock")
		}
		var n int
		if err := d.app.QueryRow(t.Context(), `SELECT count(*) FROM pg_locks WHERE relation = 'a'::regclass AND pid = $1
			AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`, d.conn.PgConn().PID()).Scan(&n); err != nil || n != 0 {
			t.Errorf("%d locks are left (%v), want none", n, err)
		}
	})
}

// TestServerDDLWhileWaiting: the identity goes between our look at the table
// and our lock. What was decided before must not be done.
func TestServerDDLWhileWaiting(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, false, `CREATE TABLE a (id int PRIMARY KEY, x int)`, `INSERT INTO a VALUES (1, 1)`)
	ddl := d.connect(d.url)
	tx, err := ddl.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `ALTER TABLE a DROP CONSTRAINT a_pkey`); err != nil {
		t.Fatal(err)
	}
	done := make(chan publication.Changes, 1)
	go func() {
		cfg := config
		cfg.LockTimeout = time.Minute
		c, err := publication.Sync(t.Context(), d.conn, cfg, []rules.TableUse{use("a", rules.OnAll, "x")})
		if err != nil {
			t.Error(err)
		}
		done <- c
	}()
	d.waiting()
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if c := <-done; !slices.Equal(c.Entered, []string{"public.a"}) {
		t.Errorf("entered %q, want a", c.Entered)
	}
	d.exec(`UPDATE a SET x = 2`)
	if got := d.published("public.a"); len(got) != 1 || got[0][:len("lethe_inserts")] != "lethe_inserts" {
		t.Errorf("published as %q, want lethe_inserts", got)
	}
}

// TestServerGuardGivesWay: two DDLs in two transactions, the publication locked
// by the first. The second must neither fail nor wait for the first's end.
func TestServerGuardGivesWay(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, true, append(slices.Clone(shopTable), `CREATE TABLE b (id int PRIMARY KEY, x int)`)...)
	d.lists()
	d.sync(use("a", rules.OnAll, "name"), use("b", rules.OnAll, "x"))
	defer d.hold(`ALTER TABLE a REPLICA IDENTITY NOTHING`)()
	d.exec(`SET statement_timeout = '20s'`) // a guard that waits fails here
	d.exec(`ALTER TABLE b REPLICA IDENTITY NOTHING`)
	var timeout string
	if err := d.app.QueryRow(t.Context(), `SHOW lock_timeout`).Scan(&timeout); err != nil || timeout != "0" {
		t.Errorf("lock_timeout of the session is %q (%v), want it as it was", timeout, err)
	}
}

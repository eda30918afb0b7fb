package migrations_test

import (
	"context"
	"errors"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/migrations"
)

func TestMain(m *testing.M) { harness.Main(m) }

func connect(t *testing.T, address string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func run(t *testing.T, conn *pgx.Conn, sql string) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// role makes a login role that may create in the database if create is set.
func role(t *testing.T, address string, create bool) (name string, conn *pgx.Conn) {
	t.Helper()
	admin := connect(t, address)
	if err := admin.QueryRow(t.Context(), `SELECT 'migrate_' || current_database()`).Scan(&name); err != nil {
		t.Fatal(err)
	}
	run(t, admin, `CREATE ROLE `+name+` LOGIN`)
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	if create {
		run(t, admin, `GRANT CREATE ON DATABASE `+strings.TrimPrefix(u.Path, "/")+` TO `+name)
	}
	u.User = url.User(name)
	return name, connect(t, u.String())
}

var everything = []string{"0001_source", "0002_dead_letters", "0003_guard", "0004_gaps", "0005_schedules", "0006_dependencies", "0008_edge"}

func apply(t *testing.T, conn *pgx.Conn, opts migrations.Options) migrations.Result {
	t.Helper()
	res, err := migrations.Apply(t.Context(), conn, opts)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func pending(t *testing.T, conn *pgx.Conn) []string {
	t.Helper()
	p, err := migrations.Pending(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestServerApplyOnce(t *testing.T) {
	t.Parallel()
	conn := connect(t, harness.Database(t))
	if got := pending(t, conn); !slices.Equal(got, everything) {
		t.Errorf("pending %q, want %q", got, everything)
	}
	if res := apply(t, conn, migrations.Options{}); !slices.Equal(res.Applied, everything) || len(res.Degraded) > 0 {
		t.Errorf("applied %q, degraded %q, want all and none", res.Applied, res.Degraded)
	}
	if res := apply(t, conn, migrations.Options{}); len(res.Applied)+len(res.Degraded) > 0 {
		t.Errorf("a second time %+v, want nothing", res)
	}
	if got := pending(t, conn); len(got) > 0 {
		t.Errorf("pending %q, want none", got)
	}
	// Nothing outside the schema lethe but the event triggers.
	var outside int
	err := conn.QueryRow(t.Context(), `SELECT (SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace)
		+ (SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace)
		+ (SELECT count(*) FROM pg_event_trigger WHERE evtname NOT LIKE 'lethe\_guard\_%')`).Scan(&outside)
	if err != nil || outside != 0 {
		t.Errorf("%d things outside the schema (%v), want none", outside, err)
	}
	for _, name := range everything {
		if migrations.Lost(name) == "" {
			t.Errorf("nothing says what is lost without %s", name)
		}
	}
}

func TestServerApplyByManyAtOnce(t *testing.T) {
	t.Parallel()
	address := harness.Database(t)
	results := make(chan migrations.Result, 4)
	for range cap(results) {
		conn := connect(t, address)
		go func() {
			// One that comes second waits for the first, lock by lock.
			res, err := migrations.Apply(t.Context(), conn, migrations.Options{LockTimeout: 30 * time.Second})
			if err != nil {
				t.Error(err)
			}
			results <- res
		}()
	}
	var applied []string
	for range cap(results) {
		applied = append(applied, (<-results).Applied...)
	}
	slices.Sort(applied)
	if !slices.Equal(applied, everything) {
		t.Errorf("applied %q, want each once", applied)
	}
}

func TestServerApplyByOrdinaryRoles(t *testing.T) {
	t.Parallel()
	t.Run("without any right", func(t *testing.T) {
		t.Parallel()
		address := harness.Database(t)
		name, conn := role(t, address, false)
		res := apply(t, conn, migrations.Options{})
		if len(res.Applied) > 0 || len(res.Degraded) != len(everything) {
			t.Fatalf("applied %q and degraded %q, want none and all", res.Applied, res.Degraded)
		}
		for _, want := range []string{"0001_source was not applied", "era is not kept", "lethe migrate --role " + name, "GRANT CREATE ON DATABASE"} {
			if !strings.Contains(res.Degraded[0], want) {
				t.Errorf("degraded %q does not say %q", res.Degraded[0], want)
			}
		}
		// The administrator does it, and the role has what it needs.
		if res := apply(t, connect(t, address), migrations.Options{Role: name}); len(res.Applied) != len(everything) {
			t.Fatalf("applied %q, want all", res.Applied)
		}
		if got := pending(t, conn); len(got) > 0 {
			t.Errorf("pending %q for the role, want none", got)
		}
		run(t, conn, `INSERT INTO lethe.source (slot, era, system_id, timeline, postmaster_start) VALUES ('s', 1, 1, 1, now())`)
		run(t, conn, `UPDATE lethe.source SET era = 2`)
		run(t, conn, `INSERT INTO lethe.dead_letters (reason, error, part, log_offset) VALUES ('r', 'e', 0, 0)`)
		run(t, conn, `INSERT INTO lethe.gaps (publication, table_name, twice) VALUES ('p', 't', true)`)
		run(t, conn, `INSERT INTO lethe.gaps_told VALUES ('s', 'p', 't', 1)`)
		run(t, conn, `INSERT INTO lethe.fingerprints VALUES ('p', 't', 'f')`)
		run(t, conn, `SELECT * FROM lethe.source()`)
	})
	t.Run("with the right to create", func(t *testing.T) {
		t.Parallel()
		address := harness.Database(t)
		name, conn := role(t, address, true)
		res := apply(t, conn, migrations.Options{})
		if !slices.Equal(res.Applied, without(everything, "0003_guard")) || len(res.Degraded) != 1 || !strings.Contains(res.Degraded[0], "whole rows") {
			t.Fatalf("applied %q, degraded %q, want all but the guard", res.Applied, res.Degraded)
		}
		if res := apply(t, connect(t, address), migrations.Options{Role: name}); !slices.Equal(res.Applied, everything[2:3]) {
			t.Errorf("applied %q by the administrator, want the guard", res.Applied)
		}
		run(t, conn, `INSERT INTO lethe.source (slot, era, system_id, timeline, postmaster_start) VALUES ('s', 1, 1, 1, now())`)
		// What the guard runs with the rights of a superuser must not be for
		// others to replace.
		for _, sql := range []string{`CREATE FUNCTION lethe.x() RETURNS int LANGUAGE sql AS 'SELECT 1'`, `DROP FUNCTION lethe.guard_tables()`,
			`INSERT INTO lethe.publications VALUES ('x')`} {
			_, err := conn.Exec(t.Context(), sql)
			if e := new(pgconn.PgError); !errors.As(err, &e) || e.Code != "42501" {
				t.Errorf("%s: %v, want insufficient privilege", sql, err)
			}
		}
	})
}

func TestServerApplyWaitsForNoLockForLong(t *testing.T) {
	t.Parallel()
	address := harness.Database(t)
	conn := connect(t, address)
	if _, err := conn.Exec(t.Context(), `CREATE SCHEMA lethe; CREATE TABLE lethe.migrations (version int PRIMARY KEY, name text NOT NULL)`); err != nil {
		t.Fatal(err)
	}
	holder := connect(t, address)
	tx, err := holder.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `LOCK TABLE lethe.migrations IN EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	_, err = migrations.Apply(t.Context(), conn, migrations.Options{LockTimeout: 20 * time.Millisecond, Attempts: 2})
	if e := new(pgconn.PgError); !errors.As(err, &e) || e.Code != "55P03" {
		t.Fatalf("error is %v, want lock_not_available", err)
	}
	// Half of a migration must not stay.
	var left bool
	if err := conn.QueryRow(t.Context(), `SELECT to_regclass('lethe.source') IS NOT NULL`).Scan(&left); err != nil || left {
		t.Errorf("lethe.source is there: %v (%v), want nothing", left, err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := migrations.Apply(t.Context(), conn, migrations.Options{LockTimeout: time.Minute})
		done <- err
	}()
	watcher := connect(t, address)
	harness.Eventually(t, 10*time.Second, func() error {
		var n int
		err := watcher.QueryRow(t.Context(), `SELECT count(*) FROM pg_locks WHERE NOT granted AND pid = $1`, conn.PgConn().PID()).Scan(&n)
		if err == nil && n == 0 {
			err = errors.New("nobody waits")
		}
		return err
	})
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Errorf("after the lock was given up: %v", err)
	}
}

func without(names []string, name string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == name })
}

package client

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lethe-cache/lethe/internal/harness"
)

// TestServerObservedTables: what each kind of statement reads, as the rules
// would name it.
func TestServerObservedTables(t *testing.T) {
	t.Parallel()
	w, p := newDatabase(t, harness.Database(t))
	for _, sql := range []string{
		`CREATE SCHEMA "Other"`,
		`CREATE TABLE "Other"."Odd name" (id int PRIMARY KEY, item_id int)`,
		`CREATE TABLE category (id int PRIMARY KEY, name text)`,
		`CREATE TABLE price (id int PRIMARY KEY, item_id int REFERENCES item, amount numeric)`,
		`CREATE INDEX ON price (item_id, amount)`,
		`CREATE VIEW priced AS SELECT i.id, max(p.amount) AS amount FROM item i JOIN price p ON p.item_id = i.id GROUP BY i.id`,
		`CREATE VIEW twice AS SELECT * FROM priced`,
		`CREATE TABLE event (id int, at date) PARTITION BY RANGE (at)`,
		`CREATE TABLE event_1 PARTITION OF event FOR VALUES FROM ('2026-01-01') TO ('2027-01-01') PARTITION BY LIST (id)`,
		`CREATE TABLE event_1_1 PARTITION OF event_1 FOR VALUES IN (1)`,
		`CREATE TABLE event_2 PARTITION OF event FOR VALUES FROM ('2027-01-01') TO ('2028-01-01')`,
		`CREATE FUNCTION hidden() RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN RETURN (SELECT count(*) FROM category); END $$`,
		`ANALYZE`,
	} {
		if _, err := p.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	c := w.open(Options{Database: pool(t, p.Config().ConnString(), nil), ObserveTables: true}, hooks{})
	for i, test := range []struct {
		sql  string
		args []any
		want string
	}{
		{`SELECT value FROM item WHERE id = $1`, []any{1}, "[public.item]"},
		{`SELECT value FROM item WHERE id = @id -- by name`, []any{pgx.NamedArgs{"id": 1}}, "[public.item]"},
		{`SELECT count(amount) FROM price WHERE item_id = $1;`, []any{1}, "[public.price]"}, // the index is enough
		{`SELECT 1 FROM twice WHERE id = $1`, []any{1}, "[public.item public.price]"},
		{`SELECT 1 FROM item i LEFT JOIN category c ON c.id = i.value AND $1::text = 'no' WHERE i.id = $2 OR c.name = 'x'`, []any{"yes", 1}, "[public.category public.item]"},
		{`WITH x AS MATERIALIZED (SELECT * FROM category) SELECT (SELECT count(*) FROM price) FROM x WHERE EXISTS (SELECT FROM "Other"."Odd name" o WHERE o.id = x.id)`, nil, "[Other.Odd name public.category public.price]"},
		{`SELECT 1 FROM event WHERE at = $1`, []any{time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)}, "[public.event]"},
		{`SELECT 1 FROM event WHERE at = '2031-01-01' AND id = 7`, nil, "[public.event]"},
		{`SELECT 1 FROM event_1_1`, nil, "[public.event]"},
		{`SELECT hidden() FROM pg_catalog.pg_class LIMIT $1`, []any{1}, "[]"},
		{`SELECT 1 FROM item FOR UPDATE`, nil, "[public.item]"},
	} {
		class := fmt.Sprintf("c%d", i)
		e := Entries[int64](c, class)
		w.live(c)
		for range 2 {
			if _, err := e.Refresh(t.Context(), class+":1", func(ctx context.Context, l *Load) (int64, error) {
				rows, err := l.Query(ctx, test.sql, test.args...)
				if err != nil {
					return 0, err
				}
				for rows.Next() {
				}
				return 0, rows.Err()
			}); err != nil {
				t.Fatalf("%s: %v", test.sql, err)
			}
		}
		if test.want == "[]" {
			continue
		}
		harness.Eventually(t, 20*time.Second, func() error {
			if got := fmt.Sprint(c.ObservedTables()[class]); got != test.want {
				return fmt.Errorf("%s: got %s, want %s", test.sql, got, test.want)
			}
			return nil
		})
	}
	want := c.ObservedTables()
	if _, ok := want["c9"]; ok {
		t.Errorf("a function and the catalog: got %v, want nothing", want["c9"])
	}
	harness.Eventually(t, 20*time.Second, func() error {
		got, err := w.worker.Observed(w.ctx())
		if err == nil && fmt.Sprint(got) != fmt.Sprint(want) {
			err = fmt.Errorf("redis knows %v, want %v", got, want)
		}
		return err
	})
}

// TestServerObservingDisturbsNobody: with one connection in the pool, a statement that
// can not be explained, a database that is gone, and Close right after the load.
func TestServerObservingDisturbsNobody(t *testing.T) {
	t.Parallel()
	w, p := newDatabase(t, harness.Database(t))
	one := pool(t, p.Config().ConnString(), func(cfg *pgxpool.Config) { cfg.MaxConns = 1 })
	c := w.open(Options{Database: one, ObserveTables: true}, hooks{})
	e := Entries[int64](c, "item")
	w.live(c)
	read := func(key, sql string, args ...any) {
		t.Helper()
		if _, err := e.Get(t.Context(), key, func(ctx context.Context, l *Load) (int64, error) {
			rows, err := l.Query(ctx, sql, args...)
			if err != nil {
				return 0, err
			}
			for rows.Next() {
			}
			return 1, rows.Err()
		}); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	// The pool's one connection is taken: the observation needs none of it.
	conn, err := one.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	release := sync.OnceFunc(conn.Release)
	defer release()
	c.observed.add("other", `SELECT 1 FROM item`, nil)
	harness.Eventually(t, 20*time.Second, harness.True("observed", func() bool { return len(c.ObservedTables()["other"]) == 1 }))
	release()

	read("item:1", `SHOW statement_timeout`) // can not be prepared
	read("item:2", `SELECT value FROM item WHERE id = $1`, 1)
	harness.Eventually(t, 20*time.Second, harness.True("observed", func() bool { return len(c.ObservedTables()["item"]) == 1 }))

	for i := range 2 * observeStatements {
		c.observed.add("many", fmt.Sprintf("SELECT %d FROM nothing", i), nil)
	}
	c.observed.mu.Lock()
	if n := len(c.observed.seen); n > observeStatements {
		t.Errorf("%d statements are remembered, want %d at most", n, observeStatements)
	}
	c.observed.mu.Unlock()
}

// TestServerObservedAtClose: what was loaded just before Close is reported.
func TestServerObservedAtClose(t *testing.T) {
	t.Parallel()
	w, p := newDatabase(t, harness.Database(t))
	c := w.open(Options{Database: p, ObserveTables: true}, hooks{})
	e := Entries[int64](c, "item")
	w.live(c)
	if _, err := e.Get(t.Context(), "item:1", func(ctx context.Context, l *Load) (v int64, err error) {
		return v, l.QueryRow(ctx, `SELECT value FROM item WHERE id = $1`, 1).Scan(&v)
	}); err != nil {
		t.Fatal(err)
	}
	w.must(c.Close())
	got, err := w.worker.Observed(w.ctx())
	w.must(err)
	w.want("observed", fmt.Sprint(got), "map[item:[public.item]]")
	w.want("by the client", fmt.Sprint(c.ObservedTables()), "map[item:[public.item]]")
}

package explain_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lethe-cache/lethe/cdc/catalog"
	"github.com/lethe-cache/lethe/explain"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/rules"
)

func TestMain(m *testing.M) { harness.Main(m) }

const shopSchema = `
CREATE TABLE makers (id int PRIMARY KEY, name text);
CREATE TABLE products (id int PRIMARY KEY, maker int REFERENCES makers ON DELETE CASCADE, name text, price numeric(8,2), ok bool, at timestamptz, loud text GENERATED ALWAYS AS (upper(name)) STORED);
CREATE TABLE log (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, product int);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO log (product) VALUES (NEW.id); RETURN NULL; END $$;
CREATE TRIGGER note AFTER UPDATE ON products FOR EACH ROW EXECUTE FUNCTION note();
CREATE TABLE events (id int, day date, PRIMARY KEY (id, day)) PARTITION BY RANGE (day);
CREATE TABLE events_old (extra int, day date NOT NULL, id int NOT NULL);
ALTER TABLE events_old DROP COLUMN extra;
ALTER TABLE events ATTACH PARTITION events_old FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
INSERT INTO makers VALUES (1, 'Ada'), (2, 'Bob');
INSERT INTO products (id, maker, name, price, ok, at) VALUES (10, 1, 'pen', 1.50, true, '2026-01-02 03:04:05+02'), (11, 1, NULL, NULL, NULL, NULL);`

const shopRules = `
version: 1
namespace: shop
entries:
  product: {key: "product:{id}"}
  maker: {key: "maker:{id}"}
rules:
  - {name: products, table: public.products, keys: ["product:{id}"], tags: ["ok:{ok}", "at:{at}", "price:{price}"]}
  - {name: makers, table: public.makers, keys: ["maker:{id}"]}
  - {name: log, table: public.log, keys: ["product:{product}"]}
  - {name: events, table: public.events, keys: ["event:{id}:{day}"]}
dependencies:
  - {of: "maker:{id}", also: ["list:{id}"]}
`

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func exec(t *testing.T, conn *pgx.Conn, sql string) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
}

func parse(t *testing.T, text string) *rules.Set {
	t.Helper()
	set, err := rules.Parse("rules.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func liveSchema(t *testing.T, conn *pgx.Conn, set *rules.Set) *rules.Schema {
	t.Helper()
	schema, err := catalog.Read(t.Context(), conn, catalog.Tables(set.Tables()))
	if err != nil {
		t.Fatal(err)
	}
	return &schema
}

// leftovers is everything that an explanation could leave: rows, triggers,
// functions, relations, slots, locks.
func leftovers(t *testing.T, conn *pgx.Conn) string {
	t.Helper()
	var state string
	err := conn.QueryRow(t.Context(), `SELECT concat_ws(' ',
		(SELECT string_agg(p::text, ',' ORDER BY id) FROM products p), (SELECT string_agg(m::text, ',' ORDER BY id) FROM makers m),
		(SELECT count(*) FROM log), (SELECT count(*) FROM events),
		(SELECT string_agg(tgname, ',' ORDER BY oid) FROM pg_trigger), (SELECT count(*) FROM pg_class), (SELECT count(*) FROM pg_proc),
		(SELECT count(*) FROM pg_replication_slots WHERE database = current_database()),
		(SELECT count(*) FROM pg_locks l JOIN pg_class c ON c.oid = l.relation WHERE c.relnamespace = 'public'::regnamespace AND l.pid <> pg_backend_pid()))`).Scan(&state)
	if err != nil {
		t.Fatal(err)
	}
	return state
}

func TestServerRun(t *testing.T) {
	t.Parallel()
	url := harness.Database(t)
	conn, other := connect(t, url), connect(t, url)
	exec(t, conn, shopSchema)
	set := parse(t, shopRules)
	schema := liveSchema(t, conn, set)
	explainer, err := explain.New(set)
	if err != nil {
		t.Fatal(err)
	}
	before := leftovers(t, other)
	for _, tt := range []struct {
		name, sql string
		want      []string
	}{
		{"an update, and what its trigger writes", `UPDATE products SET price = 2 WHERE id = 10`, []string{
			"update public.products new(id=10, maker=1, name=pen, price=2.00, ok=t, at=2026-01-02 01:04:05+00)",
			"delete key shop:product:10 (product)", "purge tag shop:ok:t", "purge tag shop:at:2026-01-02 01:04:05+00", "purge tag shop:price:2.00",
			"insert public.log new(id=*, product=10)", "delete key shop:product:10 (product)",
		}},
		{"a foreign key that cascades", `DELETE FROM makers WHERE id = 1`, []string{
			"delete public.makers old(id=1)", "delete key shop:maker:1 (maker)", "delete key shop:list:1 (no class)", "purge tag shop:list:1",
			"delete public.products old(id=10)", "delete key shop:product:10 (product)",
			"delete public.products old(id=11)", "delete key shop:product:11 (product)",
		}},
		{"an identity that moves", `UPDATE makers SET id = 7 WHERE id = 2`, []string{
			"update public.makers old(id=2) new(id=7, name=Bob)", "delete key shop:maker:7 (maker)", "delete key shop:maker:2 (maker)",
			"delete key shop:list:7 (no class)", "purge tag shop:list:7", "delete key shop:list:2 (no class)", "purge tag shop:list:2",
		}},
		{"several statements", `INSERT INTO makers VALUES (3, $$it's$$); TRUNCATE log`, []string{
			"insert public.makers new(id=3, name=it's)", "delete key shop:maker:3 (maker)", "delete key shop:list:3 (no class)", "purge tag shop:list:3",
			"truncate public.log", "raise product (truncate)",
		}},
		{"a partition with its columns elsewhere", `INSERT INTO events VALUES (5, '2020-02-03')`, []string{
			"insert public.events new(id=5, day=2020-02-03)", "delete key shop:event:5:2020-02-03 (no class)",
		}},
		{"nothing", `UPDATE products SET price = 2 WHERE id = 99`, nil},
	} {
		changes, err := explain.Run(t.Context(), conn, schema, set.Tables(), tt.sql, 0)
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		var got []string
		for _, c := range changes {
			e, err := explainer.Explain(c)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, e.Change)
			for _, s := range e.Steps {
				got = append(got, s.Text())
			}
		}
		if !slices.EqualFunc(got, tt.want, matches) {
			t.Errorf("%s: got\n%s\nwant\n%s", tt.name, strings.Join(got, "\n"), strings.Join(tt.want, "\n"))
		}
	}
	if after := leftovers(t, other); after != before {
		t.Errorf("left behind:\n%s\nwas\n%s", after, before)
	}
	if s := conn.PgConn().TxStatus(); s != 'I' {
		t.Errorf("the connection is in transaction status %q", s)
	}
}

// matches compares where * in want stands for anything.
func matches(got, want string) bool {
	head, tail, star := strings.Cut(want, "*")
	return got == want || star && strings.HasPrefix(got, head) && strings.HasSuffix(got, tail)
}

// Statements that would end the transaction would leave everything behind.
func TestServerRunRefusesToCommit(t *testing.T) {
	t.Parallel()
	url := harness.Database(t)
	conn, other := connect(t, url), connect(t, url)
	exec(t, conn, shopSchema+`CREATE PROCEDURE commits() LANGUAGE plpgsql AS $$ BEGIN UPDATE products SET price = 3; COMMIT; END $$;`)
	set := parse(t, shopRules)
	schema := liveSchema(t, conn, set)
	before := leftovers(t, other)
	for _, sql := range []string{
		"UPDATE products SET price = 2; COMMIT", "COMMIT; UPDATE products SET price = 2", "ROLLBACK", "CALL commits()", "BEGIN",
		"UPDATE products SET prise = 2", "PREPARE TRANSACTION 'x'", "VACUUM",
	} {
		if _, err := explain.Run(t.Context(), conn, schema, set.Tables(), sql, 0); err == nil {
			t.Errorf("%q: no error", sql)
		}
	}
	if after := leftovers(t, other); after != before {
		t.Errorf("left behind:\n%s\nwas\n%s", after, before)
	}
}

// Whoever holds a lock is not waited for long, and an explanation that its
// caller gives up leaves no lock either.
func TestServerRunGivesUpOnLocks(t *testing.T) {
	t.Parallel()
	url := harness.Database(t)
	conn, other := connect(t, url), connect(t, url)
	exec(t, conn, shopSchema)
	set := parse(t, shopRules)
	schema := liveSchema(t, conn, set)
	exec(t, other, "BEGIN; UPDATE products SET price = 9 WHERE id = 10")
	_, err := explain.Run(t.Context(), conn, schema, set.Tables(), "UPDATE products SET price = 2", 50*time.Millisecond)
	if err == nil || !strings.Contains(err.Error(), "lock timeout") {
		t.Errorf("got %v, want a lock timeout", err)
	}
	exec(t, other, "COMMIT")
	if _, err := explain.Run(t.Context(), conn, schema, set.Tables(), "UPDATE products SET price = 2", 0); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	exec(t, other, "SELECT pg_advisory_lock(7)")
	done := make(chan error, 1)
	go func() {
		_, err := explain.Run(ctx, conn, schema, set.Tables(), "DO 'BEGIN PERFORM pg_advisory_xact_lock(7); END'", 0)
		done <- err
	}()
	count := func(what, where string, want int) {
		t.Helper()
		harness.Eventually(t, 10*time.Second, func() error {
			var n int
			if err := other.QueryRow(t.Context(), "SELECT count(*) FROM pg_locks WHERE "+where).Scan(&n); err != nil || n != want {
				return fmt.Errorf("%d %s, %w", n, what, err)
			}
			return nil
		})
	}
	count("wait", "locktype = 'advisory' AND NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())", 1)
	cancel()
	if err := <-done; err == nil {
		t.Error("no error of an explanation that was given up")
	}
	count("locks held", "relation = 'products'::regclass AND mode = 'ShareRowExclusiveLock'", 0)
}

// TestRunRefusesWhatItCanNotSee: an explanation is whole or an error.
func TestRunRefusesWhatItCanNotSee(t *testing.T) {
	t.Parallel()
	url := harness.Database(t)
	conn := connect(t, url)
	exec(t, conn, shopSchema+`CREATE TABLE side (id int PRIMARY KEY, n int); INSERT INTO side VALUES (1, 1);`)
	set, err := rules.Parse("rules.yaml", []byte(shopRules))
	if err != nil {
		t.Fatal(err)
	}
	schema, err := catalog.Read(t.Context(), conn, catalog.Tables(set.Tables()))
	if err != nil {
		t.Fatal(err)
	}
	holder := connect(t, url)
	exec(t, holder, `BEGIN; UPDATE side SET n = 2`) // a table of no rule, so its lock is met by the statement only
	for sql, want := range map[string]string{
		`SET session_replication_role = replica; UPDATE products SET price = 4`:  "switch triggers off",
		`ALTER TABLE products DISABLE TRIGGER USER; UPDATE products SET price=4`: "switch triggers off",
		`DROP TABLE products CASCADE`:                                            "drop a table",
		`COPY products FROM STDIN`:                                               "cannot COPY to/from client in PL/pgSQL (SQLSTATE 0A000)",
		`SAVEPOINT a`:                                                            "leave BEGIN, COMMIT and ROLLBACK out",
		`UPDATE products SET price = 4; UPDATE side SET n = 3`:                   "lock timeout",
	} {
		changes, err := explain.Run(t.Context(), conn, &schema, set.Tables(), sql, 300*time.Millisecond)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "COPY") && strings.Contains(err.Error(), "COMMIT") {
			t.Errorf("%s: %d changes, error %v, want one of %q", sql, len(changes), err, want)
		}
	}
	exec(t, holder, `ROLLBACK`)
	if changes, err := explain.Run(t.Context(), conn, &schema, set.Tables(), `UPDATE side SET n = 3; UPDATE products SET price = 4`, 0); err != nil || len(changes) != 4 {
		t.Errorf("afterwards: %d changes, %v; want 2 of products and 2 of its trigger", len(changes), err)
	}
}

package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lethe-cache/lethe/audit"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
	"github.com/lethe-cache/lethe/rules"
	"github.com/lethe-cache/lethe/warmer"
)

// written runs `lethe init` on a database, has `lethe check` look at the result,
// and returns its text. Warnings are those that no rules could avoid.
func written(t *testing.T, database string, unavoidable ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "rules.yaml")
	env := map[string]string{"LETHE_POSTGRES_URL": database, "LETHE_RULES": path}
	l := start(t, env, "init", "--namespace", "bank", "--out", path)
	if code := l.wait(60 * time.Second); code != 0 {
		t.Fatalf("init: exit code %d, want 0\n%s", code, l.output.String())
	}
	if code := start(t, env, "init", "--out", path).wait(60 * time.Second); code != 2 {
		t.Errorf("init over a file that is there: exit code %d, want 2", code)
	}
	again := start(t, env, "init", "--namespace", "bank")
	again.wait(60 * time.Second)
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if again.output.String() != string(text) {
		t.Error("two runs of init on one schema differ")
	}
	check := start(t, env, "check", "-o", "json")
	if code := check.wait(60 * time.Second); code != 0 {
		t.Errorf("check of what init wrote: exit code %d, want 0", code)
	}
	var result struct {
		Live     bool
		Findings []struct{ Code, Severity, Message string }
	}
	if err := json.Unmarshal([]byte(check.output.String()), &result); err != nil {
		t.Fatal(err)
	}
	if !result.Live {
		t.Error("check did not look at the live schema")
	}
	for _, f := range result.Findings {
		if !slices.Contains(unavoidable, f.Code) {
			t.Errorf("check of what init wrote: %s %s: %s", f.Severity, f.Code, f.Message)
		}
	}
	return string(text)
}

// identities runs the statements that the head of the file asks for.
func identities(t *testing.T, database, text string) {
	t.Helper()
	head, _, _ := strings.Cut(text, "version: 1")
	statements := regexp.MustCompile(`(?m)^#   (.*;)$`).FindAllStringSubmatch(head, -1)
	if len(statements) == 0 {
		t.Fatal("init asks for no ALTER TABLE: the test does not show what it is for")
	}
	for _, s := range statements {
		execute(t, database, s[1])
	}
}

var listLoader = regexp.MustCompile(`(?s)json_agg\(.*\) AS ids\nFROM (.*)\nWHERE`)

// withRows adds, beside each list of keys, one of whole rows under the same tag:
// what an application makes of the rows that it lists.
func withRows(t *testing.T, text string) string {
	t.Helper()
	set, err := rules.Parse("rules.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	var extra strings.Builder
	for _, c := range set.Entries {
		if len(c.Tags) == 0 {
			continue
		}
		if !listLoader.MatchString(c.Load.SQL) {
			t.Fatalf("loader of %s is no list: %s", c.Name, c.Load.SQL)
		}
		sql := listLoader.ReplaceAllString(c.Load.SQL, "json_agg(to_jsonb(x) ORDER BY to_jsonb(x)) AS ids FROM $1 AS x WHERE")
		quoted, err := json.Marshal(sql)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&extra, "  rows.%s:\n    key: 'rows.%s'\n    tags: ['%s']\n    load: {sql: %s}\n", c.Name, c.Key, c.Tags[0], quoted)
	}
	return strings.Replace(text, "\nrules:\n", "\n"+extra.String()+"rules:\n", 1)
}

// whole is a cache of everything that the rules of a schema name.
type whole struct {
	*bank
	set *rules.Set
	// sources say where the names of each class come from.
	sources map[string]source
}

// source is the columns of a table that the keys of a class are made of.
type source struct {
	table   string
	columns []string
}

func openWhole(t *testing.T, database, redisURL, rulesPath string) *whole {
	t.Helper()
	set, err := rules.Load(rulesPath)
	if err != nil {
		t.Fatal(err)
	}
	w := &whole{bank: openBank(t, database, redisURL, rulesPath), set: set, sources: map[string]source{}}
	for _, r := range set.Rules {
		table := rules.QuoteIdent(r.Schema) + "." + rules.QuoteIdent(r.Table)
		for _, k := range r.Keys {
			w.sources[k.Class.Name] = source{table, k.Placeholders()}
		}
		for _, ts := range r.Tags {
			for _, c := range set.Carriers(ts.All[0]) {
				w.sources[c.Name] = source{table, ts.All[0].Placeholders()}
			}
		}
	}
	for _, c := range set.Entries {
		if w.sources[c.Name].table == "" {
			t.Fatalf("no rule leads to class %s", c.Name)
		}
	}
	return w
}

// names returns the name of every entry that a class could have now.
func (w *whole) names(ctx context.Context, conn *pgx.Conn, class string) ([]string, error) {
	c, from := w.set.Class(class), w.sources[class]
	columns := make([]string, len(from.columns))
	for i, col := range from.columns {
		// What the type prints; a cast to text would take the blanks off a char(n).
		columns[i] = fmt.Sprintf("CASE WHEN %[1]s IS NOT NULL THEN format('%%s', %[1]s) END", rules.QuoteIdent(col))
	}
	rows, err := conn.Query(ctx, "SELECT DISTINCT ARRAY["+strings.Join(columns, ", ")+"] FROM "+from.table)
	if err != nil {
		return nil, err
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[[]*string])
	if err != nil {
		return nil, err
	}
	var list []string
	for _, values := range all {
		i := -1
		name, ok, err := c.Key.Render(func(string) (any, bool) { i++; return values[i], true })
		if err != nil {
			return nil, err
		}
		if ok {
			list = append(list, w.set.FullName(name))
		}
	}
	return list, nil
}

// fill fills what is absent of all classes, and returns how many names there
// are, and of how many the fill was refused: by an invalidation that overtook
// it, or because the tags can not be vouched for yet.
func (w *whole) fill(ctx context.Context, conn *pgx.Conn) (n, refused int, err error) {
	for _, c := range w.set.Entries {
		list, err := w.names(ctx, conn, c.Name)
		if err != nil {
			return n, refused, err
		}
		n += len(list)
		// Absent ones only: a stale entry must not be mended by the test.
		result, err := w.warmer.Fill(ctx, c.Name, list, warmer.Options{IfAbsent: true})
		if err != nil {
			return n, refused, err
		}
		for _, r := range result.Refused {
			refused += r
		}
	}
	return n, refused, nil
}

// fillWhole fills everything that there is, while nothing changes.
func (w *whole) fillWhole(conn *pgx.Conn) (n int) {
	w.t.Helper()
	harness.Eventually(w.t, 60*time.Second, func() error {
		var refused int
		var err error
		if n, refused, err = w.fill(w.ctx, conn); err == nil && refused > 0 {
			err = fmt.Errorf("%d of %d fills are refused", refused, n)
		}
		return err
	})
	return n
}

// utc opens a connection that prints times as names have them.
func utc(t *testing.T, database string) *pgx.Conn {
	t.Helper()
	conn := connect(t, database)
	if _, err := conn.Exec(t.Context(), `SET TimeZone = 'UTC'; SET DateStyle = 'ISO, YMD'`); err != nil {
		t.Fatal(err)
	}
	return conn
}

// reading fills what is absent again and again until stop is called.
func (w *whole) reading() (stop func()) {
	ctx, cancel := context.WithCancel(w.ctx)
	conn := utc(w.t, w.database)
	var wait sync.WaitGroup
	wait.Go(func() {
		for ctx.Err() == nil {
			if _, _, err := w.fill(ctx, conn); err != nil && ctx.Err() == nil {
				w.t.Errorf("fill: %v", err)
				return
			}
		}
	})
	return func() { cancel(); wait.Wait() }
}

var randomNumber = regexp.MustCompile(`\?(\d+)`)

// write runs n transactions of up to four random statements each, in which ?9 is
// a number from 1 to 9. What the constraints refuse is no mistake.
func (w *whole) write(conn *pgx.Conn, random *rand.Rand, statements []string, n int) (done int) {
	w.t.Helper()
	for range n {
		err := pgx.BeginFunc(w.ctx, conn, func(tx pgx.Tx) error {
			for range 1 + random.IntN(4) {
				sql := randomNumber.ReplaceAllStringFunc(statements[random.IntN(len(statements))], func(m string) string {
					most, _ := strconv.Atoi(m[1:])
					return strconv.Itoa(1 + random.IntN(most))
				})
				err := pgx.BeginFunc(w.ctx, tx, func(point pgx.Tx) error {
					tag, err := point.Exec(w.ctx, sql)
					done += int(min(tag.RowsAffected(), 1))
					return err
				})
				var refused *pgconn.PgError
				if errors.As(err, &refused) && strings.HasPrefix(refused.Code, "23") {
					continue
				}
				if err != nil {
					return fmt.Errorf("%s: %w", sql, err)
				}
			}
			return nil
		})
		if err != nil {
			w.t.Fatal(err)
		}
	}
	return done
}

func (w *whole) expectNothingStale(when string, atLeast int) {
	w.t.Helper()
	report := w.compare()
	if !report.OK() {
		w.t.Errorf("%s: of %d entries %d are stale and %d unsettled: %s", when, report.Checked, report.Stale, report.Unsettled, findingsText(report.Findings))
	}
	if report.Checked < atLeast || report.Incomparable > 0 || report.Undecodable > 0 || len(report.Skipped) > 0 {
		w.t.Errorf("%s: compared %d entries, %d could not be compared, %d not read, classes left out %v",
			when, report.Checked, report.Incomparable, report.Undecodable, report.Skipped)
	}
	w.t.Logf("%s: %d entries compared", when, report.Checked)
}

func findingsText(findings []audit.Finding) string {
	var b strings.Builder
	for _, f := range findings[:min(5, len(findings))] {
		fmt.Fprintf(&b, "\n%s %s: cached %s, the row is %s", f.Name, f.Kind, f.Cached, f.Truth)
	}
	return b.String()
}

// complete runs rules that init wrote against a workload: whatever is cached of
// the schema, nothing of it is stale at the end.
func complete(t *testing.T, database, text string, statements, truncates []string, seed uint64) {
	t.Helper()
	rdb := harness.NewRedis(t, servers.RedisConfig{})
	env := settingsFor(t, database, withRows(t, text))
	env["LETHE_REDIS_URL"] = rdb.URL()
	program := start(t, env, "run")
	program.ready()
	w := openWhole(t, database, rdb.URL(), env["LETHE_RULES"])
	conn := utc(t, database)
	random := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)

	// Everything is there when the changes come, and nothing is filled again:
	// what a change does not reach stays as it was.
	n := w.fillWhole(conn)
	before := w.compare()
	if before.Checked < n || !before.OK() {
		t.Errorf("%d of %d entries are there before the first change: %+v", before.Checked, n, before)
	}
	changed := w.write(conn, random, statements, 60)
	w.expectNothingStale("after changes of a full cache", n/10)

	// And while readers fill what is gone, as those of an application do.
	stop := w.reading()
	changed += w.write(conn, random, statements, 120)
	stop()
	w.expectNothingStale("after changes beside readers", n/10)

	w.fillWhole(conn)
	for _, sql := range truncates {
		execute(t, database, sql)
	}
	w.expectNothingStale("after truncates", 0)
	if changed < len(statements) {
		t.Errorf("only %d statements changed anything", changed)
	}
	t.Logf("%d names at the start, %d statements that changed something", n, changed)
	program.stop()
}

// traderChanges change rows, foreign keys and keys of every table of
// testdata/trader.sql.
var traderChanges = []string{
	`UPDATE employees SET title = 'title ?1000' WHERE employee_id = ?12`,
	`UPDATE employees SET reports_to = ?12 WHERE employee_id = ?12`,
	`UPDATE employees SET reports_to = NULL WHERE employee_id = ?12`,
	`UPDATE employees SET employee_id = employee_id + 12 WHERE employee_id = ?12`,
	`DELETE FROM employees WHERE employee_id = 10 + ?3`,
	`INSERT INTO employees VALUES (?12, 'new', 'new', NULL, NULL, NULL, NULL, NULL, ?12)`,
	`UPDATE regions SET region_id = 4 + ?4 WHERE region_id = ?4`,
	`UPDATE regions SET description = 'region ?1000' WHERE region_id = ?8`,
	`UPDATE territories SET region_id = ?8 WHERE territory_id = 't:?12'`,
	`UPDATE territories SET territory_id = 't:?40' WHERE territory_id = 't:?12'`,
	`DELETE FROM territories WHERE territory_id = 't:?12'`,
	`INSERT INTO territories VALUES ('t:?12', 'new', ?8)`,
	`INSERT INTO employee_territories VALUES (?12, 't:?12')`,
	`UPDATE employee_territories SET employee_id = ?12 WHERE territory_id = 't:?12'`,
	`DELETE FROM employee_territories WHERE employee_id = ?24`,
	`UPDATE customers SET customer_id = 'D?20' WHERE customer_id = 'C?20'`,
	`UPDATE customers SET customer_id = 'C?20' WHERE customer_id = 'D?20'`,
	`UPDATE customers SET company = 'company ?1000' WHERE customer_id = 'C?20'`,
	`DELETE FROM customers WHERE customer_id = 'C?60'`,
	`INSERT INTO customers VALUES ('C?20', 'new')`,
	`UPDATE customer_types SET type_id = 'k:?8' WHERE type_id = 'k:?8'`,
	`INSERT INTO customer_customer_types VALUES ('C?20', 'k:?4')`,
	`UPDATE customer_customer_types SET customer_id = 'C?20' WHERE type_id = 'k:?4' AND customer_id = 'C?20'`,
	`UPDATE categories SET category_id = 6 + ?6 WHERE category_id = ?6`,
	`DELETE FROM categories WHERE category_id = ?24`,
	`INSERT INTO categories VALUES (?12, 'new')`,
	`UPDATE suppliers SET company = 'supplier ?1000' WHERE supplier_id::text LIKE '%0?8'`,
	`DELETE FROM suppliers WHERE supplier_id::text LIKE '%0?40'`,
	`UPDATE products SET price = ?1000 WHERE product_id = ?40`,
	`UPDATE products SET category_id = ?12, supplier_id = NULL WHERE product_id = ?40`,
	`UPDATE products SET product_id = 40 + ?40 WHERE product_id = ?40`,
	`DELETE FROM products WHERE product_id = ?100`,
	`DELETE FROM shippers WHERE shipper_id = ?9`,
	`INSERT INTO shippers VALUES (?3, 'shipper')`,
	`UPDATE orders SET freight = ?1000 / 7.0 WHERE order_id = ?60`,
	`UPDATE orders SET customer_id = 'C?20', employee_id = ?12 WHERE order_id = ?60`,
	`UPDATE orders SET order_id = 60 + ?60 WHERE order_id = ?60`,
	`DELETE FROM orders WHERE order_id = ?120`,
	`INSERT INTO orders VALUES (?60, 'C?20', ?12, ?3, '2026-01-01', 1)`,
	`UPDATE order_lines SET quantity = ?100 WHERE order_id = ?60`,
	`UPDATE order_lines SET order_id = ?60 WHERE order_id = ?60 AND product_id = ?37`,
	`INSERT INTO order_lines VALUES (?60, ?40, 1)`,
	`UPDATE returns SET received = received + interval '?90 minutes' WHERE product_id = 5 * ?8`,
	`INSERT INTO returns SELECT order_id, product_id, now(), 'late' FROM order_lines WHERE product_id = ?40 LIMIT 2`,
	`UPDATE invoices SET paid = true WHERE order_id = ?60`,
	`INSERT INTO invoices SELECT order_id, 1, false FROM orders WHERE order_id = ?120`,
	`UPDATE shipments SET note = 'note ?1000' WHERE shipment_id = ?60`,
	`UPDATE shipments SET order_id = ?60 WHERE shipment_id = ?60`,
	`UPDATE shipments SET shipped_on = '2025-11-01'::date + ?120 WHERE shipment_id = ?60`,
	`DELETE FROM shipments WHERE shipment_id = ?120`,
	`INSERT INTO shipments VALUES (60 + ?60, '2026-03-01', ?60, 'new')`,
	`UPDATE sales.quotas SET amount = ?1000 WHERE employee_id = ?12 AND season = 'summer'`,
	`DELETE FROM sales.quotas WHERE employee_id = ?24 AND season = 'winter'`,
	`INSERT INTO sales.quotas VALUES (?12, 'winter', 1)`,
	`UPDATE sales."Price List" SET price = ?1000 WHERE "List No" = ?3 AND "Key" = 'key:?30'`,
	`UPDATE sales."Price List" SET "Key" = 'other:?30', product_id = ?40 WHERE "List No" = ?3 AND "Key" = 'key:?30'`,
	`UPDATE audit_notes SET note = 'note ?1000' WHERE note_id = ?3`,
	`DELETE FROM audit_trail WHERE employee_id = ?24`,
}

// TestInitIsComplete: rules that init writes for a schema that it has never seen
// leave nothing stale, as they are at once, and in full when the log carries
// what init asks for.
func TestInitIsComplete(t *testing.T) {
	t.Parallel()
	schema, err := os.ReadFile("testdata/trader.sql")
	if err != nil {
		t.Fatal(err)
	}
	database := harness.Database(t)
	execute(t, database, string(schema))
	text := written(t, database, rules.CodePartition, rules.CodeForeignKey)
	for _, secret := range []string{"api_key", "password_hash"} {
		for line := range strings.Lines(text) {
			if strings.Contains(line, secret) && !strings.Contains(line, "# Not loaded") {
				t.Errorf("a secret column is named: %s", line)
			}
		}
	}
	for _, seed := range []uint64{1, 2} {
		t.Run(map[uint64]string{1: "at once", 2: "in full"}[seed], func(t *testing.T) {
			t.Parallel()
			database := harness.Database(t)
			execute(t, database, string(schema))
			text := text
			if seed == 2 {
				identities(t, database, text)
				text = written(t, database, rules.CodePartition, rules.CodeForeignKey)
				if strings.Contains(text, "# tags:") || strings.Contains(text, "The log hides") {
					t.Error("after the statements that init asked for it still hides lists")
				}
			}
			complete(t, database, text, traderChanges, []string{
				`TRUNCATE returns`, `TRUNCATE shipments`, `TRUNCATE categories CASCADE`, `TRUNCATE customers CASCADE`, `TRUNCATE regions CASCADE`,
			}, seed)
		})
	}
}

var pgbenchChanges = []string{
	`UPDATE pgbench_accounts SET abalance = abalance + ?1000 WHERE aid = ?900`,
	`UPDATE pgbench_tellers SET tbalance = tbalance + ?1000 WHERE tid = ?10`,
	`UPDATE pgbench_branches SET bbalance = bbalance + ?1000 WHERE bid = ?3`,
	`INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (?10, ?3, ?900, ?1000, now())`,
	`UPDATE pgbench_accounts SET bid = ?3 WHERE aid = ?900`,
	`UPDATE pgbench_accounts SET bid = NULL WHERE aid = ?900`,
	`UPDATE pgbench_tellers SET bid = ?3 WHERE tid = ?10`,
	`UPDATE pgbench_accounts SET aid = aid + 900 WHERE aid = ?900`,
	`DELETE FROM pgbench_accounts WHERE aid = ?900`,
	`INSERT INTO pgbench_accounts VALUES (?900, ?3, 0)`,
}

// TestInitIsCompleteOnPgbench does the same with pgbench's own schema.
func TestInitIsCompleteOnPgbench(t *testing.T) {
	t.Parallel()
	database := harness.Database(t)
	tool, err := harness.Postgres(t).Tool("pgbench")
	if err != nil {
		t.Skipf("left out: pgbench is not here: %v", err)
	}
	runTool(t, tool, "-i", "-q", "-s", "1", "--foreign-keys", database)
	// So many as fill in a moment, in lists that fit an entry.
	execute(t, database, `DELETE FROM pgbench_accounts WHERE aid > 900`,
		`INSERT INTO pgbench_branches VALUES (2, 0), (3, 0)`, `ANALYZE`)
	identities(t, database, written(t, database))
	complete(t, database, written(t, database), pgbenchChanges, []string{`TRUNCATE pgbench_tellers CASCADE`, `TRUNCATE pgbench_accounts CASCADE`}, 3)
}

package lookup

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
	"github.com/lethe-cache/lethe/rules"
)

func TestMain(m *testing.M) { harness.Main(m) }

// database makes a database with some SQL run in it, and a Runner on it whose
// session is set up badly unless the Runner sees to it.
func database(t testing.TB, cfg Config, sql ...string) (*Runner, *pgx.Conn) {
	t.Helper()
	url := harness.Database(t)
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	for _, s := range append(sql, `DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET DateStyle = ''SQL, DMY''', current_database());
		EXECUTE format('ALTER DATABASE %I SET TimeZone = ''Asia/Kolkata''', current_database());
		EXECUTE format('ALTER DATABASE %I SET bytea_output = ''escape''', current_database()); END $$`) {
		if _, err := conn.Exec(t.Context(), s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
	cfg.URL = url
	r, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r, conn
}

// rule is a rule on reviews with a lookup, of which it names some columns.
func rule(t testing.TB, sql string, columns ...string) *rules.Rule {
	t.Helper()
	return set(t, sql, columns...).Rules[0]
}

func set(t testing.TB, sql string, columns ...string) *rules.Set {
	t.Helper()
	var tags []string
	for _, c := range columns {
		tags = append(tags, fmt.Sprintf("%q", c+":{lookup."+c+"}"))
	}
	s, err := rules.Parse("rules.yaml", fmt.Appendf(nil, "version: 1\nrules:\n  - {name: r, table: reviews, tags: [%s], lookup: {sql: %q}}\n", strings.Join(tags, ", "), sql))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func requests(r *rules.Rule, params ...string) []rules.LookupRequest {
	var out []rules.LookupRequest
	for _, p := range params {
		out = append(out, rules.LookupRequest{Rule: r, Params: [][]byte{[]byte(p)}})
	}
	return out
}

// show renders an answer: rows with their values, or why there are none.
func show(a rules.LookupAnswer) string {
	var pgErr *pgconn.PgError
	switch {
	case errors.As(a.Err, &pgErr):
		return pgErr.Code
	case a.Err != nil:
		return a.Err.Error()
	case a.More:
		return "more"
	}
	var out []string
	for _, r := range a.Rows {
		var row []string
		for _, v := range r {
			if v.Kind == change.Null {
				row = append(row, "NULL")
			} else {
				row = append(row, string(v.Bytes))
			}
		}
		out = append(out, strings.Join(row, ","))
	}
	return strings.Join(out, " ")
}

const products = `CREATE TABLE products (id bigint PRIMARY KEY, category_id int, made timestamptz, raw bytea, price numeric(8,2), weight float8);
	INSERT INTO products VALUES (1, 7, '2026-01-02 03:04:05+00', '\x00ff', 1.50, 0.1), (2, NULL, NULL, NULL, NULL, NULL), (3, 9, NULL, NULL, NULL, NULL)`

// Each lookup is answered in its place; one that the database refuses leaves the
// others alone.
func TestLookupAnswersEach(t *testing.T) {
	t.Parallel()
	r, _ := database(t, Config{}, products)
	one := rule(t, `SELECT category_id, price FROM products WHERE id = @product_id`, "price", "category_id")
	many := rule(t, `SELECT g FROM generate_series(1, @product_id::int) g`, "g")
	wrong := rule(t, `SELECT nothing FROM nowhere WHERE id = @product_id`, "nothing")
	writes := rule(t, `SELECT nextval('s') AS n, @product_id::int`, "n")
	got, err := r.Lookup(t.Context(), change.Source{}, append(append(append(append(
		requests(one, "1", "2", "99", "abc", "3", "99999999999999999999"), requests(many, "1000", "1001", "2")...), requests(wrong, "1", "2")...),
		requests(writes, "1")...), requests(one, "1")...))
	if err != nil {
		t.Fatal(err)
	}
	thousand := got[6]
	if len(thousand.Rows) != rules.LookupRowsMax {
		t.Errorf("%d rows, want as many as there may be", len(thousand.Rows))
	}
	got[6] = rules.LookupAnswer{}
	var lines []string
	for _, a := range got {
		lines = append(lines, show(a))
	}
	// The sequence is not there either; what matters is that nothing is written.
	want := "1.50,7|NULL,NULL||22P02|NULL,9|22003||more|1 2|42P01|42P01|42P01|1.50,7"
	if have := strings.Join(lines, "|"); have != want {
		t.Errorf("answers\n%s\nwant\n%s", have, want)
	}
}

// Values print as the log carries them, however the database is set up.
func TestLookupPrintsLikeTheLog(t *testing.T) {
	t.Parallel()
	r, _ := database(t, Config{}, products)
	got, err := r.Lookup(t.Context(), change.Source{}, requests(rule(t, `SELECT * FROM products WHERE made = @product_id`, "made", "raw", "weight"), "2026-01-02 03:04:05+00"))
	if err != nil {
		t.Fatal(err)
	}
	if have, want := show(got[0]), `2026-01-02 03:04:05+00,\x00ff,0.1`; have != want {
		t.Errorf("a row prints %q, want %q", have, want)
	}
}

// A lookup writes nothing, whatever its statement says.
func TestLookupIsReadOnly(t *testing.T) {
	t.Parallel()
	r, conn := database(t, Config{}, products,
		`CREATE FUNCTION writes(bigint) RETURNS int LANGUAGE plpgsql AS 'BEGIN DELETE FROM products; RETURN 1; END'`,
		`CREATE FUNCTION turns(bigint) RETURNS int LANGUAGE plpgsql AS 'BEGIN SET TRANSACTION READ WRITE; DELETE FROM products; RETURN 1; END'`)
	for sql, code := range map[string]string{
		`SELECT writes(@id::bigint) AS n`: "25006",
		`SELECT turns(@id::bigint) AS n`:  "25001",
		`WITH d AS (DELETE FROM products RETURNING id AS n) SELECT n FROM d WHERE n = @id`: "0A000",
		`SELECT id AS n FROM products WHERE id = @id FOR UPDATE`:                           "25006",
	} {
		got, err := r.Lookup(t.Context(), change.Source{}, requests(rule(t, sql, "n"), "1"))
		if err != nil {
			t.Errorf("%s: %v, want an answer: it would be repeated for ever", sql, err)
		} else if have := show(got[0]); have != code {
			t.Errorf("%s: %q, want %s", sql, have, code)
		}
	}
	var n int
	if err := conn.QueryRow(t.Context(), `SELECT count(*) FROM products`).Scan(&n); err != nil || n != 3 {
		t.Errorf("%d products left (%v), want all", n, err)
	}
}

// A row that a policy hides from the role is no row that is not there: its name
// would be missing, and what it names stay stale. So such a statement is refused,
// and shows when the rules are checked.
func TestLookupSeesAllRowsOrErrs(t *testing.T) {
	t.Parallel()
	_, conn := database(t, Config{}, products, `ALTER TABLE products ENABLE ROW LEVEL SECURITY; CREATE POLICY shown ON products USING (id > 1)`,
		`DO $$ BEGIN EXECUTE format('CREATE ROLE %I LOGIN', 'lookup_' || current_database());
		EXECUTE format('GRANT SELECT ON products TO %I', 'lookup_' || current_database()); END $$`)
	config := conn.Config().Copy()
	config.User = "lookup_" + config.Database
	t.Cleanup(func() { dropRole(t, conn, config.User) })
	r, err := Open(Config{URL: fmt.Sprintf("host=%s port=%d dbname=%s user=%s sslmode=disable", config.Host, config.Port, config.Database, config.User)})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	s := set(t, `SELECT category_id FROM products WHERE id = @id`, "category_id")
	const refused = "42501"
	got, err := r.Lookup(t.Context(), change.Source{}, requests(s.Rules[0], "1", "3"))
	if err != nil || show(got[0]) != refused || show(got[1]) != refused {
		t.Errorf("looked up %q and %q (%v), want %s: the first row is hidden", show(got[0]), show(got[1]), err, refused)
	}
	other, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close(context.Background())
	infos, err := Describe(t.Context(), other, s)
	if err != nil || !strings.Contains(infos["r"].Refusal, refused) {
		t.Errorf("described as %+v (%v), want a refusal", infos["r"], err)
	}
}

func dropRole(t *testing.T, conn *pgx.Conn, role string) {
	name := pgx.Identifier{role}.Sanitize()
	if _, err := conn.Exec(context.Background(), "DROP OWNED BY "+name+"; DROP ROLE "+name); err != nil {
		t.Errorf("drop the role: %v", err)
	}
}

// What the statement timeout stops is tried again, and then given up; other
// lookups are answered.
func TestLookupTimeout(t *testing.T) {
	t.Parallel()
	r, _ := database(t, Config{StatementTimeout: 50 * time.Millisecond}, products)
	slow := rule(t, `SELECT pg_sleep(CASE WHEN @id::int = 1 THEN 60 ELSE 0 END)::text AS s`, "s")
	got, err := r.Lookup(t.Context(), change.Source{}, requests(slow, "1", "2"))
	if err != nil {
		t.Fatal(err)
	}
	if show(got[0]) != "57014" || len(got[1].Rows) != 1 {
		t.Errorf("answers %q and %q, want the timeout of the first alone", show(got[0]), show(got[1]))
	}
}

// A table that is altered under a Runner's connections is no error.
func TestLookupAfterDDL(t *testing.T) {
	t.Parallel()
	r, conn := database(t, Config{Concurrency: 1}, products)
	one := rule(t, `SELECT category_id FROM products WHERE id = @id`, "category_id")
	for _, ddl := range []string{`SELECT 1`, `ALTER TABLE products ALTER category_id TYPE text`, `ALTER TABLE products ALTER id TYPE int`} {
		if _, err := conn.Exec(t.Context(), ddl); err != nil {
			t.Fatal(err)
		}
		got, err := r.Lookup(t.Context(), change.Source{}, requests(one, "1"))
		if err != nil || show(got[0]) != "7" {
			t.Errorf("after %s: %q, %v, want 7", ddl, show(got[0]), err)
		}
	}
}

// The server must be the one that the log is of, or one promoted from it.
func TestLookupRefusesOtherServers(t *testing.T) {
	t.Parallel()
	r, _ := database(t, Config{}, products)
	one := requests(rule(t, `SELECT category_id FROM products WHERE id = @id`, "category_id"), "1")
	conn, err := r.pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	is := conn.Conn().PgConn().CustomData()[sourceKey].(change.Source)
	conn.Release()
	for _, c := range []struct {
		name string
		of   change.Source
		want error
	}{
		{"the same", is, nil},
		{"promoted since", change.Source{SystemID: is.SystemID, Timeline: is.Timeline - 1}, nil},
		{"an old primary", change.Source{SystemID: is.SystemID, Timeline: is.Timeline + 1}, ErrOtherSource},
		{"another system", change.Source{SystemID: is.SystemID + 1, Timeline: is.Timeline}, ErrOtherSource},
	} {
		if _, err := r.Lookup(t.Context(), c.of, one); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

func TestServerLookupRefusesStandby(t *testing.T) {
	t.Parallel()
	standby := harness.NewStandby(t, harness.Postgres(t), servers.StandbyConfig{})
	r, err := Open(Config{URL: standby.URL("postgres")})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := r.Lookup(t.Context(), change.Source{}, requests(rule(t, `SELECT @id::int AS n`, "n"), "1")); !errors.Is(err, ErrNotPrimary) {
		t.Errorf("a standby answers with %v, want ErrNotPrimary", err)
	}
}

// A database that goes away is an error of the call, so that it is repeated; no
// answer is made up.
func TestLookupOfADatabaseThatGoesAway(t *testing.T) {
	t.Parallel()
	r, conn := database(t, Config{Concurrency: 1}, products)
	one := requests(rule(t, `SELECT pg_sleep(CASE WHEN @id = '1' THEN 60 ELSE 0 END)::text AS s`, "s"), "1", "2")
	failed := make(chan error, 1)
	go func() {
		_, err := r.Lookup(t.Context(), change.Source{}, one)
		failed <- err
	}()
	harness.Eventually(t, 20*time.Second, func() error {
		tag, err := conn.Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND query LIKE '%pg_sleep%' AND state = 'active' AND pid <> pg_backend_pid()`)
		if err == nil && tag.RowsAffected() == 0 {
			err = errors.New("nobody sleeps")
		}
		return err
	})
	if err := <-failed; err == nil {
		t.Error("a connection that was cut is answered for")
	}
	if got, err := r.Lookup(t.Context(), change.Source{}, one[1:]); err != nil || len(got[0].Rows) != 1 {
		t.Errorf("afterwards: %v", err)
	}
}

func TestDescribe(t *testing.T) {
	t.Parallel()
	_, conn := database(t, Config{}, products,
		`CREATE TABLE parts (id int, day date) PARTITION BY RANGE (id); CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (1) TO (2); CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (2) TO (3)`,
		`CREATE VIEW cheap AS SELECT * FROM products WHERE price < 2`)
	for _, c := range []struct{ sql, want string }{
		{`SELECT c.category_id, c.price, p.day FROM cheap c JOIN parts p ON p.id = c.id WHERE c.id = @product_id AND c.made > @at`,
			"category_id integer, price numeric(8,2), day date; public.parts public.products"},
		{`SELECT 1 AS a`, "a integer; "},
		{`SELECT a FROM nowhere`, `relation "nowhere" does not exist (42P01)`},
		{`SELECT category_id FROM products WHERE id = @product_id AND name = 1`, `column "name" does not exist (42703)`},
		{`SELECT nextval('products')`, `"products" is not a sequence`},
		{`SELECT (SELECT 1`, "syntax error"},
	} {
		for range 2 { // the connection is as it was
			infos, err := Describe(t.Context(), conn, set(t, c.sql, "a"))
			if err != nil {
				t.Fatalf("%s: %v", c.sql, err)
			}
			info := infos["r"]
			var columns []string
			for _, col := range info.Columns {
				columns = append(columns, col.Name+" "+col.TypeName)
			}
			got := strings.Join(columns, ", ") + "; " + strings.Join(info.Tables, " ")
			if info.Refusal != "" {
				got = info.Refusal
			}
			if c.sql != `SELECT nextval('products')` && !strings.HasPrefix(got, c.want) {
				t.Errorf("%s: %s, want %s", c.sql, got, c.want)
			}
		}
	}
}

// Inside of a transaction its own changes are looked up, and a lookup that fails
// leaves the transaction usable and as it was.
func TestLookupIn(t *testing.T) {
	t.Parallel()
	_, conn := database(t, Config{}, products)
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if _, err := tx.Exec(t.Context(), `UPDATE products SET category_id = 70 WHERE id = 1; SET LOCAL TimeZone = 'Asia/Kolkata'`); err != nil {
		t.Fatal(err)
	}
	look := func(sql, param string, columns ...string) string {
		a, err := In(t.Context(), tx).Lookup(rule(t, sql, columns...), [][]byte{[]byte(param)})
		return show(rules.LookupAnswer{LookupResult: a, Err: err})
	}
	const sql = `SELECT category_id, made FROM products WHERE id = @id`
	if got, want := look(sql, "1", "category_id", "made"), "70,2026-01-02 03:04:05+00"; got != want {
		t.Errorf("looked up %q, want %q", got, want)
	}
	if got := look(sql, "x", "category_id"); got != "22P02" {
		t.Errorf("a bad parameter: %q", got)
	}
	if got := look(`SELECT setval('s', 1) AS n, @id`, "1", "n"); got != "42P01" {
		t.Errorf("no such sequence: %q", got)
	}
	var zone string
	if err := tx.QueryRow(t.Context(), `SELECT current_setting('TimeZone')`).Scan(&zone); err != nil || zone != "Asia/Kolkata" {
		t.Errorf("afterwards the time zone is %q (%v)", zone, err)
	}
	if _, err := tx.Exec(t.Context(), `DELETE FROM products`); err != nil {
		t.Errorf("the transaction writes no more: %v", err)
	}
}

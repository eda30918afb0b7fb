package catalog_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lethe-cache/lethe/cdc/catalog"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/rules"
)

// The server describes warm.sql as a run would execute it, and executes
// nothing; what it does not take is a finding, a lock that is not granted is
// an error that time cures.
func TestServerDescribesStatements(t *testing.T) {
	t.Parallel()
	conn, err := pgx.Connect(t.Context(), harness.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), `CREATE TABLE products (id bigint, name text)`); err != nil {
		t.Fatal(err)
	}
	statement := func(sql string) string { return (&rules.Warm{SQL: sql, Limit: 3}).Statement(0) }
	good, comment, table := statement(`SELECT id, name AS "n" FROM products ORDER BY id; `), statement("SELECT id FROM products -- all"), statement("TABLE products")
	bad := map[string]string{
		statement("SELECT id FROM nowhere"):                                         "does not exist",
		statement("DELETE FROM products RETURNING id"):                              "syntax error",
		statement("WITH d AS (DELETE FROM products RETURNING id) SELECT id FROM d"): "top level",
		statement("SELECT id FROM products) AS x; DROP TABLE products; SELECT (1"):  "",
		statement("SELECT 'x'::integer AS id"):                                      "invalid input",
		statement("SELECT id FROM products FOR UPDATE; SELECT id FROM products"):    "syntax error",
	}
	all := []string{good, good, comment, table}
	for sql := range bad {
		all = append(all, sql)
	}
	got, err := catalog.Describe(t.Context(), conn, all)
	if err != nil {
		t.Fatal(err)
	}
	if c := got[good].Columns; len(c) != 2 || c[0].Name != "id" || c[0].Type != 20 || c[1].Name != "n" || c[1].Type != 25 {
		t.Errorf("described as %+v", got[good])
	}
	for _, sql := range []string{comment, table} {
		if got[sql].Error != "" || len(got[sql].Columns) == 0 {
			t.Errorf("%s: %+v", sql, got[sql])
		}
	}
	for sql, want := range bad {
		if got[sql].Error == "" || !strings.Contains(got[sql].Error, want) {
			t.Errorf("%s: %+v, want an error with %q", sql, got[sql], want)
		}
	}
	var there bool
	if err := conn.QueryRow(t.Context(), `SELECT to_regclass('products') IS NOT NULL`).Scan(&there); err != nil || !there {
		t.Errorf("the table is there: %v, %v", there, err)
	}
	other, err := pgx.Connect(t.Context(), conn.Config().ConnString())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close(context.Background())
	if _, err := other.Exec(t.Context(), `BEGIN; LOCK TABLE products`); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), `SET lock_timeout = '10ms'`); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := catalog.Describe(ctx, conn, []string{good}); err == nil {
		t.Error("a statement whose table is locked was described")
	}
}

package rules_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/rules"
)

// What a path renders is what Postgres's own operators find.
func TestPathsArePostgresText(t *testing.T) {
	t.Parallel()
	conn := connect(t)
	exec(t, conn, `CREATE TYPE mood AS ENUM ('good', 'so-so'); CREATE DOMAIN event AS jsonb CHECK (jsonb_typeof(VALUE) = 'object');
		CREATE TABLE t (id int PRIMARY KEY, b jsonb, j json, e event, a text[], i int[], m mood[], d jsonb[], at timestamptz[])`)
	exec(t, conn, `INSERT INTO t VALUES (1,
		'{"n": [1, 1.50, 1e3, -0.0, 12345678901234567890.1], "s": ["", "a\"b\\c\/", "\u00fc\ud83c\udf0d\n", "{}[],:"], "o": {"odd key": {"x": [true, false, null]}}, "k": 1, "k": 2}',
		'{ "n" : [1, 1.50, 1e3, -0.0, 1E-2] , "s":["", "a\"b\\c\/", "\u00fc\ud83c\udf0d\n", "{}[],:"],"o":{"odd key":{"x":[true,false,null]}}, "k": 1, "k": 2}',
		'{"n": [5]}', ARRAY['a', 'b c', '', NULL, 'null', 'x"y', E'back\\slash', '{', 'ü', ',', E' tab\t'], '[3:5]={7,8,9}', '{good,so-so}',
		ARRAY['{"x": ["a\\b", "c\"d"]}', NULL, '"\\u0022"']::jsonb[], ARRAY['2026-11-21 01:30:00+05:30', 'infinity']::timestamptz[])`)
	set := `version: 1
rules: [{name: r, table: t, on: insert, keys: ["x:%s"]}]
`
	for path, sql := range map[string]string{
		`b.n[*]`: `SELECT jsonb_array_elements_text(b->'n') FROM t`, `j.n[*]`: `SELECT json_array_elements_text(j->'n') FROM t`,
		`b.s[*]`: `SELECT jsonb_array_elements_text(b->'s') FROM t`, `j.s[*]`: `SELECT json_array_elements_text(j->'s') FROM t`,
		`b.o."odd key".x[*]`: `SELECT x FROM t, jsonb_array_elements_text(b#>'{o,odd key,x}') x WHERE x IS NOT NULL`,
		`j.o."odd key".x[*]`: `SELECT x FROM t, json_array_elements_text(j#>'{o,odd key,x}') x WHERE x IS NOT NULL`,
		`b.k`:                `SELECT b->>'k' FROM t`, `j.k`: `SELECT j->>'k' FROM t`, `e.n[0]`: `SELECT e#>>'{n,0}' FROM t`,
		`a[*]`: `SELECT x FROM t, unnest(a) x WHERE x IS NOT NULL`, `a[5]`: `SELECT a[6] FROM t`, `i[*]`: `SELECT x::text FROM t, unnest(i) x`, `i[2]`: `SELECT i[5]::text FROM t`,
		`m[*]`: `SELECT x::text FROM t, unnest(m) x`, `d[*].x[*]`: `SELECT y FROM t, unnest(d) x, jsonb_array_elements_text(x->'x') y WHERE x IS NOT NULL AND jsonb_typeof(x) = 'object'`,
		`at[0]`: `SELECT at[1]::text FROM t`, `at[0]|date:hour`: `SELECT to_char(at[1], 'YYYY-MM-DD"T"HH24') FROM t`, `a[1]|hash`: `SELECT left(encode(sha256(convert_to(a[2], 'UTF8')), 'hex'), 16) FROM t`,
	} {
		exec(t, conn, `SET TimeZone = 'UTC'`)
		rows, err := conn.Query(t.Context(), sql)
		if err != nil {
			t.Fatal(err)
		}
		want, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil || len(want) == 0 {
			t.Fatalf("%s: %q, %v", sql, want, err)
		}
		plan := compile(t, fmt.Sprintf(set, "{"+strings.ReplaceAll(path, `"`, `\"`)+"}"))
		if errs := plan.Set().Check(liveSchema(t, conn)).Errors(); len(errs) > 0 {
			t.Errorf("%s: %s", path, errs)
		}
		var ts rules.Targets
		if err := plan.NewMatcher(rules.Observer{}).Match(&ts, &change.Change{Op: change.Insert, Table: liveTable(t, conn), New: liveRow(t, conn)}, change.Position{}); err != nil {
			t.Fatal(err)
		}
		var got []string
		for i := range ts.List {
			if ts.List[i].Kind == rules.KindKey {
				got = append(got, strings.TrimPrefix(string(ts.List[i].Name), "x:"))
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, slices.Compact(want)) {
			t.Errorf("{%s}: got %q, Postgres says %q", path, got, want)
		}
	}
}

// liveTable describes table t as the log does.
func liveTable(t *testing.T, conn *pgx.Conn) *change.Table {
	t.Helper()
	schema := liveSchema(t, conn)
	table := &change.Table{Schema: "public", Name: "t"}
	for _, c := range schema.Table("public.t").Columns {
		table.Columns = append(table.Columns, change.Column{Name: c.Name, Type: c.Type})
	}
	return table
}

// liveRow is the row of table t in the text form that the log carries.
func liveRow(t *testing.T, conn *pgx.Conn) change.Row {
	t.Helper()
	result, err := conn.PgConn().Exec(t.Context(), `SELECT * FROM t`).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	var row change.Row
	for _, v := range result[0].Rows[0] {
		if v == nil {
			row = append(row, change.Value{Kind: change.Null})
		} else {
			row = append(row, change.Value{Kind: change.Text, Bytes: v})
		}
	}
	return row
}

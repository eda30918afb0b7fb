package warmer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/rules"
)

func TestMain(m *testing.M) { harness.Main(m) }

// parse reads rules or fails the test.
func parse(t testing.TB, text string) *rules.Set {
	t.Helper()
	set, err := rules.Parse("rules.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// database makes a database with some SQL run in it.
func database(t testing.TB, sql ...string) (url string, conn *pgx.Conn) {
	t.Helper()
	url = harness.Database(t)
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	for _, s := range sql {
		if _, err := conn.Exec(t.Context(), s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
	return url, conn
}

func loader(t testing.TB, cfg LoaderConfig) *Loader {
	t.Helper()
	l, err := OpenLoader(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

// load loads and renders the result in one line for each name.
func load(t testing.TB, l *Loader, set *rules.Set, class string, names ...string) []string {
	t.Helper()
	got, err := l.Load(t.Context(), set, set.Class(class), names)
	if err != nil {
		t.Fatal(err)
	}
	if got.Source.SystemID == 0 || got.Source.Timeline == 0 {
		t.Errorf("Load: source %+v is not told", got.Source)
	}
	var lines []string
	for i, v := range got.Values {
		lines = append(lines, strings.TrimSpace(string(v)+" "+strings.Join(got.Tags[i], ",")))
	}
	return lines
}

func wantLines(t testing.TB, got []string, want ...string) {
	t.Helper()
	if g, w := strings.Join(got, "\n"), strings.Join(want, "\n"); g != w {
		t.Errorf("got\n%s\nwant\n%s", g, w)
	}
}

const productRules = `
version: 1
namespace: shop
entries:
  product:
    key: product:{id}
    load:
      sql: SELECT id, name, price, category_id FROM products WHERE id = ANY(@id)
    tags: [ "category:{category_id}" ]
  line:
    key: line:{order_id}:{sku|urlencode}
    load:
      sql: |
        SELECT l.order_id, l.sku, l.n FROM lines l
        JOIN unnest(@order_id::bigint[], @sku::text[]) AS w(o, s) ON l.order_id = w.o AND l.sku = w.s
`

func TestLoaderReadsManyAtOnce(t *testing.T) {
	t.Parallel()
	url, _ := database(t,
		`CREATE TABLE products (id bigint PRIMARY KEY, name text, price numeric(10,2), category_id int)`,
		`INSERT INTO products SELECT i, 'product ' || i, i + 0.50, nullif(i % 3, 0) FROM generate_series(1, 20) i`,
		`CREATE TABLE lines (order_id bigint, sku text, n int, PRIMARY KEY (order_id, sku))`,
		`INSERT INTO lines VALUES (1, 'a', 1), (1, 'b/c d', 2), (2, 'a', 3), (2, '"\{},', 4)`)
	set := parse(t, productRules)
	l := loader(t, LoaderConfig{URL: url, Batch: 3})
	wantLines(t, load(t, l, set, "product", "shop:product:7", "shop:product:3", "shop:product:99", "shop:product:abc", "shop:product:20", "shop:product:07", "other"),
		`{"id":7,"name":"product 7","price":7.50,"category_id":1} shop:category:1`,
		`{"id":3,"name":"product 3","price":3.50,"category_id":null}`,
		``,
		``,
		`{"id":20,"name":"product 20","price":20.50,"category_id":2} shop:category:2`,
		``,
		``)
	wantLines(t, load(t, l, set, "line", "shop:line:2:a", "shop:line:1:b%2Fc%20d", "shop:line:1:%22%5C%7B%7D%2C", "shop:line:2:%22%5C%7B%7D%2C"),
		`{"order_id":2,"sku":"a","n":3}`,
		`{"order_id":1,"sku":"b/c d","n":2}`,
		``,
		`{"order_id":2,"sku":"\"\\{},","n":4}`)
}

func TestLoaderValuesOfEveryType(t *testing.T) {
	t.Parallel()
	url, _ := database(t,
		`CREATE TYPE mood AS ENUM ('sad', 'gl"ad')`,
		`CREATE DOMAIN cents AS int`,
		`CREATE TABLE v (id text PRIMARY KEY, i2 int2, i8 int8, f4 float4, f8 float8, n numeric, b bool, ts timestamp, tz timestamptz, d date, j json, jb jsonb, by bytea, u uuid, m mood, c cents, ia int[], ta text[], ba bytea[])`,
		`SET TimeZone = 'Asia/Kolkata'`,
		`INSERT INTO v VALUES ('full', -7, 9007199254740993, 1.5, 1e-7, 1.500, true, '2024-02-03 04:05:06.789', '2024-02-03 04:05:06+00', '2024-02-03',
			E'{"a": 1,\n "b": [true, null]}', '{"k": "v"}', '\x00ff10', '6ba7b810-9dad-11d1-80b4-00c04fd430c8', 'gl"ad', 5, '{1,NULL,3}', '{"a b",NULL,"NULL","q\"\\{}"}', '{"\\x0102"}')`,
		`INSERT INTO v (id, f8, n, ts, tz, ia) VALUES ('odd', 'NaN', 'Infinity', 'infinity', '0044-03-15 12:00:00+00 BC', '{{1,2},{3,4}}')`,
		`INSERT INTO v (id, ia) VALUES (E'line\nbreak \u2028 <&>', '[0:1]={5,6}')`)
	set := parse(t, `
version: 1
entries:
  v: {key: "v:{id}", load: {sql: "SELECT * FROM v WHERE id = ANY(@id)"}}
`)
	l := loader(t, LoaderConfig{URL: url})
	wantLines(t, load(t, l, set, "v", "v:full", "v:odd", "v:line\nbreak \u2028 <&>"),
		`{"id":"full","i2":-7,"i8":9007199254740993,"f4":1.5,"f8":1e-07,"n":1.500,"b":true,"ts":"2024-02-03T04:05:06.789Z","tz":"2024-02-03T04:05:06Z","d":"2024-02-03",`+
			`"j":{"a":1,"b":[true,null]},"jb":{"k":"v"},"by":"AP8Q","u":"6ba7b810-9dad-11d1-80b4-00c04fd430c8","m":"gl\"ad","c":5,"ia":[1,null,3],"ta":["a b",null,"NULL","q\"\\{}"],"ba":["AQI="]}`,
		`{"id":"odd","i2":null,"i8":null,"f4":null,"f8":"NaN","n":"Infinity","b":null,"ts":"infinity","tz":"0044-03-15 12:00:00+00 BC","d":null,"j":null,"jb":null,"by":null,"u":null,"m":null,"c":null,"ia":[[1,2],[3,4]],"ta":null,"ba":null}`,
		`{"id":"line\nbreak \u2028 <&>","i2":null,"i8":null,"f4":null,"f8":null,"n":null,"b":null,"ts":null,"tz":null,"d":null,"j":null,"jb":null,"by":null,"u":null,"m":null,"c":null,"ia":[5,6],"ta":null,"ba":null}`)
}

func TestLoaderRefuses(t *testing.T) {
	t.Parallel()
	url, _ := database(t,
		`CREATE TABLE p (id int PRIMARY KEY, x int)`,
		`INSERT INTO p SELECT i, i FROM generate_series(1, 5) i`,
		`CREATE FUNCTION writes() RETURNS int LANGUAGE plpgsql AS 'BEGIN INSERT INTO p VALUES (99, 99); RETURN 1; END'`)
	for _, test := range []struct{ name, sql, want string }{
		{"NoKeyColumn", `SELECT x FROM p WHERE id = ANY(@id)`, `no column "id"`},
		{"TwoRows", `SELECT id, x FROM p, generate_series(1, 2) WHERE id = ANY(@id)`, `two rows have the key "p:1"`},
		{"Writes", `SELECT id, writes() FROM p WHERE id = ANY(@id)`, `read-only transaction`},
		{"Timeout", `SELECT id, pg_sleep(30)::text FROM p WHERE id = ANY(@id)`, `statement timeout`},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			set := parse(t, fmt.Sprintf("version: 1\nentries:\n  p: {key: \"p:{id}\", load: {sql: %q}}\n", test.sql))
			l := loader(t, LoaderConfig{URL: url, StatementTimeout: 200 * time.Millisecond})
			_, err := l.Load(t.Context(), set, set.Class("p"), []string{"p:1"})
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("Load: error %v, want %q", err, test.want)
			}
		})
	}
	t.Run("NoLoader", func(t *testing.T) {
		set := parse(t, "version: 1\nentries:\n  p: {key: \"p:{id}\"}\n")
		l := loader(t, LoaderConfig{URL: url})
		if _, err := l.Load(t.Context(), set, set.Class("p"), []string{"p:1"}); !errors.Is(err, ErrNoLoader) {
			t.Fatalf("Load: error %v, want ErrNoLoader", err)
		}
	})
	t.Run("OtherSource", func(t *testing.T) {
		l := loader(t, LoaderConfig{URL: url})
		if _, err := l.InsertLSN(t.Context(), change.Source{SystemID: 1, Timeline: 1}); err == nil {
			t.Fatal("InsertLSN of another system: no error")
		}
		if lsn, err := l.InsertLSN(t.Context(), change.Source{}); err != nil || lsn == 0 {
			t.Fatalf("InsertLSN = %v, %v", lsn, err)
		}
	})
}

func TestOpenLoaderHidesPassword(t *testing.T) {
	t.Parallel()
	_, err := OpenLoader(t.Context(), LoaderConfig{URL: "postgres://u:s3cret@h:notaport/db"})
	if err == nil || strings.Contains(err.Error(), "s3cret") {
		t.Fatalf("OpenLoader: error %v", err)
	}
}

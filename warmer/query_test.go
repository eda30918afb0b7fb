package warmer

import (
	"strings"
	"testing"
)

// `unnest(@a, @b)` says nothing of what the arrays are of, and the server does
// not guess: the types are those of the columns that the result has for them.
func TestServerLoaderFindsTypesOfArrays(t *testing.T) {
	t.Parallel()
	url, _ := database(t,
		`CREATE TYPE shade AS ENUM ('light', 'dark')`,
		`CREATE TABLE pairs (a int, b text, v text, PRIMARY KEY (a, b))`,
		`INSERT INTO pairs VALUES (1, 'x', 'one'), (2, '"y', 'two')`,
		`CREATE TABLE odd (u uuid, d date, n numeric, PRIMARY KEY (u, d, n))`,
		`INSERT INTO odd VALUES ('6ba7b810-9dad-11d1-80b4-00c04fd430c8', '2026-01-02', 1.5)`)
	set := parse(t, `
version: 1
namespace: s
entries:
  pair:
    key: pair:{a}:{b}
    load: {sql: "SELECT p.* FROM pairs p JOIN unnest(@a, @b) AS w(a, b) ON p.a = w.a AND p.b = w.b"}
  within:
    key: within:{a}:{b}
    load: {sql: "SELECT a, b, v FROM pairs WHERE (a, b) IN (SELECT * FROM unnest(@a, @b)) -- all"}
  one:
    key: one:{a}
    load: {sql: "SELECT a, min(v) AS v FROM pairs WHERE a IN (SELECT unnest(@a)) GROUP BY a"}
  odd:
    key: odd:{u}:{d}:{n}
    load: {sql: "SELECT o.* FROM odd o JOIN unnest(@u, @d, @n) AS w(u, d, n) USING (u, d, n)"}
  wrong:
    key: wrong:{a}
    load: {sql: "SELECT a FROM nowhere WHERE a IN (SELECT unnest(@a))"}
`)
	l := loader(t, LoaderConfig{URL: url, Batch: 3})
	wantLines(t, load(t, l, set, "pair", "s:pair:1:x", `s:pair:2:"y`, "s:pair:1:nobody", "s:pair:abc:x"),
		`{"a":1,"b":"x","v":"one"}`, `{"a":2,"b":"\"y","v":"two"}`, ``, ``)
	wantLines(t, load(t, l, set, "within", "s:within:1:x"), `{"a":1,"b":"x","v":"one"}`)
	wantLines(t, load(t, l, set, "one", "s:one:1"), `{"a":1,"v":"one"}`)
	// 1.5 is no bigint, which compares with a numeric as well.
	wantLines(t, load(t, l, set, "odd", "s:odd:6ba7b810-9dad-11d1-80b4-00c04fd430c8:2026-01-02:1.5"),
		`{"u":"6ba7b810-9dad-11d1-80b4-00c04fd430c8","d":"2026-01-02","n":1.5}`)
	_, err := l.Load(t.Context(), set, set.Class("wrong"), []string{"s:wrong:1"})
	if err == nil || !strings.Contains(err.Error(), `"nowhere" does not exist`) {
		t.Errorf("a statement of a table that is not there: %v", err)
	}
}

// A column that a tag needs and load.sql does not select is read with the row,
// where the row is one of a table, and is no part of the value.
func TestServerLoaderReadsColumnsOfTags(t *testing.T) {
	t.Parallel()
	url, conn := database(t,
		`CREATE TABLE products (id int PRIMARY KEY, name text, price numeric(10,2), "Category" int)`,
		`INSERT INTO products VALUES (1, 'one', 1.50, 7), (2, 'two', 2, NULL)`,
		`CREATE TABLE bare (id int, name text, "Category" int)`,
		`INSERT INTO bare VALUES (1, 'one', 7)`)
	set := parse(t, `
version: 1
namespace: s
entries:
  product:
    key: product:{id}
    tags: ["category:{\"Category\"}", "name:{name}"]
    load: {sql: "SELECT id, name, price FROM products WHERE id = ANY(@id);"}
  renamed:
    key: renamed:{product_id}
    tags: ["category:{\"Category\"}"]
    load: {sql: "SELECT p.id AS product_id, 1 AS one FROM products p JOIN unnest(@product_id) AS w(id) ON w.id = p.id -- each"}
  bare:
    key: bare:{id}
    tags: ["category:{\"Category\"}"]
    load: {sql: "SELECT id, name FROM bare WHERE id = ANY(@id)"}
  computed:
    key: computed:{id}
    tags: ["category:{\"Category\"}"]
    load: {sql: "SELECT id + 0 AS id FROM products WHERE id = ANY(@id)"}
`)
	l := loader(t, LoaderConfig{URL: url})
	want := func(class string, names []string, lines ...string) {
		t.Helper()
		wantLines(t, load(t, l, set, class, names...), lines...)
	}
	want("product", []string{"s:product:1", "s:product:2", "s:product:3"},
		`{"id":1,"name":"one","price":1.50} s:category:7,s:name:one`, `{"id":2,"name":"two","price":2.00} s:name:two`, ``)
	want("renamed", []string{"s:renamed:1"}, `{"product_id":1,"one":1} s:category:7`)
	// Not a row of a table for sure: two rows could be meant, or none. An entry
	// without one of its tags is one that a purge does not find.
	unfit := func(class string) {
		t.Helper()
		_, err := l.Load(t.Context(), set, set.Class(class), []string{"s:" + class + ":1"})
		if err == nil || !strings.Contains(err.Error(), "load.sql does not fit") {
			t.Errorf("%s: %v, want it to say that load.sql does not fit", class, err)
		}
	}
	unfit("bare")
	unfit("computed")
	// What was found out is found out again behind a DDL, both ways.
	exec := func(sql string) {
		t.Helper()
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	exec(`ALTER TABLE bare ADD PRIMARY KEY (id)`)
	want("bare", []string{"s:bare:1"}, `{"id":1,"name":"one"} s:category:7`)
	exec(`ALTER TABLE bare DROP COLUMN "Category"`)
	if _, err := l.Load(t.Context(), set, set.Class("bare"), []string{"s:bare:1"}); err == nil {
		t.Error("the column that was found is gone, and nothing was said of it")
	}
	unfit("bare")
	// A table that has lost its index can have two rows of one key.
	exec(`ALTER TABLE products DROP CONSTRAINT products_pkey`)
	exec(`INSERT INTO products VALUES (1, 'other', 1.50, 8)`)
	if _, err := l.Load(t.Context(), set, set.Class("renamed"), []string{"s:renamed:1"}); err == nil {
		t.Error("two rows of one key were taken for one")
	}
}

package explain_test

import (
	"encoding/json"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/explain"
	"github.com/lethe-cache/lethe/rules"
)

func describe(t *testing.T, text string, schema *rules.Schema) (string, error) {
	t.Helper()
	var r explain.Row
	if err := yaml.Unmarshal([]byte(text), &r); err != nil {
		t.Fatal(err)
	}
	c, err := r.Change(schema)
	if err != nil {
		return "", err
	}
	return explain.Describe(c), nil
}

func TestRowChange(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ in, want string }{
		{`{table: a, op: insert, new: {id: 1, ok: true, no: false, x: null, f: 1.5, s: "it's", j: {b: [1, "<"]}}}`,
			`insert public.a new(f=1.5, id=1, j={"b":[1,"<"]}, no=f, ok=t, s=it's, x=NULL)`},
		{`{table: s.a, op: update, new: {id: 1, n: 2}}`, `update s.a new(id=1, n=2)`},
		// What is written of the old row is what the log carries.
		{`{table: a, op: update, old: {n: 1}, new: {id: 1, n: 2}}`, `update public.a old(id=1, n=1) new(id=1, n=2)`},
		{`{table: a, op: update, old: {id: 1, n: 1}, new: {id: 1, n: 2}, identity: [id]}`, `update public.a new(id=1, n=2)`},
		{`{table: a, op: update, old: {id: 1, n: 1}, new: {id: 2, n: 2}, identity: [id]}`, `update public.a old(id=1) new(id=2, n=2)`},
		{`{table: a, op: delete, old: {id: 1}}`, `delete public.a old(id=1)`},
		{`{table: a, op: delete, old: {id: 1, n: 1}, identity: [id]}`, `delete public.a old(id=1)`},
		{`{table: a, op: truncate}`, `truncate public.a`},
		{`{op: message, message: {keys: [a]}}`, `message "lethe" {"keys":["a"]}`},
		{`{table: a, op: insert, new: {at: 2026-01-02T03:04:05+02:00}, types: {at: timestamptz}}`, `insert public.a new(at=2026-01-02 01:04:05+00)`},
		{`{table: a, op: insert, new: {at: 2026-01-02}, types: {at: date}}`, `insert public.a new(at=2026-01-02)`},
		{`{table: a, op: insert, new: {t: [a, "b c", null], n: [[1, 2], [3, 4]], d: [{x: 1}], j: true, l: [a]}, types: {t: "text[]", n: "bigint[]", d: "jsonb[]", j: jsonb}}`,
			`insert public.a new(d={"{\"x\":1}"}, j=true, l=["a"], n={{1,2},{3,4}}, t={a,"b c",NULL})`},
	} {
		if got, err := describe(t, tt.in, nil); err != nil || got != tt.want {
			t.Errorf("%s: got %s, %v, want %s", tt.in, got, err, tt.want)
		}
	}
}

func TestRowChangeRefuses(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`{table: a}`:                                              "needs an op",
		`{op: insert, new: {id: 1}}`:                              "needs a table",
		`{table: a, op: upsert, new: {id: 1}}`:                    `op "upsert"`,
		`{table: a, op: insert}`:                                  "want new",
		`{table: a, op: insert, old: {}, new: {}}`:                "no old",
		`{table: a, op: update, old: {id: 1}}`:                    "want new",
		`{table: a, op: delete, new: {id: 1}}`:                    "want old",
		`{table: a, op: truncate, new: {id: 1}}`:                  "has no rows",
		`{table: a, op: insert, new: {id: 1}, types: {id: intt}}`: `"intt" is none of`,
		`{table: a, op: insert, new: {id: 1}, message: {}}`:       "belongs to op message",
		`{op: message}`:                                           "has a message",
		`{op: message, table: a, message: {keys: [a]}}`:           "neither table nor rows",
		`{table: products, op: insert, new: {id: 1, nme: x}}`:     `has no column "nme"`,
	} {
		got, err := describe(t, in, liveProducts())
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %s, %v, want an error with %q", in, got, err, want)
		}
	}
}

func liveProducts() *rules.Schema {
	return &rules.Schema{Tables: []rules.TableInfo{{Schema: "public", Name: "products", Kind: 'r', Identity: change.IdentityDefault, IdentityColumns: []string{"id"},
		Columns: []rules.ColumnInfo{{Name: "id", Type: 20}, {Name: "name", Type: 25}, {Name: "loud", Type: 25, Generated: 's'}}}}}
}

// With a live schema the replica identity decides what the log carries.
func TestRowChangeByLiveSchema(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		`{table: products, op: update, old: {id: 1, name: a}, new: {id: 1, name: b}}`: "update public.products new(id=1, name=b)",
		`{table: products, op: update, old: {id: 1, name: a}, new: {id: 2, name: b}}`: "update public.products old(id=1) new(id=2, name=b)",
		`{table: products, op: delete, old: {id: 1, name: a}}`:                        "delete public.products old(id=1)",
	} {
		if got, err := describe(t, in, liveProducts()); err != nil || got != want {
			t.Errorf("%s: got %s, %v, want %s", in, got, err, want)
		}
	}
	if _, err := describe(t, `{table: products, op: insert, new: {id: 1, loud: A}}`, liveProducts()); err == nil {
		t.Error("a generated column was taken: the log does not carry it")
	}
}

// Numbers keep their digits.
func TestRowKeepsNumbers(t *testing.T) {
	t.Parallel()
	var r explain.Row
	d := json.NewDecoder(strings.NewReader(`{"table":"a","op":"insert","new":{"id":9007199254740993,"p":1.10}}`))
	d.UseNumber()
	if err := d.Decode(&r); err != nil {
		t.Fatal(err)
	}
	c, err := r.Change(nil)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := explain.Describe(c), "insert public.a new(id=9007199254740993, p=1.10)"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// The way through the cascade, the rule and its line.
func TestExplainSaysWhy(t *testing.T) {
	t.Parallel()
	set := parse(t, `version: 1
namespace: shop
entries:
  user: {key: "user:{id}"}
  profile: {key: "profile:{id}"}
  feed: {key: "feed:{id}"}
rules:
  - name: users
    table: public.users
    keys:
      - "user:{id}"
    tags:
      all: ["a:{id}", "b:{id}"]
dependencies:
  - of: "user:{id}"
    also: ["profile:{id}"]
  - of: "profile:{id}"
    also:
      - "feed:{id}"
`)
	e, err := explain.New(set)
	if err != nil {
		t.Fatal(err)
	}
	row := explain.Row{Table: "users", Op: "insert", New: map[string]any{"id": 7}}
	c, err := row.Change(nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := e.Explain(c)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	if err := explain.Print(&b, []explain.Explanation{got}); err != nil {
		t.Fatal(err)
	}
	want := `insert public.users new(id=7)
  delete key shop:user:7 (user)
      because of rule "users", rules.yaml:11
  purge tags shop:a:7 & shop:b:7
      because of rule "users", rules.yaml:13
  delete key shop:profile:7 (profile)
      because of rule "users", rules.yaml:16, through shop:user:7
  delete key shop:feed:7 (feed)
      because of rule "users", rules.yaml:19, through shop:user:7 -> shop:profile:7
`
	if b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

package client_test

import (
	"context"
	"database/sql"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"math/big"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgtype"
	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/client"
	"github.com/lethe-cache/lethe/rules"
)

func ExampleClass_Key() {
	c := closedRedis()
	defer c.Close()
	products := client.Entries[Product](c, "product", client.KeyTemplate("product:{id}"))
	prices := client.Entries[int](c, "price", client.KeyTemplate("price:{product_id}:{currency|lower}"))

	fmt.Println(products.Key(42))
	fmt.Println(products.Key(Product{ID: 42}))
	fmt.Println(prices.Key(map[string]any{"product_id": 42, "currency": "EUR"}))
	_, err := prices.Key(map[string]any{"product_id": 42})
	fmt.Println(err)
	// Output:
	// product:42 <nil>
	// product:42 <nil>
	// price:42:eur <nil>
	// key of entries "price": "price:{product_id}:{currency|lower}": no value for {currency} among ["product_id"]
}

// closedRedis makes a Client of a Redis that does not answer.
func closedRedis() *client.Client {
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	defer rdb.Close()
	c, err := client.Open(context.Background(), client.Options{Redis: rdb, OpenTimeout: time.Nanosecond})
	if err != nil {
		panic(err)
	}
	return c
}

func keys(t *testing.T, template string) *client.Class[int] {
	t.Helper()
	c := closedRedis()
	t.Cleanup(func() { _ = c.Close() })
	return client.Entries[int](c, "item", client.KeyTemplate(template))
}

// Every golden vector, through Key and through the rules from the log's text.
func TestKeyRendersAsTheRulesDo(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("../rules/testdata/render.json")
	if err != nil {
		t.Fatal(err)
	}
	var vectors struct {
		Values    []struct{ Type, SQL, Go, Value, Text string }
		Templates []struct {
			Template string
			Values   map[string]string
			Name     string
		}
	}
	if err := json.Unmarshal(data, &vectors); err != nil {
		t.Fatal(err)
	}
	if len(vectors.Values) < 40 || len(vectors.Templates) < 8 {
		t.Fatalf("%d values and %d templates: the vectors are not whole", len(vectors.Values), len(vectors.Templates))
	}
	type row struct {
		V any `db:"v"`
	}
	e := keys(t, "item:{v}")
	for _, v := range vectors.Values {
		want := ruleKey(t, "item:{v}", map[string]string{"v": v.Text})
		value := vectorValue(t, v.Go, v.Value)
		for _, params := range []any{value, &value, map[string]any{"v": value}, row{value}, &row{value}} {
			if p, ok := params.(*any); ok {
				params = *p
			}
			if got, err := e.Key(params); err != nil || got != want {
				t.Errorf("%s %s: Key(%T) = %q, %v; the rules build %q", v.Type, v.SQL, params, got, err, want)
			}
		}
	}
	for _, v := range vectors.Templates {
		values := map[string]any{}
		for k, s := range v.Values {
			values[k] = s
		}
		if got, err := keys(t, v.Template).Key(values); err != nil || got != v.Name {
			t.Errorf("Key of %s = %q, %v; want %q", v.Template, got, err, v.Name)
		}
	}
}

// ruleKey is the key that the worker builds from a row of the log.
func ruleKey(t *testing.T, template string, values map[string]string) string {
	t.Helper()
	set, err := rules.Parse("x.yaml", []byte("version: 1\nrules:\n- {name: r, table: t, keys: ['"+template+"']}\n"))
	if err != nil {
		t.Fatal(err)
	}
	plan, err := set.Compile()
	if err != nil {
		t.Fatal(err)
	}
	table, row := &change.Table{Schema: "public", Name: "t"}, change.Row{}
	for c, s := range values {
		table.Columns = append(table.Columns, change.Column{Name: c, Type: 25})
		row = append(row, change.Value{Kind: change.Text, Bytes: []byte(s)})
	}
	var ts rules.Targets
	if err := plan.NewMatcher(rules.Observer{}).Match(&ts, &change.Change{Op: change.Insert, Table: table, New: row}, change.Position{}); err != nil {
		t.Fatal(err)
	}
	if len(ts.List) != 1 {
		t.Fatalf("%d names for %v", len(ts.List), values)
	}
	return string(ts.List[0].Name)
}

type (
	mood    string
	rowUUID [16]byte
)

// vectorValue makes the Go value that a vector describes, with the types that
// applications have.
func vectorValue(t *testing.T, kind, value string) any {
	t.Helper()
	integer := func() int64 { i, _ := strconv.ParseInt(value, 10, 64); return i }
	float := func() float64 { f, _ := strconv.ParseFloat(value, 64); return f }
	raw := func() []byte { b, _ := hex.DecodeString(value); return b }
	split := func(sep string) (out []any) {
		for s := range strings.SplitSeq(value, sep) {
			out = append(out, s)
		}
		return out
	}
	switch kind {
	case "bool":
		return value == "true"
	case "int16":
		return int16(integer())
	case "int32":
		return int32(integer())
	case "int64":
		return integer()
	case "uint32":
		return uint32(integer())
	case "bigint":
		b, _ := new(big.Int).SetString(value, 10)
		return b
	case "float32":
		f, _ := strconv.ParseFloat(value, 32)
		return float32(f)
	case "float64":
		return float()
	case "string":
		return mood(value)
	case "bytes":
		return raw()
	case "uuid":
		return rowUUID(raw())
	case "date":
		return client.Date(vectorTime(t, value))
	case "timestamp":
		return client.Timestamp(vectorTime(t, value))
	case "timestamptz":
		return vectorTime(t, value)
	case "addr":
		return netip.MustParseAddr(value)
	case "prefix":
		return netip.MustParsePrefix(value)
	case "int64s":
		var out []*int64
		for _, s := range split(",") {
			i, err := strconv.ParseInt(s.(string), 10, 64)
			out = append(out, &i)
			if err != nil {
				out[len(out)-1] = nil
			}
		}
		return out
	case "strings":
		out := split("|")
		for i := range out {
			if out[i] == "NULL!" {
				out[i] = nil
			}
		}
		return out
	case "nostrings":
		return []string{}
	case "matrix":
		return [][]int32{{1, 2}, {3, 4}}
	case "uuids":
		return [][16]byte{[16]byte(raw())}
	case "bools":
		return []bool{true, false}
	}
	t.Fatalf("unknown kind %q of Go value", kind)
	return nil
}

// vectorTime reads RFC 3339 with years that it does not have.
func vectorTime(t *testing.T, s string) time.Time {
	t.Helper()
	year := 0
	switch {
	case strings.HasPrefix(s, "+12026"):
		s, year = "2026"+s[6:], 10000
	case strings.HasPrefix(s, "-0043"):
		s, year = "2043"+s[5:], -2086
	}
	v, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		t.Fatal(err)
	}
	return v.AddDate(year, 0, 0)
}

type Base struct {
	TenantID int
	Hidden   int `db:"id"`
}

type keyRow struct {
	Slug   string `json:"slug,omitempty"`
	Name   string `db:"id" json:"other"`
	Other  string `json:"id"`
	ID     string
	lower  int
	Maybe  sql.NullInt64
	Ptr    *int
	At     time.Time
	Object struct{ X int }
	*Base
}

func TestKeyParams(t *testing.T) {
	t.Parallel()
	seven := 7
	row := keyRow{Base: &Base{TenantID: 3, Hidden: 9}, Slug: "a", Name: "db", Other: "json", ID: "name", lower: 1, Ptr: &seven, At: time.Unix(0, 0)}
	row.Maybe = sql.NullInt64{Int64: 5, Valid: true}
	for _, c := range []struct {
		template string
		params   any
		want     string
	}{
		{"k:{id}", row, "k:db"}, // the shallowest db tag, before json and name
		{"k:{other}", row, "k:db"},
		{"k:{slug|upper}", &row, "k:A"},
		{"k:{tenant_id}", row, "k:3"},
		{"k:{TenantID}", row, "k:3"},
		{"k:{maybe}:{ptr}", row, "k:5:7"},
		{"k:{at}", row, "k:1970-01-01 00:00:00+00"},
		{"k:{id}", time.Unix(0, 0), "k:1970-01-01 00:00:00+00"},
		{"k:{id}", sql.NullString{String: "x", Valid: true}, "k:x"},
		{"k:{id}", pgtype.Int8{Int64: 8, Valid: true}, "k:8"},
		{"k:{id}", &seven, "k:7"},
		{"k:{id}-{id}", 7, "k:7-7"},
		{"k:{id}", map[mood]int{"id": 7, "x": 1}, "k:7"},
		{"k:all", nil, "k:all"},
	} {
		if got, err := keys(t, c.template).Key(c.params); err != nil || got != c.want {
			t.Errorf("Key(%s, %T) = %q, %v; want %q", c.template, c.params, got, err, c.want)
		}
	}
}

func TestKeyErrors(t *testing.T) {
	t.Parallel()
	var none *int
	var noRow *keyRow
	for _, c := range []struct {
		template string
		params   any
		want     string
	}{
		{"k:{id}", map[string]any{"ID": 7, "slug": 1}, `no value for {id} among ["ID" "slug"]`},
		{"k:{id}", map[string]any{"id": nil}, "the value of {id} is nil"},
		{"k:{id}", none, "the value of {id} is nil"},
		{"k:{id}", nil, "the value of {id} is nil"},
		{"k:{maybe}", keyRow{}, "NULL"},
		{"k:{ptr}", keyRow{}, "the value of {ptr} is nil"},
		{"k:{tenant_id}", keyRow{}, "the value of {tenant_id} is nil"},
		{"k:{lower}", keyRow{}, "client_test.keyRow has no exported field for {lower}"},
		{"k:{price}", keyRow{}, "no exported field for {price}"},
		{"k:{object}", keyRow{}, "value of object"},
		{"k:{a}:{b}", 7, "2 placeholders: want a struct or a map, got int"},
		{"k:{a}:{b}", noRow, "got *client_test.keyRow (nil: true)"},
		{"k:{id}", time.Second, "interval"},
		{"k:{id}", func() {}, "no Postgres text"},
		{"k:{old.id}", 7, "are for rules"},
		{"k:{id", 7, "not closed"},
		{"", 7, "template is empty"},
	} {
		if got, err := keys(t, c.template).Key(c.params); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("Key(%s, %T) = %q, %v; want an error with %q", c.template, c.params, got, err, c.want)
		}
	}
	c := closedRedis()
	defer c.Close()
	if _, err := client.Entries[int](c, "item", client.TTL(time.Hour)).Key(7); !errors.Is(err, client.ErrNoKeyTemplate) {
		t.Errorf("got %v, want ErrNoKeyTemplate", err)
	}
}

// A key that the rules of the class would not build is never invalidated.
func TestKeyOfAnotherForm(t *testing.T) {
	t.Parallel()
	rdb := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	defer rdb.Close()
	c, err := client.Open(t.Context(), client.Options{Redis: rdb, Namespace: "shop", OpenTimeout: time.Nanosecond})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	e := client.Entries[int](c, "item", client.KeyTemplate("item:{id}"))
	load := func(context.Context, *client.Load) (int, error) { return 1, nil }
	if _, err := e.Get(t.Context(), "item:7", load); err != nil {
		t.Error(err)
	}
	for key, want := range map[string]string{
		"itme:7":      `not of the form "item:{id}"`,
		"item:":       `not of the form "item:{id}"`,
		"shop:item:7": "without the namespace",
	} {
		if _, err := e.Get(t.Context(), key, load); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Get(%q): got %v, want an error with %q", key, err, want)
		}
		if _, err := e.Refresh(t.Context(), key, load); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("Refresh(%q): got %v, want an error with %q", key, err, want)
		}
	}
}

package explain

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/lethe-cache/lethe/rules"
)

const saleRules = `
version: 1
namespace: shop
entries: {product: {key: "product:{id}", versions: 2}}
rules:
  - {name: sale ends, table: public.sales, keys: ["product:{product_id}"], tags: {all: [a, b]}, at: ends_at}
dependencies:
  - {of: "product:{id}", also: ["feed:{id}"]}
`

// What a rule with a time names is shown with it, and so is what a row without
// one takes back.
func TestExplainAt(t *testing.T) {
	t.Parallel()
	set, err := rules.Parse("rules.yaml", []byte(saleRules))
	if err != nil {
		t.Fatal(err)
	}
	e, err := New(set)
	if err != nil {
		t.Fatal(err)
	}
	explain := func(r Row) string {
		c, err := r.Change(nil)
		if err != nil {
			t.Fatal(err)
		}
		x, err := e.Explain(c)
		if err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		if err := Print(&b, []Explanation{x}); err != nil {
			t.Fatal(err)
		}
		return b.String()
	}
	got := explain(Row{Table: "sales", Op: "insert", New: map[string]any{"id": 1, "product_id": 5, "ends_at": "2030-01-31 13:00:00+01"}})
	for _, want := range []string{"delete key shop:product:5 (product) at 2030-01-31T12:00:00Z", "delete key shop:product:5@2 (product) at",
		"purge tags shop:a & shop:b at 2030-01-31T12:00:00Z", "delete key shop:feed:5 (no class) at 2030-01-31T12:00:00Z"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	got = explain(Row{Table: "sales", Op: "delete", Old: map[string]any{"id": 1}})
	if !strings.Contains(got, `note: rule "sale ends": nothing is due for row ["1"] any more`) {
		t.Errorf("a row that is deleted:\n%s", got)
	}
	got = explain(Row{Op: "message", Message: map[string]any{"keys": []any{"product:7"}, "at": "2031-01-01T00:00:00Z"}})
	if !strings.Contains(got, "delete key shop:product:7 (product) at 2031-01-01T00:00:00Z") {
		t.Errorf("a message:\n%s", got)
	}
}

func TestCaseAt(t *testing.T) {
	t.Parallel()
	set, err := rules.Parse("rules.yaml", []byte(saleRules))
	if err != nil {
		t.Fatal(err)
	}
	e, err := New(set)
	if err != nil {
		t.Fatal(err)
	}
	cases, err := ParseCases("rules_test.yaml", []byte(`
cases:
  - name: a sale
    change: {table: public.sales, op: insert, new: {id: 1, product_id: 5, ends_at: "2030-01-31 12:00:00+00"}}
    keys: ["product:5 at 2030-01-31T12:00:00Z"]
    tags: ["a & b at 2030-01-31T12:00:00Z"]
    cascade: ["feed:5 at 2030-01-31T12:00:00Z"]
  - name: at once
    change: {table: public.sales, op: insert, new: {id: 1, product_id: 5, ends_at: "2030-01-31 12:00:00+00"}}
    keys: ["product:5"]
`))
	if err != nil {
		t.Fatal(err)
	}
	r, err := e.Run(&cases.List[0], nil, nil)
	if err != nil || r.Failed() {
		t.Errorf("%v, missing %q, unexpected %q", err, r.Missing, r.Unexpected)
	}
	if r, err = e.Run(&cases.List[1], nil, nil); err != nil || !slices.Contains(r.Missing, "key product:5") {
		t.Errorf("%v, missing %q, want the key at once", err, r.Missing)
	}
}

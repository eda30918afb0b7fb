package explain_test

import (
	"strings"
	"testing"

	"github.com/lethe-cache/lethe/explain"
)

// What action auto does is measured by workers: it is said who decides, by
// what, and where to look.
func TestAutoSaysWhatDecides(t *testing.T) {
	t.Parallel()
	e, err := explain.New(parse(t, `version: 1
entries:
  product: {key: "product:{id}", load: {sql: "SELECT id FROM products WHERE id = ANY(@id)"}}
  bare: {key: "bare:{id}"}
rules:
  - {name: a, table: public.products, keys: ["product:{id}", "bare:{id}"], action: auto}
  - {name: b, table: public.tagged, tags: ["shelf:{id}"], action: auto}
  - {name: c, table: public.deleted, keys: ["product:{id}"]}
`))
	if err != nil {
		t.Fatal(err)
	}
	for table, wants := range map[string][]string{
		"products": {"entry of product", "bare:7 is only forgotten", "lethe_rewarm_auto ", "lethe_rewarm_auto_read_ratio", "lethe_rewarm_auto_cost_ratio", "the log"},
		"tagged":   {"whatever has the tag", "lethe_rewarm_auto "},
		"deleted":  nil,
	} {
		cases, err := explain.ParseCases("x", []byte("cases: [{name: x, change: {table: "+table+", op: insert, new: {id: 7}}}]"))
		if err != nil {
			t.Fatal(err)
		}
		r, err := e.Run(&cases.List[0], nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		notes := strings.Join(r.Notes, "\n")
		for _, want := range wants {
			if !strings.Contains(notes, want) {
				t.Errorf("%s: the notes %q do not say %q", table, notes, want)
			}
		}
		if wants == nil && notes != "" {
			t.Errorf("%s: notes %q", table, notes)
		}
	}
}

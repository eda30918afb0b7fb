package explain_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/explain"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/lookup"
)

const lookedRules = `
version: 1
namespace: shop
entries:
  category: {key: "category:{id}"}
rules:
  - name: reviews
    table: public.reviews
    keys: ["category:{lookup.category_id}"]
    tags: ["maker:{lookup.maker}"]
    lookup: {sql: "SELECT category_id, maker FROM goods WHERE id = @product_id"}
`

func namesOf(e explain.Explanation) string {
	var names []string
	for _, s := range e.Steps {
		names = append(names, s.Kind+" "+s.Name)
	}
	return strings.Join(append(names, e.Notes...), "; ")
}

func TestCasesWithLookups(t *testing.T) {
	t.Parallel()
	set := parse(t, lookedRules)
	explainer, err := explain.New(set)
	if err != nil {
		t.Fatal(err)
	}
	plan, err := set.Compile()
	if err != nil {
		t.Fatal(err)
	}
	cover, err := plan.NewCoverage()
	if err != nil {
		t.Fatal(err)
	}
	cases, err := explain.ParseCases("rules_test.yaml", []byte(`
cases:
  - name: a review moves
    change: {table: public.reviews, op: update, old: {id: 1, product_id: 41}, new: {id: 1, product_id: 42}}
    lookup:
      - {with: {product_id: 42}, rows: [{category_id: 7, maker: acme}, {category_id: 8, maker: ~}]}
      - {rows: [{category_id: 6, maker: other}]}
    keys: ["category:6", "category:7", "category:8"]
    tags: ["maker:acme", "maker:other"]
  - name: no row
    change: {table: public.reviews, op: insert, new: {id: 1, product_id: 42}}
    lookup: [{rule: reviews, with: {product_id: 42}}]
  - name: nothing said
    change: {table: public.reviews, op: insert, new: {id: 1, product_id: 43}}
    lookup: [{with: {product_id: 42}}, {rule: another, rows: []}, {with: {other: 1}}]
  - name: a column missing
    change: {table: public.reviews, op: insert, new: {id: 1, product_id: 43}}
    lookup: [{rows: [{category_id: 7}]}]
`))
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"[] [] []",
		`[] [] [rule "reviews": the lookup by product_id=42 gives no row, and so no name]`,
		`case "nothing said": lookup of rule "reviews": nothing is said of the lookup by product_id=43: add {with: {...}, rows: [...]} to lookup`,
		`case "a column missing": lookup of rule "reviews": a row of the lookup says nothing of "maker"`,
	}
	for i := range cases.List {
		r, err := explainer.Run(&cases.List[i], nil, cover)
		got := fmt.Sprint(err)
		if err == nil {
			got = fmt.Sprint(r.Missing, r.Unexpected, r.Notes)
		}
		if got != want[i] {
			t.Errorf("%s: %s, want %s", cases.List[i].Name, got, want[i])
		}
	}
	if r := cover.Rules()[0]; !r.Covered() {
		t.Errorf("the rule with the lookup is not covered: %+v", r)
	}
}

func TestExplainWithoutLookups(t *testing.T) {
	t.Parallel()
	explainer, err := explain.New(parse(t, lookedRules))
	if err != nil {
		t.Fatal(err)
	}
	row := explain.Row{Table: "public.reviews", Op: "insert", New: map[string]any{"id": 1, "product_id": 42}}
	c, err := row.Change(nil)
	if err != nil {
		t.Fatal(err)
	}
	got, err := explainer.Explain(c)
	if want := `rule "reviews" needs a lookup by product_id=42, whose names are left out: give --lookup or a database`; err != nil || namesOf(got) != want {
		t.Errorf("%s, %v, want %s", namesOf(got), err, want)
	}
}

// What is looked up for statements that are rolled back is what they have made of
// the database, and nothing of it stays.
func TestServerRunWithLookups(t *testing.T) {
	t.Parallel()
	conn := connect(t, harness.Database(t))
	exec(t, conn, `CREATE TABLE goods (id int PRIMARY KEY, category_id int, maker text); CREATE TABLE reviews (id int PRIMARY KEY, product_id int);
		ALTER TABLE reviews REPLICA IDENTITY FULL; INSERT INTO goods VALUES (42, 7, 'acme'); INSERT INTO reviews VALUES (1, 42)`)
	set := parse(t, lookedRules)
	explainer, err := explain.New(set)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	run := func(sql string) {
		t.Helper()
		got = nil
		err := explain.RunAnd(t.Context(), conn, liveSchema(t, conn, set), set.Tables(), sql, 0, func(tx pgx.Tx, changes []*change.Change) error {
			explainer.UseLookups(lookup.In(t.Context(), tx))
			for _, c := range changes {
				e, err := explainer.Explain(c)
				if err != nil {
					return err
				}
				got = append(got, namesOf(e))
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	run(`INSERT INTO goods VALUES (43, 8, 'new'); UPDATE reviews SET product_id = 43`)
	if want := []string{"key shop:category:8; key shop:category:7; tag shop:maker:new; tag shop:maker:acme"}; !slices.Equal(got, want) {
		t.Errorf("explained %q, want %q", got, want)
	}
	run(`DELETE FROM goods; DELETE FROM reviews`)
	if want := []string{`rule "reviews": the lookup by product_id=42 gives no row, and so no name`}; !slices.Equal(got, want) {
		t.Errorf("explained %q, want %q", got, want)
	}
	var left string
	if err := conn.QueryRow(t.Context(), `SELECT concat_ws(' ', (SELECT count(*) FROM goods), (SELECT product_id FROM reviews))`).Scan(&left); err != nil || left != "1 42" {
		t.Errorf("afterwards %q, %v", left, err)
	}
}

package explain_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/lethe-cache/lethe/explain"
)

const caseRules = `version: 1
namespace: shop
entries:
  product: {key: "product:{id}", versions: [1, 2]}
  feed: {key: "feed:{id}"}
rules:
  - {name: products, table: public.products, keys: ["product:{id}"], tags: ["category:{category}"]}
  - {name: stock, table: public.stock, tags: {all: ["a:{id}", "b:{id}"]}}
dependencies:
  - {of: "product:{id}", also: ["feed:{id}"]}
`

func run(t *testing.T, file string) (*explain.Cases, []*explain.Result) {
	t.Helper()
	e, err := explain.New(parse(t, caseRules))
	if err != nil {
		t.Fatal(err)
	}
	cases, err := explain.ParseCases("cases.yaml", []byte(file))
	if err != nil {
		t.Fatal(err)
	}
	var results []*explain.Result
	for i := range cases.List {
		r, err := e.Run(&cases.List[i], nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		results = append(results, r)
	}
	return cases, results
}

const goodCases = `# what people wrote stays
cases:
  - name: a category moves # both are purged
    change: {table: products, op: update, old: {id: 1, category: 2}, new: {id: 1, category: 3}}
    keys: [product:1]
    tags: [category:2, category:3]
    cascade: [feed:1]
  - name: truncate
    changes:
      - {table: products, op: truncate}
      - {table: stock, op: insert, new: {id: 4}}
    tags: ["a:4 & b:4"]
    classes: ["*", feed, product]
  - name: nothing
    change: {table: elsewhere, op: insert, new: {id: 4}}
`

func TestCases(t *testing.T) {
	t.Parallel()
	_, results := run(t, goodCases)
	for _, r := range results {
		if r.Failed() {
			t.Errorf("%s: missing %q, unexpected %q", r.Case.Name, r.Missing, r.Unexpected)
		}
	}
	if got, want := results[1].Case.Line, 8; got != want {
		t.Errorf("line %d, want %d", got, want)
	}
}

// Too much fails as too little does.
func TestCasesFail(t *testing.T) {
	t.Parallel()
	_, results := run(t, `cases:
  - name: wrong
    change: {table: products, op: insert, new: {id: 1, category: 3}}
    keys: [product:2]
    tags: [category:3]
    classes: [feed]
`)
	got := fmt.Sprint(results[0].Missing, results[0].Unexpected)
	if want := "[key product:2 class feed] [key product:1 cascade feed:1]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

// An update writes what comes out, keeps comments, and has nothing to do the
// second time.
func TestCasesUpdate(t *testing.T) {
	t.Parallel()
	cases, results := run(t, goodCases)
	same, err := cases.Update(results)
	if err != nil {
		t.Fatal(err)
	}
	if string(same) != goodCases {
		t.Errorf("an update without need changed the file:\n%s", same)
	}
	stale := strings.Replace(strings.Replace(goodCases, "keys: [product:1]", "keys: [product:9] # gone", 1), "    cascade: [feed:1]\n", "    classes: [feed]\n", 1)
	cases, results = run(t, stale)
	updated, err := cases.Update(results)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"# what people wrote stays", "# both are purged", `keys: ["product:1"]`, `cascade: ["feed:1"]`} {
		if !strings.Contains(string(updated), want) {
			t.Errorf("the update lacks %s:\n%s", want, updated)
		}
	}
	_, results = run(t, string(updated))
	for _, r := range results {
		if r.Failed() {
			t.Errorf("after the update %s: missing %q, unexpected %q", r.Case.Name, r.Missing, r.Unexpected)
		}
	}
}

func TestCasesRefuse(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"":          "there are no cases",
		"cases: []": "there are no cases",
		"case: []":  "field case not found",
		"cases:\n  - change: {table: a, op: truncate}":                       "cases.yaml:2: the case needs a name",
		"cases:\n  - name: a":                                                "want either change or changes",
		"cases:\n  - {name: a, change: {table: a, op: truncate}, key: [x]}":  "field key not found",
		"cases:\n- {name: a, change: {op: x}}\n- {name: a, change: {op: x}}": `cases.yaml:3: the name "a" is there twice`,
		"cases: [": "did not find",
		"cases:\n- {name: a, change: {table: a, op: truncate}}\n---\ncases: []\n": "more than one document",
	} {
		if _, err := explain.ParseCases("cases.yaml", []byte(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want an error with %q", in, err, want)
		}
	}
}

package rules_test

import (
	"fmt"
	"testing"
)

// TestUncovered: each class and table that no rule covers, by keys, by
// dependencies, or by tags, with its place and a rule to paste.
func TestUncovered(t *testing.T) {
	t.Parallel()
	set := parse(t, `
version: 1
entries:
  product: {key: "product:{id}", tags: [ "category:{category_id}" ]}
  page: {key: "page:{id}"}
  user: {key: "user:{id}"}
  profile: {key: "profile:{id}"}
rules:
  - {name: products, table: public.products, keys: [ "product:{id}" ]}
  - {name: categories, table: public.categories, tags: [ "category:{id}" ]}
  - {name: users, table: public.users, keys: [ "user:{id}", "badge:{id}" ]}
dependencies:
  - {of: "user:{id}", also: [ "profile:{id}" ]}
`)
	got, err := set.Uncovered(map[string][]string{
		"product": {"public.products", "public.reviews", "public.categories", "public.users"},
		"page":    {"public.categories", "public.products"},
		"profile": {"public.users", "public.odd name"},
		"badge":   {"public.users", "public.products"},
	})
	if err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, f := range got {
		lines = append(lines, fmt.Sprintf("%s %d %s %s: %s", f.Code, f.Line, f.Entry, f.Severity, f.Fix))
	}
	fix := func(table, class, key string) string {
		return fmt.Sprintf(`add to rules, with the columns of %s that hold the key: - {name: "%s to %s", table: %s, keys: [ "%s" ]}`, table, table, class, table, key)
	}
	want := []string{
		"L034 0 badge warning: " + fix("public.products", "badge", "badge:{id}"),
		"L034 5 page warning: " + fix("public.products", "page", "page:{id}"),
		"L034 4 product warning: " + fix("public.reviews", "product", "product:{id}"),
		"L034 4 product warning: " + fix("public.users", "product", "product:{id}"),
		`L034 7 profile warning: add to rules, with the columns of public.odd name that hold the key: - {name: "public.odd name to profile", table: "public.odd name", keys: [ "profile:{id}" ]}`,
	}
	if fmt.Sprintf("%q", lines) != fmt.Sprintf("%q", want) {
		t.Errorf("got\n%q\nwant\n%q", lines, want)
	}
	if n := len(got.Errors()); n != 0 {
		t.Errorf("%d of them are errors", n)
	}
	if none, err := set.Uncovered(nil); err != nil || len(none) != 0 {
		t.Errorf("of nothing: %v, %v", none, err)
	}
}

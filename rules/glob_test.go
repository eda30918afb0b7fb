package rules

import (
	"slices"
	"testing"
)

func TestClassesOfGlob(t *testing.T) {
	t.Parallel()
	set, err := Parse("rules.yaml", []byte(`
version: 1
namespace: shop
entries:
  user: {key: "user:{id}"}
  posts: {key: "user:{id}:posts"}
  page: {key: "page:{lang}:{path}"}
  config: {key: "config"}
`))
	if err != nil {
		t.Fatal(err)
	}
	for glob, want := range map[string][]string{
		"user:*:posts": {"user", "posts"}, // user:{id} has any id: "1:posts" too
		"user:7":       {"user"},
		"*:posts":      {"user", "posts", "page"},
		"page:??:*":    {"page"},
		"config":       {"config"},
		"con*":         {"config"},
		"shop:user:*":  {},
		"order:*":      {},
		"*":            {"user", "posts", "page", "config"},
	} {
		got := []string{}
		for _, c := range set.ClassesOfGlob(glob) {
			got = append(got, c.Name)
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", glob, got, want)
		}
	}
}

package scaffold

import (
	"testing"
	"time"

	"github.com/lethe-cache/lethe/internal/keyscan"
	"github.com/lethe-cache/lethe/rules"
)

func TestFromKeys(t *testing.T) {
	t.Parallel()
	patterns := []*keyscan.Pattern{
		{Segments: []string{"user", keyscan.Number}, Keys: 10, TTLMax: 50 * time.Minute},
		{Segments: []string{"user", keyscan.Text}, Keys: 5},
		{Segments: []string{"order", keyscan.Number, "line", keyscan.Number}, Keys: 3},
		{Segments: []string{"{cart}", keyscan.UUID}, Keys: 2, TTLMax: time.Second},
		{Segments: []string{"config"}, Keys: 1},
		{Segments: []string{keyscan.Text}, Keys: 1},
	}
	s := Schema{Tables: []Table{table("public", "users", 1, "id: bigint"), table("public", "orders", 1, "order_id: bigint")}}
	text, classes := FromKeys(patterns, s, Options{})
	golden(t, "keys.golden.yaml", text)
	set, err := rules.Parse("rules.yaml", text)
	if err != nil {
		t.Fatal(err)
	}
	if classes != 3 || len(set.Entries) != 3 || len(set.Rules) != 1 {
		t.Errorf("%d classes and %d rules, want 3 and 1", len(set.Entries), len(set.Rules))
	}
	if found := set.Check(live(s)); found.HasErrors() {
		t.Errorf("check finds %v", found)
	}
}

func TestSameThing(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"user", "users", true}, {"Category", "categories", true}, {"order-line", "order_lines", true}, {"address", "addresses", true},
		{"box", "boxes", true}, {"user", "user", true}, {"user", "uses", false}, {"news", "new", true}, {"order", "orders_old", false},
	} {
		if got := sameThing(c.a, c.b); got != c.want {
			t.Errorf("sameThing(%q, %q) = %v, want %v", c.a, c.b, got, c.want)
		}
	}
}

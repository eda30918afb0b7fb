package coherence

import (
	"fmt"
	"slices"
	"testing"
)

// TestObserved: what several clients have seen adds up, and goes by itself.
func TestObserved(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		got, err := b.Observed(b.ctx())
		must(t, err)
		if len(got) != 0 {
			t.Errorf("before any report: %v", got)
		}
		must(t, b.AddObserved(b.ctx(), "product", "public.products", "public.categories"))
		must(t, b.AddObserved(b.ctx(), "product", "public.products", "public.a table", "no\nname"))
		must(t, b.AddObserved(b.ctx(), "user", "public.users"))
		must(t, b.AddObserved(b.ctx(), "nothing"))
		got, err = b.Observed(b.ctx())
		must(t, err)
		if want := "map[product:[public.a table public.categories public.products] user:[public.users]]"; fmt.Sprint(got) != want {
			t.Errorf("got %v, want %s", got, want)
		}
		ttl, err := b.rdb.PTTL(b.ctx(), b.Layout().Control("observed")).Result()
		must(t, err)
		if ttl <= 0 || ttl > ObservedFor {
			t.Errorf("lives for %v, want up to %v", ttl, ObservedFor)
		}

		var many []string
		for i := range ObservedMax + 10 {
			many = append(many, fmt.Sprintf("public.t%04d", i))
		}
		must(t, b.AddObserved(b.ctx(), "user", many...))
		got, err = b.Observed(b.ctx())
		must(t, err)
		if n := len(got["user"]); n != ObservedMax || !slices.Contains(got["user"], "public.users") {
			t.Errorf("%d tables, want %d with those that were there", n, ObservedMax)
		}
	})
}

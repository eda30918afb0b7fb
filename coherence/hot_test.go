package coherence

import (
	"fmt"
	"math"
	"testing"
)

// TestHot: what several clients report adds up to a rate; a key that rises has a
// greater one of late than before; what is kept is bounded.
func TestHot(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		got, err := b.Hot(b.ctx(), "product", 10)
		must(t, err)
		if len(got) != 0 {
			t.Errorf("before any report: %v", got)
		}
		a, c := b.Layout().Name("product:a"), b.Layout().Name("product:c")
		must(t, b.AddHot(b.ctx(), "product", []HotRead{{a, 100}, {c, 40}, {"zero", 0}, {"inf", math.Inf(1)}}))
		must(t, b.AddHot(b.ctx(), "product", []HotRead{{a, 20}, {c, 90}}))
		must(t, b.AddHot(b.ctx(), "user", []HotRead{{a, 1}}))
		must(t, b.AddHot(b.ctx(), "user", nil))
		got, err = b.Hot(b.ctx(), "product", 10)
		must(t, err)
		if len(got) != 2 || got[0].Name != c || got[1].Name != a {
			t.Fatalf("hot: %+v, want c with 130 before a with 120", got)
		}
		// R reads just now are a rate of R ln 2 a half-life; a slow machine decays
		// some of it.
		if want := 120 * math.Ln2; got[1].PerMinute > want*1.01 || got[1].PerMinute < want/2 {
			t.Errorf("a: %v a minute, want about %v", got[1].PerMinute, want)
		}
		if ratio := got[1].PerMinute / got[1].Before; ratio > 10.1 || ratio < 5 {
			t.Errorf("a has %v of late and %v before: a key that nobody knew rises tenfold", got[1].PerMinute, got[1].Before)
		}
		if got, err := b.Hot(b.ctx(), "product", 1); err != nil || len(got) != 1 {
			t.Errorf("one hot key: %v, %v", got, err)
		}
		var many []HotRead
		for i := range HotMax + 50 {
			many = append(many, HotRead{fmt.Sprintf("many:%d", i), float64(i + 1000)})
		}
		must(t, b.AddHot(b.ctx(), "product", many))
		got, err = b.Hot(b.ctx(), "product", HotMax*2)
		must(t, err)
		if len(got) != HotMax || got[0].Name != fmt.Sprintf("many:%d", HotMax+49) || got[HotMax-1].Name != "many:50" {
			t.Errorf("%d hot keys from %s to %s, want %d, the coldest given up", len(got), got[0].Name, got[len(got)-1].Name, HotMax)
		}
		for _, key := range b.hotKeys("product") {
			ttl, err := b.rdb.PTTL(b.ctx(), key).Result()
			must(t, err)
			if ttl <= 0 || ttl > hotFor {
				t.Errorf("%s lives for %v", key, ttl)
			}
		}
	})
}

func TestWarmed(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		if at, err := b.Warmed(b.ctx(), "x"); err != nil || !at.IsZero() {
			t.Errorf("never warmed: %v, %v", at, err)
		}
	})
}

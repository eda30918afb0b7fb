package coherence

import (
	"fmt"
	"testing"
)

// Where there is always a sweep nothing expires: what was told is bounded all
// the same, and the last one is there to be told again.
func TestSweepsAreBounded(t *testing.T) {
	t.Parallel()
	everywhere(t, func(t *testing.T, b *bench) {
		told := Sweep{Purge: Purge{X: at(100), Tags: []string{b.name("category:7")}}, Done: 1, Total: 2}
		must(t, b.TellSweep(b.ctx(), told))
		if all, err := b.Sweeps(b.ctx()); err != nil || fmt.Sprint(all) != fmt.Sprint([]Sweep{told}) {
			t.Fatalf("told %v, found %v (%v)", told, all, err)
		}
		most := 0
		for i := range 3 * sweepsMost {
			told.Purge.Tags[0] = b.name("category:%d", i)
			must(t, b.TellSweep(b.ctx(), told))
			if i%50 == 0 || i > 3*sweepsMost-50 {
				all, err := b.Sweeps(b.ctx())
				must(t, err)
				most = max(most, len(all))
			}
		}
		if most > sweepsMost {
			t.Errorf("%d sweeps are kept, want at most %d", most, sweepsMost)
		}
	})
}

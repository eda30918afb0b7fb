package warmer

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/lethe-cache/lethe/rules"
)

// unitsOf keeps which units of the rules in force touch a class: to find that
// out is more work than to fill a batch.
type unitsOf struct {
	mu      sync.Mutex
	set     *rules.Set
	classes map[string][]uint64
}

// of returns the identities of the units that touch the class, see
// rules.Set.UnitsOf.
func (u *unitsOf) of(set *rules.Set, class *rules.Class) []uint64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.set != set {
		u.set, u.classes = set, map[string][]uint64{}
	}
	ids, ok := u.classes[class.Name]
	if !ok {
		ids = set.UnitsOf(class)
		u.classes[class.Name] = ids
	}
	return ids
}

// otherRules is the refusal of a whole batch.
func (w *Warmer) otherRules(class *rules.Class, n int) error {
	w.cfg.Metrics.fills.WithLabelValues(class.Name, "refused", "rules").Add(float64(n))
	return ErrOtherRules
}

// fillSoon is fillPatiently, for whoever would not come back: workers that follow a reload
// just now, or have just begun, are waited for a while.
func (w *Warmer) fillSoon(ctx context.Context, class string, names []string, left *time.Duration) (Result, error) {
	wait := warmBackoff
	for try := 1; ; try++ {
		r, err := w.fillPatiently(ctx, class, names, left)
		if !errors.Is(err, ErrOtherRules) || try == warmTries {
			return r, err
		}
		if err := sleep(ctx, wait); err != nil {
			return r, err
		}
		wait *= 2
	}
}

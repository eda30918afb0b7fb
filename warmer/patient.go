package warmer

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// warmPatience is how long all fills of one run wait, together, for what a moment
// cures; again is the first of these waits.
const (
	warmPatience = 15 * time.Second
	again        = 20 * time.Millisecond
	againMax     = time.Second
)

// fillPatiently fills what is absent, and again what was refused because the
// table can not vouch for a tag yet: v comes with the heartbeats, so behind a
// seed, a raise or a purge it takes a moment until it covers them. A start would
// else be ready with entries missing that nothing is wrong with. What it waits
// is taken from left, so that a v that stays behind does not cost a run more than
// that.
func (w *Warmer) fillPatiently(ctx context.Context, class string, names []string, left *time.Duration) (total Result, err error) {
	for wait := again; ; wait = min(2*wait, againMax) {
		r, err := w.fillNames(ctx, class, names, Options{IfAbsent: true})
		early, by := r.early, r.earlyBy
		r.early, r.earlyBy = nil, nil
		total.add(r)
		if err != nil || len(early) == 0 || *left <= 0 {
			return total, err
		}
		*left -= wait
		if err := sleep(ctx, wait); err != nil {
			return total, fmt.Errorf("fill entry %q: %w", class, err)
		}
		for reason, n := range by {
			if total.Refused[reason] -= n; total.Refused[reason] == 0 {
				delete(total.Refused, reason)
			}
		}
		slices.Sort(early)
		names = slices.Compact(early)
	}
}

package warmer

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/rules"
)

// prefetchMax bounds the names that one Fill prefetches.
const prefetchMax = 10_000

// related are the entries that a class's prefetch names for some of its own, by
// their class. Each name once, and prefetchMax of them at most.
func related(set *rules.Set, class *rules.Class, names []string) map[*rules.Class][]string {
	if len(class.Prefetch) == 0 {
		return nil
	}
	out, seen := map[*rules.Class][]string{}, map[string]bool{}
	placeholders := class.Key.Placeholders()
	for _, name := range names {
		captures, ok := class.Captures([]byte(name))
		if !ok {
			continue
		}
		for _, t := range class.Prefetch {
			if len(seen) == prefetchMax {
				return out
			}
			text, ok, err := t.Render(func(column string) (any, bool) {
				if i := slices.Index(placeholders, column); i >= 0 {
					return captures[i], true
				}
				return nil, false
			})
			if full := set.FullName(text); err == nil && ok && t.Class != nil && !seen[full] {
				seen[full] = true
				out[t.Class] = append(out[t.Class], full)
			}
		}
	}
	return out
}

// prefetch fills what is related to some entries, where it is absent.
func (w *Warmer) prefetch(ctx context.Context, set *rules.Set, class *rules.Class, names []string, o Options) error {
	var errs []error
	for c, list := range related(set, class, names) {
		if !w.cfg.Loader.Loads(c) {
			continue
		}
		_, err := w.Fill(ctx, c.Name, list, Options{IfAbsent: true, Priority: o.Priority})
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// expires reports whether a value is in the share of its life that Options.Ahead
// names.
func (o *Options) expires(h *coherence.Header) bool {
	if o.Ahead <= 0 || h.HardExpiry == 0 || h.HardExpiry <= h.Filled {
		return false
	}
	left := float64(h.HardExpiry - time.Now().UnixMicro())
	return left < o.Ahead*float64(h.HardExpiry-h.Filled)
}

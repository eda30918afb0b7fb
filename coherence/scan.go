package coherence

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// KeyPage is one step of a scan of a master's keys.
type KeyPage struct {
	// Node is the master, Looked how many keys it looked at, about.
	Node   string
	Looked int
	// Keys are those that match.
	Keys []string
}

// ScanKeys looks at every key of every master for those that match a pattern of
// SCAN, the masters side by side, and calls step with each page: by one
// goroutine for each master, which waits for it. A key that is there from the
// beginning to the end is found, perhaps more than once. complete is false if
// slots moved meanwhile, so that some keys may have been missed. It ends with
// the first error.
//
// SCAN looks at all keys, whatever the pattern; step is where to hold it back.
func (s *Store) ScanKeys(ctx context.Context, match string, step func(context.Context, KeyPage) error) (complete bool, err error) {
	before, err := s.topology(ctx)
	if err != nil {
		return false, fmt.Errorf("scan: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	errs := make([]error, len(before))
	for i, m := range before {
		wg.Go(func() {
			if errs[i] = scanNode(ctx, m.node, match, step); errs[i] != nil {
				cancel(errs[i])
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return false, fmt.Errorf("scan: %w", err)
	}
	after, err := s.topology(ctx)
	if err != nil {
		return false, fmt.Errorf("scan: %w", err)
	}
	return sameMasters(before, after), nil
}

func scanNode(ctx context.Context, n *node, match string, step func(context.Context, KeyPage) error) error {
	var cursor uint64
	for {
		if err := n.state(ctx); err != nil {
			return err
		}
		keys, next, err := n.conn().Scan(ctx, cursor, match, walkCount).Result()
		if err != nil {
			return fmt.Errorf("scan %s: %w", n.name, err)
		}
		if err := step(ctx, KeyPage{Node: n.name, Looked: walkCount, Keys: keys}); err != nil {
			return err
		}
		if cursor = next; cursor == 0 {
			return nil
		}
	}
}

// sameMasters reports whether no slot changed its master.
func sameMasters(a, b []master) bool {
	return slices.EqualFunc(a, b, func(a, b master) bool { return a.node == b.node && slices.Equal(a.ranges, b.ranges) })
}

// globEscaper takes their meaning from the characters of a pattern.
var globEscaper = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`)

// EscapeGlob makes a pattern for SCAN's MATCH of a text: it finds that text and
// nothing else.
func EscapeGlob(text string) string { return globEscaper.Replace(text) }

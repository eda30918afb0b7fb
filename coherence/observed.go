package coherence

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	// ObservedFor is how long observed tables are remembered after the last
	// report: what an old version of an application read should not be
	// complained of for ever.
	ObservedFor = 7 * 24 * time.Hour
	// ObservedMax bounds the tables of one class.
	ObservedMax = 1000
)

// AddObserved records that loads of a class were seen to read tables
// (schema.name). It adds to what others have reported, and may be repeated.
// Tables beyond ObservedMax, and names with a line break, are left out.
func (s *Store) AddObserved(ctx context.Context, class string, tables ...string) error {
	key := s.layout.Control("observed")
	args := []any{ObservedFor.Milliseconds(), ObservedMax, class}
	for _, t := range tables {
		if !strings.Contains(t, "\n") {
			args = append(args, t)
		}
	}
	if len(args) == 3 {
		return nil
	}
	c := redis.NewCmd(ctx, s.evalArgs(scriptObserved, "", []string{key}, args...)...)
	if err := s.do(ctx, []unit{{key: key, cmds: []redis.Cmder{c}}}); err != nil {
		return fmt.Errorf("report observed tables: %w", err)
	}
	return nil
}

// Observed returns the tables that loads were seen to read, sorted, by class.
// It is empty if no client reported any in the last ObservedFor.
func (s *Store) Observed(ctx context.Context) (map[string][]string, error) {
	key := s.layout.Control("observed")
	c := redis.NewMapStringStringCmd(ctx, "hgetall", key)
	if err := s.do(ctx, []unit{{key: key, cmds: []redis.Cmder{c}}}); err != nil {
		return nil, fmt.Errorf("read observed tables: %w", err)
	}
	out := make(map[string][]string, len(c.Val()))
	for class, tables := range c.Val() {
		if tables != "" {
			out[class] = strings.Split(tables, "\n")
		}
	}
	return out, nil
}

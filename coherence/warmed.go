package coherence

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/redis/go-redis/v9"
)

// warmedFor is how long it is remembered when a warm-up was due last: longer
// than the longest schedule.
const warmedFor = 400 * 24 * time.Hour

// Warmed returns for which instant of its schedule a warm-up was run last, by
// whichever process; the zero time if none is known. It stands beside the
// entries: a Redis that is new or was emptied has been warmed by nobody.
func (s *Store) Warmed(ctx context.Context, id string) (time.Time, error) {
	key := s.layout.Control("warmed")
	c := redis.NewStringCmd(ctx, "hget", key, id)
	if err := s.do(ctx, []unit{{key: key, cmds: []redis.Cmder{c}}}); err != nil && !errors.Is(err, redis.Nil) {
		return time.Time{}, fmt.Errorf("read when %s was warmed: %w", id, err)
	}
	if c.Val() == "" {
		return time.Time{}, nil
	}
	ms, err := strconv.ParseInt(c.Val(), 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("read when %s was warmed: %w", id, err)
	}
	return time.UnixMilli(ms), nil
}

// SetWarmed records the instant. The caller holds what keeps two processes
// from warming at a time.
func (s *Store) SetWarmed(ctx context.Context, id string, at time.Time) error {
	key := s.layout.Control("warmed")
	set := redis.NewIntCmd(ctx, "hset", key, id, at.UnixMilli())
	expire := redis.NewIntCmd(ctx, "pexpire", key, warmedFor.Milliseconds())
	if err := s.do(ctx, []unit{{key: key, cmds: []redis.Cmder{set, expire}}}); err != nil {
		return fmt.Errorf("record that %s was warmed: %w", id, err)
	}
	return nil
}

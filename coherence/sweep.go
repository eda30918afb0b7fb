package coherence

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// Sweep says how far the sweep of a purge is. It is for people; nothing
// depends on it.
type Sweep struct {
	Purge Purge
	// Done is how many members were swept, Total how many there were when it
	// began, or Done if that is more.
	Done, Total int
}

// sweepLife is how long what a sweep has told of itself is kept: one that died
// tells nothing any more.
const sweepLife = time.Minute

// sweepsMost bounds what is kept where there is a sweep in every minute, so that
// it never ends by itself.
const sweepsMost = 200

// TellSweep writes how far a sweep is, for those who wait for it.
func (s *Store) TellSweep(ctx context.Context, w Sweep) error {
	key := s.layout.Control("sweeps")
	value := strconv.Itoa(w.Done) + " " + strconv.Itoa(w.Total)
	kept := redis.NewIntCmd(ctx, "hlen", key)
	cmds := []redis.Cmder{
		redis.NewIntCmd(ctx, "hset", key, w.Purge.field(), value),
		redis.NewBoolCmd(ctx, "pexpire", key, sweepLife.Milliseconds()),
		kept,
	}
	err := s.do(ctx, []unit{{key: key, cmds: cmds}})
	if err == nil && kept.Val() > sweepsMost {
		// Those that still run tell again.
		err = s.do(ctx, []unit{{key: key, cmds: []redis.Cmder{redis.NewIntCmd(ctx, "unlink", key)}}})
	}
	if err != nil {
		return fmt.Errorf("tell sweep: %w", err)
	}
	return nil
}

// Sweeps returns what the sweeps of the last minute have told of themselves,
// those that are over among them; a short one tells nothing.
func (s *Store) Sweeps(ctx context.Context) ([]Sweep, error) {
	key := s.layout.Control("sweeps")
	c := redis.NewMapStringStringCmd(ctx, "hgetall", key)
	if err := s.do(ctx, []unit{{key: key, cmds: []redis.Cmder{c}}}); err != nil {
		return nil, fmt.Errorf("read sweeps: %w", err)
	}
	var all []Sweep
	for field, value := range c.Val() {
		p, err := parsePurge(field)
		if err != nil {
			return nil, fmt.Errorf("read sweeps: %w", err)
		}
		done, total, _ := strings.Cut(value, " ")
		w := Sweep{Purge: p}
		if w.Done, err = strconv.Atoi(done); err != nil {
			return nil, fmt.Errorf("read sweeps: %w", err)
		}
		if w.Total, err = strconv.Atoi(total); err != nil {
			return nil, fmt.Errorf("read sweeps: %w", err)
		}
		all = append(all, w)
	}
	return all, nil
}

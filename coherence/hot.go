package coherence

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/redis/go-redis/v9"
)

// The bounds of what is known of hot keys.
const (
	// HotMax is how many keys of one class are known.
	HotMax = 500
	// HotShort and HotLong are the half-lives of the two rates.
	HotShort = time.Minute
	HotLong  = 10 * time.Minute
	// hotFor is how long they are remembered after the last report.
	hotFor = time.Hour
)

// HotRead is how often a key was read since the last report of it.
type HotRead struct {
	// Name is the full name, without a version.
	Name  string
	Reads float64
}

// HotKey is a key with how often it is read.
type HotKey struct {
	Name string
	// PerMinute is the rate of late, by HotShort; Before the same by HotLong:
	// a key whose PerMinute is the greater one is on the rise.
	PerMinute, Before float64
}

func (s *Store) hotKeys(class string) []string {
	return []string{s.layout.Control("hot:" + class), s.layout.Control("hotlong:" + class)}
}

// AddHot reports what this client has read most of a class. Others' reports
// add to it, and all decay. It is one short script, and what it keeps is bounded
// by HotMax. Reads of zero or less are left out.
func (s *Store) AddHot(ctx context.Context, class string, reads []HotRead) error {
	keys := s.hotKeys(class)
	args := []any{HotMax, hotFor.Milliseconds(), HotShort.Seconds(), HotLong.Seconds()}
	for _, r := range reads {
		if r.Reads > 0 && !math.IsInf(r.Reads, 0) {
			args = append(args, r.Name, r.Reads)
		}
	}
	if len(args) == 4 {
		return nil
	}
	c := redis.NewCmd(ctx, s.evalArgs(scriptHot, "", keys, args...)...)
	if err := s.do(ctx, []unit{{key: keys[0], cmds: []redis.Cmder{c}}}); err != nil {
		return fmt.Errorf("report hot keys: %w", err)
	}
	return nil
}

// Hot returns the keys of a class that clients read most, by the short rate, the
// hottest first: n at most.
func (s *Store) Hot(ctx context.Context, class string, n int) ([]HotKey, error) {
	if n <= 0 {
		return nil, nil
	}
	keys := s.hotKeys(class)
	clock := redis.NewTimeCmd(ctx, "time")
	short := redis.NewZSliceCmd(ctx, "zrevrange", keys[0], 0, n-1, "withscores")
	long := redis.NewZSliceCmd(ctx, "zrevrange", keys[1], 0, -1, "withscores")
	if err := s.do(ctx, []unit{{key: keys[0], cmds: []redis.Cmder{clock, short, long}}}); err != nil {
		return nil, fmt.Errorf("read hot keys: %w", err)
	}
	now := float64(clock.Val().UnixMicro()) / 1e6
	rate := func(score float64, half time.Duration) float64 {
		return math.Exp2(score-now/half.Seconds()) * math.Ln2 / half.Minutes()
	}
	before := make(map[string]float64, len(long.Val()))
	for _, z := range long.Val() {
		before[z.Member.(string)] = rate(z.Score, HotLong)
	}
	out := make([]HotKey, 0, len(short.Val()))
	for _, z := range short.Val() {
		name := z.Member.(string)
		out = append(out, HotKey{Name: name, PerMinute: rate(z.Score, HotShort), Before: before[name]})
	}
	return out, nil
}

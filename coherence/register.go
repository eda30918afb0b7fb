package coherence

import (
	"context"
	"fmt"

	"github.com/redis/go-redis/v9"
)

// Register puts an entry under a tag (or under the key of an entry that it was
// made from), after the load and before the fill. Unless it returns Stored the
// value must not be filled: a purge could not find it.
func (s *Store) Register(ctx context.Context, r RegisterRequest) (Reason, error) {
	reasons, err := s.RegisterAll(ctx, []RegisterRequest{r})
	if err != nil {
		return 0, err
	}
	return reasons[0], nil
}

// RegisterAll is Register for many at once, masters side by side; the answers
// are in the order of the requests. After an error each of them may or may not
// be registered, which does no harm.
func (s *Store) RegisterAll(ctx context.Context, reqs []RegisterRequest) ([]Reason, error) {
	reasons := make([]Reason, len(reqs))
	units := make([]unit, 0, len(reqs))
	index := make([]int, 0, len(reqs))
	for i := range reqs {
		r := &reqs[i]
		if r.Stamp.IsZero() {
			reasons[i] = RefusedSource
			continue
		}
		cell, field := s.layout.Cell(r.Name)
		header := s.layout.TagHeader(r.Name)
		keys := []string{header, s.layout.TagIndex(r.Name), cell}
		if floor := s.layout.floor(); floor != "" {
			keys = append(keys, floor)
		}
		c := redis.NewIntCmd(ctx, s.evalArgs(scriptRegister, "", keys, r.Member, r.Stamp.Append(nil), field, randomID())...)
		units, index = append(units, unit{key: header, cmds: []redis.Cmder{c}}), append(index, i)
	}
	if err := s.do(ctx, units); err != nil {
		return nil, fmt.Errorf("register: %w", err)
	}
	for u, i := range index {
		n, err := units[u].cmds[0].(*redis.IntCmd).Result()
		if err != nil {
			return nil, fmt.Errorf("register %q under %q: %w", reqs[i].Member, reqs[i].Name, err)
		}
		reasons[i] = Reason(n)
	}
	return reasons, nil
}

// Registered reports which members are registered under a tag too: how a purge
// of an intersection of tags finds what it may leave.
func (s *Store) Registered(ctx context.Context, tag string, members []string) ([]bool, error) {
	if len(members) == 0 {
		return nil, nil
	}
	key := s.layout.TagIndex(tag)
	args := make([]any, 2, len(members)+2)
	args[0], args[1] = "hmget", key
	for i := range members {
		args = append(args, &members[i])
	}
	c := redis.NewSliceCmd(ctx, args...)
	if err := s.do(ctx, []unit{{key: key, cmds: []redis.Cmder{c}}}); err != nil {
		return nil, fmt.Errorf("look up members of tag %q: %w", tag, err)
	}
	out := make([]bool, len(members))
	for i, v := range c.Val() {
		out[i] = v != nil
	}
	return out, nil
}

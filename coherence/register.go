package coherence

import (
	"context"
	"fmt"
	"slices"

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
		c := redis.NewIntCmd(ctx, s.evalArgs(scriptRegister, "", keys, r.Member, r.Stamp.Append(nil), field)...)
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

// Members enumerates what is registered under a tag, about count at a time
// (default 512), beginning with cursor 0 and ending when next is 0. A member
// that was registered before the enumeration began and not pruned since is
// returned at least once, perhaps more often.
func (s *Store) Members(ctx context.Context, tag string, cursor uint64, count int) (members []string, next uint64, err error) {
	members, _, next, err = s.scanIndex(ctx, tag, cursor, count)
	return members, next, err
}

func (s *Store) scanIndex(ctx context.Context, tag string, cursor uint64, count int) (members, seqs []string, next uint64, err error) {
	if count <= 0 {
		count = 512
	}
	key := s.layout.TagIndex(tag)
	c := redis.NewScanCmd(ctx, nil, "hscan", key, cursor, "count", count)
	if err := s.do(ctx, []unit{{key: key, cmds: []redis.Cmder{c}}}); err != nil {
		return nil, nil, 0, fmt.Errorf("enumerate tag %q: %w", tag, err)
	}
	pairs, next := c.Val()
	for pair := range slices.Chunk(pairs, 2) {
		members, seqs = append(members, pair[0]), append(seqs, pair[1])
	}
	return members, seqs, next, nil
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

// Prune removes members of a tag whose entries are gone, in one step of an
// enumeration like that of Members. A member that is registered again
// meanwhile stays; with the last one goes the tag's header.
//
// An entry counts as gone only when its own master says so; behind a master
// that was replaced it may come back, which is why a change of run_id raises
// the classes that use tags.
func (s *Store) Prune(ctx context.Context, tag string, cursor uint64, count int) (removed int, next uint64, err error) {
	members, seqs, next, err := s.scanIndex(ctx, tag, cursor, count)
	if err != nil || len(members) == 0 {
		return 0, next, err
	}
	units := make([]unit, len(members))
	for i := range members {
		units[i] = unit{key: members[i], cmds: []redis.Cmder{redis.NewIntCmd(ctx, "exists", members[i], s.layout.Ticket(members[i]))}}
	}
	if err := s.do(ctx, units); err != nil {
		return 0, 0, fmt.Errorf("prune tag %q: %w", tag, err)
	}
	var args []any
	for i := range members {
		// An empty entry exists, or the ticket beside a plain one: its fill may
		// be about to follow.
		if units[i].cmds[0].(*redis.IntCmd).Val() == 0 {
			args = append(args, members[i], seqs[i])
		}
	}
	if args == nil {
		return 0, next, nil
	}
	n, err := s.pruneMembers(ctx, tag, args)
	return n, next, err
}

// pruneMembers is the second half of Prune: pairs of member and the sequence
// number that was read before the member's entry was seen to be absent.
func (s *Store) pruneMembers(ctx context.Context, tag string, pairs []any) (int, error) {
	header := s.layout.TagHeader(tag)
	c := redis.NewIntCmd(ctx, s.evalArgs(scriptPrune, s.layout.Ticket(tag), []string{header, s.layout.TagIndex(tag)}, pairs...)...)
	if err := s.do(ctx, []unit{{key: header, cmds: []redis.Cmder{c}}}); err != nil {
		return 0, fmt.Errorf("prune tag %q: %w", tag, err)
	}
	return int(c.Val()), nil
}

package coherence

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"strconv"

	"github.com/redis/go-redis/v9"
)

// ReadRules returns by which rules a worker partition was last worked on: the
// identities that WriteRules left, ascending. found is false if there are none;
// others says that there are some of other partitions.
//
// by begins to work on the partition with it: from then on nothing that an
// earlier one leaves is added to it.
func (s *Store) ReadRules(ctx context.Context, partition int, by string) (ids []uint64, found, others bool, err error) {
	key := s.layout.Control("rules")
	begun := redis.NewIntCmd(ctx, "hset", s.layout.Control(rulesBy), strconv.Itoa(partition), by)
	value := redis.NewStringCmd(ctx, "hget", key, strconv.Itoa(partition))
	count := redis.NewIntCmd(ctx, "hlen", key)
	if err := s.do(ctx, []unit{{key: key, cmds: []redis.Cmder{begun, value, count}}}); err != nil {
		return nil, false, false, fmt.Errorf("read rules of partition %d: %w", partition, err)
	}
	text := value.Val()
	if text == "" {
		return nil, false, count.Val() > 0, nil
	}
	ids, ok := parseRules(text)
	if !ok {
		return nil, false, true, nil // of another version: as if they were unknown
	}
	return ids, true, count.Val() > 1, nil
}

const (
	rulesVersion = '1'
	// rulesBy names who began to work on each partition last.
	rulesBy = "rules_by"
)

func parseRules(text string) (ids []uint64, ok bool) {
	if text == "" || text[0] != rulesVersion || len(text)%8 != 1 {
		return nil, false
	}
	for b := []byte(text[1:]); len(b) > 0; b = b[8:] {
		ids = append(ids, binary.BigEndian.Uint64(b))
	}
	return ids, true
}

// WriteRules leaves by which rules a partition is worked on from now on. It is
// called when everything that they newly touch has been raised.
//
// by is who began to work with ReadRules. Once another has begun, what is not
// among the rules is taken away and nothing is added; written says whether it was
// more than that.
//
// first says that whoever works on the partition leaves it for the first time.
// Then what partitions of other maps have left (of another transport, of the
// topic before it grew) goes: who reads the log by that map is done, or is about
// to find out, and raises everything when it begins anew.
func (s *Store) WriteRules(ctx context.Context, partition int, by string, ids []uint64, first bool) (written bool, err error) {
	size := ""
	if first {
		size = strconv.Itoa(partition / PartitionStep)
	}
	return s.leaveRules(ctx, partition, by, ids, size)
}

// StrikeRules leaves of what WriteRules has left no more than these. It does not
// ask who calls: a list that is too short is a raise too many.
func (s *Store) StrikeRules(ctx context.Context, partition int, ids []uint64) error {
	_, err := s.leaveRules(ctx, partition, "", ids, "")
	return err
}

func (s *Store) leaveRules(ctx context.Context, partition int, by string, ids []uint64, size string) (written bool, err error) {
	ids = slices.Sorted(slices.Values(ids))
	value := []byte{rulesVersion}
	for _, id := range slices.Compact(ids) {
		value = binary.BigEndian.AppendUint64(value, id)
	}
	l := s.layout
	keys := []string{l.Control("rules"), l.Control(rulesBy)}
	c := redis.NewIntCmd(ctx, s.evalArgs(scriptRules, l.Control("spare"), keys, strconv.Itoa(partition), value, size, PartitionStep, by)...)
	if err := s.do(ctx, []unit{{key: keys[0], cmds: []redis.Cmder{c}}}); err != nil {
		return false, fmt.Errorf("write rules of partition %d: %w", partition, err)
	}
	return c.Val() == 1, nil
}

// Followed is by which rules all partitions are worked on, at one moment.
type Followed struct{ left []leftRules }

// leftRules is what some partitions have left alike.
type leftRules struct {
	ids        map[uint64]bool
	partitions []int
}

// All reports whether every partition of the log is worked on by all of these
// rules, and whoever began to has raised what they newly touch. It is false
// where a partition has left nothing, or what this program does not understand.
func (f *Followed) All(ids []uint64) bool {
	maps := map[int]int{}
	for _, l := range f.left {
		for _, id := range ids {
			if !l.ids[id] {
				return false
			}
		}
		for _, p := range l.partitions {
			maps[p/PartitionStep]++
		}
	}
	for size, n := range maps {
		if n == size {
			return true
		}
	}
	return false
}

// Followed reads what WriteRules has left. It blocks for one round trip.
func (s *Store) Followed(ctx context.Context) (*Followed, error) {
	c := s.followedCommand(ctx)
	if err := s.do(ctx, []unit{{key: s.layout.Control("rules"), cmds: []redis.Cmder{c}}}); err != nil {
		return nil, fmt.Errorf("read by which rules partitions are worked on: %w", err)
	}
	return parseFollowed(c.Val())
}

// ControlFollowed is Control, and then Followed, in one round trip.
func (s *Store) ControlFollowed(ctx context.Context, classes ...string) (*ControlState, *Followed, error) {
	c := s.followedCommand(ctx)
	state, err := s.control(ctx, classes, c)
	if err != nil {
		return nil, nil, err
	}
	f, err := parseFollowed(c.Val())
	return state, f, err
}

func (s *Store) followedCommand(ctx context.Context) *redis.SliceCmd {
	return redis.NewSliceCmd(ctx, s.evalArgs(scriptFollowed, "", []string{s.layout.Control("rules")})...)
}

func parseFollowed(reply []any) (*Followed, error) {
	var f fields
	out := &Followed{}
	for _, one := range reply {
		list := f.list(one, 2)
		left := leftRules{ids: map[uint64]bool{}}
		if ids, ok := parseRules(f.text(list[0])); ok {
			for _, id := range ids {
				left.ids[id] = true
			}
		}
		for _, p := range list[1:] {
			left.partitions = append(left.partitions, int(f.uint(p, 63)))
		}
		out.left = append(out.left, left)
	}
	if f.err != nil {
		return nil, fmt.Errorf("read by which rules partitions are worked on: %w", f.err)
	}
	return out, nil
}

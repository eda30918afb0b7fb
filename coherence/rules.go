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
func (s *Store) ReadRules(ctx context.Context, partition int) (ids []uint64, found, others bool, err error) {
	key := s.layout.Control("rules")
	value := redis.NewStringCmd(ctx, "hget", key, strconv.Itoa(partition))
	count := redis.NewIntCmd(ctx, "hlen", key)
	if err := s.do(ctx, []unit{{key: key, cmds: []redis.Cmder{value, count}}}); err != nil {
		return nil, false, false, fmt.Errorf("read rules of partition %d: %w", partition, err)
	}
	text := value.Val()
	if text == "" {
		return nil, false, count.Val() > 0, nil
	}
	if text[0] != rulesVersion || len(text)%8 != 1 {
		return nil, false, true, nil // of another version: as if they were unknown
	}
	for b := []byte(text[1:]); len(b) > 0; b = b[8:] {
		ids = append(ids, binary.BigEndian.Uint64(b))
	}
	return ids, true, count.Val() > 1, nil
}

const rulesVersion = '1'

// WriteRules leaves by which rules a partition is worked on from now on. It is
// called when everything that they newly touch has been raised.
func (s *Store) WriteRules(ctx context.Context, partition int, ids []uint64) error {
	ids = slices.Sorted(slices.Values(ids))
	value := []byte{rulesVersion}
	for _, id := range slices.Compact(ids) {
		value = binary.BigEndian.AppendUint64(value, id)
	}
	key := s.layout.Control("rules")
	c := redis.NewIntCmd(ctx, "hset", key, strconv.Itoa(partition), value)
	if err := s.do(ctx, []unit{{key: key, cmds: []redis.Cmder{c}}}); err != nil {
		return fmt.Errorf("write rules of partition %d: %w", partition, err)
	}
	return nil
}

package coherence

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/change"
)

// CauseWatermark is the cause of a loss that a watermark shows.
const CauseWatermark = "watermark"

// ReadWatermarks returns what a worker partition has left on each master, and
// who that master is now. One that is Lost, or below what the log says was
// confirmed, asks for the redo of a lost node.
func (s *Store) ReadWatermarks(ctx context.Context, partition int) ([]Watermark, error) {
	masters, err := s.topology(ctx)
	if err != nil {
		return nil, fmt.Errorf("read watermarks: %w", err)
	}
	marks := make([]Watermark, len(masters))
	units := make([]unit, len(masters))
	for i, m := range masters {
		marks[i] = Watermark{Node: m.node.name, LeastSlot: m.least()}
		if err := m.node.state(ctx); err != nil {
			return nil, fmt.Errorf("read watermarks: %w", err)
		}
		// Asked, not remembered: this is what the caller compares.
		if marks[i].Current, err = s.askRunID(ctx, m.node); err != nil {
			return nil, fmt.Errorf("read watermarks: %w", err)
		}
		key := s.layout.Watermark(m.least())
		units[i] = unit{key: key, cmds: []redis.Cmder{redis.NewStringCmd(ctx, "hget", key, strconv.Itoa(partition))}}
	}
	if err := s.do(ctx, units); err != nil {
		return nil, fmt.Errorf("read watermarks: %w", err)
	}
	for i := range marks {
		text := units[i].cmds[0].(*redis.StringCmd).Val()
		if text == "" {
			continue
		}
		position, runID, _ := strings.Cut(text, "|")
		if marks[i].Position, err = change.ParsePosition(position); err != nil {
			return nil, fmt.Errorf("read watermark of partition %d on %s: %w", partition, marks[i].Node, err)
		}
		marks[i].Found, marks[i].RunID = true, runID
	}
	return marks, nil
}

// WriteWatermarks leaves a partition's watermark on every master, under the
// run_id that the caller's commands went to. It is called after the replies of
// everything below p: broadcasts and sweeps included. What stands under the
// same run_id is never lowered.
//
// before is what the caller knows to stand there, zero if nothing. A master
// that holds less has lost writes although it is the same process (FLUSHALL,
// an old file loaded again): nothing is written to it, and the error is its
// NodeLostError with cause CauseWatermark. The Store does not remember such a
// loss, nor does it need to be acknowledged.
func (s *Store) WriteWatermarks(ctx context.Context, partition int, p, before change.Position) error {
	masters, err := s.topology(ctx)
	if err != nil {
		return fmt.Errorf("write watermarks: %w", err)
	}
	units := make([]unit, len(masters))
	ids := make([]string, len(masters))
	for i, m := range masters {
		key := s.layout.Watermark(m.least())
		ids[i] = s.writing(ctx, m.node)
		units[i] = unit{key: key, cmds: []redis.Cmder{redis.NewIntCmd(ctx,
			s.evalArgs(scriptWatermark, key+":spare", []string{key}, partition, p.Append(nil), ids[i], least(before))...)}}
	}
	if err := s.do(ctx, units); err != nil {
		return fmt.Errorf("write watermarks of partition %d: %w", partition, err)
	}
	for i, m := range masters {
		if units[i].cmds[0].(*redis.IntCmd).Val() < 0 {
			return fmt.Errorf("write watermarks of partition %d: %w", partition,
				&NodeLostError{Node: m.node.name, Old: ids[i], New: ids[i], Cause: CauseWatermark})
		}
	}
	return nil
}

// writing is the run_id under which a watermark is written: that of the server
// to which the caller's commands went.
func (s *Store) writing(ctx context.Context, n *node) string {
	if redo, ok := ctx.Value(redoKey(n.name)).(*NodeLostError); ok {
		return redo.New
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.known
}

// least is what must stand there, as the scripts take it.
func least(before change.Position) []byte {
	if before.IsZero() {
		return nil
	}
	return before.Append(nil)
}

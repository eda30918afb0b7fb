package coherence

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/change"
)

// Broadcast sends a message to every L1 cache: one script numbers it, chains
// it to the one before, adds it to the stream and publishes it. What the
// message speaks of must be done in Redis before; a watermark comes after.
//
// After an error it may or may not have been sent; sending it again does no
// harm. A heartbeat is published, with what control knows last, but neither
// numbered nor added to the stream; v and w are recorded if they are greater,
// and open purges below w are struck off.
//
// Raises, purges and sources have calls of their own, which broadcast.
func (s *Store) Broadcast(ctx context.Context, m Message) (number uint64, id string, err error) {
	switch m.Kind {
	case KindHeartbeat:
		return s.heartbeat(ctx, &m, Pulse{})
	case KindRaise, KindPurge, KindSwept, KindSource:
		return 0, "", fmt.Errorf("broadcast: kind %q goes with its record", byte(m.Kind))
	}
	number, _, id, err = s.broadcast(ctx, &m, "plain", "")
	return number, id, err
}

// Mark is a watermark to be written: that of a partition at Position, where
// Before must stand on every master; see Store.WriteWatermarks.
type Mark struct {
	Partition        int
	Position, Before change.Position
}

// BroadcastKeys sends a message of KindKeys, whose keys were invalidated, and
// returns the classes whose keys are used as names of other entries. The list
// is read behind the invalidation, which is what makes it exact: an entry that
// is registered by somebody whose class is not in it yet is registered after
// the table was raised, and refused unless it reflects the commit.
//
// With mark, which may be nil, the same script writes the watermark behind the
// message: for a batch with no effect to come. It does so on one node only, and
// only if no class is named; marked says that it has. A master that holds less
// than mark.Before is a NodeLostError, as in WriteWatermarks; the message was
// sent then.
func (s *Store) BroadcastKeys(ctx context.Context, m Message, mark *Mark) (named []string, marked bool, err error) {
	l := s.layout
	m.Kind = KindKeys
	keys := []string{l.Control("stream"), l.Control("last"), l.Control("v"), l.Control("purges"), l.Control("source"), l.Control("named")}
	args := []any{s.publishCommand(), s.opts.StreamLength, s.opts.StreamBytes, randomID(), m.V.Append(nil), "keys", m.body()}
	runID := ""
	if mark != nil && s.cluster == nil {
		runID = s.writing(ctx, s.single)
		keys = append(keys, l.Watermark(0))
		args = append(args, mark.Partition, mark.Position.Append(nil), runID, least(mark.Before))
	}
	c := redis.NewSliceCmd(ctx, s.evalArgs(scriptBroadcast, l.Control("spare"), keys, args...)...)
	if err := s.do(ctx, []unit{{key: keys[0], cmds: []redis.Cmder{c}}}); err != nil {
		return nil, false, fmt.Errorf("broadcast: %w", err)
	}
	var f fields
	reply := f.list(any(c.Val()), 4)
	for _, n := range f.list(reply[2], 0) {
		named = append(named, f.text(n))
	}
	if f.err != nil {
		return nil, false, fmt.Errorf("broadcast: %w", f.err)
	}
	switch result, _ := reply[3].(int64); {
	case result == -1:
		return nil, false, fmt.Errorf("broadcast: write watermark of partition %d: %w", mark.Partition,
			&NodeLostError{Node: s.single.name, Old: runID, New: runID, Cause: CauseWatermark})
	case result >= 0:
		marked = true
	}
	return named, marked, nil
}

// broadcast runs the control script: op is plain, raise (extra: cause, bound),
// open or close (extra: the field of the purge). Number 0 means that the cause
// of the raise had been applied before.
func (s *Store) broadcast(ctx context.Context, m *Message, op, class string, extra ...any) (number, generation uint64, id string, err error) {
	id = randomID()
	l := s.layout
	keys := []string{l.Control("stream"), l.Control("last"), l.Control("v"), l.Control("purges"), l.Control("source")}
	if class != "" {
		keys = append(keys, l.Control("class:"+class))
	}
	args := append([]any{
		s.publishCommand(), s.opts.StreamLength, s.opts.StreamBytes, id, m.V.Append(nil), op, m.body(),
	}, extra...)
	c := redis.NewSliceCmd(ctx, s.evalArgs(scriptBroadcast, l.Control("spare"), keys, args...)...)
	if err := s.do(ctx, []unit{{key: keys[0], cmds: []redis.Cmder{c}}}); err != nil {
		return 0, 0, "", fmt.Errorf("broadcast: %w", err)
	}
	reply := c.Val()
	if len(reply) != 2 {
		return 0, 0, "", fmt.Errorf("broadcast: unexpected reply %v", reply)
	}
	n, _ := reply[0].(int64)
	if text, _ := reply[1].(string); text != "" {
		if generation, err = ParseGeneration(text); err != nil {
			return 0, 0, "", fmt.Errorf("broadcast: %w", err)
		}
	}
	return uint64(n), generation, id, nil
}

// publishCommand is SPUBLISH in a cluster that has it: PUBLISH goes to every
// node of a cluster.
func (s *Store) publishCommand() string {
	if s.cluster != nil && !s.legacy {
		return "spublish"
	}
	return "publish"
}

func (s *Store) heartbeat(ctx context.Context, m *Message, p Pulse) (number uint64, id string, err error) {
	l := s.layout
	keys := []string{
		l.Control("stream"), l.Control("last"), l.Control("v"), l.Control("purges"), l.Control("source"), l.Control("named"),
	}
	args := []any{s.publishCommand(), m.V.Append(nil), m.W.Append(nil), []byte{wireVersion, m.kindByte()}, m.X.Append(nil)}
	run, err := s.controlRun(ctx, keys[1])
	if err != nil {
		return 0, "", fmt.Errorf("heartbeat: %w", err)
	}
	args = append(args, p.Token, run, p.answer(), p.Of)
	c := redis.NewSliceCmd(ctx, s.evalArgs(scriptHeartbeat, l.Control("spare"), keys, args...)...)
	if err := s.do(ctx, []unit{{key: keys[0], cmds: []redis.Cmder{c}}}); err != nil {
		return 0, "", fmt.Errorf("heartbeat: %w", err)
	}
	reply := c.Val()
	if len(reply) != 2 {
		return 0, "", fmt.Errorf("heartbeat: unexpected reply %v", reply)
	}
	n, _ := reply[0].(int64)
	id, _ = reply[1].(string)
	return uint64(n), id, nil
}

// randomID is 16 hexadecimal digits.
func randomID() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never errs
	return hex.EncodeToString(b[:])
}

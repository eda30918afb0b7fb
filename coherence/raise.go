package coherence

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/change"
)

// Raise raises the generation of classes and broadcasts each, in one script
// for each class: everything cached below it is forgotten. A cause that a
// class has seen (among its last 32) is not applied again; the classes where
// it was are returned. A generation is the greater of the one before plus one
// and the time of Redis in microseconds, so that it rises even if the record
// was lost.
//
// The values of plain classes have no generation: Walk them after it. After an
// error some classes may have been raised; the caller repeats with the same
// cause.
func (s *Store) Raise(ctx context.Context, r RaiseRequest) (applied []string, err error) {
	if r.Cause == "" || strings.ContainsAny(r.Cause, "\n\r") {
		return nil, fmt.Errorf("raise: cause %q: want one line of text", r.Cause)
	}
	if len(r.Classes) == 0 {
		return nil, errors.New("raise: no classes")
	}
	for _, class := range r.Classes {
		if class == "" {
			return applied, errors.New("raise: empty class")
		}
		m := Message{Kind: KindRaise, X: r.X, Bound: r.Bound, Names: []string{class}}
		number, generation, _, err := s.broadcast(ctx, &m, "raise", class, r.Cause, r.Bound.Append(nil))
		if err != nil {
			return applied, fmt.Errorf("raise %q: %w", class, err)
		}
		if number == 0 {
			continue
		}
		applied = append(applied, class)
		s.logger.Info("raised generation", "class", class, "cause", r.Cause, "reason", r.Reason, "generation", generation)
	}
	return applied, nil
}

// SetSource records which log positions belong to, and broadcasts it. Nothing
// happens if that is what is recorded. A new era makes v zero of the era, and
// closes every table until Seed. ErrOlderSource means that the caller's
// primary has been deposed.
func (s *Store) SetSource(ctx context.Context, src change.Source) (changed bool, err error) {
	if src.Era == 0 {
		return false, fmt.Errorf("set source: %w", ErrNoSource)
	}
	l := s.layout
	zero := change.Position{Era: src.Era}.Append(nil)
	args := []any{zero[:4], src.SystemID, src.Timeline, l.Buckets(), LayoutVersion, zero, randomID()}
	keys := []string{l.Control("source"), l.Control("v"), l.Control("last")}
	c := redis.NewIntCmd(ctx, s.evalArgs(scriptSource, l.Control("spare"), keys, args...)...)
	if err := s.do(ctx, []unit{{key: keys[0], cmds: []redis.Cmder{c}}}); err != nil {
		return false, fmt.Errorf("set source: %w", err)
	}
	switch c.Val() {
	case 0:
		return false, nil
	case -1:
		return false, fmt.Errorf("set source era %d, system %d, timeline %d: %w", src.Era, src.SystemID, src.Timeline, ErrOlderSource)
	}
	m := Message{Kind: KindSource}
	if _, _, _, err := s.broadcast(ctx, &m, "plain", ""); err != nil {
		return true, fmt.Errorf("set source: %w", err)
	}
	return true, nil
}

// Source returns the source record; its era is 0 if there is none.
func (s *Store) Source(ctx context.Context) (change.Source, error) {
	c, err := s.Control(ctx)
	if err != nil {
		return change.Source{}, err
	}
	return c.Source, nil
}

// AddNamed records that keys of these classes are used as names of other
// entries. A client does so before its first registration under such a key,
// and waits for a heartbeat that echoes it before it caches what it made.
func (s *Store) AddNamed(ctx context.Context, classes ...string) error {
	if len(classes) == 0 {
		return nil
	}
	key := s.layout.Control("named")
	args := []any{"sadd", key}
	for _, c := range classes {
		args = append(args, c)
	}
	if err := s.do(ctx, []unit{{key: key, cmds: []redis.Cmder{redis.NewIntCmd(ctx, args...)}}}); err != nil {
		return fmt.Errorf("add named classes: %w", err)
	}
	return nil
}

// RestoreControl gives control back what it forgot: the source record and the
// records of classes, never lower than what is there, the open purges and v.
// Then it broadcasts an epoch, upon which every L1 forgets what it has. It may
// be repeated.
func (s *Store) RestoreControl(ctx context.Context, c *ControlState) error {
	if c.Source.Era != 0 {
		if _, err := s.SetSource(ctx, c.Source); err != nil {
			return fmt.Errorf("restore control: %w", err)
		}
	}
	l := s.layout
	last := l.Control("last")
	var cmds []redis.Cmder
	for class, r := range c.Classes {
		if r == (ClassRecord{}) {
			continue
		}
		keys := []string{l.Control("class:" + class), last}
		cmds = append(cmds, redis.NewIntCmd(ctx, s.evalArgs(scriptRestore, l.Control("spare"), keys,
			AppendGeneration(nil, r.Generation), r.Bound.Append(nil), r.Cause, randomID())...))
	}
	if len(cmds) > 0 {
		if err := s.do(ctx, []unit{{key: last, cmds: cmds}}); err != nil {
			return fmt.Errorf("restore control: %w", err)
		}
	}
	if err := s.AddNamed(ctx, c.Named...); err != nil {
		return fmt.Errorf("restore control: %w", err)
	}
	for _, p := range c.Purges {
		if err := s.listPurge(ctx, p, c.V); err != nil {
			return fmt.Errorf("restore control: %w", err)
		}
	}
	if _, _, err := s.Broadcast(ctx, Message{Kind: KindEpoch, V: c.V}); err != nil {
		return fmt.Errorf("restore control: %w", err)
	}
	return nil
}

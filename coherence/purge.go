package coherence

import (
	"context"
	"fmt"
	"slices"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/change"
)

// OpenPurge begins a purge: the tags' buckets and headers are raised, so that
// nothing that misses X can be registered any more; then, in one script, the
// purge is listed and broadcast, so that L1 caches and hits are ahead of the
// sweep. The caller then enumerates (Members), invalidates, and ends with
// ClosePurge. All of it may be begun again at any time.
func (s *Store) OpenPurge(ctx context.Context, p Purge, v change.Position) error {
	units := make([]unit, 0, len(p.Tags))
	for _, tag := range p.Tags {
		cell, field := s.layout.Cell(tag)
		header := s.layout.TagHeader(tag)
		units = append(units, unit{key: header, cmds: []redis.Cmder{redis.NewIntCmd(ctx,
			s.evalArgs(scriptHeader, s.layout.Ticket(tag), []string{cell, header}, p.X.Append(nil), field)...)}})
	}
	if err := s.do(ctx, units); err != nil {
		return fmt.Errorf("open purge of %q: %w", p.Tags, err)
	}
	return s.listPurge(ctx, p, v)
}

func (s *Store) listPurge(ctx context.Context, p Purge, v change.Position) error {
	m := Message{Kind: KindPurge, X: p.X, V: v, All: p.All, Names: p.Tags}
	if _, _, _, err := s.broadcast(ctx, &m, "open", "", p.field()); err != nil {
		return fmt.Errorf("open purge of %q: %w", p.Tags, err)
	}
	return nil
}

// ClosePurge ends a purge, after its sweep: in one script it is struck off and
// broadcast as swept. Closing twice, or what was never open, is fine.
func (s *Store) ClosePurge(ctx context.Context, p Purge, v change.Position) error {
	m := Message{Kind: KindSwept, X: p.X, V: v, All: p.All, Names: p.Tags}
	if _, _, _, err := s.broadcast(ctx, &m, "close", "", p.field()); err != nil {
		return fmt.Errorf("close purge of %q: %w", p.Tags, err)
	}
	return nil
}

// field is a purge in the list: position, kind, names in order.
func (p *Purge) field() []byte {
	m := Message{Kind: KindPurge, All: p.All}
	tags := slices.Clone(p.Tags)
	slices.Sort(tags)
	return appendNames(append(p.X.Append(nil), m.kindByte()), slices.Compact(tags))
}

func parsePurge(field string) (Purge, error) {
	const head = 21
	if len(field) < head {
		return Purge{}, fmt.Errorf("parse open purge: %d bytes", len(field))
	}
	x, err := change.ParsePosition(field[:head-1])
	if err != nil {
		return Purge{}, fmt.Errorf("parse open purge: %w", err)
	}
	tags, err := parseNameList([]byte(field[head:]))
	if err != nil {
		return Purge{}, fmt.Errorf("parse open purge: %w", err)
	}
	return Purge{X: x, Tags: tags, All: field[head-1] == 'P'}, nil
}

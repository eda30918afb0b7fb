package coherence

import (
	"context"
	"fmt"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/change"
)

// stamp is the stamp of the value, or why it can have none.
func (r *FillRequest) stamp() (change.Position, Reason) {
	k := &r.Ticket.Known
	era := k.Source.Era
	if era == 0 {
		return change.Position{}, RefusedSource
	}
	stamp := r.Stamp
	if !r.Standby && !r.Composite {
		// v as it was at BEGIN: read later it could cover a commit that the
		// value misses. One of another era says nothing about this source.
		if stamp = k.V; stamp.Era != era {
			return change.Position{}, Stored
		}
	}
	if stamp.Era != era && !(r.Composite && !r.Standby && stamp.IsZero()) {
		return change.Position{}, RefusedSource
	}
	if r.Standby && !stamp.Covers(k.Bound) {
		return change.Position{}, RefusedBound
	}
	return stamp, Stored
}

// RegisterStamp is the stamp under which the value is to be registered: the
// one that Fill will give it. It is zero, which no registration accepts, if it
// has none.
func (r *FillRequest) RegisterStamp() change.Position {
	p, _ := r.stamp()
	return p
}

// Fill stores a value, if its ticket is still valid. A refusal is no error:
// the caller has the value, it just is not cached. It blocks for one round
// trip.
func (s *Store) Fill(ctx context.Context, r FillRequest) (Reason, error) {
	reasons, err := s.FillAll(ctx, []FillRequest{r})
	if err != nil {
		return 0, err
	}
	return reasons[0], nil
}

// FillAll is Fill for many values at once; the answers are in the order of the
// requests. After an error each of them may or may not be stored.
func (s *Store) FillAll(ctx context.Context, reqs []FillRequest) ([]Reason, error) {
	reasons := make([]Reason, len(reqs))
	units := make([]unit, 0, len(reqs))
	index := make([]int, 0, len(reqs))
	for i := range reqs {
		u, reason, err := s.fillUnit(ctx, &reqs[i])
		if err != nil {
			return nil, fmt.Errorf("fill %q: %w", reqs[i].Ticket.Name, err)
		}
		if reasons[i] = reason; reason == Stored {
			units, index = append(units, u), append(index, i)
		}
	}
	if err := s.do(ctx, units); err != nil {
		return nil, fmt.Errorf("fill: %w", err)
	}
	for u, i := range index {
		n, err := units[u].cmds[0].(*redis.IntCmd).Result()
		if err != nil {
			return nil, fmt.Errorf("fill %q: %w", reqs[i].Ticket.Name, err)
		}
		reasons[i] = Reason(n)
		if reasons[i] == RefusedForeign {
			s.foreign.Add(1)
		}
	}
	return reasons, nil
}

func (s *Store) fillUnit(ctx context.Context, r *FillRequest) (unit, Reason, error) {
	stamp, reason := r.stamp()
	if reason != Stored {
		return unit{}, reason, nil
	}
	name := r.Ticket.Name
	keys := []string{name, name}
	value := r.Payload
	if r.Ticket.Plain {
		keys[0] = s.layout.Ticket(name)
	} else {
		h := r.Header
		h.State, h.Incarnation, h.StaleSince = StateValue, r.Ticket.Incarnation, 0
		h.Generation, h.Stamp = r.Ticket.Known.Generation, stamp
		var err error
		if value, err = h.Append(make([]byte, 0, fixedLen+len(r.Payload)+64), r.Payload); err != nil {
			return unit{}, 0, err
		}
	}
	args := []any{r.Ticket.Incarnation[:], AppendGeneration(nil, r.Ticket.Known.Generation), value, max(0, r.TTL.Milliseconds())}
	if r.TTL > 0 && r.TTL.Milliseconds() == 0 {
		args[3] = int64(1) // 0 would be for ever
	}
	if r.Standby {
		cell, field := s.layout.Cell(name)
		keys = append(keys, cell)
		if floor := s.layout.floor(); floor != "" {
			keys = append(keys, floor)
		}
		asked := stamp
		if r.Composite && r.Own.Era == stamp.Era && stamp.Less(r.Own) {
			asked = r.Own
		}
		args = append(args, asked.Append(nil), field)
	}
	return unit{key: name, cmds: []redis.Cmder{redis.NewIntCmd(ctx, s.evalArgs(scriptFill, "", keys, args...)...)}}, Stored, nil
}

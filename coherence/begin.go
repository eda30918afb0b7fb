package coherence

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"
)

// beginTries bounds how often Begin unlinks what is no entry and asks again.
const beginTries = 4

// Begin takes the ticket of an entry, in one command: if the entry is absent
// an empty one is put there. It must have returned before the database is
// read. It blocks for one round trip.
func (s *Store) Begin(ctx context.Context, r BeginRequest) (Begun, error) {
	b, err := s.BeginAll(ctx, []BeginRequest{r})
	if err != nil {
		return Begun{}, err
	}
	return b[0], nil
}

// BeginAll is Begin for many entries at once; the answers are in the order of
// the requests. After an error none of the tickets may be used.
func (s *Store) BeginAll(ctx context.Context, reqs []BeginRequest) ([]Begun, error) {
	out := make([]Begun, len(reqs))
	left := make([]int, len(reqs))
	for i := range left {
		left[i] = i
	}
	random := make([]byte, len(reqs)*len(Incarnation{}))
	_, _ = rand.Read(random) // never errs
	for range beginTries {
		units := make([]unit, len(left))
		cmds := make([]*redis.StringCmd, len(left))
		for u, i := range left {
			r := &reqs[i]
			key := r.Name
			if r.Plain {
				key = s.layout.Ticket(r.Name)
			}
			h := Header{State: StateEmpty, Lease: r.Lease}
			copy(h.Incarnation[:], random[i*len(Incarnation{}):])
			out[i] = Begun{Ticket: Ticket{Name: r.Name, Plain: r.Plain, Incarnation: h.Incarnation, Known: r.Known}}
			empty, err := h.Append(nil, nil)
			if err != nil {
				return nil, err
			}
			cmds[u] = s.beginCommand(ctx, key, empty)
			units[u] = unit{key: key, cmds: []redis.Cmder{cmds[u]}}
		}
		err := s.do(ctx, units)
		if err != nil && !wrongType(err) {
			return nil, fmt.Errorf("begin: %w", err)
		}
		var again []int
		var foreign []unit
		for u, i := range left {
			ok, err := out[i].read(cmds[u])
			if err != nil {
				return nil, fmt.Errorf("begin %q: %w", reqs[i].Name, err)
			}
			if !ok {
				again = append(again, i)
				foreign = append(foreign, unit{key: units[u].key, cmds: []redis.Cmder{redis.NewIntCmd(ctx, "unlink", units[u].key)}})
			}
		}
		if len(again) == 0 {
			return out, nil
		}
		s.logger.Warn("unlinked what is no entry", "keys", len(again), "first", units[0].key)
		s.foreign.Add(int64(len(again)))
		if err := s.do(ctx, foreign); err != nil {
			return nil, fmt.Errorf("begin: %w", err)
		}
		left = again
	}
	return nil, fmt.Errorf("begin %q: somebody keeps writing values that are no entries", reqs[left[0]].Name)
}

// Exists reports which keys hold anything: of a plain entry, its value. It
// blocks for one round trip.
func (s *Store) Exists(ctx context.Context, names []string) ([]bool, error) {
	units := make([]unit, len(names))
	cmds := make([]*redis.IntCmd, len(names))
	for i := range names {
		cmds[i] = redis.NewIntCmd(ctx, "exists", names[i])
		units[i] = unit{key: names[i], cmds: []redis.Cmder{cmds[i]}}
	}
	if err := s.do(ctx, units); err != nil {
		return nil, fmt.Errorf("look for %d keys: %w", len(names), err)
	}
	out := make([]bool, len(names))
	for i, c := range cmds {
		out[i] = c.Val() > 0
	}
	return out, nil
}

func (s *Store) beginCommand(ctx context.Context, key string, empty []byte) *redis.StringCmd {
	seconds := int(EmptyLife.Seconds())
	if s.setGet {
		return redis.NewStringCmd(ctx, "set", key, empty, "nx", "get", "ex", seconds)
	}
	return redis.NewStringCmd(ctx, s.evalArgs(scriptBegin, "", []string{key}, empty, seconds)...)
}

// read takes the reply; false means that what is there is no entry.
func (b *Begun) read(c *redis.StringCmd) (bool, error) {
	raw, err := c.Bytes()
	switch {
	case errors.Is(err, redis.Nil):
		b.Mine = true
		return true, nil
	case wrongType(err):
		return false, nil
	case err != nil:
		return false, err
	}
	b.Header, b.Payload, err = Parse(raw)
	b.Ticket.Incarnation = b.Header.Incarnation
	return !errors.Is(err, ErrNotEntry), nil
}

func wrongType(err error) bool {
	return err != nil && strings.Contains(errText(err), "WRONGTYPE")
}

// Foreign counts the values that were found where entries belong, were no
// entries, and were unlinked, since the Store was made.
func (s *Store) Foreign() int64 { return s.foreign.Load() }

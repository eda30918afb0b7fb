package invalidator

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/rules"
	"github.com/lethe-cache/lethe/stream"
)

// The results of lookups, as lethe_lookups_total counts them.
const (
	lookupFound   = "rows"
	lookupNone    = "no_row"
	lookupTooMany = "too_many"
	lookupFailed  = "failed"
)

// lookups are those of the batch at hand: every one is made once, all together,
// before the first change is matched.
//
// The batch was handed on, so each of its commits is visible to a snapshot that
// is taken now (PROTOCOL, GATE), and such a snapshot is all that a lookup needs:
// what changes in the looked-up table afterwards is a change of its own.
type lookups struct {
	made map[string]rules.LookupAnswer
	// idle says that nobody asked because nothing will be done with the answer:
	// the change lies below the watermark, and nobody stands beyond Redis.
	idle     bool
	requests []rules.LookupRequest
	keys     []string
	scratch  []byte
}

var errNotLookedUp = errors.New("it was not looked up with the batch")

// lookupsKept bounds the memory that one huge batch leaves behind.
const lookupsKept = 1 << 14

func (s *lookups) reset() {
	if len(s.made) > lookupsKept {
		*s = lookups{scratch: s.scratch}
		return
	}
	clear(s.made)
	clear(s.requests)
	clear(s.keys)
	s.requests, s.keys = s.requests[:0], s.keys[:0]
}

// id is a lookup in the scratch memory: its rule's place, then the values.
func (s *lookups) id(r *rules.Rule, params [][]byte) []byte {
	s.scratch = append(s.scratch[:0], r.Name...)
	for _, p := range params {
		s.scratch = binary.AppendUvarint(append(s.scratch, 0), uint64(len(p)))
		s.scratch = append(s.scratch, p...)
	}
	return s.scratch
}

// need asks for a lookup, once.
func (s *lookups) need(r *rules.Rule, params [][]byte) {
	id := s.id(r, params)
	if _, ok := s.made[string(id)]; ok {
		return
	}
	if s.made == nil {
		s.made = map[string]rules.LookupAnswer{}
	}
	key := string(id)
	s.made[key] = rules.LookupAnswer{Err: errNotLookedUp}
	s.keys = append(s.keys, key)
	s.requests = append(s.requests, rules.LookupRequest{Rule: r, Params: append([][]byte(nil), params...)})
}

// Lookup is rules.Lookups: it answers a matcher.
func (s *lookups) Lookup(r *rules.Rule, params [][]byte) (rules.LookupResult, error) {
	if s.idle {
		return rules.LookupResult{}, nil
	}
	a, ok := s.made[string(s.id(r, params))]
	if !ok {
		a.Err = errNotLookedUp
	}
	return a.LookupResult, a.Err
}

// lookUp makes the lookups that the batch needs. A database that does not answer
// holds the batch, and with it the offset and the watermark; what it refuses
// makes a dead letter of each change that needs it.
func (l *lane) lookUp(ctx context.Context, deliveries []stream.Delivery) error {
	l.looked.reset()
	if !l.rules.Plan.HasLookups() {
		return nil
	}
	of := l.w.sources.load()
	for i := range deliveries {
		r := deliveries[i].Record
		if r == nil {
			continue
		}
		if r.Source.Era > of.Era {
			of = r.Source
		}
		for k := range r.Changes {
			c := &r.Changes[k]
			placed := r.Source.Era != 0 && !r.InsertLSN
			if placed && !l.batch.telling && l.below(c, change.Position{Era: r.Source.Era, LSN: c.Commit.LSN}) {
				continue
			}
			l.needs(c)
		}
	}
	if len(l.looked.requests) == 0 {
		return nil
	}
	l.w.hook("lookup")
	begun := time.Now()
	answers, err := l.ask(ctx, of)
	if err != nil {
		return err
	}
	l.w.metrics.lookupSeconds.Observe(time.Since(begun).Seconds())
	for i, a := range answers {
		l.looked.made[l.looked.keys[i]] = a
		l.lookedUp(ctx, l.looked.requests[i].Rule, &a)
	}
	return nil
}

// needs notes what a change needs. What panics here does so again when the
// change is matched, where it is dealt with.
func (l *lane) needs(c *change.Change) {
	defer func() {
		if p := recover(); p != nil {
			l.w.log.Error("finding what to look up panicked", "table", tableName(c), "panic", p, "stack", string(debug.Stack()))
		}
	}()
	l.matcher.Lookups(c, l.looked.need)
}

// ask makes the requests, and repeats all of them as long as the database does
// not answer.
func (l *lane) ask(ctx context.Context, of change.Source) (answers []rules.LookupAnswer, err error) {
	requests := l.looked.requests
	if l.w.cfg.Lookup == nil {
		answers = make([]rules.LookupAnswer, len(requests))
		for i := range answers {
			answers[i].Err = rules.ErrNoLookups
		}
		return answers, nil
	}
	err = l.w.retry(ctx, "lookup", func(ctx context.Context) error {
		answers, err = l.w.cfg.Lookup(ctx, of, requests)
		if err == nil && len(answers) != len(requests) {
			err = fmt.Errorf("%d answers to %d lookups", len(answers), len(requests))
		}
		return err
	})
	return answers, err
}

func (l *lane) lookedUp(ctx context.Context, r *rules.Rule, a *rules.LookupAnswer) {
	result := lookupFound
	switch {
	case a.Err != nil:
		result = lookupFailed
	case a.More:
		result = lookupTooMany
		l.w.log.WarnContext(ctx, "lookup gives too many rows, raising the classes of what it would name", "rule", r.Name, "limit", rules.LookupRowsMax)
	case len(a.Rows) == 0:
		result = lookupNone
	}
	l.w.metrics.lookups.WithLabelValues(r.Name, result).Inc()
}

package cdc

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/stream"
)

// sink is a Writer that keeps what it is given, for tests to wait for.
type sink struct {
	mu       sync.Mutex
	changed  chan struct{} // closed and replaced whenever something happens
	batches  []batch
	events   []string // of all batches, in order, without marks
	durable  uint64
	auto     bool // what is appended is durable
	drop     bool // count rows, keep nothing
	rows     int
	blocked  bool
	closed   bool
	advanced chan struct{}
}

// batch is what a batch said, copied.
type batch struct {
	seq    uint64
	source change.Source
	v      change.LSN
	events []string
	raises []change.Raise
	lsns   []change.LSN
	ends   []change.LSN
}

func newSink() *sink {
	return &sink{changed: make(chan struct{}), advanced: make(chan struct{}, 1), auto: true}
}

func (s *sink) notify() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *sink) Append(ctx context.Context, b stream.Batch) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.blocked {
		wait := s.changed
		s.mu.Unlock()
		select {
		case <-wait:
		case <-ctx.Done():
			s.mu.Lock()
			return ctx.Err()
		}
		s.mu.Lock()
	}
	got := batch{seq: b.Seq, source: b.Record.Source, v: b.Record.V, raises: b.Record.Raises}
	s.rows += len(b.Record.Changes)
	if !s.drop {
		for i := range b.Record.Changes {
			c := &b.Record.Changes[i]
			got.events = append(got.events, render(c))
			got.lsns = append(got.lsns, c.Commit.LSN)
			got.ends = append(got.ends, c.Commit.End)
		}
		for _, r := range b.Record.Raises {
			got.events = append(got.events, "raise "+r.Reason+" "+strings.Join(append(r.Classes, r.Tables...), ","))
		}
		s.batches = append(s.batches, got)
		s.events = append(s.events, got.events...)
	}
	if s.auto {
		s.setDurable(b.Seq)
	}
	s.notify()
	return nil
}

func (s *sink) setDurable(seq uint64) {
	s.durable = max(s.durable, seq)
	select {
	case s.advanced <- struct{}{}:
	default:
	}
}

func (s *sink) Durable() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.durable
}

func (s *sink) Advanced() <-chan struct{} { return s.advanced }

func (s *sink) Close(context.Context) error { return nil }

func (s *sink) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
	s.notify()
}

// wait blocks until what was received fulfils ok.
func (s *sink) wait(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(harness.Patience)
	defer deadline.Stop()
	s.mu.Lock()
	for !ok() {
		changed := s.changed
		s.mu.Unlock()
		select {
		case <-changed:
		case <-deadline.C:
			s.mu.Lock()
			defer s.mu.Unlock()
			t.Fatalf("never received: %s; events: %q", what, s.events)
		}
		s.mu.Lock()
	}
	s.mu.Unlock()
}

// waitEvent blocks until the event was received.
func (s *sink) waitEvent(t testing.TB, event string) {
	t.Helper()
	s.wait(t, event, func() bool { return s.has(event) })
}

func (s *sink) has(event string) bool { return s.count(event) > 0 }

func (s *sink) count(event string) int {
	n := 0
	for _, e := range s.events {
		if e == event {
			n++
		}
	}
	return n
}

// v is the v of the last batch.
func (s *sink) v() change.LSN {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lastV()
}

// lastV is the same under the lock, for wait and set.
func (s *sink) lastV() change.LSN {
	if len(s.batches) == 0 {
		return 0
	}
	return s.batches[len(s.batches)-1].v
}

// copied returns the batches so far.
func (s *sink) copied() []batch {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]batch(nil), s.batches...)
}

// take returns the events so far and forgets them.
func (s *sink) take() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.events
	s.events, s.batches = nil, nil
	return e
}

// render writes a change in one line: "update public.t id=1 name='x' | old id=2".
func render(c *change.Change) string {
	if c.Op == change.Message {
		return fmt.Sprintf("message %s %s", c.Prefix, c.Content)
	}
	s := c.Op.String() + " " + c.Table.QualifiedName()
	if c.New != nil {
		s += renderRow(c.Table, c.New)
	}
	if c.Old != nil {
		s += " | old" + renderRow(c.Table, c.Old)
	}
	return s
}

func renderRow(t *change.Table, r change.Row) string {
	var s string
	for i, v := range r {
		s += " " + t.Columns[i].Name + "="
		switch v.Kind {
		case change.Null:
			s += "NULL"
		case change.Unchanged:
			s += "UNCHANGED"
		case change.Absent:
			s += "ABSENT"
		case change.Text:
			if len(v.Bytes) > 40 {
				s += fmt.Sprintf("%d bytes", len(v.Bytes))
			} else {
				s += "'" + string(v.Bytes) + "'"
			}
		}
	}
	return s
}

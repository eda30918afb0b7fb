package client

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// A message that repeats itself is written logBurst times in logInterval; how
// many were left out stands in the next one that is written.
const (
	logBurst    = 5
	logInterval = 10 * time.Second
	// logMessages bounds how many messages are told apart. This package has
	// some dozen.
	logMessages = 256
)

// limited is a slog.Handler that lets a message through at most burst times in
// an interval, whatever its attributes. A cache that is away fails every read,
// and a log of that is of no use to anybody.
type limited struct {
	next  slog.Handler
	state *logState // shared with the handlers that were made of this one
}

type logState struct {
	burst    int
	interval time.Duration

	mu      sync.Mutex
	seen    map[string]*logCount
	leftOut uint64
}

// logCount is one message in its current interval.
type logCount struct {
	began        time.Time
	let, leftOut int
}

func newLimited(next slog.Handler, burst int, interval time.Duration) *limited {
	return &limited{next: next, state: &logState{burst: burst, interval: interval, seen: map[string]*logCount{}}}
}

// Enabled is next's.
func (h *limited) Enabled(ctx context.Context, level slog.Level) bool {
	return h.next.Enabled(ctx, level)
}

// Handle passes a record on, or counts it.
func (h *limited) Handle(ctx context.Context, r slog.Record) error {
	leftOut, ok := h.state.take(r.Message, time.Now())
	if !ok {
		return nil
	}
	if leftOut > 0 {
		r = r.Clone()
		r.AddAttrs(slog.Int("left_out", leftOut))
	}
	return h.next.Handle(ctx, r)
}

// WithAttrs shares the count with h.
func (h *limited) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &limited{next: h.next.WithAttrs(attrs), state: h.state}
}

// WithGroup shares the count with h.
func (h *limited) WithGroup(name string) slog.Handler {
	return &limited{next: h.next.WithGroup(name), state: h.state}
}

// take says whether a message may be written, and how many of it were not since
// the last one that was.
func (s *logState) take(message string, now time.Time) (leftOut int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.seen[message]
	if n == nil {
		if len(s.seen) >= logMessages {
			clear(s.seen)
		}
		n = &logCount{began: now}
		s.seen[message] = n
	}
	if now.Sub(n.began) >= s.interval {
		n.began, n.let = now, 0
	}
	if n.let >= s.burst {
		n.leftOut++
		s.leftOut++
		return 0, false
	}
	n.let++
	leftOut, n.leftOut = n.leftOut, 0
	return leftOut, true
}

// total is how many records were left out so far.
func (s *logState) total() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leftOut
}

// close writes how many were left out that no later record has told of.
func (h *limited) close(ctx context.Context) {
	h.state.mu.Lock()
	left := map[string]int{}
	for message, n := range h.state.seen {
		if n.leftOut > 0 {
			left[message] = n.leftOut
			n.leftOut = 0
		}
	}
	h.state.mu.Unlock()
	for message, n := range left {
		r := slog.NewRecord(time.Now(), slog.LevelInfo, "repetitions were left out", 0)
		r.AddAttrs(slog.String("of", message), slog.Int("left_out", n))
		if h.next.Enabled(ctx, r.Level) {
			_ = h.next.Handle(ctx, r)
		}
	}
}

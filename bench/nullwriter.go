package main

import (
	"context"
	"sync/atomic"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/stream"
)

// nullWriter is a log that keeps nothing: what a reader hands on is counted and
// is durable at once.
type nullWriter struct {
	// want is how many rows close done.
	want int64
	done chan struct{}

	rows     atomic.Int64
	durable  atomic.Uint64
	advanced chan struct{}
}

var _ stream.Writer = (*nullWriter)(nil)

func newNullWriter(want int) *nullWriter {
	return &nullWriter{want: int64(want), done: make(chan struct{}), advanced: make(chan struct{}, 1)}
}

// Append counts the rows of b. It never blocks.
func (w *nullWriter) Append(_ context.Context, b stream.Batch) error {
	var n int64
	for i := range b.Record.Changes {
		switch b.Record.Changes[i].Op {
		case change.Insert, change.Update, change.Delete:
			n++
		}
	}
	w.durable.Store(b.Seq)
	select {
	case w.advanced <- struct{}{}:
	default:
	}
	// One goroutine appends, so exactly one batch crosses the line.
	if after := w.rows.Add(n); n > 0 && after >= w.want && after-n < w.want {
		close(w.done)
	}
	return nil
}

// Durable returns the number of the last batch.
func (w *nullWriter) Durable() uint64 { return w.durable.Load() }

// Advanced signals every batch.
func (w *nullWriter) Advanced() <-chan struct{} { return w.advanced }

// Close does nothing.
func (w *nullWriter) Close(context.Context) error { return nil }

package main

import (
	"context"
	"testing"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/stream"
)

func TestNullWriterCountsRows(t *testing.T) {
	t.Parallel()
	w := newNullWriter(3)
	rows := func(ops ...change.Op) *change.Record {
		r := &change.Record{}
		for _, op := range ops {
			r.Changes = append(r.Changes, change.Change{Op: op})
		}
		return r
	}
	send := func(seq uint64, r *change.Record) {
		if err := w.Append(context.Background(), stream.Batch{Seq: seq, Record: r}); err != nil {
			t.Fatal(err)
		}
	}
	send(1, rows(change.Update, change.Message, change.Truncate))
	send(2, rows(change.Insert))
	select {
	case <-w.done:
		t.Fatal("done after two rows, a message and a truncate; want three rows")
	default:
	}
	<-w.Advanced()
	send(3, rows(change.Delete, change.Update))
	<-w.done
	send(4, rows()) // a mark, and no second close
	send(5, rows(change.Update))
	<-w.Advanced()
	if w.Durable() != 5 || w.rows.Load() != 5 {
		t.Errorf("durable = %d, rows = %d, want 5 and 5", w.Durable(), w.rows.Load())
	}
}

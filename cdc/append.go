package cdc

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/stream"
)

// appender is the Writer's side of a Reader, across sessions: it numbers
// batches without holes and knows how far the slot may be confirmed. append is
// called by one goroutine at a time.
type appender struct {
	writer  stream.Writer
	confirm *confirmer
	// id tells the causes of this Reader from those of every other.
	id     string
	seq    uint64
	causes uint64

	held atomic.Int64
	v    atomic.Uint64
}

// append hands a record to the Writer. An error is final: the Writer retries
// what can be retried.
func (a *appender) append(ctx context.Context, rec *change.Record, data bool) error {
	v := rec.V // the record is the Writer's afterwards
	if err := a.writer.Append(ctx, stream.Batch{Seq: a.seq + 1, Record: rec}); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return &Error{Op: fmt.Sprintf("append batch %d", a.seq+1), Err: err}
	}
	a.seq++
	if data {
		a.confirm.appended(a.seq, v)
	} else {
		a.confirm.idle(v)
	}
	return nil
}

// position is how far the slot may be confirmed now.
func (a *appender) position() change.LSN { return a.confirm.position(a.writer.Durable()) }

// cause makes a cause for a raise that has none. It is new each time: a commit
// that comes again after a restart may come with others, and a cause that was
// applied already would hide them.
func (a *appender) cause(reason string) string {
	a.causes++
	return fmt.Sprintf("%s:%s:%d", reason, a.id, a.causes)
}

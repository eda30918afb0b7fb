package kafka

import (
	"fmt"
	"time"

	"github.com/lethe-cache/lethe/change"
)

// outgoing is a record that is complete and not acknowledged.
type outgoing struct {
	value []byte
	seq   uint64 // the first batch in it; 0 for a mark
}

// queue is what a Writer has for one partition. Writer.mu guards it.
type queue struct {
	id     int
	enc    change.Encoder
	open   bool   // enc holds a record
	seq    uint64 // the first batch in it
	ready  []outgoing
	sent   bool   // ready[0] is on its way
	told   uint64 // Writer.vSeen of the last record
	toldAt time.Time
	wait   backoff
	until  time.Time // not before this, after an error
	spare  [][]byte  // buffers of acknowledged records
}

// first is the first batch that waits here, 0 if there is none.
func (q *queue) first() uint64 {
	for i := range q.ready {
		if q.ready[i].seq != 0 {
			return q.ready[i].seq
		}
	}
	if q.open {
		return q.seq
	}
	return 0
}

// spareBuffers bounds the buffers that a queue keeps, and spareBytes their
// size: a backlog must not stay in memory when it is gone.
const (
	spareBuffers = 2
	spareBytes   = 64 << 10
)

func (q *queue) buffer() []byte {
	if n := len(q.spare); n > 0 {
		b := q.spare[n-1]
		q.spare = q.spare[:n-1]
		return b[:0]
	}
	return nil
}

// recycle takes the buffer of an acknowledged record back. Only of those: a
// request that was given up may still be read by its connection.
func (q *queue) recycle(b []byte) {
	if len(q.spare) < spareBuffers && cap(b) <= spareBytes {
		q.spare = append(q.spare, b)
	}
}

// mark makes a record that holds V only.
func (q *queue) mark(head change.Record) outgoing {
	head.Partition = q.id
	q.enc.Begin(q.buffer(), &head)
	return outgoing{value: q.enc.Finish()}
}

// oversizeRaise stands in for a change that can not be delivered.
func oversizeRaise(s change.Source, c *change.Change) change.Raise {
	x := change.Raise{Reason: change.ReasonDeadLetter, Classes: []string{"*"}}
	if c.Commit != nil {
		x.X = change.Position{Era: s.Era, LSN: c.Commit.LSN}
	}
	x.Cause = fmt.Sprintf("undeliverable-%s-%d", x.X, c.Ordinal)
	if c.Table != nil && len(c.Table.QualifiedName()) <= change.MaxNameBytes {
		x.Classes, x.Tables = nil, []string{c.Table.QualifiedName()}
	}
	return x
}

// split divides a record that the broker finds too large. Two changes or more
// become two records, of which the first claims no V: its V must not be above
// changes that come behind it. A single change becomes a raise of its table
// and a dead letter, which is returned. A record that is neither, which no
// broker should refuse, is returned as it is with ok false.
func split(value []byte) (parts [][]byte, lost *change.Change, ok bool, err error) {
	var d change.Decoder
	var r change.Record
	if err := d.Decode(&r, value); err != nil {
		return nil, nil, false, err // of our own making: it can be decoded
	}
	var e change.Encoder
	if n := len(r.Changes); n >= 2 {
		head, tail := r, r
		head.Changes, head.Raises, head.V = r.Changes[:n/2], nil, 0
		tail.Changes = r.Changes[n/2:]
		for _, half := range []*change.Record{&head, &tail} {
			b, err := e.Append(nil, half)
			if err != nil {
				return nil, nil, false, err
			}
			parts = append(parts, b)
		}
		return parts, nil, true, nil
	} else if n == 0 {
		return nil, nil, false, nil
	}
	lost = &r.Changes[0]
	r.Raises = append([]change.Raise{oversizeRaise(r.Source, lost)}, r.Raises...)
	r.Changes = nil
	b, err := e.Append(nil, &r)
	if err != nil {
		return nil, nil, false, err
	}
	return [][]byte{b}, lost, true, nil
}

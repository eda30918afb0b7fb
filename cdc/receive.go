package cdc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/lethe-cache/lethe/change"
)

// receiver owns the replication connection: it reads, decodes, passes segments
// to the gate, and reports positions to the server, also while the gate takes
// nothing. One goroutine runs it; nobody else touches the connection.
type receiver struct {
	wire *wire
	dec  *decoder
	out  chan<- *segment
	// confirmed returns the position that may be confirmed now.
	confirmed func() change.LSN
	// interval between statuses; silence after which the connection is dead.
	interval, silence time.Duration
	// limits of a segment.
	maxChanges int
	maxSize    int64

	seg        *segment
	since      time.Time // when the first of the segment was read
	lastStatus time.Time
	deadline   time.Time  // of reads
	sent       change.LSN // the last position that was confirmed

	// received is the end of what has arrived; read by others.
	received atomic.Uint64
}

const (
	segmentChanges = 4096
	segmentSize    = 1 << 20
	// A segment waits for so many changes, so long, under a backlog.
	gatherChanges = 1024
	gatherTime    = 2 * time.Millisecond
	// busyInterval: while the slot can be confirmed further than it is, say so
	// more often than the keepalive's sake asks for.
	busyInterval = time.Second
)

// run ends with ctx, with the error of the connection, or with what the server
// said last. The caller closes the connection.
func (r *receiver) run(ctx context.Context) error {
	r.seg = newSegment()
	if err := r.status(false); err != nil {
		return err
	}
	for {
		f, ok, err := r.wire.buffered()
		if err != nil {
			return err
		}
		if !ok {
			// Nothing more without waiting: what is whole goes on now. The
			// beginning of a transaction does not, the rest is on its way.
			gather := !r.seg.empty() && !r.dec.open && r.gather()
			if !r.seg.empty() && !r.dec.open && !gather {
				if err := r.push(ctx); err != nil {
					return err
				}
			}
			if err := r.fill(ctx, gather); err != nil {
				return err
			}
			continue
		}
		if err := r.frame(f); err != nil {
			return err
		}
		if r.full() {
			if err := r.push(ctx); err != nil {
				return err
			}
		}
	}
}

// full reports whether the segment takes no more.
func (r *receiver) full() bool {
	return len(r.seg.rec.Changes) >= r.maxChanges || r.seg.size >= r.maxSize
}

// next is the segment behind this one.
func (r *receiver) next() *segment {
	s := newSegment()
	s.expected.changes, s.expected.parts = len(r.seg.rec.Changes), len(r.seg.parts)
	return s
}

// gather reports whether the segment shall wait for more. Under a backlog of
// small transactions it shall, for a moment: each segment costs the gate a
// snapshot, and the server the same time again.
func (r *receiver) gather() bool {
	return r.wire.pace.on && len(r.seg.rec.Changes) < gatherChanges && time.Since(r.since) < gatherTime
}

// fill waits for data, until the next status is due at most, or the segment.
func (r *receiver) fill(ctx context.Context, gather bool) error {
	if gather {
		r.deadline = time.Time{} // to be set again
		if err := r.wire.conn.SetReadDeadline(r.since.Add(gatherTime)); err != nil {
			return fmt.Errorf("set read deadline: %w", err)
		}
	} else if now := time.Now(); !now.Before(r.deadline) {
		r.deadline = now.Add(min(r.interval, busyInterval))
		if err := r.wire.conn.SetReadDeadline(r.deadline); err != nil {
			return fmt.Errorf("set read deadline: %w", err)
		}
	}
	// The end of ctx sets a deadline in the past, which the one above may just
	// have undone.
	if ctx.Err() != nil {
		return ctx.Err()
	}
	err := r.wire.fill()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return fmt.Errorf("read from the replication connection: %w", err)
	}
	if r.seg.empty() {
		r.since = r.wire.lastRead
	}
	return r.tick()
}

// tick sends the status when it is due, and notices a server that is silent.
func (r *receiver) tick() error {
	now := time.Now()
	since := now.Sub(r.lastStatus)
	if since < min(r.interval, busyInterval) || since < r.interval && r.confirmed() <= r.sent {
		return nil
	}
	quiet := now.Sub(r.wire.lastRead)
	if quiet >= r.silence {
		return errSilent
	}
	// Silence alone may be a server with nothing to say: ask.
	return r.status(quiet >= r.interval)
}

// status reports the positions.
func (r *receiver) status(wantReply bool) error {
	lsn := max(r.confirmed(), r.sent)
	if err := r.wire.status(change.LSN(r.received.Load()), lsn, wantReply); err != nil {
		return err
	}
	r.sent, r.lastStatus = lsn, time.Now()
	return nil
}

// push hands the segment to the gate. While the gate does not take it, the
// server still hears of us.
func (r *receiver) push(ctx context.Context) error {
	seg := r.seg
	r.seg = r.next()
	select {
	case r.out <- seg:
		return nil
	default:
	}
	timer := time.NewTicker(min(r.interval, busyInterval))
	defer timer.Stop()
	for {
		select {
		case r.out <- seg:
			// Nobody listened meanwhile, so nobody can say that it was silent.
			r.wire.lastRead = time.Now()
			return nil
		case <-timer.C:
			r.wire.lastRead = time.Now()
			if err := r.tick(); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// frame takes one message of the server in.
func (r *receiver) frame(f frame) error {
	switch f.kind {
	case 'd':
		return r.copyData(f.body)
	case 'E':
		return fmt.Errorf("replication: %w", frameError(f.body))
	case 'N', 'S', 'A':
		return nil
	case 'c':
		return errors.New("server ended the replication stream")
	default:
		return fmt.Errorf("read replication stream: unexpected message %q", f.kind)
	}
}

func (r *receiver) copyData(body []byte) error {
	if len(body) == 0 {
		return fmt.Errorf("read replication stream: %w", errShort)
	}
	switch body[0] {
	case 'w':
		if len(body) < 1+8+8+8 {
			return fmt.Errorf("read XLogData: %w", errShort)
		}
		if err := r.dec.decode(r.seg, change.LSN(binary.BigEndian.Uint64(body[1:])), body[25:]); err != nil {
			return err
		}
		if n := len(r.seg.parts); n > 0 && !r.dec.open {
			r.advance(r.seg.parts[n-1].end)
		}
		return nil
	case 'k':
		if len(body) < 1+8+8+1 {
			return fmt.Errorf("read keepalive: %w", errShort)
		}
		r.keepalive(change.LSN(binary.BigEndian.Uint64(body[1:])))
		if body[17] != 0 {
			return r.status(false)
		}
		return nil
	default:
		return fmt.Errorf("read replication stream: unexpected copy message %q", body[0])
	}
}

// keepalive takes note of how far the server has come. Everything before that
// position was sent; so once all of it is through, the position may be
// confirmed, and WAL that does not concern us is not kept. In the middle of a
// transaction it says nothing that helps.
func (r *receiver) keepalive(end change.LSN) {
	if r.dec.open || end <= change.LSN(r.received.Load()) {
		return
	}
	r.advance(end)
	r.seg.parts = append(r.seg.parts, part{kind: partKeepalive, end: end})
}

func (r *receiver) advance(end change.LSN) {
	if end > change.LSN(r.received.Load()) {
		r.received.Store(uint64(end))
	}
}

package direct

import (
	"context"
	"fmt"
	"time"

	"github.com/lethe-cache/lethe/stream"
)

// keepSteps is into how many steps Keep is divided: acknowledgements closer to
// each other than a step become durable together, so that a busy log
// remembers a bounded number of them.
const keepSteps = 100

// partition is the log as its worker sees it.
type partition struct{ log *Log }

// ID implements stream.Partition.
func (p *partition) ID() int { return 0 }

// Count implements stream.Partition.
func (p *partition) Count() int { return 1 }

// Fetch implements stream.Partition. It returns stream.ErrClosed when the log
// was closed and everything in it delivered.
func (p *partition) Fetch(ctx context.Context, most int) ([]stream.Delivery, error) {
	for {
		out, closed := p.log.take(most)
		if len(out) > 0 {
			return out, nil
		}
		if closed {
			return nil, stream.ErrClosed
		}
		select {
		case <-p.log.ready:
		case <-p.log.closing:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

func (l *Log) take(most int) (out []stream.Delivery, closed bool) {
	m := &l.mu
	m.Lock()
	defer m.Unlock()
	for n := 0; m.cursor < len(m.queue) && (len(out) == 0 || n < most); m.cursor++ {
		e := &m.queue[m.cursor]
		out = append(out, stream.Delivery{Record: e.record, Offset: int64(e.seq)})
		n += len(e.record.Changes)
	}
	return out, m.closed
}

// Ack implements stream.Partition.
func (p *partition) Ack(_ context.Context, offset int64) error { return p.log.ack(offset) }

func (l *Log) ack(offset int64) error {
	m := &l.mu
	m.Lock()
	defer m.Unlock()
	seq := uint64(offset)
	if seq <= m.acked {
		return nil // again, or late: nothing moves back
	}
	n := int(seq - m.acked)
	if n > m.cursor {
		return fmt.Errorf("ack offset %d: it was not delivered", offset)
	}
	for _, e := range m.queue[:n] {
		m.bytes -= e.bytes
		m.changes -= len(e.record.Changes)
	}
	clear(m.queue[:n]) // the records may go
	if m.queue = m.queue[n:]; len(m.queue) == 0 {
		m.queue = nil
	}
	m.cursor -= n
	m.acked = seq
	l.keep(seq, time.Now())
	signal(l.room)
	l.finish()
	return nil
}

// keep notes that seq was applied. Called with the lock held.
func (l *Log) keep(seq uint64, now time.Time) {
	m := &l.mu
	if n := len(m.waiting); n > 0 && now.Sub(m.waiting[n-1].since) < l.cfg.Keep/keepSteps {
		m.waiting[n-1].seq, m.waiting[n-1].at = seq, now
		return
	}
	m.waiting = append(m.waiting, applied{seq: seq, since: now, at: now})
	if m.timer == nil && !m.empty {
		m.timer = time.AfterFunc(l.cfg.Keep, l.expire)
	}
}

// expire moves Durable over everything that was applied Keep ago.
func (l *Log) expire() {
	m := &l.mu
	m.Lock()
	defer m.Unlock()
	if m.timer == nil {
		return // stopped while it fired
	}
	now := time.Now()
	moved := false
	for len(m.waiting) > 0 && now.Sub(m.waiting[0].at) >= l.cfg.Keep {
		m.durable, moved = m.waiting[0].seq, true
		m.waiting = m.waiting[1:]
	}
	if len(m.waiting) > 0 {
		m.timer.Reset(m.waiting[0].at.Add(l.cfg.Keep).Sub(now))
	} else {
		m.waiting, m.timer = nil, nil
	}
	if moved {
		signal(l.advanced)
	}
}

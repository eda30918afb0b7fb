package cdc

import (
	"sync"

	"github.com/lethe-cache/lethe/change"
)

// confirmer knows how far the slot may be confirmed: up to the end of the run
// of commits that were handed on without a hole *and* are durable behind the
// Writer. Both halves matter. A commit that is still held by the gate, or that
// was appended and lost with a broker, must come again after a restart.
//
// The position never goes back within one source: what was said cannot be
// taken back, and a smaller value after a reconnect only means that commits
// come twice.
//
// It is safe for concurrent use: the gate pushes, receiver and keeper read.
type confirmer struct {
	mu        sync.Mutex
	pending   []confirmPoint // ascending in both
	confirmed change.LSN
	// lastData is the Seq of the last batch that was more than a mark.
	lastData uint64
}

// confirmPoint: once every batch up to seq is durable, all commits below lsn are.
type confirmPoint struct {
	seq uint64
	lsn change.LSN
}

// restart forgets everything, for a source in which LSNs mean something else.
func (c *confirmer) restart(lsn change.LSN) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pending, c.confirmed, c.lastData = nil, lsn, 0
}

// appended notes that batch seq, with changes or raises, was appended, and that
// all commits below v had been handed on with it or before.
func (c *confirmer) appended(seq uint64, v change.LSN) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastData = seq
	c.push(confirmPoint{seq, v})
}

// idle notes that all commits below v have been handed on although no batch
// brought any: the server has moved past WAL that does not concern us. A mark
// says so to the workers, and need not be durable: what it stands behind must.
func (c *confirmer) idle(v change.LSN) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.push(confirmPoint{c.lastData, v})
}

func (c *confirmer) push(p confirmPoint) {
	if n := len(c.pending); n > 0 {
		last := &c.pending[n-1]
		// After a reconnect v starts again at the confirmed position, while the
		// points of the last session stay true: only a later one adds anything.
		if p.lsn <= last.lsn {
			return
		}
		if p.seq == last.seq {
			last.lsn = p.lsn
			return
		}
	}
	if p.lsn > c.confirmed {
		c.pending = append(c.pending, p)
	}
}

// position returns what may be confirmed when the batches up to durable are.
func (c *confirmer) position(durable uint64) change.LSN {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for n < len(c.pending) && c.pending[n].seq <= durable {
		c.confirmed = max(c.confirmed, c.pending[n].lsn)
		n++
	}
	if n == len(c.pending) {
		c.pending = c.pending[:0]
	} else if n > 0 {
		c.pending = append(c.pending[:0], c.pending[n:]...)
	}
	return c.confirmed
}

// data returns the number of the last batch that was more than a mark.
func (c *confirmer) data() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lastData
}

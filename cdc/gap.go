package cdc

// A Gap waits for the transactions that may have slipped past the log.
//
// When a slot is new, or a table entered a running publication, commits that
// the log will never bring may be flushed and still invisible. One raise is
// not enough then: a reader that comes after the raise and before such a commit
// is visible caches the old value under the new generation, and no message will
// come (PROTOCOL H5). So there are two: one at once, and another when every
// transaction that ran in a snapshot taken after the event is over.
//
// A transaction that got its xid after that comes through the log whole. One
// that was running and comes through the gate later is over by then, for the
// gate hands on nothing else: no list of what came through is needed.
type Gap struct {
	running map[uint64]struct{}
}

// NewGap begins to wait for what ran in a snapshot taken after the event. next
// is an xid that was assigned after the snapshot was taken.
//
// The snapshot's list is not enough: its xmax follows the newest transaction
// that is over, and a newer one may be flushed already and wait for its
// synchronous standby. Such a one lies at or above xmax, and below next.
func NewGap(after Snapshot, next uint64) *Gap {
	g := &Gap{running: make(map[uint64]struct{}, len(after.Xip))}
	for _, xid := range after.Xip {
		g.running[xid] = struct{}{}
	}
	for xid := after.Xmax; xid < next; xid++ {
		g.running[xid] = struct{}{}
	}
	return g
}

// Observe strikes off what a later snapshot shows to be over, and reports
// whether nothing is left: now the second raise is due.
func (g *Gap) Observe(s *Snapshot) bool {
	for xid := range g.running {
		if s.Over(xid) {
			delete(g.running, xid)
		}
	}
	return len(g.running) == 0
}

// Running returns how many transactions are still waited for.
func (g *Gap) Running() int { return len(g.running) }

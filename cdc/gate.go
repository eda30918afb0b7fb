package cdc

import (
	"cmp"
	"slices"

	"github.com/lethe-cache/lethe/change"
)

// gate decides which commits go on. It is pure: no goroutine, no clock, no
// connection; gateRunner drives it.
//
// Commits are received in the order of their commit records. They become
// visible in another order, so the gate lets those that a snapshot shows
// overtake those that it does not: invalidations commute, and a reader that
// still sees the old row is right to. v stops below the first commit that is
// held, since what has v as its stamp claims to contain everything below.
//
// Memory is bounded. What is held counts against maxBytes and maxRows; beyond
// them the largest commits are forgotten: their rows go, and their xid, their
// position and the tables that they touched stay. When such a commit becomes
// visible, the classes of those tables are raised. When too many have been
// forgotten the gate is full, and the slot is not read until some go on.
type gate struct {
	maxBytes     int64
	maxRows      int
	maxForgotten int

	// v is the end of the run of commits that were handed on.
	v change.LSN
	// entries are what lies behind v, in the order of the log: commits that are
	// held, and what overtook them.
	entries []*entry
	// current is the commit that has begun and not ended, if it has an entry.
	current *entry
	// held counts the commits that no snapshot has shown, forgotten those of
	// them whose rows are gone; rows and bytes are what the others take.
	held, rows, forgotten int
	bytes                 int64
}

// entry is one commit behind v, or a run of commits that overtook.
type entry struct {
	// xid as the log has it, and as the snapshot at its begin widened it.
	xid  uint32
	wide uint64
	lsn  change.LSN
	// end is known once the whole commit was received (whole).
	end   change.LSN
	whole bool
	// passed says that a snapshot showed it: what came of it was handed on.
	passed bool

	chunks []*segment
	rows   int
	bytes  int64
	poison []poison
	// forgotten: the rows are gone, and tables (all: everything) are raised.
	forgotten bool
	all       bool
	tables    map[*change.Table]struct{}
}

// handed is what the gate lets go on at one time.
type handed struct {
	rec    *change.Record
	poison []poisoned
	// tables and all are what forgotten commits ask to be raised, x the last of
	// those commits.
	tables map[*change.Table]struct{}
	all    bool
	x      change.LSN
}

// poisoned is a message that could not be decoded, with its commit.
type poisoned struct {
	poison
	x change.LSN
}

// full reports whether the gate can remember no more.
func (g *gate) full() bool { return g.forgotten >= g.maxForgotten }

// waiting reports whether a commit waits for a snapshot that shows it.
func (g *gate) waiting() bool { return g.held > 0 }

// needsSnapshot reports whether seg can not be judged without a snapshot.
func (g *gate) needsSnapshot(seg *segment) bool {
	for i := range seg.parts {
		p := &seg.parts[i]
		if p.kind == partCommit && p.first && !p.idle() {
			return true
		}
	}
	return false
}

// idle says that the part is a whole commit without anything in it. Nothing of
// it could be seen, so nothing has to be visible.
func (p *part) idle() bool { return p.first && p.last && p.from == p.to && len(p.poison) == 0 }

// release appends to out what the snapshot shows of the commits that are held,
// in the order of the log, and moves v.
func (g *gate) release(snap *Snapshot, out []handed) []handed {
	if g.held == 0 {
		return out
	}
	var h handed
	flush := func() {
		if h.rec != nil || h.tables != nil || h.all || h.poison != nil {
			if h.rec == nil {
				h.rec = &change.Record{}
			}
			out = append(out, h)
			h = handed{}
		}
	}
	for _, e := range g.entries {
		if e.passed {
			continue
		}
		xid := snap.Widen(e.xid)
		if !snap.Over(xid) {
			continue
		}
		g.held--
		g.rows -= e.rows
		g.bytes -= e.bytes
		e.passed, e.wide = true, xid
		if e.forgotten {
			g.forgotten--
			h.all = h.all || e.all
			if h.tables == nil {
				h.tables = map[*change.Table]struct{}{}
			}
			for t := range e.tables {
				h.tables[t] = struct{}{}
			}
			h.x = max(h.x, e.lsn)
		}
		for _, p := range e.poison {
			h.poison = append(h.poison, poisoned{p, e.lsn})
		}
		for _, c := range e.chunks {
			for i := range c.rec.Changes {
				c.rec.Changes[i].Commit.XID = xid
			}
			// A large chunk goes as it is; small ones are joined.
			if len(c.rec.Changes) >= segmentChanges/4 {
				flush()
				h.rec = c.rec
				flush()
				continue
			}
			if h.rec == nil {
				h.rec = &change.Record{}
			}
			h.rec.Changes = append(h.rec.Changes, c.rec.Changes...)
			if len(h.rec.Changes) >= segmentChanges {
				flush()
			}
		}
		e.chunks, e.poison, e.tables = nil, nil, nil
	}
	flush()
	g.settle()
	return out
}

// admit takes a segment in. What goes on stays in it (and is described by the
// returned handed), what does not is moved into the holding area. snap may be
// nil if needsSnapshot says so.
func (g *gate) admit(seg *segment, snap *Snapshot) handed {
	h := handed{rec: seg.rec}
	keep := 0 // changes of the segment that go on, moved to the front
	changes := seg.rec.Changes
	for i := range seg.parts {
		p := &seg.parts[i]
		if p.kind == partKeepalive {
			g.reached(p.end)
			continue
		}
		if e := g.place(p, snap); e != nil {
			if len(seg.parts) == 1 {
				// All of it is a piece of one commit that is held: the segment is
				// kept as it is.
				g.hold(e, p, seg)
				return handed{rec: &change.Record{}}
			}
			g.hold(e, p, seg.extract(p))
			continue
		}
		for _, bad := range p.poison {
			h.poison = append(h.poison, poisoned{bad, p.commit.LSN})
		}
		if keep == p.from {
			keep = p.to
		} else {
			keep += copy(changes[keep:], changes[p.from:p.to])
		}
	}
	clear(changes[keep:])
	seg.rec.Changes = changes[:keep]
	g.settle()
	return h
}

// place decides whether a part goes on at once, and keeps the books of v. It
// returns the entry of the commit if the part is to be held.
func (g *gate) place(p *part, snap *Snapshot) *entry {
	switch {
	case p.kind == partMessage:
		return nil
	case p.idle():
		g.reached(p.end)
		return nil
	case p.first:
		xid := snap.Widen(p.xid)
		passed := snap.Over(xid)
		if passed && p.last {
			p.commit.XID = xid
			g.reached(p.end)
			return nil
		}
		g.current = &entry{xid: p.xid, wide: xid, lsn: p.commit.LSN, passed: passed}
		g.entries = append(g.entries, g.current)
		if !passed {
			g.held++
		}
	}
	e := g.current
	p.commit.XID = e.wide
	if p.last {
		e.whole, e.end = true, p.end
		g.current = nil
	}
	if e.passed {
		return nil
	}
	return e
}

// extract copies the changes of a part into a segment of their own.
func (s *segment) extract(p *part) *segment {
	changes := s.rec.Changes[p.from:p.to]
	var bytes, values int
	count := func(r change.Row) {
		values += len(r)
		for i := range r {
			bytes += len(r[i].Bytes)
		}
	}
	for i := range changes {
		count(changes[i].Old)
		count(changes[i].New)
		bytes += len(changes[i].Content)
	}
	d := newSegment()
	d.bytes, d.values = make([]byte, 0, bytes), make([]change.Value, 0, values)
	d.rec.Changes = make([]change.Change, 0, len(changes))
	d.size = int64(bytes + values*valueSize)
	commit := d.commit(*p.commit)
	for i := range changes {
		d.copyChange(&changes[i], commit)
	}
	return d
}

// hold puts what came of a commit that is not visible into the holding area,
// or notes no more than its tables.
func (g *gate) hold(e *entry, p *part, seg *segment) {
	size := seg.size + seg.slack()
	for _, bad := range p.poison {
		size += int64(len(bad.payload))
	}
	e.poison = append(e.poison, p.poison...)
	if e.forgotten {
		e.note(seg.rec.Changes)
		for i := range e.poison {
			e.poison[i].payload = nil
		}
		return
	}
	e.chunks = append(e.chunks, seg)
	// A commit takes room even if it has no rows.
	g.charge(e, max(1, len(seg.rec.Changes)), size)
}

func (g *gate) charge(e *entry, rows int, bytes int64) {
	e.rows += rows
	e.bytes += bytes
	g.rows += rows
	g.bytes += bytes
	if g.bytes > g.maxBytes || g.rows > g.maxRows {
		g.forget()
	}
}

// forget drops the rows of the largest held commits until half of the room is
// free again, so that it need not look for them at every commit.
func (g *gate) forget() {
	var big []*entry
	for _, e := range g.entries {
		if !e.passed && !e.forgotten {
			big = append(big, e)
		}
	}
	slices.SortFunc(big, func(a, b *entry) int {
		return cmp.Or(cmp.Compare(b.bytes, a.bytes), cmp.Compare(b.rows, a.rows))
	})
	for _, e := range big {
		if g.bytes <= g.maxBytes/2 && g.rows <= g.maxRows/2 {
			return
		}
		for _, c := range e.chunks {
			e.note(c.rec.Changes)
		}
		for i := range e.poison {
			e.poison[i].payload = nil
		}
		g.rows -= e.rows
		g.bytes -= e.bytes
		e.chunks, e.rows, e.bytes = nil, 0, 0
		e.forgotten = true
		g.forgotten++
	}
}

// note remembers the tables of changes whose rows are not kept. A message
// names keys and tags, which no table stands for.
func (e *entry) note(changes []change.Change) {
	if e.tables == nil {
		e.tables = map[*change.Table]struct{}{}
	}
	for i := range changes {
		if t := changes[i].Table; t != nil {
			e.tables[t] = struct{}{}
		} else {
			e.all = true
		}
	}
}

// reached notes that everything up to end was handed on, but for what is held.
func (g *gate) reached(end change.LSN) {
	n := len(g.entries)
	if n == 0 {
		g.v = max(g.v, end)
		return
	}
	if last := g.entries[n-1]; last.passed && last.whole {
		last.end = max(last.end, end)
		return
	}
	g.entries = append(g.entries, &entry{passed: true, whole: true, end: end})
}

// settle moves v over what was handed on in full.
func (g *gate) settle() {
	n := 0
	for n < len(g.entries) && g.entries[n].passed && g.entries[n].whole {
		g.v = max(g.v, g.entries[n].end)
		n++
	}
	if n > 0 {
		g.entries = slices.Delete(g.entries, 0, n)
	}
}

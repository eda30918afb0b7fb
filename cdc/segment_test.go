package cdc

import (
	"testing"

	"github.com/lethe-cache/lethe/change"
)

// grown returns the segment behind one of so many changes, with so many of its
// own, and how often its list of changes was copied on the way.
func grown(before, n int) (s *segment, copies int) {
	r := &receiver{maxChanges: segmentChanges, maxSize: segmentSize, seg: newSegment()}
	r.seg.rec.Changes = make([]change.Change, before)
	r.seg.parts = make([]part, before)
	s = r.next()
	s.parts = append(s.parts, part{})
	for range n {
		had := cap(s.rec.Changes)
		s.add(change.Change{})
		if cap(s.rec.Changes) != had {
			copies++
		}
	}
	return s, copies
}

// A segment of a backlog gets the room of the one before, in one step.
func TestSegmentsOfABacklogAreNotCopiedOften(t *testing.T) {
	t.Parallel()
	_, alone := grown(0, 1600)
	s, behind := grown(1600, 1600)
	if cap(s.rec.Changes) > 1600*5/4 {
		t.Errorf("room for %d changes, 1600 were expected", cap(s.rec.Changes))
	}
	_, few := grown(1600, expectFrom)
	if behind > few+1 || behind >= alone {
		t.Errorf("copied %d times (%d of them below %d changes), and %d times without a segment before it", behind, few, expectFrom, alone)
	}
}

// What comes behind a backlog does not hold its memory, and what does hold more
// than it uses is charged for it.
func TestCommitBehindABacklogIsSmall(t *testing.T) {
	t.Parallel()
	s, _ := grown(segmentChanges, expectFrom-1)
	if c := cap(s.rec.Changes); c > 2*expectFrom {
		t.Errorf("%d changes behind a backlog have the room of %d", expectFrom-1, c)
	}
	s, _ = grown(segmentChanges, 2*expectFrom)
	s.parts[0] = part{kind: partCommit, xid: 1, commit: s.commit(change.Commit{LSN: lsnOf(1)}), to: len(s.rec.Changes), first: true, last: true, end: lsnOf(1) + 50}
	g := newGate()
	g.admit(s, runningXids(1))
	if want := int64(cap(s.rec.Changes)) * changeSize; g.held != 1 || g.bytes < want {
		t.Errorf("%d commits held are charged %d bytes, their list of changes alone takes %d", g.held, g.bytes, want)
	}
}

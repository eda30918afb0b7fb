package cdc

import (
	"slices"

	"github.com/lethe-cache/lethe/change"
)

// segment is what the receiver passes to the gate at one time: the changes of
// any number of commits, or a piece of one, with the memory that they alias.
//
// Everything that rows need is cut from a few growing chunks, so that decoding
// a change allocates nothing by itself: bytes of the message, values, commits.
type segment struct {
	rec   *change.Record
	parts []part
	// size is an estimate of the memory that the segment uses.
	size int64
	// expected is how many changes and parts there were in the one before.
	expected struct{ changes, parts int }

	bytes   []byte
	values  []change.Value
	commits []change.Commit
}

// Chunks begin small, for the single commit of an idle database, and double.
const (
	chunkBytesMin, chunkBytesMax   = 1 << 10, 64 << 10
	chunkValuesMin, chunkValuesMax = 16, 2048
	chunkCommits                   = 64
	// changeSize is what a Change and its slots in slices take, roughly.
	changeSize = 160
	valueSize  = 32
	// expectFrom: a segment of so many changes or parts is one of a backlog.
	expectFrom = 64
)

// partKind says what a part stands for.
type partKind byte

const (
	// partCommit is a commit, or a piece of one.
	partCommit partKind = iota
	// partMessage is a non-transactional message: nothing hides it.
	partMessage
	// partKeepalive says that everything below end was sent.
	partKeepalive
)

// part is a run of a segment's changes that share their fate at the gate.
type part struct {
	kind partKind
	// xid is the commit's, as the log has it: 32 bits.
	xid    uint32
	commit *change.Commit
	// from and to delimit the changes in the segment's record.
	from, to int
	// first and last say that the part holds the commit's begin and its end. A
	// commit that is not whole is continued by the next part of its kind.
	first, last bool
	// end is the end of the commit record (last), or of the WAL that was sent.
	end change.LSN
	// poison are the messages of the commit that could not be decoded.
	poison []poison
}

// poison is a message that could not be decoded. Its table's classes are
// raised, for nobody can tell which of their entries it concerned.
type poison struct {
	// table is schema.name, empty if even that is unknown.
	table   string
	err     error
	payload []byte
	// ddl says that nothing was wrong with the message: the guard has told that
	// a DDL changed rows of the table, and the log does not say which.
	ddl bool
	// edges says that nothing was wrong and no class is concerned: the table of
	// dependencies changed, which every worker has to know in its place.
	edges bool
}

// room grows a list that is full to what is expected of it, at once: under a
// backlog it would be copied ten times on the way there. A short one is left to
// append, so that the commit behind a backlog does not hold the memory of one.
func room[T any](list []T, expected int) []T {
	if n := len(list); n == cap(list) && n >= expectFrom && n < expected {
		return slices.Grow(list, expected-n)
	}
	return list
}

// slack is the memory that the changes do not use, roughly.
func (s *segment) slack() int64 {
	return int64(cap(s.rec.Changes)-len(s.rec.Changes)) * changeSize
}

func newSegment() *segment { return &segment{rec: &change.Record{}} }

func (s *segment) empty() bool { return len(s.parts) == 0 }

// copyBytes copies b into the segment. It is the one copy that a row's bytes
// go through between the socket's buffer and their consumer.
func (s *segment) copyBytes(b []byte) []byte {
	if cap(s.bytes)-len(s.bytes) < len(b) {
		n := min(max(2*cap(s.bytes), chunkBytesMin), chunkBytesMax)
		s.bytes = make([]byte, 0, max(n, len(b)))
		s.size += int64(cap(s.bytes))
	}
	from := len(s.bytes)
	s.bytes = append(s.bytes, b...)
	return s.bytes[from:len(s.bytes):len(s.bytes)]
}

// row cuts a row of n values from the segment.
func (s *segment) row(n int) change.Row {
	if n == 0 {
		return change.Row{} // a row of no columns is still a row, nil is none
	}
	if cap(s.values)-len(s.values) < n {
		c := max(min(max(2*cap(s.values), chunkValuesMin), chunkValuesMax), n)
		s.values = make([]change.Value, 0, c)
		s.size += int64(c) * valueSize
	}
	from := len(s.values)
	s.values = s.values[:from+n]
	return s.values[from : from+n : from+n]
}

func (s *segment) commit(c change.Commit) *change.Commit {
	if len(s.commits) == cap(s.commits) {
		s.commits = make([]change.Commit, 0, max(1, min(2*cap(s.commits), chunkCommits)))
	}
	s.commits = append(s.commits, c)
	return &s.commits[len(s.commits)-1]
}

// add appends a change to the segment's last part.
func (s *segment) add(c change.Change) {
	s.rec.Changes = append(room(s.rec.Changes, s.expected.changes), c)
	s.parts[len(s.parts)-1].to = len(s.rec.Changes)
	s.size += changeSize
}

// copyChange appends a deep copy of c, for a commit that outlives the segment
// that it came in.
func (s *segment) copyChange(c *change.Change, commit *change.Commit) {
	d := *c
	d.Commit = commit
	d.Old, d.New = s.copyRow(c.Old), s.copyRow(c.New)
	if c.Content != nil {
		d.Content = s.copyBytes(c.Content)
	}
	s.rec.Changes = append(s.rec.Changes, d)
	s.size += changeSize
}

func (s *segment) copyRow(r change.Row) change.Row {
	if r == nil {
		return nil
	}
	d := s.row(len(r))
	for i, v := range r {
		if v.Bytes != nil {
			v.Bytes = s.copyBytes(v.Bytes)
		}
		d[i] = v
	}
	return d
}

package change

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"slices"
)

func be32(b []byte) uint32 { return binary.BigEndian.Uint32(b) }

// Encoder writes records in the wire format, item by item, so that a writer
// can fill the records of many partitions in one pass over a batch:
//
//	e.Begin(buf[:0], header)
//	e.AddChange(&c) ...
//	e.SetV(v)
//	value := e.Finish()
//
// The zero Encoder is ready for Begin and is reused by calling Begin again. It
// is not safe for concurrent use. It keeps the Tables of the record it is
// writing alive, nothing else of a Change.
type Encoder struct {
	buf     []byte
	start   int // where the record begins in buf
	tables  map[*Table]int
	current *Table
	commit  Commit
	started bool // commit is set
	changes int
	raises  int
	values  int
	commits int
}

// Begin starts a record behind dst, with the source, place, V and flags of
// head; its changes and raises are not looked at.
func (e *Encoder) Begin(dst []byte, head *Record) {
	e.start = len(dst)
	e.buf = append(slices.Grow(dst, wireHeaderLen), make([]byte, wireHeaderLen)...)
	if e.tables == nil {
		e.tables = make(map[*Table]int)
	} else {
		clear(e.tables)
	}
	e.current, e.started, e.commit = nil, false, Commit{}
	e.changes, e.raises, e.values, e.commits = 0, 0, 0, 0

	h := e.buf[e.start:]
	copy(h, wireMagic)
	h[offVersion] = WireVersion
	if head.InsertLSN {
		h[offFlags] |= flagInsertLSN
	}
	binary.BigEndian.PutUint16(h[offEra:], head.Source.Era)
	binary.BigEndian.PutUint64(h[offSystemID:], head.Source.SystemID)
	binary.BigEndian.PutUint32(h[offTimeline:], head.Source.Timeline)
	binary.BigEndian.PutUint64(h[offV:], uint64(head.V))
	binary.BigEndian.PutUint32(h[offPartition:], uint32(head.Partition))
	binary.BigEndian.PutUint32(h[offPartitions:], uint32(head.Partitions))
	binary.BigEndian.PutUint32(h[offMapVersion:], head.MapVersion)
}

// Len is the length that Finish would give the record now.
func (e *Encoder) Len() int { return len(e.buf) - e.start + wireTrailerLen }

// Changes counts the changes that were added since Begin.
func (e *Encoder) Changes() int { return e.changes }

// Raises counts the raises that were added since Begin.
func (e *Encoder) Raises() int { return e.raises }

// SetV sets V as it stands behind the record.
func (e *Encoder) SetV(v LSN) { binary.BigEndian.PutUint64(e.buf[e.start+offV:], uint64(v)) }

// Finish completes the record and returns dst with the record behind it. The
// Encoder does not touch the bytes again before the next Begin.
func (e *Encoder) Finish() []byte {
	h := e.buf[e.start:]
	binary.BigEndian.PutUint32(h[offChanges:], uint32(e.changes))
	binary.BigEndian.PutUint32(h[offValues:], uint32(e.values))
	binary.BigEndian.PutUint32(h[offCommits:], uint32(e.commits))
	e.buf = binary.BigEndian.AppendUint32(e.buf, crc32.Checksum(h, castagnoli()))
	buf := e.buf
	e.buf = nil
	return buf
}

// Append appends the encoding of a whole record to dst.
func (e *Encoder) Append(dst []byte, r *Record) ([]byte, error) {
	e.Begin(dst, r)
	for i := range r.Changes {
		if err := e.AddChange(&r.Changes[i]); err != nil {
			return dst, err
		}
	}
	for i := range r.Raises {
		if err := e.AddRaise(&r.Raises[i]); err != nil {
			return dst, err
		}
	}
	if n := e.Len(); n > MaxRecordBytes {
		return dst, fmt.Errorf("encode record: %d bytes are more than the limit of %d", n, MaxRecordBytes)
	}
	return e.Finish(), nil
}

// AddChange adds a change. After an error the record is as it was before.
func (e *Encoder) AddChange(c *Change) error {
	if err := checkChange(c); err != nil {
		return err
	}
	if !e.started || !sameCommit(&e.commit, c.Commit) {
		e.addCommit(c.Commit)
	}
	if c.Op == Message {
		b := append(e.buf, byte(c.Op))
		b = binary.AppendUvarint(b, uint64(c.Ordinal))
		b = appendString(b, c.Prefix)
		b = binary.AppendUvarint(b, uint64(len(c.Content)))
		e.buf = append(b, c.Content...)
		e.changes++
		return nil
	}
	if e.current != c.Table {
		e.useTable(c.Table)
	}
	var rows byte
	if c.Old != nil {
		rows |= rowOld
	}
	if c.New != nil {
		rows |= rowNew
	}
	b := append(e.buf, byte(c.Op))
	b = binary.AppendUvarint(b, uint64(c.Ordinal))
	b = append(b, rows)
	b = appendRow(b, c.Old)
	e.buf = appendRow(b, c.New)
	e.values += len(c.Old) + len(c.New)
	e.changes++
	return nil
}

// checkChange refuses what could not be decoded again, before a byte of it is
// written: an error in the middle would leave half an item behind.
func checkChange(c *Change) error {
	if c.Commit == nil {
		return errors.New("encode change: no commit")
	}
	switch c.Op {
	case Message:
		if len(c.Prefix) > MaxNameBytes {
			return fmt.Errorf("encode message: prefix of %d bytes is longer than %d", len(c.Prefix), MaxNameBytes)
		}
		return nil
	case Insert, Update, Delete, Truncate:
	default:
		return fmt.Errorf("encode change: unknown operation %q", byte(c.Op))
	}
	if c.Table == nil {
		return fmt.Errorf("encode %s: no table", c.Op)
	}
	if err := checkTable(c.Table); err != nil {
		return err
	}
	for _, row := range []Row{c.Old, c.New} {
		if row != nil && len(row) != len(c.Table.Columns) {
			return fmt.Errorf("encode %s of %s: row of %d values, table of %d columns",
				c.Op, c.Table.QualifiedName(), len(row), len(c.Table.Columns))
		}
		for i := range row {
			switch row[i].Kind {
			case Absent, Null, Unchanged, Text:
			default:
				return fmt.Errorf("encode %s of %s: column %s has the unknown kind %q",
					c.Op, c.Table.QualifiedName(), c.Table.Columns[i].Name, byte(row[i].Kind))
			}
		}
	}
	return nil
}

func checkTable(t *Table) error {
	if len(t.Columns) > MaxColumns {
		return fmt.Errorf("encode table %s: %d columns are more than %d", t.QualifiedName(), len(t.Columns), MaxColumns)
	}
	if len(t.Schema) > MaxNameBytes || len(t.Name) > MaxNameBytes {
		return fmt.Errorf("encode table %d: name is longer than %d bytes", t.ID, MaxNameBytes)
	}
	for i := range t.Columns {
		if len(t.Columns[i].Name) > MaxNameBytes {
			return fmt.Errorf("encode table %s: name of column %d is longer than %d bytes", t.QualifiedName(), i, MaxNameBytes)
		}
	}
	return nil
}

// sameCommit compares by value: a reader may use the memory of its Commits
// again while a record is still open.
func sameCommit(a, b *Commit) bool {
	return a.XID == b.XID && a.LSN == b.LSN && a.End == b.End && a.Time.Equal(b.Time)
}

func (e *Encoder) addCommit(c *Commit) {
	b := append(e.buf, itemCommit)
	b = binary.AppendUvarint(b, c.XID)
	b = binary.AppendUvarint(b, uint64(c.LSN))
	b = binary.AppendUvarint(b, uint64(c.End))
	if c.Time.IsZero() {
		b = append(b, 0)
	} else {
		b = append(b, 1)
		b = binary.AppendVarint(b, c.Time.UnixMicro())
	}
	e.buf = b
	e.commit, e.started = *c, true
	e.commits++
}

func (e *Encoder) useTable(t *Table) {
	e.current = t
	if n, ok := e.tables[t]; ok {
		e.buf = binary.AppendUvarint(append(e.buf, itemUseTable), uint64(n))
		return
	}
	e.tables[t] = len(e.tables)
	e.buf = append(e.buf, itemTable)
	// The length in front lets a decoder compare the description with those it
	// knows before it reads it.
	at := len(e.buf)
	b := binary.AppendUvarint(e.buf, uint64(t.ID))
	b = append(b, byte(t.Identity))
	b = appendString(b, t.Schema)
	b = appendString(b, t.Name)
	b = binary.AppendUvarint(b, uint64(len(t.Columns)))
	for i := range t.Columns {
		c := &t.Columns[i]
		b = appendString(b, c.Name)
		b = binary.AppendUvarint(b, uint64(c.Type))
		var key byte
		if c.Key {
			key = 1
		}
		b = append(b, key)
	}
	var n [binary.MaxVarintLen64]byte
	e.buf = slices.Insert(b, at, n[:binary.PutUvarint(n[:], uint64(len(b)-at))]...)
}

// AddRaise adds a raise. After an error the record is as it was before.
func (e *Encoder) AddRaise(r *Raise) error {
	if len(r.Cause) > MaxNameBytes || len(r.Reason) > MaxNameBytes {
		return fmt.Errorf("encode raise: cause or reason is longer than %d bytes", MaxNameBytes)
	}
	for _, names := range [][]string{r.Classes, r.Tables} {
		if len(names) > MaxRaiseNames {
			return fmt.Errorf("encode raise %q: %d names are more than %d", r.Cause, len(names), MaxRaiseNames)
		}
		for _, n := range names {
			if len(n) > 2*MaxNameBytes {
				return fmt.Errorf("encode raise %q: a name is longer than %d bytes", r.Cause, 2*MaxNameBytes)
			}
		}
	}
	b := append(e.buf, itemRaise)
	b = appendString(b, r.Cause)
	b = appendString(b, r.Reason)
	b = appendStrings(b, r.Classes)
	b = appendStrings(b, r.Tables)
	b = appendPosition(b, r.X)
	e.buf = appendPosition(b, r.Bound)
	e.raises++
	return nil
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendStrings(b []byte, names []string) []byte {
	b = binary.AppendUvarint(b, uint64(len(names)))
	for _, n := range names {
		b = appendString(b, n)
	}
	return b
}

func appendPosition(b []byte, p Position) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(b, uint64(p.Era)), uint64(p.LSN))
}

func appendRow(b []byte, row Row) []byte {
	for i := range row {
		switch v := &row[i]; v.Kind {
		case Absent:
			b = append(b, wireAbsent)
		case Null:
			b = append(b, wireNull)
		case Unchanged:
			b = append(b, wireUnchanged)
		default:
			if n := len(v.Bytes); n < 0x80-wireText {
				b = append(b, byte(n+wireText))
			} else {
				b = binary.AppendUvarint(b, uint64(n)+wireText)
			}
			b = append(b, v.Bytes...)
		}
	}
	return b
}

// maxInt32 guards the places of a record, which travel in 32 bits.
const maxInt32 = math.MaxInt32

package change

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"
)

// recordMemory is the memory of a decoded record besides its input: exactly
// as much as the header announces, allocated once and kept for the next use.
type recordMemory struct {
	values  []Value
	commits []Commit
}

// maxInterned bounds the table descriptions that a Decoder remembers. A
// database has fewer tables under rules than this; a log that has more only
// loses the pointers' identity, not correctness.
const maxInterned = 4096

// Decoder reads records in the wire format. Equal descriptions of a table
// yield the same *Table as long as the Decoder lives, so that what a consumer
// compiled for a Table is found again in the next record.
//
// The zero Decoder is ready. It is not safe for concurrent use.
type Decoder struct {
	interned map[string]*Table
	tables   []*Table // of the record that is being read, by number
}

// Decode reads b into r, whose memory it uses again; whatever r held before is
// lost. Rows and message contents alias b, which must not be changed as long
// as r is in use. A failed Decode leaves r unusable but reusable.
//
// The error says what is wrong and wraps ErrNotRecord or ErrFutureVersion
// where those apply; the same bytes fail for ever, so there is no use in
// trying again.
func (d *Decoder) Decode(r *Record, b []byte) error {
	if err := checkEnvelope(b); err != nil {
		return err
	}
	r.InsertLSN = b[offFlags]&flagInsertLSN != 0
	r.Source = Source{
		Era:      binary.BigEndian.Uint16(b[offEra:]),
		SystemID: binary.BigEndian.Uint64(b[offSystemID:]),
		Timeline: be32(b[offTimeline:]),
	}
	r.V = LSN(binary.BigEndian.Uint64(b[offV:]))
	r.MapVersion = be32(b[offMapVersion:])
	partition, partitions := be32(b[offPartition:]), be32(b[offPartitions:])
	if partition > maxInt32 || partitions > maxInt32 {
		return fmt.Errorf("decode record: partition %d of %d does not exist", partition, partitions)
	}
	r.Partition, r.Partitions = int(partition), int(partitions)

	items := b[wireHeaderLen : len(b)-wireTrailerLen]
	changes, values, commits := int64(be32(b[offChanges:])), int64(be32(b[offValues:])), int64(be32(b[offCommits:]))
	room := int64(len(items))
	if changes*minChangeBytes+values+commits*minCommitBytes > room {
		return fmt.Errorf("decode record: %d changes, %d values and %d commits do not fit in %d bytes",
			changes, values, commits, room)
	}
	r.Changes = slices.Grow(r.Changes[:0], int(changes))
	r.Raises = r.Raises[:0]
	r.mem.values = slices.Grow(r.mem.values[:0], int(values))
	r.mem.commits = slices.Grow(r.mem.commits[:0], int(commits))
	d.tables = d.tables[:0]

	s := scanner{b: items}
	if err := d.items(&s, r, int(changes), int(values), int(commits)); err != nil {
		return fmt.Errorf("decode record: item at byte %d: %w", wireHeaderLen+len(items)-len(s.b), err)
	}
	if len(r.Changes) != int(changes) || len(r.mem.values) != int(values) || len(r.mem.commits) != int(commits) {
		return fmt.Errorf("decode record: header announces %d changes, %d values and %d commits, %d, %d and %d found",
			changes, values, commits, len(r.Changes), len(r.mem.values), len(r.mem.commits))
	}
	return nil
}

// items reads to the end of s. It never lets r's slices grow beyond what was
// announced: rows and changes hold pointers into them.
func (d *Decoder) items(s *scanner, r *Record, changes, values, commits int) error {
	var table *Table
	var commit *Commit
	for len(s.b) > 0 {
		switch tag := s.byte(); tag {
		case itemTable:
			t, err := d.table(s)
			if err != nil {
				return err
			}
			d.tables = append(d.tables, t)
			table = t
		case itemUseTable:
			n := s.uvarint()
			if s.bad || n >= uint64(len(d.tables)) {
				return fmt.Errorf("table number %d was not defined", n)
			}
			table = d.tables[n]
		case itemCommit:
			if len(r.mem.commits) == commits {
				return errTooMany
			}
			c := s.commit()
			if s.bad {
				return errShort
			}
			r.mem.commits = append(r.mem.commits, c)
			commit = &r.mem.commits[len(r.mem.commits)-1]
		case itemRaise:
			x := s.raise()
			if s.bad {
				return errShort
			}
			r.Raises = append(r.Raises, x)
		case byte(Insert), byte(Update), byte(Delete), byte(Truncate), byte(Message):
			if len(r.Changes) == changes {
				return errTooMany
			}
			if commit == nil {
				return errors.New("change before any commit")
			}
			c := Change{Op: Op(tag), Commit: commit}
			if err := s.change(&c, table, r, values); err != nil {
				return err
			}
			r.Changes = append(r.Changes, c)
		default:
			return fmt.Errorf("unknown tag %q", tag)
		}
	}
	return nil
}

// table reads a description, or finds the table it made of the same bytes
// before.
func (d *Decoder) table(s *scanner) (*Table, error) {
	raw := s.bytes(len(s.b))
	if s.bad {
		return nil, errShort
	}
	if t, ok := d.interned[string(raw)]; ok {
		return t, nil
	}
	t, err := parseTable(raw)
	if err != nil {
		return nil, err
	}
	if d.interned == nil || len(d.interned) >= maxInterned {
		d.interned = make(map[string]*Table)
	}
	d.interned[string(raw)] = t
	return t, nil
}

func parseTable(raw []byte) (*Table, error) {
	s := scanner{b: raw}
	id := s.uvarint()
	t := &Table{ID: uint32(id), Identity: Identity(s.byte()), Schema: s.string(), Name: s.string()}
	n := s.uvarint()
	if s.bad || id > 1<<32-1 {
		return nil, errShort
	}
	if n > MaxColumns || n*3 > uint64(len(s.b)) {
		return nil, fmt.Errorf("table %s announces %d columns", t.QualifiedName(), n)
	}
	t.Columns = make([]Column, n)
	for i := range t.Columns {
		name, typ, key := s.string(), s.uvarint(), s.byte()
		if s.bad || typ > 1<<32-1 || key > 1 {
			return nil, fmt.Errorf("table %s: column %d is damaged", t.QualifiedName(), i)
		}
		t.Columns[i] = Column{Name: name, Type: uint32(typ), Key: key == 1}
	}
	if len(s.b) != 0 {
		return nil, fmt.Errorf("table %s: %d bytes behind the last column", t.QualifiedName(), len(s.b))
	}
	return t, nil
}

var (
	errShort   = errors.New("ends too early or holds a length out of bounds")
	errTooMany = errors.New("more than the header announces")
)

// scanner reads items. After a read beyond the end, or beyond a limit, bad is
// set and every value is zero; callers look at it once an item is complete.
type scanner struct {
	b   []byte
	bad bool
}

func (s *scanner) byte() byte {
	if len(s.b) == 0 {
		s.bad = true
		return 0
	}
	c := s.b[0]
	s.b = s.b[1:]
	return c
}

func (s *scanner) uvarint() uint64 {
	if len(s.b) > 0 && s.b[0] < 0x80 {
		c := s.b[0]
		s.b = s.b[1:]
		return uint64(c)
	}
	v, n := binary.Uvarint(s.b)
	if n <= 0 {
		s.bad, s.b = true, nil
		return 0
	}
	s.b = s.b[n:]
	return v
}

// bytes reads a length of at most limit, and as many bytes.
func (s *scanner) bytes(limit int) []byte {
	n := s.uvarint()
	if s.bad || n > uint64(len(s.b)) || n > uint64(limit) {
		s.bad, s.b = true, nil
		return nil
	}
	v := s.b[:n:n]
	s.b = s.b[n:]
	return v
}

func (s *scanner) string() string { return string(s.bytes(MaxNameBytes)) }

func (s *scanner) commit() Commit {
	c := Commit{XID: s.uvarint(), LSN: LSN(s.uvarint()), End: LSN(s.uvarint())}
	switch s.byte() {
	case 0:
	case 1:
		v, n := binary.Varint(s.b)
		if n <= 0 {
			s.bad, s.b = true, nil
			return c
		}
		s.b = s.b[n:]
		c.Time = time.UnixMicro(v).UTC()
	default:
		s.bad = true
	}
	return c
}

func (s *scanner) raise() Raise {
	return Raise{
		Cause: s.string(), Reason: s.string(),
		Classes: s.names(), Tables: s.names(),
		X: s.position(), Bound: s.position(),
	}
}

func (s *scanner) names() []string {
	n := s.uvarint()
	if s.bad || n > MaxRaiseNames || n > uint64(len(s.b)) {
		s.bad, s.b = true, nil
		return nil
	}
	if n == 0 {
		return nil
	}
	names := make([]string, n)
	for i := range names {
		names[i] = string(s.bytes(2 * MaxNameBytes))
	}
	return names
}

func (s *scanner) position() Position {
	era, lsn := s.uvarint(), s.uvarint()
	if era > 1<<16-1 {
		s.bad = true
	}
	return Position{Era: uint16(era), LSN: LSN(lsn)}
}

func (s *scanner) change(c *Change, table *Table, r *Record, values int) error {
	ordinal := s.uvarint()
	if ordinal > 1<<32-1 {
		return fmt.Errorf("ordinal %d is out of bounds", ordinal)
	}
	c.Ordinal = uint32(ordinal)
	if c.Op == Message {
		c.Prefix = s.string()
		if content := s.bytes(len(s.b)); len(content) > 0 {
			c.Content = content
		}
		if s.bad {
			return errShort
		}
		return nil
	}
	if table == nil {
		return errors.New("change before any table")
	}
	c.Table = table
	rows := s.byte()
	if s.bad || rows&^(rowOld|rowNew) != 0 {
		return errShort
	}
	var err error
	if rows&rowOld != 0 {
		if c.Old, err = s.row(table, r, values); err != nil {
			return err
		}
	}
	if rows&rowNew != 0 {
		if c.New, err = s.row(table, r, values); err != nil {
			return err
		}
	}
	return nil
}

func (s *scanner) row(t *Table, r *Record, values int) (Row, error) {
	from, n := len(r.mem.values), len(t.Columns)
	if from+n > values {
		return nil, errTooMany
	}
	if n == 0 {
		return Row{}, nil // a row of no columns is still a row, nil is none
	}
	row := r.mem.values[from : from+n : from+n]
	for i := range row {
		switch code := s.uvarint(); code {
		case wireAbsent:
			row[i] = Value{}
		case wireNull:
			row[i] = Value{Kind: Null}
		case wireUnchanged:
			row[i] = Value{Kind: Unchanged}
		default:
			size := code - wireText
			if size > uint64(len(s.b)) {
				return nil, errShort
			}
			row[i] = Value{Kind: Text, Bytes: s.b[:size:size]}
			s.b = s.b[size:]
		}
		if s.bad {
			return nil, errShort
		}
	}
	r.mem.values = r.mem.values[:from+n]
	return row, nil
}

package cdc

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lethe-cache/lethe/change"
)

// Logical messages with the prefix MessagePrefix are invalidations; those whose
// prefix begins with ownPrefix are Lethe's own and end here; all other prefixes
// belong to somebody else.
const (
	MessagePrefix   = "lethe"
	ownPrefix       = "lethe."
	heartbeatPrefix = "lethe.hb"
	// ddlPrefix is what the guard says of tables whose rows a DDL has changed
	// without a row in the log (package migrations).
	ddlPrefix = "lethe.ddl"
	// edgesPrefix is what the trigger of lethe.dependencies says.
	edgesPrefix = "lethe.dependencies"
)

// poisonPayloadMax bounds what a dead letter keeps of a message.
const poisonPayloadMax = 64 << 10

// errShort says that a message ended before what it announced.
var errShort = errors.New("message is cut short")

// decoder turns pgoutput messages (protocol version 1) into changes. It lives
// as long as the Reader; what it knows of relations is the connection's, so a
// new connection calls reset. One goroutine uses it.
//
// A message that it can not make sense of never stops the stream: it is noted
// as poison with the commit, and raises what it may have concerned. Only a
// begin or end of a transaction that does not fit ends the session, since
// nothing that follows could be attributed.
type decoder struct {
	// tables are the relations that this connection has announced, partition
	// roots with the identity that their rows really have.
	tables map[uint32]*change.Table
	roots  roots
	// known are those of earlier connections, so that an unchanged relation
	// keeps its pointer and with it whatever was compiled for it.
	known map[uint32]*change.Table
	// heartbeat is called with the content of Lethe's own heartbeats.
	heartbeat func(content []byte)

	open    bool
	xid     uint32
	current change.Commit
	ordinal uint32
}

func newDecoder(heartbeat func([]byte)) *decoder {
	if heartbeat == nil {
		heartbeat = func([]byte) {}
	}
	return &decoder{tables: map[uint32]*change.Table{}, known: map[uint32]*change.Table{}, roots: newRoots(), heartbeat: heartbeat}
}

// reset prepares for a new connection, which announces its relations afresh.
func (d *decoder) reset() {
	for id, t := range d.tables {
		d.known[id] = t
	}
	d.tables = map[uint32]*change.Table{}
	d.roots = newRoots()
	d.open = false
}

// decode adds what msg says to seg. walStart is the position in the header
// that the message came with; it is used for nothing but error messages, since
// in logical replication it says little and is no cursor.
func (d *decoder) decode(seg *segment, walStart change.LSN, msg []byte) error {
	if len(msg) == 0 {
		d.poison(seg, walStart, "", errors.New("message is empty"), msg)
		return nil
	}
	if len(d.roots.announced) > 0 && msg[0] != 'R' && msg[0] != 'Y' && msg[0] != 'O' {
		defer d.roots.forget()
	}
	var table string
	var err error
	switch msg[0] {
	case 'I', 'U', 'D':
		table, err = d.rowChange(seg, msg)
	case 'B':
		return d.begin(seg, msg)
	case 'C':
		return d.commit(seg, msg)
	case 'R':
		table, err = d.relation(msg)
	case 'T':
		table, err = d.truncate(seg, msg)
	case 'M':
		err = d.message(seg, msg)
	case 'O', 'Y':
		// Origins and types say nothing about an entry.
	default:
		err = fmt.Errorf("unknown message type %q", msg[0])
	}
	if err != nil {
		d.poison(seg, walStart, table, err, msg)
	}
	return nil
}

func (d *decoder) begin(seg *segment, msg []byte) error {
	if d.open {
		return fmt.Errorf("decode begin: transaction %d is still open", d.xid)
	}
	if len(msg) < 1+8+8+4 {
		return fmt.Errorf("decode begin: %w", errShort)
	}
	d.open, d.ordinal = true, 0
	d.xid = binary.BigEndian.Uint32(msg[17:])
	d.current = change.Commit{
		LSN:  change.LSN(binary.BigEndian.Uint64(msg[1:])),
		Time: pgTime(binary.BigEndian.Uint64(msg[9:])),
	}
	d.openPart(seg, true)
	return nil
}

func (d *decoder) commit(seg *segment, msg []byte) error {
	if !d.open {
		return errors.New("decode commit: no transaction is open")
	}
	if len(msg) < 1+1+8+8+8 {
		return fmt.Errorf("decode commit: %w", errShort)
	}
	if lsn := change.LSN(binary.BigEndian.Uint64(msg[2:])); lsn != d.current.LSN {
		return fmt.Errorf("decode commit: it is at %s, its begin said %s", lsn, d.current.LSN)
	}
	p := d.part(seg)
	p.last = true
	p.end = change.LSN(binary.BigEndian.Uint64(msg[10:]))
	p.commit.End = p.end
	d.open = false
	return nil
}

// openPart begins a part of the open transaction.
func (d *decoder) openPart(seg *segment, first bool) *part {
	n := len(seg.rec.Changes)
	seg.parts = append(room(seg.parts, seg.expected.parts), part{
		kind: partCommit, xid: d.xid, commit: seg.commit(d.current), from: n, to: n, first: first,
	})
	return &seg.parts[len(seg.parts)-1]
}

// part returns the part that the open transaction's next change belongs to. A
// transaction that is larger than a segment continues in the next one.
func (d *decoder) part(seg *segment) *part {
	if n := len(seg.parts); n > 0 && seg.parts[n-1].kind == partCommit && !seg.parts[n-1].last {
		return &seg.parts[n-1]
	}
	return d.openPart(seg, false)
}

// poison notes a message that could not be decoded with the transaction that
// it came in, or by itself.
func (d *decoder) poison(seg *segment, walStart change.LSN, table string, err error, msg []byte) {
	var p *part
	if d.open {
		p = d.part(seg)
	} else {
		p = d.messagePart(seg, walStart)
	}
	p.poison = append(p.poison, poison{
		table: table, err: fmt.Errorf("decode pgoutput message: %w", err),
		payload: append([]byte(nil), msg[:min(len(msg), poisonPayloadMax)]...),
	})
}

func (d *decoder) messagePart(seg *segment, lsn change.LSN) *part {
	n := len(seg.rec.Changes)
	seg.parts = append(seg.parts, part{
		kind: partMessage, commit: seg.commit(change.Commit{LSN: lsn}), from: n, to: n, first: true, last: true,
	})
	return &seg.parts[len(seg.parts)-1]
}

// message decodes a logical message: flags, LSN, prefix, content.
func (d *decoder) message(seg *segment, msg []byte) error {
	if len(msg) < 1+1+8 {
		return errShort
	}
	transactional := msg[1]&1 != 0
	lsn := change.LSN(binary.BigEndian.Uint64(msg[2:]))
	prefix, pos, err := cString(msg, 10)
	if err != nil {
		return err
	}
	if len(msg)-pos < 4 {
		return errShort
	}
	n := int(binary.BigEndian.Uint32(msg[pos:]))
	pos += 4
	if n < 0 || n > len(msg)-pos {
		return errShort
	}
	content := msg[pos : pos+n]
	switch string(prefix) {
	case MessagePrefix:
	case heartbeatPrefix:
		d.heartbeat(content)
		return nil
	case ddlPrefix:
		return d.ddl(seg, content, transactional)
	case edgesPrefix:
		if !transactional || !d.open {
			return errors.New("message of lethe.dependencies outside a transaction")
		}
		d.edges(seg)
		return nil
	default:
		return nil
	}
	if transactional && !d.open {
		return errors.New("transactional message outside a transaction")
	}
	var p *part
	if transactional {
		p = d.part(seg)
	} else {
		// It has no commit and no commit time; it was never invisible. Postgres
		// sends it between two transactions.
		p = d.messagePart(seg, lsn)
	}
	c := change.Change{Op: change.Message, Commit: p.commit, Prefix: MessagePrefix, Content: seg.copyBytes(content)}
	if transactional {
		c.Ordinal = d.next()
	}
	seg.add(c)
	return nil
}

// ddl decodes the guard's message: the tables that it names are raised with
// the commit, as those of a change that can not be read are.
func (d *decoder) ddl(seg *segment, content []byte, transactional bool) error {
	if !transactional || !d.open {
		return errors.New("message of the guard outside a transaction")
	}
	var named struct{ Tables []string }
	if err := json.Unmarshal(content, &named); err != nil {
		return fmt.Errorf("message of the guard: %w", err)
	}
	p := d.part(seg)
	for _, table := range named.Tables {
		p.poison = append(p.poison, poison{table: table, ddl: true})
	}
	return nil
}

// edges notes that the transaction changes the table of dependencies, once.
func (d *decoder) edges(seg *segment) {
	p := d.part(seg)
	if !slices.ContainsFunc(p.poison, func(p poison) bool { return p.edges }) {
		p.poison = append(p.poison, poison{edges: true})
	}
}

// truncate decodes a truncate, which may name several tables, into one change
// for each.
func (d *decoder) truncate(seg *segment, msg []byte) (string, error) {
	if !d.open {
		return "", errors.New("truncate outside a transaction")
	}
	if len(msg) < 1+4+1 {
		return "", errShort
	}
	n := int(binary.BigEndian.Uint32(msg[1:]))
	if n < 0 || n > (len(msg)-6)/4 {
		return "", errShort
	}
	var unknown error
	for i := range n {
		id := binary.BigEndian.Uint32(msg[6+4*i:])
		t := d.tables[id]
		if t == nil {
			unknown = fmt.Errorf("truncate of relation %d, which was not announced", id)
			continue
		}
		p := d.part(seg)
		seg.add(change.Change{Op: change.Truncate, Commit: p.commit, Ordinal: d.next(), Table: t})
	}
	return "", unknown
}

func (d *decoder) next() uint32 {
	n := d.ordinal
	d.ordinal++
	return n
}

// pgEpoch is 2000-01-01, where Postgres's clock begins.
var pgEpoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

func pgTime(micros uint64) time.Time {
	// Two steps, for a Duration ends after 292 years and the field may hold anything.
	us := int64(micros)
	return time.Unix(pgEpoch.Unix()+us/1e6, us%1e6*1e3).UTC()
}

// cString returns the bytes before the next NUL and the place behind it.
func cString(msg []byte, pos int) ([]byte, int, error) {
	for i := pos; i < len(msg); i++ {
		if msg[i] == 0 {
			return msg[pos:i], i + 1, nil
		}
	}
	return nil, 0, errShort
}

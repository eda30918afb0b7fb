package cdc

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/lethe-cache/lethe/change"
)

// relation takes note of a table's columns. Postgres announces a relation
// before its first change on a connection, and again after anything about it
// changed; most announcements only repeat, and then the old Table stays.
func (d *decoder) relation(msg []byte) (string, error) {
	if len(msg) < 1+4 {
		return "", errShort
	}
	id := binary.BigEndian.Uint32(msg[1:])
	schema, pos, err := cString(msg, 5)
	if err != nil {
		return "", err
	}
	name, pos, err := cString(msg, pos)
	if err != nil {
		return "", err
	}
	t := &change.Table{ID: id, Schema: string(schema), Name: string(name)}
	if t.Schema == "" {
		t.Schema = "pg_catalog" // so the protocol abbreviates it
	}
	fail := func(err error) (string, error) {
		// Rows of a relation that is not understood must not be read by the
		// description that held before.
		delete(d.tables, id)
		return t.QualifiedName(), err
	}
	if len(msg)-pos < 3 {
		return fail(errShort)
	}
	t.Identity = change.Identity(msg[pos])
	n := int(binary.BigEndian.Uint16(msg[pos+1:]))
	pos += 3
	// A column takes ten bytes at least: this bounds what garbage may allocate.
	if n > (len(msg)-pos)/10 {
		return fail(errShort)
	}
	t.Columns = make([]change.Column, n)
	for i := range t.Columns {
		if len(msg)-pos < 1 {
			return fail(errShort)
		}
		key := msg[pos]&1 != 0
		column, next, err := cString(msg, pos+1)
		if err != nil {
			return fail(err)
		}
		if len(msg)-next < 8 {
			return fail(errShort)
		}
		t.Columns[i] = change.Column{Name: string(column), Key: key, Type: binary.BigEndian.Uint32(msg[next:])}
		pos = next + 8
	}
	d.roots.announce(t)
	d.use(d.roots.effective(t))
	return "", nil
}

// use takes a description for the one of its relation. One that only repeats
// keeps the pointer.
func (d *decoder) use(t *change.Table) {
	if old := d.tables[t.ID]; old != nil && sameTable(old, t) {
		return
	}
	if old := d.known[t.ID]; old != nil && sameTable(old, t) {
		t = old
	}
	d.tables[t.ID] = t
}

func sameTable(a, b *change.Table) bool {
	if a.ID != b.ID || a.Schema != b.Schema || a.Name != b.Name || a.Identity != b.Identity || len(a.Columns) != len(b.Columns) {
		return false
	}
	for i := range a.Columns {
		if a.Columns[i] != b.Columns[i] {
			return false
		}
	}
	return true
}

// rowChange decodes an insert, update or delete. It returns the table's name
// with an error, where it is known.
func (d *decoder) rowChange(seg *segment, wire []byte) (string, error) {
	if !d.open {
		return "", errors.New("row change outside a transaction")
	}
	if len(wire) < 1+4+1 {
		return "", errShort
	}
	id := binary.BigEndian.Uint32(wire[1:])
	t := d.tables[id]
	if t == nil {
		return "", fmt.Errorf("change of relation %d, which was not announced", id)
	}
	if root := d.roots.leafOf(id); root != nil {
		d.use(root)
		t = d.tables[id]
	}
	p := d.part(seg)
	c := change.Change{Op: change.Op(wire[0]), Commit: p.commit, Table: t}
	msg := seg.copyBytes(wire)
	pos := 5
	var err error
	if c.Op != change.Insert && (msg[pos] == 'K' || msg[pos] == 'O') {
		keyOnly := !d.roots.whole(t, msg[pos])
		if c.Old, pos, err = tuple(seg, t, msg, pos+1, keyOnly); err != nil {
			return t.QualifiedName(), err
		}
	}
	switch {
	case c.Op == change.Delete:
		if c.Old == nil {
			return t.QualifiedName(), fmt.Errorf("delete begins with %q, want an old row", msg[pos])
		}
	case len(msg) > pos && msg[pos] == 'N':
		if c.New, pos, err = tuple(seg, t, msg, pos+1, false); err != nil {
			return t.QualifiedName(), err
		}
		fillUnchanged(c.New, c.Old)
	default:
		return t.QualifiedName(), fmt.Errorf("%s lacks its new row", c.Op)
	}
	if pos != len(msg) {
		return t.QualifiedName(), fmt.Errorf("%s has %d bytes too many", c.Op, len(msg)-pos)
	}
	c.Ordinal = d.next()
	seg.add(c)
	return "", nil
}

// fillUnchanged completes a new row from the old one, where that has a TOASTed
// value which the update did not touch.
func fillUnchanged(row, old change.Row) {
	if old == nil {
		return
	}
	for i := range row {
		if row[i].Kind == change.Unchanged && (old[i].Kind == change.Text || old[i].Kind == change.Null) {
			row[i] = old[i]
		}
	}
}

// tuple decodes a row whose values alias msg. keyOnly says that only the
// replica identity's columns were sent and that NULL stands for the others.
func tuple(seg *segment, t *change.Table, msg []byte, pos int, keyOnly bool) (change.Row, int, error) {
	if len(msg)-pos < 2 {
		return nil, 0, errShort
	}
	n := int(binary.BigEndian.Uint16(msg[pos:]))
	pos += 2
	if n != len(t.Columns) {
		return nil, 0, fmt.Errorf("row has %d columns, the relation %d", n, len(t.Columns))
	}
	row := seg.row(n)
	for i := range row {
		if len(msg) <= pos {
			return nil, 0, errShort
		}
		kind := change.ValueKind(msg[pos])
		pos++
		switch kind {
		case change.Null, change.Unchanged:
			if keyOnly && !t.Columns[i].Key {
				kind = change.Absent
			}
			row[i] = change.Value{Kind: kind}
		case change.Text:
			if len(msg)-pos < 4 {
				return nil, 0, errShort
			}
			l := int(binary.BigEndian.Uint32(msg[pos:]))
			pos += 4
			if l < 0 || l > len(msg)-pos {
				return nil, 0, errShort
			}
			row[i] = change.Value{Kind: kind, Bytes: msg[pos : pos+l : pos+l]}
			pos += l
		default:
			return nil, 0, fmt.Errorf("column %q has kind %q", t.Columns[i].Name, byte(kind))
		}
	}
	return row, pos, nil
}

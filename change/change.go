// Package change is the vocabulary of the database side: what was changed, by
// which commit, where that commit stands in the log, and how a batch of changes
// is written for the log between reader and worker.
package change

import "time"

// Op says what a Change did.
type Op byte

// The operations that a Change can be.
const (
	Insert   Op = 'I'
	Update   Op = 'U'
	Delete   Op = 'D'
	Truncate Op = 'T'
	// Message is a logical message (pg_logical_emit_message).
	Message Op = 'M'
)

// String names the operation as rules.yaml does.
func (o Op) String() string {
	switch o {
	case Insert:
		return "insert"
	case Update:
		return "update"
	case Delete:
		return "delete"
	case Truncate:
		return "truncate"
	case Message:
		return "message"
	}
	return "unknown"
}

// Commit is the transaction that a change belongs to.
type Commit struct {
	// XID is the top-level transaction id, widened to 64 bits; 0 for a
	// non-transactional message. It is reused after a crash and never stored.
	XID uint64
	// LSN is the start of the commit record: the X of every invalidation that
	// follows from the commit. For a non-transactional message its own LSN.
	LSN LSN
	// End is the end of the commit record, what a slot is confirmed up to.
	End LSN
	// Time is when the transaction committed, by the database's clock.
	Time time.Time
}

// Identity says which columns of an old row the log carries.
type Identity byte

// The replica identities of Postgres.
const (
	IdentityDefault Identity = 'd' // the primary key, if there is one
	IdentityNothing Identity = 'n'
	IdentityFull    Identity = 'f'
	IdentityIndex   Identity = 'i'
)

// Column is one published column of a table.
type Column struct {
	Name string
	// Type is the OID of the column's type.
	Type uint32
	// Key says that the column is part of the replica identity.
	Key bool
}

// Table describes the rows of a run of changes. A Table is immutable: when the
// relation changes mid-stream a new one takes its place, so that a pointer may
// serve as the key of what was compiled for it.
type Table struct {
	ID       uint32
	Schema   string
	Name     string
	Identity Identity
	Columns  []Column
}

// QualifiedName is schema.name, unquoted.
func (t *Table) QualifiedName() string { return t.Schema + "." + t.Name }

// ColumnIndex returns the index of the named column, or -1.
func (t *Table) ColumnIndex(name string) int {
	for i := range t.Columns {
		if t.Columns[i].Name == name {
			return i
		}
	}
	return -1
}

// ValueKind tells a value that is there from the ways in which it may not be.
type ValueKind byte

// The kinds of a Value.
const (
	// Absent: the log does not carry the value (not part of the old row's
	// replica identity, or not published).
	Absent ValueKind = 0
	// Null: SQL NULL.
	Null ValueKind = 'n'
	// Unchanged: a TOASTed value that the update did not touch and the log
	// does not repeat. The decoder fills it from the old row where that has it.
	Unchanged ValueKind = 'u'
	// Text: the value in Postgres's text form, in UTC and ISO date style.
	Text ValueKind = 't'
)

// Value is one column of a row. Bytes may alias a buffer of the Record that it
// came in; a consumer that keeps it beyond the Record copies it.
type Value struct {
	Kind  ValueKind
	Bytes []byte
}

// Row is a tuple, its values in the order of Table.Columns; nil if the log
// carried none.
type Row []Value

// Change is one committed row change, a truncate of one table, or a logical
// message.
type Change struct {
	Op     Op
	Commit *Commit
	// Ordinal is the number of the change inside its transaction, from 0.
	Ordinal uint32
	// Table is nil for a Message.
	Table *Table
	// Old is the row before: whole under REPLICA IDENTITY FULL, else only the
	// identity's columns (the others Absent), and only if they changed; nil
	// when the log carried none, which for an update means that the identity's
	// columns are those of New.
	Old Row
	// New is the row after; nil for a delete.
	New Row
	// Prefix and Content are those of a Message.
	Prefix  string
	Content []byte
}

package change

import (
	"fmt"
	"strings"
	"time"
)

// Dump renders a record for people: golden files, dead letters, the command
// line. The form may change between versions; no program reads it.
func (r *Record) Dump() string {
	var b strings.Builder
	fmt.Fprintf(&b, "record era=%d system=%d timeline=%d v=%s partition=%d/%d map=%d",
		r.Source.Era, r.Source.SystemID, r.Source.Timeline, r.V, r.Partition, r.Partitions, r.MapVersion)
	if r.InsertLSN {
		b.WriteString(" insert-lsn")
	}
	b.WriteByte('\n')
	var commit *Commit
	seen := make(map[*Table]bool)
	for i := range r.Changes {
		c := &r.Changes[i]
		if c.Commit != commit {
			commit = c.Commit
			fmt.Fprintf(&b, "commit xid=%d lsn=%s end=%s", commit.XID, commit.LSN, commit.End)
			if !commit.Time.IsZero() {
				fmt.Fprintf(&b, " time=%s", commit.Time.UTC().Format(time.RFC3339Nano))
			}
			b.WriteByte('\n')
		}
		if c.Table != nil && !seen[c.Table] {
			seen[c.Table] = true
			dumpTable(&b, c.Table)
		}
		dumpChange(&b, c)
	}
	for i := range r.Raises {
		x := &r.Raises[i]
		fmt.Fprintf(&b, "raise %q reason=%s classes=%q tables=%q x=%s bound=%s\n", x.Cause, x.Reason, x.Classes, x.Tables, x.X, x.Bound)
	}
	return b.String()
}

func dumpTable(b *strings.Builder, t *Table) {
	identity := t.Identity
	if identity == 0 {
		identity = '?'
	}
	fmt.Fprintf(b, "table %d %s identity=%c (", t.ID, t.QualifiedName(), identity)
	for i, c := range t.Columns {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprintf(b, "%s %d", c.Name, c.Type)
		if c.Key {
			b.WriteString(" key")
		}
	}
	b.WriteString(")\n")
}

func dumpChange(b *strings.Builder, c *Change) {
	fmt.Fprintf(b, "  %s #%d", c.Op, c.Ordinal)
	if c.Op == Message {
		fmt.Fprintf(b, " prefix=%q content=%q\n", c.Prefix, c.Content)
		return
	}
	fmt.Fprintf(b, " %s", c.Table.QualifiedName())
	dumpRow(b, "old", c.Table, c.Old)
	dumpRow(b, "new", c.Table, c.New)
	b.WriteByte('\n')
}

func dumpRow(b *strings.Builder, side string, t *Table, row Row) {
	if row == nil {
		return
	}
	fmt.Fprintf(b, " %s(", side)
	for i := range row {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(t.Columns[i].Name)
		switch v := &row[i]; v.Kind {
		case Text:
			fmt.Fprintf(b, "=%q", v.Bytes)
		case Null:
			b.WriteString("=null")
		case Unchanged:
			b.WriteString("=unchanged")
		case Absent:
			b.WriteString("=absent")
		}
	}
	b.WriteByte(')')
}

package rules

import "github.com/lethe-cache/lethe/change"

// at checks the column whose time a rule waits for, and that schedules can be
// told apart.
func (c *checker) at(r *Rule, t *TableInfo) {
	if r.At == "" {
		return
	}
	col := t.Column(r.At)
	if col == nil {
		return // said already
	}
	place := r.pos["at"]
	switch {
	case col.Generated != 0 && col.Generated != ' ':
		c.add(Error, CodeFits, place, "use the column that it is generated from", "at: column %q of %s is generated: the log does not carry it", r.At, t.QualifiedName())
	case col.Type == oidTimestamptz:
	case col.Type == oidTimestamp, col.Type == oidDate:
		c.warn(CodeZone, place, "make it a timestamptz, or write UTC into it",
			"at: column %q is a %s, which has no time zone: it is read as UTC", r.At, col.TypeName)
	default:
		c.errorf(CodeFits, place, "at: column %q is a %s; it takes a timestamptz, a timestamp or a date", r.At, col.TypeName)
	}
	if r.On&(OnUpdate|OnDelete) != 0 && t.Identity == change.IdentityFull && len(t.PrimaryKey) == 0 {
		c.add(Error, CodeNoIdentity, r.pos["table"], "give the table a primary key",
			"at: %s has no primary key: of two rows that are equal, deleting one would take the other's schedule", t.QualifiedName())
	}
}

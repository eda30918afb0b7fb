package rules

import (
	"slices"
	"strings"

	"github.com/lethe-cache/lethe/internal/keytext"
)

// firstUserOID is where the types begin that a database has of its own: of
// those, domains among them, their OID tells nothing.
const firstUserOID = 16384

// oidBoxArray is the one array that separates its elements by semicolons.
const oidBoxArray = 1020

// fits finds placeholders that ask of a column what its type does not have.
func (c *checker) fits(r *Rule, t *TableInfo) {
	for _, tpl := range r.templates() {
		segs := tpl.Segments()
		for i := range segs {
			s := &segs[i]
			if col := c.column(r, t, s); col != nil && col.Type < firstUserOID {
				of := t.QualifiedName()
				if s.Lookup {
					of = "the lookup"
				}
				if len(s.Path) > 0 {
					c.reaches(tpl, s, of, col)
				} else {
					c.dated(tpl, s, of, col)
				}
			}
		}
	}
}

// reaches finds paths into what has no parts.
func (c *checker) reaches(tpl *Template, s *keytext.Segment, of string, col *ColumnInfo) {
	var what string
	element, array := arrayElement(col.Type)
	array = array || strings.HasSuffix(col.TypeName, "[]") && col.Type != oidBoxArray
	switch {
	case col.Type == oidJSON || col.Type == oidJSONB || element == oidJSON || element == oidJSONB:
		return
	case !array:
		what = "is " + col.TypeName + ": only json, jsonb and arrays have parts"
	case slices.ContainsFunc(s.Path, func(step keytext.Step) bool { return step.Kind == keytext.StepKey }):
		what = "is " + col.TypeName + ": its elements have no members"
	default:
		return
	}
	c.add(Error, CodeFits, tpl.segmentPlace(s), "", "path {%s}: column %q of %s %s", s.Source(), s.Column, of, what)
}

// dated finds dates that are to be cut out of what never holds one.
func (c *checker) dated(tpl *Template, s *keytext.Segment, of string, col *ColumnInfo) {
	switch col.Type {
	case oidDate, oidTimestamp, oidTimestamptz, oidText, oidVarchar, oidChar:
		return
	}
	for _, f := range s.Filters {
		if f.IsDate() {
			c.add(Error, CodeFits, tpl.segmentPlace(s), "name a column of type date, timestamp or timestamptz",
				"filter %s takes dates, and column %q of %s is %s", f, s.Column, of, col.TypeName)
			return
		}
	}
}

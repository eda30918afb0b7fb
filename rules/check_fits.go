package rules

import "github.com/lethe-cache/lethe/internal/keytext"

// firstUserOID is where the types begin that a database has of its own: of
// those, domains among them, their OID tells nothing.
const firstUserOID = 16384

// fits finds placeholders that ask of a column what its type does not have.
func (c *checker) fits(r *Rule, t *TableInfo) {
	for _, tpl := range r.templates() {
		segs := tpl.Segments()
		for i := range segs {
			s := &segs[i]
			if col := t.Column(s.Column); s.Column != "" && col != nil && col.Type < firstUserOID {
				c.dated(tpl, s, t, col)
			}
		}
	}
}

// dated finds dates that are to be cut out of what never holds one.
func (c *checker) dated(tpl *Template, s *keytext.Segment, t *TableInfo, col *ColumnInfo) {
	switch col.Type {
	case oidDate, oidTimestamp, oidTimestamptz, oidText, oidVarchar, oidChar:
		return
	}
	for _, f := range s.Filters {
		if f.IsDate() {
			c.add(Error, CodeFits, tpl.segmentPlace(s), "name a column of type date, timestamp or timestamptz",
				"filter %s takes dates, and column %q of %s is %s", f, s.Column, t.QualifiedName(), col.TypeName)
			return
		}
	}
}

package rules

import (
	"slices"
	"strings"

	"github.com/lethe-cache/lethe/internal/keytext"
)

// column is what a placeholder of a rule takes its value from: nil if it is not
// known.
func (c *checker) column(r *Rule, t *TableInfo, s *keytext.Segment) *ColumnInfo {
	if s.Column == "" {
		return nil
	}
	if !s.Lookup {
		return t.Column(s.Column)
	}
	info := c.schema.Lookups[r.Name]
	return info.column(s.Column)
}

func (i *LookupInfo) column(name string) *ColumnInfo {
	for k := range i.Columns {
		if i.Columns[k].Name == name {
			return &i.Columns[k]
		}
	}
	return nil
}

// lookup holds a rule's lookup against what the database says of it.
func (c *checker) lookup(r *Rule, t *TableInfo) {
	if r.Lookup == nil {
		return
	}
	info, asked := c.schema.Lookups[r.Name]
	unknown := slices.ContainsFunc(r.Lookup.Params, func(p string) bool { return t.Column(p) == nil })
	if !asked || unknown { // which has been said
		return
	}
	if info.Refusal != "" {
		c.errorf(CodeLookup, r.Lookup.pos, "the database refuses the lookup: %s", info.Refusal)
		return
	}
	names := make([]string, len(info.Columns))
	for i := range info.Columns {
		names[i] = info.Columns[i].Name
	}
	for _, tpl := range r.templates() {
		for i := range tpl.Segments() {
			s := &tpl.Segments()[i]
			if !s.Lookup {
				continue
			}
			n := 0
			for _, name := range names {
				if name == s.Column {
					n++
				}
			}
			switch {
			case n == 0:
				c.errorf(CodeColumn, tpl.segmentPlace(s), "the lookup gives no column %q%s", s.Column, suggest(s.Column, names))
			case n > 1:
				c.errorf(CodeLookup, tpl.segmentPlace(s), "the lookup gives more than one column %q: name one of them with AS", s.Column)
			}
		}
		if tpl.HasLookup() {
			c.uncoveredLookup(r, tpl, info.Tables)
		}
	}
}

// uncoveredLookup finds tables that a name is looked up in and that have no rule
// of their own for it. When such a row moves, the log shows that move alone: what
// was made of the row before is named by nobody.
func (c *checker) uncoveredLookup(r *Rule, tpl *Template, tables []string) {
	for _, table := range tables {
		if slices.ContainsFunc(c.set.Rules, func(o *Rule) bool { return o.QualifiedTable() == table && c.builds(o, tpl) }) {
			continue
		}
		kind := "tags"
		if slices.Contains(r.Keys, tpl) {
			kind = "keys"
		}
		c.warn(CodeLookedUp, tpl.pos, "add to rules, with the columns of "+table+": - {name: "+quoteYAML(table+" moves")+", table: "+quoteYAML(table)+", "+kind+": [ "+quoteYAML(entryForm(tpl))+" ]}",
			"%q is looked up in %s, and no rule of that table names it: when a row there changes, what was made of it stays as it is", tpl, table)
	}
}

// builds reports whether a rule names, itself or by the cascade, what has the
// form of a template.
func (c *checker) builds(r *Rule, tpl *Template) bool {
	if slices.ContainsFunc(r.templates(), func(o *Template) bool { return o.shape() == tpl.shape() }) {
		return true
	}
	if tpl.Class == nil {
		return slices.ContainsFunc(c.set.Dependencies, func(d *Dependency) bool {
			return slices.ContainsFunc(d.Also, func(a *Template) bool { return a.shape() == tpl.shape() }) &&
				slices.ContainsFunc(r.templates(), d.appliesTo)
		})
	}
	classes, _ := c.set.touchedByRule(r)
	return slices.Contains(classes, tpl.Class)
}

func quoteYAML(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

package rules

import (
	"slices"
)

// warms finds what is to be filled and can not be, and warm-ups that nothing
// starts.
func (l *linter) warms() {
	missing := func(c *Class, at place, what string) {
		if c != nil && c.Load == nil {
			l.warn(CodeNoLoader, at, "give entry "+c.Name+" a load.sql or a load.http",
				"%s: entry %q has no \"load\": Lethe can not fill it", what, c.Name)
		}
	}
	for _, w := range l.set.Warm {
		l.subject = subject{entry: w.Entry}
		missing(l.set.Class(w.Entry), w.pos, "warm")
		if !w.OnStart && !w.Scheduled() {
			l.warn(CodeNeverWarmed, w.pos, "add on_start: true, every: 5m, cron or at",
				"warm: nothing starts it but `lethe warm`")
		}
	}
	for _, c := range l.set.Entries {
		l.subject = subject{entry: c.Name}
		for _, t := range c.Prefetch {
			missing(t.Class, t.pos, "prefetch")
		}
	}
	l.subject = subject{}
}

// warmStatements holds what the database says of warm.sql against the keys
// that are to come out of it.
func (c *checker) warmStatements() {
	for _, w := range c.set.Warm {
		class := c.set.Class(w.Entry)
		info, known := c.schema.Statements[w.Statement(0)]
		if class == nil || !known {
			continue
		}
		c.subject = subject{entry: w.Entry}
		if info.Error != "" {
			c.errorf(CodeStatement, w.sqlAt, "warm.sql: %s", info.Error)
			continue
		}
		names := info.columnNames()
		for at, p := range class.Key.Placeholders() {
			i := slices.Index(names, p)
			if i < 0 {
				c.add(Error, CodeStatement, w.sqlAt, "select it under that name: SELECT ... AS "+p,
					"warm.sql returns no column %q, which the key %q needs%s", p, class.Key, suggest(p, names))
				continue
			}
			c.warmType(w, class, at, &info.Columns[i])
		}
	}
	c.subject = subject{}
}

// loadStatements holds what the database says of load.sql against what a value
// is stored under: without one of its columns Lethe fills nothing of the class.
// That is a warning: the application loads by itself.
func (c *checker) loadStatements() {
	for _, class := range c.set.Entries {
		if class.Load == nil || class.Load.SQL == "" {
			continue
		}
		info, known := c.schema.Statements[class.Load.Statement()]
		if !known {
			continue
		}
		c.subject = subject{entry: class.Name}
		if info.Error != "" {
			c.warn(CodeLoad, class.Load.pos, "correct the statement", "load.sql: %s; Lethe can not fill the entry", info.Error)
			continue
		}
		names := info.columnNames()
		missing := func(what string, t *Template) {
			for _, column := range t.Columns() {
				if !slices.Contains(names, column) {
					c.warn(CodeLoad, class.Load.pos, "add "+column+" to the columns of load.sql",
						"load.sql returns no column %q, which the %s %q needs: Lethe can not fill the entry%s", column, what, t, suggest(column, names))
				}
			}
		}
		missing("key", class.Key)
		for _, t := range class.Tags {
			missing("tag", t)
		}
	}
	c.subject = subject{}
}

// warmType compares how a column of warm.sql prints with how the columns do
// that rules build keys of the class from: a name that no rule builds is never
// invalidated by its row.
func (c *checker) warmType(w *Warm, class *Class, at int, col *ColumnInfo) {
	for _, r := range c.set.Rules {
		t := c.schema.Table(r.QualifiedTable())
		if t == nil {
			continue
		}
		for _, k := range r.Keys {
			if k.Class != class {
				continue
			}
			nth := -1
			for i := range k.Segments() {
				s := &k.Segments()[i]
				if s.Column == "" {
					continue
				}
				if nth++; nth != at || len(s.Path) > 0 || len(s.Filters) > 0 {
					continue
				}
				theirs := t.Column(s.Column)
				if theirs == nil || printKind(theirs) == printKind(col) {
					continue
				}
				c.warn(CodeWarmType, w.sqlAt, "cast it to the type of the column",
					"column %q of warm.sql prints as %s, rule %q builds the key from %s: the two print differently, so the names that are warmed are not those that are invalidated", col.Name, printKind(col), r.Name, printKind(theirs))
				return
			}
		}
	}
}

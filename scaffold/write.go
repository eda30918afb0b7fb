package scaffold

import (
	"fmt"
	"slices"
	"strings"

	"github.com/lethe-cache/lethe/rules"
)

// writer builds the file line by line.
type writer struct {
	b strings.Builder
	// comment puts what is written into comments.
	comment bool
	indent  string
}

func (w *writer) line(format string, args ...any) {
	text := w.indent + fmt.Sprintf(format, args...)
	if w.comment {
		text = w.indent + "# " + strings.TrimPrefix(text, w.indent)
	}
	w.b.WriteString(strings.TrimRight(text, " ") + "\n")
}

// remark writes a comment, broken into lines.
func (w *writer) remark(format string, args ...any) {
	const width = 110
	line := "#"
	for word := range strings.FieldsSeq(clean(fmt.Sprintf(format, args...))) {
		if len(w.indent)+len(line)+1+len(word) > width && line != "#" {
			w.b.WriteString(w.indent + line + "\n")
			line = "#"
		}
		line += " " + word
	}
	w.b.WriteString(w.indent + line + "\n")
}

// statement writes SQL into a comment, not broken: it is to be copied.
func (w *writer) statement(sql string) { w.b.WriteString(w.indent + "#   " + clean(sql) + "\n") }

// commented writes what f writes as comments.
func (w *writer) commented(f func()) {
	was := w.comment
	w.comment = true
	f()
	w.comment = was
}

func (w *writer) nested(f func()) {
	was := w.indent
	w.indent += "  "
	f()
	w.indent = was
}

func (w *writer) header(s *Schema, o Options, plans []*tablePlan) {
	of := ""
	if s.Database != "" {
		of = fmt.Sprintf(" of database %q", clean(s.Database))
	}
	w.remark("A first rules.yaml, written by `lethe init` from the tables%s. Take out what you do not cache, name the owners, and run `lethe check`.", of)
	w.remark("A class <table> holds rows by primary key. A class <table>_by_<column> holds the keys of the rows that share a foreign key, and every entry of yours that is made of such rows (a page, a count) may carry the same tag. Values with {...|urlencode} are escaped in names, as the client's Key does.")
	var fixes []string
	for _, t := range plans {
		if t.fix != "" && len(t.PrimaryKey) > 0 {
			fixes = append(fixes, statements(t.fix)...)
		}
	}
	if len(fixes) > 0 {
		w.line("#")
		w.remark("The log hides old values that some lists need: what would miss a change because of that is in comments below. Run these, one by one and outside of a transaction, then `lethe init` again. Each makes updates and deletes of its table write more log.")
		for _, f := range fixes {
			w.statement(f)
		}
	}
	w.line("version: 1")
	namespace := o.Namespace
	if namespace == "" {
		namespace = Namespace(s.Database)
	}
	w.line("namespace: %s", scalar(namespace))
	w.line("")
}

// statements takes a line of SQL apart, of which CREATE INDEX CONCURRENTLY
// suffers no other beside it.
func statements(line string) []string {
	var out []string
	start, quote := 0, false
	for i := 0; i < len(line); i++ {
		switch {
		case line[i] == '"':
			quote = !quote
		case line[i] == ';' && !quote:
			out = append(out, strings.TrimSpace(line[start:i+1]))
			start = i + 1
		}
	}
	return out
}

// section writes a top-level key and what each table has below it; empty is
// what the key holds if that is nothing but comments.
func (w *writer) section(name, empty string, plans []*tablePlan, active func(*tablePlan) bool, write func(*tablePlan)) {
	if slices.ContainsFunc(plans, active) {
		w.line("%s:", name)
	} else {
		w.line("%s: %s", name, empty)
	}
	w.nested(func() {
		for i, t := range plans {
			if i > 0 {
				w.b.WriteByte('\n')
			}
			write(t)
		}
	})
}

func (w *writer) entries(t *tablePlan) {
	if t.skip != "" {
		w.remark("%s %s.", t.QualifiedName(), t.skip)
		return
	}
	if t.blocked != "" {
		w.remark("%s%s %s. See the comment where its rule would be.", t.QualifiedName(), rowsText(t.Rows), t.blocked)
		return
	}
	w.remark("%s%s", t.QualifiedName(), rowsText(t.Rows))
	w.row(t)
	told := false
	for i := range t.lists {
		l := &t.lists[i]
		switch {
		case l.large():
			w.remark("A row of %s has about %d rows of %s: too many for one entry. Cache pages of them, with the tag %s.",
				l.parent, l.perParent, t.QualifiedName(), tag(t, l))
		case l.hidden:
			if !told {
				w.onlyAfter(t)
			}
			told = true
			w.commented(func() { w.list(t, l) })
		default:
			w.list(t, l)
		}
	}
}

// onlyAfter writes what has to be run before a table's hidden lists are true.
func (w *writer) onlyAfter(t *tablePlan) {
	partitions := ""
	if t.Kind == 'p' {
		partitions = " (and the same for each partition that is added)"
	}
	w.remark("The log does not carry old values that the next lists need: a row that moves or goes would stay in its old list. They are true after%s:", partitions)
	for _, s := range statements(t.fix) {
		w.statement(s)
	}
}

func rowsText(n int64) string {
	switch {
	case n < 0:
		return ""
	case n < 1000:
		return fmt.Sprintf(" (%d rows)", n)
	case n < 1_000_000:
		return fmt.Sprintf(" (about %d thousand rows)", n/1000)
	}
	return fmt.Sprintf(" (about %d million rows)", n/1_000_000)
}

func (w *writer) row(t *tablePlan) {
	w.line("%s:", scalar(t.class))
	w.nested(func() {
		w.line("key: %s", scalar(name(t, t.class, t.PrimaryKey, true)))
		w.line("ttl: 1h")
		w.line("load:")
		w.line("  sql: |")
		var columns []string
		for _, c := range t.Columns {
			if slices.Contains(t.PrimaryKey, c.Name) {
				columns = append(columns, selected(t.Table, c.Name))
			} else if !slices.Contains(t.secret, c.Name) && !slices.Contains(t.bulky, c.Name) {
				columns = append(columns, rules.QuoteIdent(c.Name))
			}
		}
		for i, l := range wrap(columns) {
			w.line("    %s", []string{"SELECT ", "  "}[min(i, 1)]+l)
		}
		w.line("    FROM %s", quoted(t.Schema, t.Name))
		w.line("    WHERE %s", matching(t, t.PrimaryKey))
		w.line("description: %s", scalar("A row of "+clean(t.QualifiedName())+"."))
		for _, name := range t.PrimaryKey {
			if c := t.Column(name); c.Type == oidChar {
				w.remark("%s is %s: names hold the blanks that Postgres pads its values with, and one built without them is never forgotten.", name, c.TypeName)
			}
		}
		if len(t.secret) > 0 {
			w.remark("Not loaded, as they look secret: %s", strings.Join(t.secret, ", "))
		}
		if len(t.bulky) > 0 {
			w.remark("Not loaded, as they may be large: %s", strings.Join(t.bulky, ", "))
		}
	})
}

func (w *writer) list(t *tablePlan, l *list) {
	w.line("%s:", scalar(l.class))
	w.nested(func() {
		w.line("key: %s", scalar(name(t, l.class, l.columns, true)))
		w.line("ttl: 1h")
		w.line("tags: %s", scalars([]string{nameOf(t, tagPrefix(t, l), l.columns, true)}))
		w.line("load:")
		w.line("  sql: |")
		ids := make([]string, len(t.PrimaryKey))
		for i, c := range t.PrimaryKey {
			ids[i] = rules.QuoteIdent(c)
		}
		order := strings.Join(ids, ", ")
		id := order
		if len(ids) > 1 {
			id = "json_build_array(" + order + ")"
		}
		selects, groups := make([]string, len(l.columns)), make([]string, len(l.columns))
		as := "ids"
		for i, c := range l.columns {
			selects[i], groups[i] = selected(t.Table, c), rules.QuoteIdent(c)
			if param(t.Table, c) == as {
				as = "keys"
			}
		}
		w.line("    SELECT %s, json_agg(%s ORDER BY %s) AS %s", strings.Join(selects, ", "), id, order, as)
		w.line("    FROM %s", quoted(t.Schema, t.Name))
		w.line("    WHERE %s", matching(t, l.columns))
		w.line("    GROUP BY %s", strings.Join(groups, ", "))
		w.line("description: %s", scalar(fmt.Sprintf("The keys of the rows of %s that belong to one of %s.", clean(t.QualifiedName()), clean(l.parent))))
	})
}

// oidChar is the type character(n).
const oidChar = 1042

// selected is a column in a select list, under the name of its placeholder.
func selected(t *Table, column string) string {
	if p := param(t, column); p != column {
		return rules.QuoteIdent(column) + " AS " + rules.QuoteIdent(p)
	}
	return rules.QuoteIdent(column)
}

// matching selects by arrays: an index serves it, and no row comes twice.
func matching(t *tablePlan, columns []string) string {
	if len(columns) == 1 {
		return rules.QuoteIdent(columns[0]) + " = ANY(@" + param(t.Table, columns[0]) + ")"
	}
	names, arrays := make([]string, len(columns)), make([]string, len(columns))
	for i, c := range columns {
		names[i] = rules.QuoteIdent(c)
		arrays[i] = "@" + param(t.Table, c) + "::" + t.Column(c).TypeName + "[]"
	}
	return fmt.Sprintf("(%s) IN (SELECT * FROM unnest(%s))", strings.Join(names, ", "), strings.Join(arrays, ", "))
}

// wrap joins a select list to lines of a readable length.
func wrap(columns []string) []string {
	var lines []string
	line := ""
	for i, c := range columns {
		if i < len(columns)-1 {
			c += ","
		}
		if line != "" && len(line)+1+len(c) > 90 {
			lines, line = append(lines, line), ""
		}
		if line != "" {
			line += " "
		}
		line += c
	}
	return append(lines, line)
}

// name is a key's template: the class, and the columns' values.
func name(t *tablePlan, class string, columns []string, entry bool) string {
	return nameOf(t, class, columns, entry)
}

// nameOf builds a template. In an entry a placeholder is the loader's parameter,
// in a rule it is the column.
func nameOf(t *tablePlan, prefix string, columns []string, entry bool) string {
	for _, c := range columns {
		if entry {
			prefix += ":" + templateName(t.Table, c, param(t.Table, c))
		} else {
			prefix += ":" + placeholder(t.Table, c)
		}
	}
	return prefix
}

func tagPrefix(t *tablePlan, l *list) string {
	return t.class + ":" + slug(strings.Join(l.columns, "+"))
}

func tag(t *tablePlan, l *list) string { return nameOf(t, tagPrefix(t, l), l.columns, false) }

func (w *writer) rule(t *tablePlan) {
	if t.skip != "" {
		w.remark("%s %s.", t.QualifiedName(), t.skip)
		return
	}
	var tags, hidden []string
	for i := range t.lists {
		if t.lists[i].hidden {
			hidden = append(hidden, tag(t, &t.lists[i]))
		} else {
			tags = append(tags, tag(t, &t.lists[i]))
		}
	}
	if t.blocked != "" {
		w.blockedRule(t, append(tags, hidden...))
		return
	}
	w.line("- name: %s", scalar(t.class))
	w.nested(func() {
		w.line("table: %s", scalar(quoted(t.Schema, t.Name)))
		w.line("keys: %s", scalars([]string{name(t, t.class, t.PrimaryKey, false)}))
		if len(tags) > 0 {
			w.line("tags: %s", scalars(tags))
		}
		if len(hidden) > 0 {
			instead := ""
			if len(tags) > 0 {
				instead = ", instead of the line above"
			}
			w.remark("After the ALTER TABLE that stands with the entries%s:", instead)
			w.commented(func() { w.line("tags: %s", scalars(append(tags, hidden...))) })
		}
	})
}

// blockedRule writes the rule of a table that has none yet, in comments.
func (w *writer) blockedRule(t *tablePlan, tags []string) {
	w.remark("%s %s.", t.QualifiedName(), t.blocked)
	if t.fix != "" {
		w.remark("With the next statement its changes could be seen:")
		for _, s := range statements(t.fix) {
			w.statement(s)
		}
	}
	w.commented(func() {
		w.line("- name: %s", scalar(t.class))
		w.line("  table: %s", scalar(quoted(t.Schema, t.Name)))
		switch {
		case len(tags) > 0:
			w.line("  tags: %s", scalars(tags))
		default:
			w.line("  tags: %s", scalars([]string{t.class}))
		}
	})
}

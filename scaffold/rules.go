package scaffold

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/lethe-cache/lethe/rules"
)

// Table is one table of the schema to write rules for.
type Table struct {
	rules.TableInfo
	// Rows is how many the server believes there are, -1 if it does not say.
	Rows int64
}

// Schema is what Rules writes from.
type Schema struct {
	Tables      []Table
	ForeignKeys []rules.ForeignKey
	// Database is its name, for the comments.
	Database string
}

// Options of Rules.
type Options struct {
	// Namespace of the rules; empty takes one from the name of the database.
	Namespace string
}

// listRowsMax is how many rows a parent may have on the average before a list of
// all of them is no longer a value for one entry.
const listRowsMax = 1000

// Rules returns a rules.yaml with comments. For each table with a primary key
// it has a class of its rows, and one of the rows' keys for each foreign key,
// and a rule that invalidates both.
//
// Nothing is written that would miss a change: what the log does not carry yet
// is in comments, with the ALTER TABLE that lets it in, and what a second run
// after that writes in full. classes is how many there are that are not in
// comments; without any the file is not one to run with.
func Rules(s Schema, o Options) (text []byte, classes int) {
	tables := slices.Clone(s.Tables)
	slices.SortFunc(tables, func(a, b Table) int {
		return cmp.Or(publicFirst(a.Schema, b.Schema), cmp.Compare(a.Schema, b.Schema), cmp.Compare(a.Name, b.Name))
	})
	p := &planner{schema: &s, taken: map[string]bool{}}
	plans := make([]*tablePlan, len(tables))
	for i := range tables { // rows first, so that they have the plain names
		plans[i] = &tablePlan{Table: &tables[i], class: p.unique(className(&tables[i]))}
	}
	for _, t := range plans {
		p.plan(t)
	}
	var w writer
	w.header(&s, o, plans)
	w.section("entries", "{}", plans, (*tablePlan).active, w.entries)
	w.line("")
	w.section("rules", "[]", plans, (*tablePlan).active, w.rule)
	for _, t := range plans {
		if t.active() {
			classes++
		}
	}
	return []byte(w.b.String()), classes
}

func publicFirst(a, b string) int {
	rank := func(s string) int {
		if s == "public" {
			return 0
		}
		return 1
	}
	return rank(a) - rank(b)
}

// tablePlan is what is to be written of a table.
type tablePlan struct {
	*Table
	class string
	// skip says why the table is left out; blocked why what could be written of
	// it stands in comments. Both are sentences.
	skip, blocked string
	// fix is the statement after which what is hidden is not hidden any more.
	fix   string
	lists []list
	// secret and bulky are columns that are not loaded.
	secret, bulky []string
}

func (t *tablePlan) active() bool { return t.skip == "" && t.blocked == "" }

// list is the rows of a table by a foreign key.
type list struct {
	class   string
	columns []string
	parent  string
	// hidden: the log does not carry old values of the columns.
	hidden bool
	// perParent is the average of rows, 0 if unknown.
	perParent int64
}

func (l *list) large() bool { return l.perParent > listRowsMax }

type planner struct {
	schema *Schema
	taken  map[string]bool
}

// unique makes a class's name differ from those before, in small letters too.
func (p *planner) unique(name string) string {
	const longest = 60 // and a number, in 64
	if len(name) > longest {
		name = name[:longest]
	}
	try := name
	for n := 2; p.taken[strings.ToLower(try)]; n++ {
		try = fmt.Sprintf("%s_%d", name, n)
	}
	p.taken[strings.ToLower(try)] = true
	return try
}

func (p *planner) plan(t *tablePlan) {
	if t.Persistence == 'u' {
		t.skip = "is unlogged: its changes never reach the log, and nobody may cache it until ALTER TABLE " + quoted(t.Schema, t.Name) + " SET LOGGED"
		return
	}
	for _, c := range t.Columns {
		switch {
		case rules.LooksSecret(c.Name) && !slices.Contains(t.PrimaryKey, c.Name):
			t.secret = append(t.secret, c.Name)
		case bulky(&c) || hasControl(c.Name):
			t.bulky = append(t.bulky, c.Name)
		}
	}
	p.lists(t)
	if len(t.PrimaryKey) == 0 {
		t.blocked = "has no primary key, so that no name says which row is meant, and its updates and deletes are not in the log"
		t.fix = rules.IdentityFix(&t.TableInfo, t.needed())
		return
	}
	for _, name := range t.PrimaryKey {
		c := t.Column(name)
		switch {
		case c == nil || !nameable(name):
			t.blocked = fmt.Sprintf("has a primary key with the column %q, which a template can not name", clean(name))
		case c.Generated != 0 && c.Generated != ' ':
			t.blocked = fmt.Sprintf("has a primary key with the generated column %q, which the log may not carry", name)
		case rules.LooksSecret(name):
			t.blocked = fmt.Sprintf("has a primary key that looks secret (%s): keys stand in logs and metrics. Give the rows another name, such as a hash of it", name)
		}
	}
	if len(t.PrimaryKey) > maxPlaceholders {
		t.blocked = fmt.Sprintf("has a primary key of %d columns, and a key has room for %d", len(t.PrimaryKey), maxPlaceholders)
	}
	if t.blocked != "" {
		return
	}
	if !t.carries(t.PrimaryKey) {
		t.blocked = "has a replica identity that hides the primary key of changed rows"
		t.fix = rules.IdentityFix(&t.TableInfo, t.needed())
		return
	}
	if slices.ContainsFunc(t.lists, func(l list) bool { return l.hidden }) {
		t.fix = rules.IdentityFix(&t.TableInfo, t.needed())
	}
}

// needed are the columns whose old values the rows' keys and the lists need.
func (t *tablePlan) needed() []string {
	need := slices.Clone(t.PrimaryKey)
	for _, l := range t.lists {
		for _, c := range l.columns {
			if !slices.Contains(need, c) {
				need = append(need, c)
			}
		}
	}
	return need
}

// carries reports whether the log has the old values of all of the columns.
func (t *Table) carries(columns []string) bool {
	return !slices.ContainsFunc(columns, func(c string) bool { return !slices.Contains(t.IdentityColumns, c) })
}

// lists finds what people list rows by: the foreign keys of the table.
func (p *planner) lists(t *tablePlan) {
	for _, k := range p.schema.ForeignKeys {
		if k.Table != t.QualifiedName() || sameSet(k.Columns, t.PrimaryKey) || len(k.Columns) > maxPlaceholders {
			continue // one row each: that is the row's own entry
		}
		if slices.ContainsFunc(t.lists, func(l list) bool { return sameSet(l.columns, k.Columns) }) {
			continue
		}
		if slices.ContainsFunc(k.Columns, func(name string) bool {
			c := t.Column(name)
			return c == nil || !nameable(name) || rules.LooksSecret(name) || c.Generated != 0 && c.Generated != ' '
		}) {
			continue
		}
		l := list{
			class: p.unique(t.class + "_by_" + slug(strings.Join(k.Columns, "_"))), columns: k.Columns,
			parent: k.RefTable, hidden: !t.carries(k.Columns),
		}
		if i := slices.IndexFunc(p.schema.Tables, func(o Table) bool { return o.QualifiedName() == k.RefTable }); i >= 0 {
			if parents := p.schema.Tables[i].Rows; parents > 0 && t.Rows > 0 {
				l.perParent = t.Rows / parents
			}
		}
		t.lists = append(t.lists, l)
	}
}

func sameSet(a, b []string) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(x string) bool { return !slices.Contains(b, x) })
}

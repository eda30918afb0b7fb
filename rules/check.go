package rules

import (
	"fmt"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"

	"github.com/lethe-cache/lethe/internal/keytext"
)

// Check finds what Lint finds and what the live schema tells: unknown tables
// and columns, type errors, and what will go wrong later. Unknown things are
// errors; see the codes.
func (s *Set) Check(schema Schema) Findings {
	l := newLinter(s)
	l.offline()
	c := &checker{linter: l, schema: &schema, need: map[string]*identityNeed{}, envs: map[*TableInfo]*cel.Env{}}
	for _, r := range s.Rules {
		l.subject = subject{rule: r.Name}
		if t := c.table(r); t != nil {
			c.needs(r, t)
		}
	}
	seen := map[string]bool{}
	for _, r := range s.Rules {
		l.subject = subject{rule: r.Name}
		t := schema.Table(r.QualifiedTable())
		if t == nil || !publishable(t) {
			continue
		}
		c.columns(r, t)
		c.lookup(r, t)
		c.fits(r, t)
		c.at(r, t)
		c.condition(r, t)
		c.identity(r, t)
		c.separators(r, t)
		if !seen[r.QualifiedTable()] { // once a table is enough
			seen[r.QualifiedTable()] = true
			c.kind(r, t)
			c.foreignKeys(r)
		}
	}
	c.keyTypes()
	c.warmStatements()
	c.loadStatements()
	l.tenants(func(table string) bool {
		t := schema.Table(table)
		return t != nil && t.Column(s.Policy.Tenant) != nil
	})
	return l.findings.sort()
}

type checker struct {
	*linter
	schema *Schema
	need   map[string]*identityNeed
	envs   map[*TableInfo]*cel.Env
}

func publishable(t *TableInfo) bool {
	return (t.Kind == 'r' || t.Kind == 'p' || t.Kind == 0) && t.Persistence != 't'
}

// table finds a rule's table, or says that there is none to publish.
func (c *checker) table(r *Rule) *TableInfo {
	t := c.schema.Table(r.QualifiedTable())
	if t == nil {
		names := slices.Clone(c.schema.Names)
		for i := range c.schema.Tables {
			names = append(names, c.schema.Tables[i].QualifiedName())
		}
		hint := suggestTable(r.Schema, r.Table, names)
		for _, n := range names {
			if hint == "" && strings.HasSuffix(n, "."+r.Table) {
				hint = fmt.Sprintf(" (did you mean %q?)", n)
			}
		}
		c.errorf(CodeTable, r.pos["table"], "table %s does not exist%s", r.QualifiedTable(), hint)
		return nil
	}
	if !publishable(t) {
		what := map[byte]string{'v': "a view", 'm': "a materialized view", 'f': "a foreign table", 'S': "a sequence"}[t.Kind]
		if t.Persistence == 't' {
			what = "a temporary table"
		}
		if what == "" {
			what = fmt.Sprintf("of kind %q", t.Kind)
		}
		c.add(Error, CodeTable, r.pos["table"], "name the tables that it is made from", "%s is %s: its changes are not in the log", r.QualifiedTable(), what)
		return nil
	}
	return t
}

func (c *checker) columns(r *Rule, t *TableInfo) {
	names := make([]string, len(t.Columns))
	for i, col := range t.Columns {
		names[i] = col.Name
	}
	type key struct {
		name string
		at   place
	}
	seen := map[key]bool{}
	for _, use := range r.columns() {
		k := key{use.name, use.place}
		if seen[k] {
			continue
		}
		seen[k] = true
		col := t.Column(use.name)
		switch {
		case col == nil:
			c.errorf(CodeColumn, use.place, "column %q does not exist in %s%s", use.name, t.QualifiedName(), suggest(use.name, names))
		case col.Generated != 0 && col.Generated != ' ':
			c.warn(CodeGenerated, use.place, "use the columns that it is generated from",
				"column %q of %s is generated: before Postgres 18 the log never carries it, and each change raises the classes that need it", use.name, t.QualifiedName())
		case use.in != nil && col.Toastable && r.On&OnUpdate != 0 && !c.identityHas(t, use.name):
			c.warn(CodeToast, use.place, c.identityFix(t, use.name),
				"column %q of %s may be TOASTed: an update that leaves a large value alone does not carry it, and raises the class instead", use.name, t.QualifiedName())
		}
	}
}

// condition checks the types of a rule's condition against the table.
func (c *checker) condition(r *Rule, t *TableInfo) {
	if r.When == "" {
		return
	}
	env := c.envs[t]
	if env == nil {
		var err error
		env, err = newConditionEnv(func(name string) (*types.Type, bool) {
			col := t.Column(name)
			if col == nil {
				return types.DynType, true // said already
			}
			return celType(col.Type), true
		})
		if err != nil {
			c.errorf(CodeCondition, r.pos["when"], "conditions are not available: %s", err)
			return
		}
		c.envs[t] = env
	}
	_, errs := compileCondition(env, r.When)
	for _, e := range errs {
		c.add(Error, CodeCondition, r.whenPlace(e.line, e.col), e.hint, "when: %s", e.message)
	}
}

// kind finds tables whose changes reach the log in part or not at all.
func (c *checker) kind(r *Rule, t *TableInfo) {
	name := t.QualifiedName()
	if t.Persistence == 'u' {
		c.warn(CodeUnlogged, r.pos["table"], "ALTER TABLE "+quoteTable(t)+" SET LOGGED;",
			"%s is unlogged: its changes never reach the log, so the rule never acts", name)
	}
	switch {
	case t.Kind == 'p':
		c.warn(CodePartition, r.pos["table"], "",
			"%s is a partition root: rows are published as its own; a single partition that is attached, detached or truncated is noticed by looking, up to a second later, and raises the rule's classes", name)
	case t.PartitionOf != "":
		c.warn(CodePartition, r.pos["table"], "name the root: table: "+t.PartitionOf,
			"%s is a partition of %s: rows of its other partitions are not seen", name, t.PartitionOf)
	}
}

// foreignKeys finds tables that no rule names and that change with this one.
func (c *checker) foreignKeys(r *Rule) {
	watched := func(table string) bool {
		return slices.ContainsFunc(c.set.Rules, func(o *Rule) bool { return o.QualifiedTable() == table })
	}
	for _, fk := range c.schema.ForeignKeys {
		if fk.RefTable != r.QualifiedTable() || watched(fk.Table) {
			continue
		}
		for _, a := range []struct {
			action byte
			verb   string
		}{{fk.OnDelete, "deleting"}, {fk.OnUpdate, "updating"}} {
			what := map[byte]string{'c': "changes rows of %s with it (CASCADE)", 'n': "sets columns of %s to NULL", 'd': "sets columns of %s to their defaults"}[a.action]
			if what == "" {
				continue
			}
			c.warn(CodeForeignKey, r.pos["table"], "add a rule for "+fk.Table+", if entries hold its data",
				"%s a row of %s "+what+" (foreign key %s), which no rule watches", a.verb, fk.RefTable, fk.Table, fk.Name)
		}
	}
}

// keyTypes finds one form of key that is built from columns whose types print
// differently: 1 and 1.00 are two keys.
func (c *checker) keyTypes() {
	type use struct {
		rule  *Rule
		t     *Template
		kinds []string
	}
	first := map[string]use{}
	for _, r := range c.set.Rules {
		t := c.schema.Table(r.QualifiedTable())
		if t == nil {
			continue
		}
		for _, k := range r.Keys {
			u := use{rule: r, t: k}
			for _, s := range k.Segments() {
				if s.Column == "" {
					continue
				}
				kind := ""
				if col := c.column(r, t, &s); col != nil && len(s.Path) == 0 {
					kind = printKind(col)
				}
				for _, f := range s.Filters {
					if f == keytext.Hash || f.IsDate() {
						kind = "the filter " + f.String()
					}
				}
				u.kinds = append(u.kinds, kind)
			}
			was, ok := first[k.shape()]
			if !ok {
				first[k.shape()] = u
				continue
			}
			for i := range u.kinds {
				if a, b := u.kinds[i], was.kinds[i]; a != b && a != "" && b != "" {
					c.subject = subject{rule: r.Name}
					c.warn(CodeKeyColumns, k.pos, "build the key from columns of one type",
						"key %q is built from %s here and from %s by rule %q: the two print differently", k, a, b, was.rule.Name)
					break
				}
			}
		}
	}
	c.subject = subject{}
}

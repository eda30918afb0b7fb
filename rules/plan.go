package rules

import (
	"fmt"
	"maps"
	"slices"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/internal/keytext"
)

// Plan is a compiled Set, immutable and safe for concurrent use.
type Plan struct {
	set     *Set
	byTable map[string][]*Rule
	prefix  []byte // of every full name, colon included
	lookups bool   // some rule has one
	timed   map[*Rule]uint64
}

// Compile makes a plan of the set.
func (s *Set) Compile() (*Plan, error) {
	p := &Plan{set: s, byTable: map[string][]*Rule{}, timed: map[*Rule]uint64{}}
	if s.Namespace != "" {
		p.prefix = []byte(s.Namespace + ":")
	}
	for _, r := range s.Rules {
		if r.When != "" && r.cond == nil {
			return nil, fmt.Errorf("compile rule %q: the set was not made by Parse or Load", r.Name)
		}
		p.lookups = p.lookups || r.Lookup != nil
		if r.At != "" {
			p.timed[r] = s.unitOf(r).ID
		}
		p.byTable[r.QualifiedTable()] = append(p.byTable[r.QualifiedTable()], r)
	}
	return p, nil
}

// Set returns what the plan was compiled from.
func (p *Plan) Set() *Set { return p.set }

// ScheduleID identifies a rule with At by all that matters in it, so that what
// one rule has scheduled is not taken for another's; its name does not matter.
// 0 if the rule is none of the plan's.
func (p *Plan) ScheduleID(r *Rule) uint64 { return p.timed[r] }

func (p *Plan) rule(name string) *Rule {
	if name == "" {
		return nil
	}
	for _, r := range p.set.Rules {
		if r.Name == name {
			return r
		}
	}
	return nil
}

// ClassOf returns the class that a full name belongs to: among those whose key
// has its form, the one with the longest literal prefix. nil if there is none.
func (p *Plan) ClassOf(name []byte) *Class { return p.set.ClassOf(name) }

// ClassesOfTable returns the classes that changes of the table (schema.name)
// touch, by rules and by the cascade; all is true if a class that the file does
// not tell may be touched too, so that "*" is to be raised.
func (p *Plan) ClassesOfTable(table string) (classes []*Class, all bool) {
	for _, r := range p.byTable[table] {
		cs, a := p.set.touchedByRule(r)
		all = all || a
		for _, c := range cs {
			classes = addClass(classes, c)
		}
	}
	return classes, all
}

// classesOfRule returns the classes that a rule itself names. A tag is carried
// by the classes that declare it and, since clients may name any tag, perhaps
// by others: all is true then.
func (s *Set) classesOfRule(r *Rule) (classes []*Class, all bool) {
	for _, k := range r.Keys {
		if k.Class == nil {
			all = true
		} else {
			classes = addClass(classes, k.Class)
		}
	}
	for _, ts := range r.Tags {
		all = true
		for _, t := range ts.All {
			for _, c := range s.Carriers(t) {
				classes = addClass(classes, c)
			}
		}
	}
	return classes, all
}

// Carriers returns the classes that declare a tag of the same form.
func (s *Set) Carriers(t *Template) []*Class {
	var out []*Class
	for _, c := range s.Entries {
		if slices.ContainsFunc(c.Tags, func(d *Template) bool { return d.shape() == t.shape() }) {
			out = append(out, c)
		}
	}
	return out
}

func addClass(list []*Class, c *Class) []*Class {
	if slices.Contains(list, c) {
		return list
	}
	return append(list, c)
}

// PlainPatterns returns what to SCAN for: one for each plain class, and one
// for each form of key that rules build without a class.
func (p *Plan) PlainPatterns() []PlainPattern {
	var out []PlainPattern
	for _, c := range p.set.Entries {
		if c.Mode == Plain {
			out = append(out, PlainPattern{Class: c, Globs: p.set.plainPattern(c.Key, c.Versions)})
		}
	}
	seen := map[string]bool{}
	orphan := func(t *Template) {
		if t.Class == nil && !seen[t.shape()] {
			seen[t.shape()] = true
			out = append(out, PlainPattern{Globs: p.set.plainPattern(t, nil)})
		}
	}
	for _, r := range p.set.Rules {
		for _, k := range r.Keys {
			orphan(k)
		}
	}
	for _, d := range p.set.Dependencies {
		for _, a := range d.Also {
			orphan(a)
		}
	}
	return out
}

// Tables returns what the rules need of each table, sorted by name.
func (s *Set) Tables() []TableUse {
	var uses []TableUse
	for _, r := range s.Rules {
		u := TableUse{Schema: r.Schema, Name: r.Table, Columns: []string{}, OldColumns: []string{}, Ops: r.On}
		for _, use := range r.columns() {
			u.Columns = append(u.Columns, use.name)
			if use.old && r.On&(OnUpdate|OnDelete) != 0 {
				u.OldColumns = append(u.OldColumns, use.name)
			}
		}
		uses = append(uses, u)
	}
	return MergeTables(uses)
}

// MergeTables returns one use for each table, which asks for all that any of
// uses does, sorted by name.
func MergeTables(uses []TableUse) []TableUse {
	at := map[string]*TableUse{}
	for _, u := range uses {
		have := at[u.QualifiedName()]
		if have == nil {
			have = &TableUse{Schema: u.Schema, Name: u.Name, Columns: []string{}, OldColumns: []string{}}
			at[u.QualifiedName()] = have
		}
		have.Ops |= u.Ops
		have.Columns = append(have.Columns, u.Columns...)
		have.OldColumns = append(have.OldColumns, u.OldColumns...)
	}
	out := make([]TableUse, 0, len(at))
	for _, name := range slices.Sorted(maps.Keys(at)) {
		u := at[name]
		slices.Sort(u.Columns)
		slices.Sort(u.OldColumns)
		u.Columns, u.OldColumns = slices.Compact(u.Columns), slices.Compact(u.OldColumns)
		out = append(out, *u)
	}
	return out
}

// columnUse is one column that a rule reads, with where it says so.
type columnUse struct {
	name string
	// old is true if the value before the change is needed too.
	old bool
	// in is the name template that the column is part of, nil for a condition.
	in      *Template
	changed bool // read by changed()
	place   place
}

// columns lists every use of a column in a rule, in the order of the file.
func (r *Rule) columns() []columnUse {
	var out []columnUse
	for _, t := range r.templates() {
		for i := range t.Segments() {
			s := &t.Segments()[i]
			if s.Column != "" && !s.Lookup {
				out = append(out, columnUse{name: s.Column, old: s.Side != segNew && r.At == "", in: t, place: t.segmentPlace(s)})
			}
		}
	}
	if r.Lookup != nil {
		out = append(out, r.Lookup.columnUses(r.templates())...)
	}
	if r.At != "" {
		out = append(out, columnUse{name: r.At, place: r.pos["at"]})
	}
	if r.cond != nil {
		for _, c := range r.cond.columns {
			out = append(out, columnUse{name: c.name, old: c.side != readsNew, changed: c.side == readsChanged, place: r.whenPlace(c.line, c.col)})
		}
	}
	return out
}

// templates are the names that a rule renders, keys first.
func (r *Rule) templates() []*Template {
	out := slices.Clone(r.Keys)
	for _, ts := range r.Tags {
		out = append(out, ts.All...)
	}
	return out
}

// whenPlace turns a place in the condition's text into one in the file.
func (r *Rule) whenPlace(line, col int) place {
	return conditionPlace(r.pos["when"], r.folded, line, col)
}

// conditionPlace is a place in a condition's text that begins at p; folded says
// that its lines were joined.
func conditionPlace(p place, folded bool, line, col int) place {
	if folded {
		return p
	}
	if line > 1 {
		p.line += line - 1
	}
	p.col += col
	return p
}

// Observer is told of what a Matcher had to guess. Nil fields are skipped.
// The functions are called synchronously and must be fast.
type Observer struct {
	// OldValueUnknown: a key or tag needed an old value that the log does not
	// carry, so it was rendered from the new row only (or, for a strict rule,
	// its class is raised).
	OldValueUnknown func(r *Rule)
	// NewValueUnknown: a key or tag needed a value that the log does not
	// carry at all, or that can not be put into a name: an object, no date for
	// the filter date, more than NamesMax names; its class is raised.
	NewValueUnknown func(r *Rule)
	// ConditionUnknown: a condition met NULL or an error and counted as true.
	ConditionUnknown func(r *Rule, err error)
	// LookupEmpty: a lookup gave no row, so it makes no name. LookupTooMany: it
	// gave more than LookupRowsMax; the classes of its names are raised.
	LookupEmpty, LookupTooMany func(r *Rule)
}

// Matcher turns changes into targets. It holds caches and scratch memory, so
// each goroutine has its own.
type Matcher struct {
	plan *Plan
	obs  Observer
	eval *evaluation

	last   *tableMatcher // of the change before: runs of one table are the rule
	tables map[*change.Table]*tableMatcher
	byName map[string]*tableMatcher

	scratch []byte
	seen    map[string]struct{} // names that [*] has given
	bound   []keytext.Node      // the elements that it stands at

	lookups        Lookups
	params         [][]byte // of the lookup at hand
	extended       change.Change
	extOld, extNew change.Row
}

// NewMatcher returns a matcher of the plan.
func (p *Plan) NewMatcher(obs Observer) *Matcher {
	return &Matcher{plan: p, obs: obs, eval: newEvaluation(),
		tables: map[*change.Table]*tableMatcher{}, byName: map[string]*tableMatcher{}}
}

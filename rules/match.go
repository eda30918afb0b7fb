package rules

import (
	"fmt"
	"slices"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/internal/keytext"
)

// The sides of placeholders, under names that do not meet those of rows.
const (
	segOld = keytext.Old
	segNew = keytext.New
)

// tablesMax bounds the cache of compiled tables: a log that makes a new
// description for each record must not make the matcher grow without end.
const tablesMax = 256

// tableMatcher is a plan's rules as they apply to one description of a table:
// column names are replaced by indexes.
type tableMatcher struct {
	table   *change.Table
	columns map[string]int
	rules   []ruleMatcher
}

type ruleMatcher struct {
	rule *Rule
	keys []templateMatcher
	tags [][]templateMatcher
}

// templateMatcher is a template with column indexes.
type templateMatcher struct {
	template *Template
	segments []segmentMatcher
	// sameUnlessOld: all columns belong to the replica identity, so that an
	// update that carries no old row can not have moved the name.
	sameUnlessOld bool
	// each are the [*] in its paths, outer ones first.
	each []eachMatcher
	// twoSided: some placeholder takes the side that is rendered.
	twoSided bool
}

type segmentMatcher struct {
	literal  string
	column   int // -1: the table does not have it
	isColumn bool
	identity bool
	side     keytext.Side
	filters  []keytext.Filter
	reach    *pathMatcher // nil: the whole column
}

// identity reports whether an update that carries no old row is known to have
// left the column as it was. REPLICA IDENTITY FULL always carries the old row.
func (tm *tableMatcher) identity(col int) bool {
	return tm.table.Identity != change.IdentityFull && tm.table.Columns[col].Key
}

func (m *Matcher) tableMatcher(t *change.Table) *tableMatcher {
	if m.last != nil && m.last.table == t {
		return m.last
	}
	tm := m.tables[t]
	if tm == nil {
		tm = m.compileTable(t)
		if len(m.tables) >= tablesMax {
			clear(m.tables)
		}
		m.tables[t] = tm
	}
	m.last = tm
	return tm
}

// compileTable makes the matcher of a description, or takes the one of an equal
// description that came before under another address.
func (m *Matcher) compileTable(t *change.Table) *tableMatcher {
	name := t.QualifiedName()
	if old := m.byName[name]; old != nil && old.table.Identity == t.Identity && slices.Equal(old.table.Columns, t.Columns) {
		same := *old
		same.table = t
		return &same
	}
	tm := &tableMatcher{table: t, columns: make(map[string]int, len(t.Columns))}
	for i, c := range t.Columns {
		tm.columns[c.Name] = i
	}
	for _, r := range m.plan.byTable[name] {
		rm := ruleMatcher{rule: r}
		for _, k := range r.Keys {
			rm.keys = append(rm.keys, tm.template(k))
		}
		for _, ts := range r.Tags {
			var set []templateMatcher
			for _, t := range ts.All {
				set = append(set, tm.template(t))
			}
			rm.tags = append(rm.tags, set)
		}
		tm.rules = append(tm.rules, rm)
	}
	if len(m.byName) >= tablesMax {
		clear(m.byName)
	}
	m.byName[name] = tm
	return tm
}

func (tm *tableMatcher) template(t *Template) templateMatcher {
	out := templateMatcher{template: t, sameUnlessOld: true}
	for _, s := range t.Segments() {
		sm := segmentMatcher{literal: s.Literal, isColumn: s.Column != "", side: s.Side, filters: s.Filters, column: -1}
		if sm.isColumn {
			if col, ok := tm.columns[s.Column]; ok {
				sm.column, sm.identity = col, tm.identity(col)
			}
			if len(s.Path) > 0 {
				sm.reach = out.reach(tm, &s, &sm)
			}
			out.sameUnlessOld = out.sameUnlessOld && sm.identity
			out.twoSided = out.twoSided || s.Side == keytext.Both
		}
		out.segments = append(out.segments, sm)
	}
	return out
}

// append renders one side of the template; bound are the elements that its [*]
// stand for. NULL goes before what is unknown: a name that is known not to
// exist need not be guessed.
func (t *templateMatcher) append(dst []byte, c *change.Change, s side, bound []keytext.Node) ([]byte, state) {
	unknown := stateText
	for i := range t.segments {
		seg := &t.segments[i]
		if !seg.isColumn {
			dst = append(dst, seg.literal...)
			continue
		}
		start := len(dst)
		text, st := valueOf(c, rowOf(seg.side, s), seg.column, seg.identity)
		switch {
		case st != stateText:
		case seg.reach != nil:
			dst, st = seg.reach.append(dst, text, bound)
		default:
			dst = append(dst, text...)
		}
		switch st {
		case stateText:
			if seg.filters != nil {
				var ok bool
				if dst, ok = keytext.ApplyFilters(dst, start, seg.filters); !ok {
					unknown = stateUnknown
				}
			}
		case stateNull, stateNoRow:
			return dst, st
		default:
			unknown = max(unknown, st)
		}
	}
	return dst, unknown
}

// Match appends what a change invalidates to dst. x is the position of the
// change's commit. An error means that the change can not be understood: dst is
// as it was, and the caller keeps the change as a dead letter and raises
// Plan.ClassesOfTable. A change of a table that no rule names adds nothing.
func (m *Matcher) Match(dst *Targets, c *change.Change, x change.Position) error {
	if c.Op == change.Message {
		return m.message(dst, c, x)
	}
	if c.Table == nil {
		return fmt.Errorf("match %s: the change names no table", c.Op)
	}
	tm := m.tableMatcher(c.Table)
	if len(tm.rules) == 0 {
		return nil
	}
	if n := len(c.Table.Columns); c.Old != nil && len(c.Old) != n || c.New != nil && len(c.New) != n {
		return fmt.Errorf("match %s of %s: rows of %d and %d values for %d columns",
			c.Op, c.Table.QualifiedName(), len(c.Old), len(c.New), n)
	}
	if c.New == nil && (c.Op == change.Insert || c.Op == change.Update) {
		return fmt.Errorf("match %s of %s: the change has no new row", c.Op, c.Table.QualifiedName())
	}
	from := len(dst.List)
	for i := range tm.rules {
		rm := &tm.rules[i]
		if !rm.rule.On.Has(c.Op) {
			continue
		}
		if c.Op == change.Truncate {
			m.truncate(dst, from, rm.rule, x)
			continue
		}
		if rm.rule.cond != nil {
			ok, err := m.eval.holds(rm.rule.cond, tm, c)
			if err != nil && m.obs.ConditionUnknown != nil {
				m.obs.ConditionUnknown(rm.rule, err)
			}
			if !ok {
				continue
			}
		}
		m.rule(dst, from, rm, c, x)
	}
	return nil
}

func (m *Matcher) rule(dst *Targets, from int, rm *ruleMatcher, c *change.Change, x change.Position) {
	base := Target{Rule: rm.rule, Action: rm.rule.Action, Cascade: rm.rule.Cascade, X: x}
	for i := range rm.keys {
		t := &rm.keys[i]
		target := base
		target.Class, target.Template = t.template.Class, t.template
		m.nameOrEach(dst, from, t, c, target)
	}
	for _, set := range rm.tags {
		target := base
		target.Kind, target.Template = KindTag, set[0].template
		if len(set) == 1 {
			m.nameOrEach(dst, from, &set[0], c, target)
		} else {
			target.Kind = KindAllTags
			m.all(dst, from, set, c, target)
		}
	}
}

func (m *Matcher) nameOrEach(dst *Targets, from int, t *templateMatcher, c *change.Change, target Target) {
	if t.each != nil {
		m.eachName(dst, from, t, c, target)
	} else {
		m.name(dst, from, t, c, target)
	}
}

// name renders a key or tag for the new row and, if that is another name, for
// the old one.
func (m *Matcher) name(dst *Targets, from int, t *templateMatcher, c *change.Change, target Target) {
	first, st := m.render(dst, t, c, sideNew, target)
	if st == stateOldUnknown || st == stateUnknown { // {old.x} in a name for the new row
		m.unknown(dst, from, st, target, t.template)
	}
	if st >= stateOldUnknown || !t.twoSided && st != stateNoRow || c.Old == nil && c.Op == change.Update && t.sameUnlessOld {
		return
	}
	m.scratch, st = t.append(append(m.scratch[:0], m.plan.prefix...), c, sideOld, nil)
	switch {
	case st == stateText && (first == nil || string(first) != string(m.scratch)):
		target.Name = dst.Intern(m.scratch)
		dst.AddName(target)
	case st == stateOldUnknown || st == stateUnknown:
		m.unknown(dst, from, st, target, t.template)
	}
}

// render adds the name of one side, and returns it if there is one.
func (m *Matcher) render(dst *Targets, t *templateMatcher, c *change.Change, s side, target Target) ([]byte, state) {
	var st state
	m.scratch, st = t.append(append(m.scratch[:0], m.plan.prefix...), c, s, nil)
	if st != stateText {
		return nil, st
	}
	target.Name = dst.Intern(m.scratch)
	dst.AddName(target)
	return target.Name, st
}

// all renders an intersection of tags for the new row and for the old one.
func (m *Matcher) all(dst *Targets, from int, set []templateMatcher, c *change.Change, target Target) {
	newer, st := m.names(dst, set, c, sideNew)
	switch st {
	case stateText:
		target.Names = newer
		dst.List = append(dst.List, target)
	case stateOldUnknown, stateUnknown:
		m.unknown(dst, from, st, target, set[0].template)
		return
	}
	if c.Old == nil && c.Op == change.Update && !slices.ContainsFunc(set, func(t templateMatcher) bool { return !t.sameUnlessOld }) {
		return
	}
	older, st := m.names(dst, set, c, sideOld)
	switch st {
	case stateText:
		if !slices.EqualFunc(newer, older, func(a, b []byte) bool { return string(a) == string(b) }) {
			target.Names = older
			dst.List = append(dst.List, target)
		}
	case stateOldUnknown, stateUnknown:
		m.unknown(dst, from, st, target, set[0].template)
	}
}

func (m *Matcher) names(dst *Targets, set []templateMatcher, c *change.Change, s side) ([][]byte, state) {
	start := len(dst.names)
	worst := stateText
	for i := range set {
		var st state
		m.scratch, st = set[i].append(append(m.scratch[:0], m.plan.prefix...), c, s, nil)
		switch st {
		case stateText:
			dst.names = append(dst.names, dst.Intern(m.scratch))
		case stateNull, stateNoRow:
			dst.names = dst.names[:start]
			return nil, st
		default:
			worst = max(worst, st)
		}
	}
	if worst != stateText {
		dst.names = dst.names[:start]
		return nil, worst
	}
	return dst.names[start:len(dst.names):len(dst.names)], stateText
}

// unknown deals with a name that can not be rendered: an old one is counted
// and, if the rule is strict, its class raised; one that is needed either way
// always has its class raised.
func (m *Matcher) unknown(dst *Targets, from int, st state, target Target, t *Template) {
	r := target.Rule
	if st == stateOldUnknown {
		if m.obs.OldValueUnknown != nil {
			m.obs.OldValueUnknown(r)
		}
		if !r.Strict {
			return
		}
	} else if m.obs.NewValueUnknown != nil {
		m.obs.NewValueUnknown(r)
	}
	target.Reason = change.ReasonOldValue
	if target.Kind == KindKey {
		dst.AddClass(from, target, t.Class)
		return
	}
	for _, c := range m.plan.set.Carriers(t) {
		dst.AddClass(from, target, c)
	}
	dst.AddClass(from, target, nil)
}

// truncate raises what the rule's rows might have been in.
func (m *Matcher) truncate(dst *Targets, from int, r *Rule, x change.Position) {
	target := Target{Rule: r, Action: r.Action, Cascade: r.Cascade, X: x, Reason: change.ReasonTruncate}
	classes, all := m.plan.set.classesOfRule(r)
	for _, c := range classes {
		dst.AddClass(from, target, c)
	}
	if all {
		dst.AddClass(from, target, nil)
	}
}

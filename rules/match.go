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

// tablesMax bounds the cache of compiled tables, beyond two for each table that
// has rules: a log that makes a new description for each record must not make
// the matcher grow without end, and the tables that change must fit in it, or
// each change would compile the rules of its table anew.
const tablesMax = 256

// tableMatcher is a plan's rules as they apply to one description of a table:
// column names are replaced by indexes.
type tableMatcher struct {
	table   *change.Table
	columns map[string]int
	rules   []ruleMatcher

	// looked are the columns of a lookup, which stand behind the table's own,
	// and types theirs; see lookupMatcher.
	looked []string
	types  []uint32
	// timed are the rules with At.
	timed []ruleMatcher
	// keyed: some columns are marked as the replica identity.
	keyed bool
}

type ruleMatcher struct {
	rule *Rule
	on   Ops
	cond *condition
	// base is what the targets of the rule have in common. It is copied once
	// for each, straight to where it stays: a Target is wide.
	base Target
	keys []templateMatcher
	tags [][]templateMatcher
	// lookup has the keys and tags that need the rule's lookup, nil if none do.
	lookup *lookupMatcher
	// id and at are of rules with At: see Plan.ScheduleID, and the column's index.
	id uint64
	at int
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
	// moving are the columns of those placeholders: where the log carries equal
	// values before and after, both sides have one name.
	moving []int
}

// segmentMatcher is literal text, and the placeholder behind it. The literal of
// the first begins with the namespace.
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
		if len(m.tables) >= m.tablesMax() {
			clear(m.tables)
		}
		m.tables[t] = tm
	}
	m.last = tm
	return tm
}

func (m *Matcher) tablesMax() int { return tablesMax + 2*len(m.plan.byTable) }

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
		tm.keyed = tm.keyed || c.Key
	}
	for _, r := range m.plan.byTable[name] {
		rm := ruleMatcher{rule: r, on: r.On, cond: r.cond, base: Target{Rule: r, Action: r.Action, Cascade: r.Cascade}}
		if r.At != "" {
			rm.id, rm.at = m.plan.ScheduleID(r), -1
			if col, ok := tm.columns[r.At]; ok {
				rm.at = col
			}
		}
		for _, k := range r.Keys {
			if !k.HasLookup() {
				rm.keys = append(rm.keys, tm.template(m.plan.prefix, k))
			}
		}
		if r.Lookup != nil {
			rm.lookup = tm.lookup(m.plan.prefix, r, nil)
		}
		for _, ts := range r.Tags {
			if ts.hasLookup() {
				continue
			}
			var set []templateMatcher
			for _, t := range ts.All {
				set = append(set, tm.template(m.plan.prefix, t))
			}
			rm.tags = append(rm.tags, set)
		}
		if r.At != "" {
			tm.timed = append(tm.timed, rm)
		} else {
			tm.rules = append(tm.rules, rm)
		}
	}
	if len(m.byName) >= m.tablesMax() {
		clear(m.byName)
	}
	m.byName[name] = tm
	return tm
}

func (tm *tableMatcher) template(prefix []byte, t *Template) templateMatcher {
	out := templateMatcher{template: t, sameUnlessOld: true}
	literal := string(prefix)
	for _, s := range t.Segments() {
		literal += s.Literal
		if s.Column == "" {
			continue
		}
		sm := segmentMatcher{literal: literal, isColumn: true, side: s.Side, filters: s.Filters, column: -1}
		literal = ""
		switch col, ok := tm.columns[s.Column]; {
		case s.Lookup:
			// Looked up for the side that is rendered: it is that side's.
			sm.column, sm.identity = len(tm.table.Columns)+slices.Index(tm.looked, s.Column), true
		case ok:
			sm.column, sm.identity = col, tm.identity(col)
		}
		if len(s.Path) > 0 {
			sm.reach = out.reach(tm, &s, &sm)
		}
		out.sameUnlessOld = out.sameUnlessOld && sm.identity
		if s.Side == keytext.Both {
			out.twoSided = true
			out.moving = append(out.moving, sm.column)
		}
		out.segments = append(out.segments, sm)
	}
	if literal != "" {
		out.segments = append(out.segments, segmentMatcher{literal: literal})
	}
	return out
}

// append renders one side of the template, namespace included; bound are the
// elements that its [*] stand for. NULL goes before what is unknown: a name that
// is known not to exist need not be guessed.
func (t *templateMatcher) append(dst []byte, c *change.Change, s side, bound []keytext.Node) ([]byte, state) {
	unknown := stateText
	for i := range t.segments {
		seg := &t.segments[i]
		dst = append(dst, seg.literal...)
		if !seg.isColumn {
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

// unmoved reports that the log carries both rows and that all that may tell the
// name of one from that of the other is equal in them.
func (t *templateMatcher) unmoved(c *change.Change) bool {
	if c.Old == nil || c.New == nil {
		return false
	}
	for _, col := range t.moving {
		if col < 0 {
			return false
		}
		was, is := &c.Old[col], &c.New[col]
		if was.Kind != change.Text || is.Kind != change.Text || string(was.Bytes) != string(is.Bytes) {
			return false
		}
	}
	return true
}

// Match appends what a change invalidates to dst. x is the position of the
// change's commit. An error means that the change can not be understood: dst is
// as it was, and the caller keeps the change as a dead letter and raises
// Plan.ClassesOfTable. Only a *LookupError leaves the change's schedules in
// dst.Timed: no raise makes up for what is to happen later. A change of a table that no rule names adds nothing.
func (m *Matcher) Match(dst *Targets, c *change.Change, x change.Position) error {
	if c.Op == change.Message {
		return m.message(dst, c, x)
	}
	if c.Table == nil {
		return fmt.Errorf("match %s: the change names no table", c.Op)
	}
	tm := m.tableMatcher(c.Table)
	if len(tm.rules)+len(tm.timed) == 0 {
		return nil
	}
	if err := m.check(c); err != nil {
		return err
	}
	from, timed := len(dst.List), len(dst.Timed)
	var failed error
	for i := range tm.rules {
		rm := &tm.rules[i]
		if !rm.on.Has(c.Op) {
			continue
		}
		if c.Op == change.Truncate {
			m.truncate(dst, from, rm.rule, x)
			continue
		}
		if rm.cond != nil && !m.holds(rm.rule, tm, c) {
			continue
		}
		m.rule(dst, from, rm, c, x)
		if rm.lookup != nil {
			if err := m.lookedUp(dst, from, rm, tm, c, x); err != nil {
				failed = err
				break
			}
		}
	}
	if failed != nil {
		dst.List = dst.List[:from]
	}
	for i := range tm.timed {
		if err := m.timed(dst, tm, &tm.timed[i], c, x); err != nil {
			dst.List, dst.Timed = dst.List[:from], dst.Timed[:timed]
			return err
		}
	}
	return failed
}

// check finds changes that contradict themselves.
func (m *Matcher) check(c *change.Change) error {
	if n := len(c.Table.Columns); c.Old != nil && len(c.Old) != n || c.New != nil && len(c.New) != n {
		return fmt.Errorf("match %s of %s: rows of %d and %d values for %d columns",
			c.Op, c.Table.QualifiedName(), len(c.Old), len(c.New), n)
	}
	if c.New == nil && (c.Op == change.Insert || c.Op == change.Update) {
		return fmt.Errorf("match %s of %s: the change has no new row", c.Op, c.Table.QualifiedName())
	}
	return nil
}

func (m *Matcher) rule(dst *Targets, from int, rm *ruleMatcher, c *change.Change, x change.Position) {
	for i := range rm.keys {
		m.nameOrEach(dst, from, &rm.keys[i], c, nameOf{&rm.base, KindKey, x})
	}
	for _, set := range rm.tags {
		if len(set) == 1 {
			m.nameOrEach(dst, from, &set[0], c, nameOf{&rm.base, KindTag, x})
		} else {
			m.all(dst, from, set, c, nameOf{&rm.base, KindAllTags, x})
		}
	}
}

// nameOf is whose name is rendered: what is needed to make its target.
type nameOf struct {
	base *Target // of the rule
	kind Kind
	x    change.Position
}

// target is the target of a name of the template, without the name.
func (n nameOf) target(t *Template) Target {
	target := *n.base
	target.Kind, target.Template, target.X = n.kind, t, n.x
	if n.kind == KindKey {
		target.Class = t.Class
	}
	return target
}

// add appends the target of a name that is in dst's memory.
func (n nameOf) add(dst *Targets, t *Template, name []byte) {
	if n.kind == KindKey && t.Class.versioned() {
		target := n.target(t)
		target.Name = name
		dst.AddName(target)
		return
	}
	target := dst.grow()
	*target = *n.base
	target.Kind, target.Template, target.X, target.Name = n.kind, t, n.x, name
	if n.kind == KindKey {
		target.Class = t.Class
	}
}

func (m *Matcher) nameOrEach(dst *Targets, from int, t *templateMatcher, c *change.Change, n nameOf) {
	if t.each != nil {
		m.eachName(dst, from, t, c, n.target(t.template))
	} else {
		m.name(dst, from, t, c, n)
	}
}

// name renders a key or tag for the new row and, if that is another name, for
// the old one. It renders to where names stay, and takes back what is none.
func (m *Matcher) name(dst *Targets, from int, t *templateMatcher, c *change.Change, n nameOf) {
	st, first := stateNoRow, []byte(nil)
	if c.New != nil {
		start := len(dst.buf)
		dst.buf, st = t.append(dst.buf, c, sideNew, nil)
		if st == stateText {
			first = dst.buf[start:len(dst.buf):len(dst.buf)]
			n.add(dst, t.template, first)
		} else {
			dst.buf = dst.buf[:start]
			if st >= stateOldUnknown { // {old.x} in a name for the new row
				m.unknown(dst, from, st, n.target(t.template), t.template)
			}
		}
	}
	if st >= stateOldUnknown || !t.twoSided && st != stateNoRow || c.Old == nil && c.Op == change.Update && t.sameUnlessOld || t.unmoved(c) {
		return
	}
	start := len(dst.buf)
	dst.buf, st = t.append(dst.buf, c, sideOld, nil)
	name := dst.buf[start:len(dst.buf):len(dst.buf)]
	if st == stateText && (first == nil || string(first) != string(name)) {
		n.add(dst, t.template, name)
		return
	}
	dst.buf = dst.buf[:start]
	if st >= stateOldUnknown {
		m.unknown(dst, from, st, n.target(t.template), t.template)
	}
}

// all renders an intersection of tags for the new row and for the old one.
func (m *Matcher) all(dst *Targets, from int, set []templateMatcher, c *change.Change, n nameOf) {
	target := n.target(set[0].template)
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
		m.scratch, st = set[i].append(m.scratch[:0], c, s, nil)
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
	m.raiseTemplate(dst, from, target, t)
}

// raiseTemplate raises what names of a template may be in.
func (m *Matcher) raiseTemplate(dst *Targets, from int, target Target, t *Template) {
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

package rules

import (
	"slices"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/internal/keytext"
)

// lookupMatcher is the part of a rule that its lookup decides.
//
// A row that was looked up is taken as more columns of the changed one, behind
// its own, so that names of both are made by the same code as others.
type lookupMatcher struct {
	params []paramMatcher
	// types are those that the templates are compiled for.
	types []uint32
	keys  []templateMatcher
	tags  [][]templateMatcher
	// sameUnlessOld: as templateMatcher's, of all templates and the parameters.
	sameUnlessOld bool
}

type paramMatcher struct {
	column   int
	identity bool
}

// lookup compiles a rule's lookup, for results of these types.
func (tm *tableMatcher) lookup(prefix []byte, r *Rule, types []uint32) *lookupMatcher {
	lm := &lookupMatcher{types: types, sameUnlessOld: true}
	for _, name := range r.Lookup.Params {
		p := paramMatcher{column: -1}
		if col, ok := tm.columns[name]; ok {
			p = paramMatcher{col, tm.identity(col)}
		}
		lm.params = append(lm.params, p)
		lm.sameUnlessOld = lm.sameUnlessOld && p.identity
	}
	ext := *tm
	ext.looked, ext.types = r.Lookup.Columns, types
	add := func(t *Template) templateMatcher {
		out := ext.template(prefix, t)
		lm.sameUnlessOld = lm.sameUnlessOld && out.sameUnlessOld
		return out
	}
	for _, k := range r.Keys {
		if k.HasLookup() {
			lm.keys = append(lm.keys, add(k))
		}
	}
	for _, ts := range r.Tags {
		if !ts.hasLookup() {
			continue
		}
		var set []templateMatcher
		for _, t := range ts.All {
			set = append(set, add(t))
		}
		lm.tags = append(lm.tags, set)
	}
	return lm
}

func (ts TagSet) hasLookup() bool { return slices.ContainsFunc(ts.All, (*Template).HasLookup) }

// values appends what a side of a change says of the parameters. Of two kinds
// of not knowing the worse counts, but NULL goes before both: then nothing is
// looked up.
func (lm *lookupMatcher) values(dst [][]byte, c *change.Change, s side) ([][]byte, state) {
	worst := stateText
	for _, p := range lm.params {
		text, st := valueOf(c, s, p.column, p.identity)
		if st == stateNull || st == stateNoRow {
			return dst, st
		}
		worst = max(worst, st)
		dst = append(dst, text)
	}
	if len(lm.params) == 0 && (s == sideOld && c.Old == nil || s == sideNew && c.New == nil) {
		return dst, stateNoRow
	}
	return dst, worst
}

// sides are the rows of a change that a lookup is made for.
func (lm *lookupMatcher) sides(c *change.Change) []side {
	both := []side{sideNew, sideOld}
	if c.Op == change.Update && c.Old == nil && lm.sameUnlessOld {
		return both[:1]
	}
	return both
}

// Lookups calls need for each lookup that Match will ask for when it gets the
// change, so that those of many changes can be made together. The values are
// the change's memory; the slice of them is reused.
func (m *Matcher) Lookups(c *change.Change, need func(r *Rule, params [][]byte)) {
	if !m.plan.lookups || c.Table == nil || c.Op == change.Truncate || c.Op == change.Message || m.check(c) != nil {
		return
	}
	tm := m.tableMatcher(c.Table)
	for i := range tm.rules {
		rm := &tm.rules[i]
		if rm.lookup == nil || !rm.rule.On.Has(c.Op) {
			continue
		}
		if rm.rule.cond != nil {
			if ok, _ := m.eval.holds(rm.rule.cond, tm, c); !ok {
				continue
			}
		}
		for _, s := range rm.lookup.sides(c) {
			var st state
			if m.params, st = rm.lookup.values(m.params[:0], c, s); st == stateText {
				need(rm.rule, m.params)
			}
		}
	}
}

// UseLookups says who answers lookups from now on: nil is nobody, and every
// change that needs one an error of Match.
func (m *Matcher) UseLookups(l Lookups) { m.lookups = l }

// lookedUp adds the names that the rule's lookup gives: for each row of it, and
// for both sides of the change.
func (m *Matcher) lookedUp(dst *Targets, from int, rm *ruleMatcher, tm *tableMatcher, c *change.Change, x change.Position) error {
	base := rm.base
	base.X = x
	if m.lookups == nil {
		return &LookupError{Rule: rm.rule.Name, Err: ErrNoLookups}
	}
	var found [2]LookupResult
	for _, s := range rm.lookup.sides(c) {
		var st state
		m.params, st = rm.lookup.values(m.params[:0], c, s)
		switch st {
		case stateNull, stateNoRow:
			continue
		case stateOldUnknown, stateUnknown:
			m.lookupTemplates(rm.lookup, base, func(target Target, set []templateMatcher) { m.unknown(dst, from, st, target, set[0].template) })
			continue
		}
		got, err := m.lookups.Lookup(rm.rule, m.params)
		switch {
		case err != nil:
			return &LookupError{Rule: rm.rule.Name, Err: err}
		case got.More:
			if m.obs.LookupTooMany != nil {
				m.obs.LookupTooMany(rm.rule)
			}
			m.lookupTemplates(rm.lookup, base, func(target Target, set []templateMatcher) {
				target.Reason = change.ReasonLookup
				for i := range set {
					m.raiseTemplate(dst, from, target, set[i].template)
				}
			})
			continue
		case len(got.Rows) == 0:
			if m.obs.LookupEmpty != nil {
				m.obs.LookupEmpty(rm.rule)
			}
			continue
		}
		if !slices.Equal(rm.lookup.types, got.Types) {
			rm.lookup = tm.lookup(m.plan.prefix, rm.rule, slices.Clone(got.Types))
		}
		found[s] = got
	}
	m.lookupTemplates(rm.lookup, base, func(target Target, set []templateMatcher) {
		m.lookupNames(dst, from, set, c, &found, target)
	})
	return nil
}

// lookupTemplates calls f for each key, tag and set of tags of a lookup.
func (m *Matcher) lookupTemplates(lm *lookupMatcher, base Target, f func(target Target, set []templateMatcher)) {
	for i := range lm.keys {
		target := base
		target.Class, target.Template = lm.keys[i].template.Class, lm.keys[i].template
		f(target, lm.keys[i:i+1])
	}
	for _, set := range lm.tags {
		target := base
		target.Kind, target.Template = KindTag, set[0].template
		if len(set) > 1 {
			target.Kind = KindAllTags
		}
		f(target, set)
	}
}

// lookupNames renders one key, tag or set of tags, each name once.
func (m *Matcher) lookupNames(dst *Targets, from int, set []templateMatcher, c *change.Change, found *[2]LookupResult, target Target) {
	if m.seen == nil {
		m.seen = map[string]struct{}{}
	}
	clear(m.seen)
	if n := len(set[0].each); len(m.bound) < n {
		m.bound = make([]keytext.Node, n)
	}
	for _, s := range [...]side{sideNew, sideOld} {
		w := eachWalk{m: m, dst: dst, t: &set[0], side: s, target: target}
		for _, row := range found[s].Rows {
			w.c = m.extend(c, row)
			if target.Kind == KindAllTags {
				w.met(m.lookupAll(dst, set, w.c, s, target))
			} else if !w.bind(0) {
				break
			}
		}
		if w.worst >= stateOldUnknown {
			m.unknown(dst, from, w.worst, target, set[0].template)
		}
	}
}

// lookupAll renders an intersection of tags for one row.
func (m *Matcher) lookupAll(dst *Targets, set []templateMatcher, c *change.Change, s side, target Target) state {
	names, st := m.names(dst, set, c, s)
	if st != stateText {
		return st
	}
	m.scratch = m.scratch[:0]
	for _, n := range names {
		m.scratch = append(append(m.scratch, n...), 0)
	}
	if _, ok := m.seen[string(m.scratch)]; !ok {
		m.seen[string(m.scratch)] = struct{}{}
		target.Names = names
		dst.List = append(dst.List, target)
	}
	return st
}

// extend is the change with a looked-up row behind its own, until the next call.
func (m *Matcher) extend(c *change.Change, looked change.Row) *change.Change {
	m.extended = change.Change{Op: c.Op, Table: c.Table}
	if c.Old != nil {
		m.extOld = append(append(m.extOld[:0], c.Old...), looked...)
		m.extended.Old = m.extOld
	}
	if c.New != nil {
		m.extNew = append(append(m.extNew[:0], c.New...), looked...)
		m.extended.New = m.extNew
	}
	return &m.extended
}

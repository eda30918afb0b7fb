package rules

import (
	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/internal/keytext"
)

// NamesMax is how many different names one template builds from one row by
// [*]. Beyond it the class is raised.
const NamesMax = 1000

// elementsMax bounds the elements that are looked at for them.
const elementsMax = 100_000

// pathMatcher is how a placeholder reaches into its column.
type pathMatcher struct {
	// each is the index of the [*] that the path starts from; -1: the column.
	each int
	path []keytext.Step
	oid  uint32
}

// eachMatcher is one [*] of a template. Placeholders whose paths are the same
// up to it share it, and so move together.
type eachMatcher struct {
	prefix   string // what it is the same by
	column   int
	identity bool
	side     keytext.Side
	whole    []keytext.Step // the path that it is part of
	pathMatcher
}

// node is a column's value as paths see it.
func node(text []byte, oid uint32, path []keytext.Step) keytext.Node {
	switch oid {
	case oidJSON, oidJSONB:
		return keytext.JSONNode(text)
	case oidJSONArray, oidJSONBArray:
		return keytext.ArrayNode(text, true)
	}
	if _, ok := arrayElement(oid); ok {
		return keytext.ArrayNode(text, false)
	}
	return keytext.GuessNode(text, path)
}

// reach compiles the path of a placeholder, and adds each [*] in it.
func (t *templateMatcher) reach(tm *tableMatcher, s *keytext.Segment, sm *segmentMatcher) *pathMatcher {
	p := &pathMatcher{each: -1, path: s.Path}
	switch n := len(tm.table.Columns); {
	case sm.column >= n && sm.column-n < len(tm.types):
		p.oid = tm.types[sm.column-n]
	case sm.column >= 0 && sm.column < n:
		p.oid = tm.table.Columns[sm.column].Type
	}
	prefix := string([]byte{byte(s.Side)}) + s.Column
	if s.Lookup {
		prefix = "lookup." + s.Column
	}
	for i, start := 0, 0; i < len(s.Path); i++ {
		prefix += s.Path[i].String()
		if s.Path[i].Kind != keytext.StepEach {
			continue
		}
		at := 0
		for at < len(t.each) && t.each[at].prefix != prefix {
			at++
		}
		if at == len(t.each) {
			t.each = append(t.each, eachMatcher{prefix: prefix, column: sm.column, identity: sm.identity, side: s.Side, whole: s.Path,
				pathMatcher: pathMatcher{each: p.each, path: s.Path[start:i:i], oid: p.oid}})
		}
		start = i + 1
		p.each, p.path = at, s.Path[start:]
	}
	return p
}

// append appends the value that the path leads to.
func (p *pathMatcher) append(dst, text []byte, bound []keytext.Node) ([]byte, state) {
	var n keytext.Node
	if p.each >= 0 {
		n = bound[p.each]
	} else {
		n = node(text, p.oid, p.path)
	}
	n, ok := n.Walk(p.path)
	if !ok {
		return dst, stateUnknown
	}
	dst, null, ok := n.Append(dst)
	switch {
	case !ok:
		return dst, stateUnknown
	case null:
		return dst, stateNull
	}
	return dst, stateText
}

// rowOf is the row that a placeholder takes its value from when one side is
// rendered.
func rowOf(s keytext.Side, rendered side) side {
	switch s {
	case segOld:
		return sideOld
	case segNew:
		return sideNew
	}
	return rendered
}

// eachName renders a key or tag with [*] for the new row and the old one.
func (m *Matcher) eachName(dst *Targets, from int, t *templateMatcher, c *change.Change, target Target) {
	if m.seen == nil {
		m.seen = map[string]struct{}{}
	}
	clear(m.seen)
	if n := len(t.each); len(m.bound) < n {
		m.bound = make([]keytext.Node, n)
	}
	for _, s := range [...]side{sideNew, sideOld} {
		w := eachWalk{m: m, dst: dst, t: t, c: c, side: s, target: target}
		w.bind(0)
		switch {
		case w.worst >= stateOldUnknown:
			m.unknown(dst, from, w.worst, target, t.template)
		case t.twoSided: // else both sides have the same names
			if s == sideOld || c.Old != nil || c.Op != change.Update || !t.sameUnlessOld {
				continue
			}
		}
		return
	}
}

// eachWalk goes over the elements of one side.
type eachWalk struct {
	m      *Matcher
	dst    *Targets
	t      *templateMatcher
	c      *change.Change
	side   side
	target Target

	names, elements int
	// worst is the greatest state that was met, but for NULL, which only says
	// that one name is not there.
	worst state
}

func (w *eachWalk) met(s state) {
	if s != stateNull {
		w.worst = max(w.worst, s)
	}
}

// bind goes over the elements of the k-th [*]; false if there are too many.
func (w *eachWalk) bind(k int) bool {
	if k == len(w.t.each) {
		return w.name()
	}
	e := &w.t.each[k]
	var n keytext.Node
	if e.each >= 0 {
		n = w.m.bound[e.each]
	} else {
		text, st := valueOf(w.c, rowOf(e.side, w.side), e.column, e.identity)
		if st != stateText {
			w.met(st)
			return true
		}
		n = node(text, e.oid, e.whole)
	}
	n, ok := n.Walk(e.path)
	if !ok {
		w.met(stateUnknown)
		return true
	}
	room := true
	if ok := n.Each(func(element keytext.Node) bool {
		if w.elements++; w.elements > elementsMax {
			w.met(stateUnknown)
			room = false
			return false
		}
		w.m.bound[k] = element
		room = w.bind(k + 1)
		return room
	}); !ok {
		w.met(stateUnknown)
	}
	return room
}

// name adds the name of the elements at hand; false if it is one too many.
func (w *eachWalk) name() bool {
	m := w.m
	var st state
	m.scratch, st = w.t.append(m.scratch[:0], w.c, w.side, m.bound)
	if st != stateText {
		w.met(st)
		return true
	}
	if _, ok := m.seen[string(m.scratch)]; ok {
		return true
	}
	if w.names++; w.names > NamesMax {
		w.met(stateUnknown)
		return false
	}
	m.seen[string(m.scratch)] = struct{}{}
	target := w.target
	target.Name = w.dst.Intern(m.scratch)
	w.dst.AddName(target)
	return true
}

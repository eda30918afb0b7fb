package depgraph

import (
	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/rules"
)

// Report says what a cascade did.
type Report struct {
	// Names is how many names were added.
	Names int
	// Raised is how many classes are asked to be raised because a limit was
	// exceeded; DepthExceeded and FanOutExceeded say which.
	Raised                        int
	DepthExceeded, FanOutExceeded bool
}

// Walker follows a graph's dependencies. Not safe for concurrent use.
type Walker struct {
	// ConditionUnknown is told of a condition that could not be decided and
	// counts as true. Nil: nobody is told. It must be fast.
	ConditionUnknown func(d *rules.Dependency, err error)

	graph    *Graph
	limits   Limits
	seen     names                 // of one rule's walk
	forms    map[reachKey]struct{} // that one rule's walk has raised
	captures [][]byte
	scratch  []byte
	// scope is what conditions see; decided is false where there is no change to
	// be told of, so that every condition counts as true.
	scope   rules.EdgeScope
	decided bool
}

// Cascade appends to ts whatever depends on ts.List[from:], the targets of one
// change, and reports it. Added targets take the rule, action and position of
// what they came from, and say in Depth how many dependencies lie between;
// from Cascade.StaleFrom on their action is Stale. c is the change, which
// conditions of dependencies see; with nil they all count as true.
//
// The targets of one rule are walked together, each name once, whatever circles
// the dependencies have; those of another rule again, because it may go deeper
// or do something else. So a name that several rules reach is followed as deep
// as the one that goes deepest, and the strongest of their actions wins. Within
// a rule a name's least depth decides: there its action is the strongest.
//
// It does not block; without dependencies it does nothing, and allocates
// nothing.
func (w *Walker) Cascade(ts *rules.Targets, from int, c *change.Change) Report {
	var rep Report
	if len(w.graph.edges) == 0 {
		return rep
	}
	w.decided = c != nil
	if c != nil {
		w.scope.Op, w.scope.Table = c.Op.String(), ""
		if c.Table != nil {
			w.scope.Table = c.Table.QualifiedName()
		}
	}
	end := len(ts.List)
	for i := from; i < end; i++ {
		if t := ts.List[i]; t.Kind == rules.KindClass && t.Class != nil {
			t.Parent = i + 1
			w.reach(ts, from, t, t.Class.Key, t.Cascade.Depth)
		}
	}
	for start := from; start < end; {
		stop := start + 1
		for stop < end && ts.List[stop].Rule == ts.List[start].Rule {
			stop++
		}
		w.walk(ts, from, start, stop, &rep)
		start = stop
	}
	return rep
}

// walk follows the names in ts.List[start:stop], all of one rule. from is where
// the change's targets begin: raises are not repeated within them.
func (w *Walker) walk(ts *rules.Targets, from, start, stop int, rep *Report) {
	cascade := ts.List[start].Cascade
	if cascade.Depth <= 0 {
		return
	}
	w.scope.Rule = ""
	if r := ts.List[start].Rule; r != nil {
		w.scope.Rule = r.Name
	}
	w.seen.reset()
	clear(w.forms)
	for i := start; i < stop; i++ {
		if t := &ts.List[i]; (t.Kind == rules.KindKey || t.Kind == rules.KindTag) && !w.seen.has(ts.List, t.Kind, t.Name) {
			w.seen.put(ts.List, i)
		}
	}
	// Level by level: ts.List[lo:hi] are the names of the one at hand. Those of
	// the next are appended, so that the list is the queue.
	lo, hi := start, stop
	for depth := 0; lo < hi; depth++ {
		if depth == cascade.Depth {
			if !cascade.Bound && w.beyond(ts, from, lo, hi, rep) {
				rep.DepthExceeded = true
			}
			return
		}
		next := len(ts.List)
		for i := lo; i < hi; i++ {
			if !w.expand(ts, i, depth+1, rep) {
				rep.FanOutExceeded = true
				w.overflow(ts, from, i, hi, cascade, depth, rep)
				return
			}
		}
		lo, hi = next, len(ts.List)
	}
}

// expand appends the names that depend on ts.List[i]; false if there would be
// too many.
func (w *Walker) expand(ts *rules.Targets, i, depth int, rep *Report) bool {
	t := ts.List[i]
	t.Parent = i + 1 // of what follows from it
	ok := true
	w.each(&t, func(e *edge, captures [][]byte) {
		for _, to := range e.to {
			if ok {
				ok = w.add(ts, &t, to, captures, depth, rep)
			}
		}
	})
	return ok
}

// each calls f for every edge that one of a target's names has.
func (w *Walker) each(t *rules.Target, f func(e *edge, captures [][]byte)) {
	switch t.Kind {
	case rules.KindKey, rules.KindTag:
		w.eachOf(t, t.Name, f)
	case rules.KindAllTags:
		// Entries that carry all of several tags are fewer than those of any
		// one, but which is not known here: what depends on any is followed.
		for _, n := range t.Names {
			w.eachOf(t, n, f)
		}
	}
}

func (w *Walker) eachOf(t *rules.Target, name []byte, f func(e *edge, captures [][]byte)) {
	g := w.graph
	local := name
	if p := g.prefix; len(p) > 0 {
		if len(name) <= len(p) || string(name[:len(p)]) != string(p) {
			return
		}
		local = name[len(p):]
	}
	if t.Class != nil { // the versions of a value are one name to others
		local = t.Class.Unversioned(local)
	}
	for _, i := range g.literals[string(local)] {
		if e := &g.edges[i]; w.holds(e.dep, t, nil) {
			f(e, nil)
		}
	}
	for _, n := range g.lengths {
		if n > len(local) {
			return
		}
		for _, i := range g.patterns[string(local[:n])] {
			e := &g.edges[i]
			// A key belongs to one class; a tag, and a key without a class, may
			// look like anything.
			if of := e.dep.Of.Class; t.Kind == rules.KindKey && t.Class != nil && of != nil && of != t.Class {
				continue
			}
			captures, ok := e.dep.Of.Pattern().Captures(w.captures[:0], local)
			if ok && w.holds(e.dep, t, captures) {
				f(e, captures)
			}
		}
	}
}

// holds asks a dependency's condition about a name.
func (w *Walker) holds(d *rules.Dependency, t *rules.Target, captures [][]byte) bool {
	if !w.decided || !d.Conditional() {
		return true
	}
	w.scope.Depth, w.scope.Values = t.Depth, captures
	ok, err := d.Holds(&w.scope)
	if err != nil && w.ConditionUnknown != nil {
		w.ConditionUnknown(d, err)
	}
	return ok
}

// kinds are what a name may be invalidated as.
var kinds = [...]rules.Kind{rules.KindKey, rules.KindTag}

func (to *target) is(kind rules.Kind) bool {
	return kind == rules.KindKey && to.key || kind == rules.KindTag && to.tag
}

// add appends one dependent name as what it may be; false if the limit is
// reached.
func (w *Walker) add(ts *rules.Targets, of *rules.Target, to *target, captures [][]byte, depth int, rep *Report) bool {
	w.scratch = w.appendName(w.scratch[:0], to, captures)
	for _, kind := range kinds {
		if !to.is(kind) || w.seen.has(ts.List, kind, w.scratch) {
			continue
		}
		if rep.Names >= w.limits.Names {
			return false
		}
		rep.Names++
		next := rules.Target{Kind: kind, Name: ts.Intern(w.scratch), Rule: of.Rule, Template: to.template, Parent: of.Parent,
			Action: of.Action, Cascade: of.Cascade, Depth: depth, X: of.X}
		if kind == rules.KindKey {
			next.Class = to.template.Class
			if to.byName {
				next.Class = w.graph.set.ClassOf(next.Name)
			}
		}
		if from := of.Cascade.StaleFrom; from > 0 && depth >= from {
			next.Action = rules.Stale
		}
		at := len(ts.List)
		ts.AddName(next)
		w.seen.put(ts.List, at)
	}
	return true
}

func (w *Walker) appendName(dst []byte, to *target, captures [][]byte) []byte {
	dst = append(dst, w.graph.prefix...)
	k := 0
	return to.template.Append(dst, func(string) []byte {
		k++
		return captures[to.captures[k-1]]
	})
}

// beyond raises the classes of names that the default depth does not reach, and
// of all that follows from them. It reports whether there are any.
func (w *Walker) beyond(ts *rules.Targets, from, lo, hi int, rep *Report) bool {
	found := false
	for i := lo; i < hi; i++ {
		t := ts.List[i]
		t.Parent = i + 1
		w.each(&t, func(e *edge, captures [][]byte) {
			for _, to := range e.to {
				if !w.reached(ts, to, captures) {
					found = true
					w.raiseTemplate(ts, from, t, to.template, rules.CascadeDepthMax, rep)
				}
			}
		})
	}
	return found
}

// reached reports whether a name that an edge leads to is in the list already.
func (w *Walker) reached(ts *rules.Targets, to *target, captures [][]byte) bool {
	w.scratch = w.appendName(w.scratch[:0], to, captures)
	for _, kind := range kinds {
		if to.is(kind) && !w.seen.has(ts.List, kind, w.scratch) {
			return false
		}
	}
	return true
}

// overflow raises what could not be reached because there are too many names:
// the rest of this level (from i on) and all that was appended to the next.
func (w *Walker) overflow(ts *rules.Targets, from, i, hi int, c rules.Cascade, depth int, rep *Report) {
	left := c.Depth - depth
	if !c.Bound {
		left = rules.CascadeDepthMax
	}
	end := len(ts.List)
	for ; i < end; i++ {
		t := ts.List[i]
		t.Parent = i + 1
		steps := left
		if i >= hi {
			steps-- // a name of the next level
		}
		if steps <= 0 {
			continue
		}
		w.each(&t, func(e *edge, captures [][]byte) {
			for _, to := range e.to {
				w.raiseTemplate(ts, from, t, to.template, steps-1, rep)
			}
		})
	}
}

// raiseTemplate raises the class of names of one form, and the classes that
// follow from it within so many steps; once for each form.
func (w *Walker) raiseTemplate(ts *rules.Targets, from int, of rules.Target, t *rules.Template, steps int, rep *Report) {
	key := form(t, steps)
	if _, done := w.forms[key]; done {
		return
	}
	w.forms[key] = struct{}{}
	of.Reason, of.Template = change.ReasonCascade, t
	before := len(ts.List)
	ts.AddClass(from, of, t.Class)
	if t.Class == nil {
		for _, c := range w.graph.set.Carriers(t) {
			ts.AddClass(from, of, c)
		}
	}
	w.reach(ts, from, of, t, steps)
	rep.Raised += len(ts.List) - before
}

// reach raises the classes that follow from names of one form.
func (w *Walker) reach(ts *rules.Targets, from int, of rules.Target, t *rules.Template, steps int) {
	of.Depth++
	classes, all := w.graph.set.Reach(t, steps)
	for _, c := range classes {
		ts.AddClass(from, of, c)
	}
	if all {
		ts.AddClass(from, of, nil)
	}
}

// Package explain says what a change would invalidate, and why: every key, tag
// and class, the way through the cascade, the rule and its line. It runs the
// code that runs in production, rules.Matcher and depgraph.Walker, and adds
// nothing to what they find.
package explain

import (
	"fmt"
	"slices"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/depgraph"
	"github.com/lethe-cache/lethe/rules"
)

// Step is one thing that a change invalidates.
type Step struct {
	// Kind is "key", "tag", "all tags" or "class".
	Kind string `json:"kind"`
	// Name is the full name, namespace included; of a class its name, "*" for
	// every class; of several tags the first.
	Name string `json:"name"`
	// Names are all the tags that an entry must carry, for "all tags".
	Names []string `json:"names,omitempty"`
	// Class is the entry class of a key, empty if it has none.
	Class string `json:"class,omitempty"`
	// Action is what becomes of the entry: "delete", "stale" or "rewarm"; a
	// class is always "raise".
	Action string `json:"action"`
	// Rule, File and Line say what caused it; Rule is empty for a logical
	// message. Line is that of the name's template, of the rule if it has none.
	Rule string `json:"rule,omitempty"`
	File string `json:"file,omitempty"`
	Line int    `json:"line,omitempty"`
	// Depth is how many dependencies were followed: 0 for what the rule names.
	// Path are the names on the way, the rule's own first.
	Depth int      `json:"depth"`
	Path  []string `json:"path,omitempty"`
	// Reason is why a class is raised.
	Reason string `json:"reason,omitempty"`
	// At is when it happens (RFC 3339, UTC), for rules and messages with a time:
	// at once if that is past. Empty: at once.
	At string `json:"at,omitempty"`
}

// Explanation is what one change invalidates.
type Explanation struct {
	// Change is the change in one line.
	Change string `json:"change"`
	Steps  []Step `json:"steps"`
	// Notes say what had to be guessed, and which limits were met.
	Notes []string `json:"notes,omitempty"`
}

// Explainer explains changes. It holds scratch memory: one for each goroutine.
type Explainer struct {
	set     *rules.Set
	matcher *rules.Matcher
	walker  *depgraph.Walker
	targets rules.Targets
	notes   []string
	lookups rules.Lookups
}

// New returns an explainer of a set's rules.
func New(set *rules.Set) (*Explainer, error) {
	plan, err := set.Compile()
	if err != nil {
		return nil, err
	}
	e := &Explainer{set: set, walker: depgraph.New(set).NewWalker(depgraph.Limits{})}
	e.matcher = plan.NewMatcher(rules.Observer{
		OldValueUnknown: func(r *rules.Rule) {
			e.note("rule %q: a name needs an old value that the log does not carry", r.Name)
		},
		NewValueUnknown: func(r *rules.Rule) {
			e.note("rule %q: a name needs a value that the log does not carry, or that no name can be made of: its class is raised", r.Name)
		},
		ConditionUnknown: func(r *rules.Rule, err error) {
			e.note("rule %q: the condition could not be decided and counts as true: %v", r.Name, err)
		},
	})
	e.matcher.UseLookups(noted{e})
	e.walker.ConditionUnknown = func(d *rules.Dependency, err error) {
		e.note("dependency of %q: the condition could not be decided and counts as true: %v", d.Of, err)
	}
	return e, nil
}

func (e *Explainer) note(format string, args ...any) {
	if n := fmt.Sprintf(format, args...); !slices.Contains(e.notes, n) {
		e.notes = append(e.notes, n)
	}
}

// Explain returns what a change invalidates. The error is that of a change that
// can not be understood: a worker would keep it as a dead letter and raise what
// the rules of its table can touch.
func (e *Explainer) Explain(c *change.Change) (Explanation, error) {
	e.targets.Reset()
	e.notes = nil
	out := Explanation{Change: Describe(c), Steps: []Step{}}
	if err := e.matcher.Match(&e.targets, c, change.Position{Era: 1, LSN: 1}); err != nil {
		return out, err
	}
	report := e.walker.Cascade(&e.targets, 0, c)
	if report.DepthExceeded {
		e.note("the cascade goes deeper than its default of %d: the classes beyond are raised", rules.CascadeDepthDefault)
	}
	if report.FanOutExceeded {
		e.note("the cascade reaches more than %d names: the classes of the rest are raised", depgraph.FanOutDefault)
	}
	for i := range e.targets.List {
		out.Steps = append(out.Steps, e.step(i))
	}
	for i := range e.targets.Timed {
		out.Steps = append(out.Steps, e.timed(&e.targets.Timed[i], c)...)
	}
	out.Notes = e.notes
	return out, nil
}

// timed are the steps of a schedule, when its time comes.
func (e *Explainer) timed(t *rules.Timed, c *change.Change) (steps []Step) {
	switch t.Kind {
	case rules.TimedDrop:
		e.note("rule %q: nothing is due for row %s any more", t.Rule.Name, t.Key)
	case rules.TimedDropAll:
		e.note("rule %q: nothing is due for any row any more", t.Rule.Name)
	case rules.TimedUnknown:
		e.note("rule %q: the log does not carry the time in %q: the rule's classes are raised, and the table is read for it", t.Rule.Name, t.Rule.At)
	case rules.TimedSet:
		from := len(e.targets.List)
		e.targets.List = append(e.targets.List, e.targets.TimedTargets(t)...)
		e.walker.Cascade(&e.targets, from, c)
		for i := from; i < len(e.targets.List); i++ {
			s := e.step(i)
			s.At = t.At.UTC().Format(time.RFC3339Nano)
			steps = append(steps, s)
		}
	}
	return steps
}

func (e *Explainer) step(i int) Step {
	t := &e.targets.List[i]
	s := Step{Kind: t.Kind.String(), Name: e.name(t), Action: t.Action.String(), Depth: t.Depth, Reason: t.Reason}
	switch {
	case t.Kind == rules.KindClass:
		s.Action = "raise"
	case t.Kind == rules.KindAllTags:
		for _, n := range t.Names {
			s.Names = append(s.Names, string(n))
		}
	case t.Class != nil:
		s.Class = t.Class.Name
	}
	if t.Action == rules.Auto {
		e.auto(t)
	}
	if t.Rule != nil {
		s.Rule = t.Rule.Name
		s.File, s.Line, _ = t.Rule.Place()
	}
	if t.Template != nil {
		s.File, s.Line, _ = t.Template.Place()
	}
	for up := t.Parent; up > 0; up = e.targets.List[up-1].Parent {
		s.Path = append(s.Path, e.name(&e.targets.List[up-1]))
	}
	slices.Reverse(s.Path)
	return s
}

// auto says who decides about action auto, by what, and where that can be seen:
// it is measured by the workers that run, and nothing here can know it.
func (e *Explainer) auto(t *rules.Target) {
	const by = `filling it again pays; lethe_rewarm_auto is 1 then, lethe_rewarm_auto_read_ratio and lethe_rewarm_auto_cost_ratio say why, and so does the log ("action auto has chosen anew")`
	switch {
	case t.Kind == rules.KindClass:
	case t.Kind != rules.KindKey:
		e.note("auto: whatever has the tag is forgotten; of each class each worker measures whether %s", by)
	case t.Class == nil || t.Class.Load == nil:
		e.note("auto: %s is only forgotten: nothing in the rules loads it", e.name(t))
	default:
		e.note("auto: an entry of %s is forgotten in any case; each worker measures whether %s; at its start it leaves that to readers", t.Class.Name, by)
	}
}

func (e *Explainer) name(t *rules.Target) string {
	switch t.Kind {
	case rules.KindClass:
		return t.ClassName()
	case rules.KindAllTags:
		return string(t.Names[0])
	}
	return string(t.Name)
}

// Describe is a change in one line: its operation, its table, and the values
// that are there.
func Describe(c *change.Change) string {
	if c.Op == change.Message {
		return fmt.Sprintf("message %q %s", c.Prefix, c.Content)
	}
	text := c.Op.String() + " " + c.Table.QualifiedName()
	if c.Old != nil {
		text += " old(" + row(c.Table, c.Old) + ")"
	}
	if c.New != nil {
		text += " new(" + row(c.Table, c.New) + ")"
	}
	return text
}

func row(t *change.Table, r change.Row) string {
	text := ""
	for i, v := range r {
		var value string
		switch v.Kind {
		case change.Text:
			value = abridge(string(v.Bytes))
		case change.Null:
			value = "NULL"
		case change.Unchanged:
			value = "(unchanged)"
		default:
			continue
		}
		if text != "" {
			text += ", "
		}
		text += t.Columns[i].Name + "=" + value
	}
	return text
}

// valueMax bounds how much of a value a line shows.
const valueMax = 60

func abridge(s string) string {
	if r := []rune(s); len(r) > valueMax {
		return string(r[:valueMax]) + "..."
	}
	return s
}

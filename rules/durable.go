package rules

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/lethe-cache/lethe/internal/keytext"
)

// Edge is a dependency that stands in no file: one row of the table
// lethe.dependencies. The names are as rules write them, without the namespace.
type Edge struct {
	// ID is the row's number, from 1.
	ID   int64
	Of   string
	Also []string
	// When is the condition; empty: always.
	When string
}

// EdgeProblem is something in an edge that can not be understood.
type EdgeProblem struct {
	ID      int64
	Message string
	// Skipped: the edge has no effect at all. Otherwise what can be understood
	// of it has: a condition that can not is as if it were not there.
	Skipped bool
}

// String is the problem in one line.
func (p EdgeProblem) String() string {
	effect := "it takes effect without that"
	if p.Skipped {
		effect = "it has no effect"
	}
	return fmt.Sprintf("edge %d: %s: %s", p.ID, p.Message, effect)
}

// EdgeFindings are problems as warnings of the check.
func EdgeFindings(problems []EdgeProblem) Findings {
	var out Findings
	for _, p := range problems {
		out = append(out, Finding{Code: CodeDeclared, Severity: Warning, File: "lethe.dependencies", Message: p.String(),
			Fix: fmt.Sprintf("lethe graph rm %d, and lethe graph add what is meant", p.ID)})
	}
	return out
}

// WithEdges returns the set with more dependencies, in the order of their
// numbers; s is left as it is. What can not be understood of them is told, and
// nothing of it is an error: somebody else's row must not stop a worker.
//
// A wrong condition is left out and the edge kept, as a condition that errs
// counts as true. A wrong name is left out too; an edge without a name to start
// from, or without one to lead to, is skipped.
func (s *Set) WithEdges(edges []Edge) (*Set, []EdgeProblem) {
	next := *s
	next.edges = &formGraph{}
	if len(edges) == 0 {
		return &next, nil
	}
	r := edgeReader{set: s, templates: map[string]*Template{}, errs: map[string]string{}}
	next.Dependencies = make([]*Dependency, len(s.Dependencies), len(s.Dependencies)+len(edges))
	copy(next.Dependencies, s.Dependencies)
	ordered := slices.Clone(edges)
	slices.SortStableFunc(ordered, func(a, b Edge) int { return cmp.Compare(a.ID, b.ID) })
	for i := range ordered {
		if d := r.dependency(&ordered[i]); d != nil {
			next.Dependencies = append(next.Dependencies, d)
		}
	}
	return &next, r.problems
}

// edgeReader makes dependencies of edges. Names that are there twice are one
// template: of 10^6 edges each name is most often in several.
type edgeReader struct {
	set        *Set
	templates  map[string]*Template
	errs       map[string]string
	conditions edgeConditions
	problems   []EdgeProblem
}

func (r *edgeReader) problem(e *Edge, skipped bool, format string, args ...any) {
	r.problems = append(r.problems, EdgeProblem{ID: e.ID, Message: fmt.Sprintf(format, args...), Skipped: skipped})
}

func (r *edgeReader) dependency(e *Edge) *Dependency {
	of, wrong := r.template(e.Of)
	if wrong != "" {
		r.problem(e, true, "of: %s", wrong)
		return nil
	}
	d := &Dependency{ID: e.ID, Of: of, When: e.When, Also: make([]*Template, 0, len(e.Also))}
	var known []string
	if of.Pattern().Placeholders() > 0 {
		if known = of.Columns(); len(known) != of.Pattern().Placeholders() {
			r.problem(e, true, "of: a placeholder of %q is there twice", e.Of)
			return nil
		}
	}
	for _, text := range e.Also {
		a, wrong := r.template(text)
		if wrong == "" && a.Pattern().Placeholders() > 0 {
			for _, c := range a.Columns() {
				if !slices.Contains(known, c) {
					wrong = fmt.Sprintf("{%s} is no placeholder of %q%s", c, e.Of, suggest(c, known))
				}
			}
		}
		switch {
		case wrong != "":
			r.problem(e, false, "also: %s", wrong)
		case !slices.Contains(d.Also, a):
			d.Also = append(d.Also, a)
		}
	}
	if len(d.Also) == 0 {
		r.problem(e, true, "also: there is no name that can be used")
		return nil
	}
	if e.When != "" {
		cond, errs := r.conditions.compile(known, e.When)
		if len(errs) > 0 {
			r.problem(e, false, "when: %s", errs[0].message)
			d.When = ""
		}
		d.cond = cond
	}
	return d
}

// template reads a name or a form of names, or says what is wrong with it.
func (r *edgeReader) template(text string) (*Template, string) {
	if t := r.templates[text]; t != nil {
		return t, ""
	}
	if wrong := r.errs[text]; wrong != "" {
		return nil, wrong
	}
	t, wrong := readEdgeTemplate(text)
	if wrong != "" {
		r.errs[text] = wrong
		return nil, wrong
	}
	t.Class = r.set.index.of(t)
	r.templates[text] = t
	return t, ""
}

func readEdgeTemplate(text string) (*Template, string) {
	kt, err := keytext.Parse(text)
	if err != nil {
		return nil, err.Error()
	}
	for i := range kt.Segments() {
		switch s := &kt.Segments()[i]; {
		case s.Side != keytext.Both:
			return nil, fmt.Sprintf("%q: {old...} and {new...} have a meaning in rules only", text)
		case len(s.Path) > 0:
			return nil, fmt.Sprintf("%q: {%s} reaches into a column, which has a meaning in rules only", text, s.Source())
		case len(s.Filters) > 0:
			return nil, fmt.Sprintf("%q: filters have no meaning in dependencies", text)
		}
	}
	return &Template{Template: kt}, ""
}

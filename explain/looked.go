package explain

import (
	"fmt"
	"slices"
	"strings"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/rules"
)

// Looked is what a lookup gives, as people write it: in a test case, in a flag.
type Looked struct {
	// Rule is whose lookup it is; empty is any rule's.
	Rule string `json:"rule,omitempty" yaml:"rule"`
	// With are the values of parameters, by their columns; those that it does not
	// say may be any.
	With map[string]any `json:"with,omitempty" yaml:"with"`
	// Rows are what the lookup gives; none is no row.
	Rows []map[string]any `json:"rows" yaml:"rows"`
}

// Answers are lookups that are answered from a list: the first that fits does.
// One that none fits is an error.
type Answers []Looked

// Lookup is rules.Lookups.
func (a Answers) Lookup(r *rules.Rule, params [][]byte) (out rules.LookupResult, err error) {
	for i := range a {
		fits, err := a[i].fits(r, params)
		if err != nil {
			return out, err
		}
		if fits {
			return a[i].result(r)
		}
	}
	return out, fmt.Errorf("nothing is said of the lookup by %s: add {with: {...}, rows: [...]} to lookup", by(r, params))
}

func (l *Looked) fits(r *rules.Rule, params [][]byte) (bool, error) {
	if l.Rule != "" && l.Rule != r.Name {
		return false, nil
	}
	for name, want := range l.With {
		i := slices.Index(r.Lookup.Params, name)
		if i < 0 {
			return false, nil
		}
		v, err := value(want, 0)
		if err != nil {
			return false, fmt.Errorf("with: %s: %w", name, err)
		}
		if string(v.Bytes) != string(params[i]) {
			return false, nil
		}
	}
	return true, nil
}

func (l *Looked) result(r *rules.Rule) (out rules.LookupResult, err error) {
	for _, given := range l.Rows {
		row := make(change.Row, len(r.Lookup.Columns))
		for i, column := range r.Lookup.Columns {
			v, ok := given[column]
			if !ok {
				return out, fmt.Errorf("a row of the lookup says nothing of %q", column)
			}
			if row[i], err = value(v, 0); err != nil {
				return out, fmt.Errorf("rows: %s: %w", column, err)
			}
		}
		out.Rows = append(out.Rows, row)
	}
	if len(out.Rows) > rules.LookupRowsMax {
		return rules.LookupResult{More: true}, nil
	}
	return out, nil
}

// by says which lookup it is.
func by(r *rules.Rule, params [][]byte) string {
	texts := make([]string, len(params))
	for i, p := range params {
		texts[i] = r.Lookup.Params[i] + "=" + abridge(string(p))
	}
	if len(texts) == 0 {
		return "nothing"
	}
	return strings.Join(texts, ", ")
}

// UseLookups says who answers the lookups of rules; nil is nobody, and what they
// would name is left out with a note.
func (e *Explainer) UseLookups(l rules.Lookups) { e.lookups = l }

// noted answers a matcher, and notes what a step does not show.
type noted struct{ e *Explainer }

// Lookup is rules.Lookups.
func (n noted) Lookup(r *rules.Rule, params [][]byte) (rules.LookupResult, error) {
	if n.e.lookups == nil {
		n.e.note("rule %q needs a lookup by %s, whose names are left out: give --lookup or a database", r.Name, by(r, params))
		return rules.LookupResult{}, nil
	}
	out, err := n.e.lookups.Lookup(r, params)
	switch {
	case err != nil:
	case out.More:
		n.e.note("rule %q: the lookup by %s gives more than %d rows: the classes of its names are raised", r.Name, by(r, params), rules.LookupRowsMax)
	case len(out.Rows) == 0:
		n.e.note("rule %q: the lookup by %s gives no row, and so no name", r.Name, by(r, params))
	}
	return out, err
}

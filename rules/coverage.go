package rules

import (
	"fmt"
	"regexp"
	"slices"

	"cel.dev/cel-go/cel"
	celast "cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"

	"github.com/lethe-cache/lethe/change"
)

// Coverage counts which rules, and which parts of their conditions, changes
// have tried. It is for tests of rules; not safe for concurrent use.
type Coverage struct {
	matcher *Matcher
	rules   []*RuleCoverage
	byRule  map[*Rule]*RuleCoverage
}

// RuleCoverage is what was tried of one rule.
type RuleCoverage struct {
	Rule *Rule
	// Changes are those of the rule's table and operations, Matched those for
	// which the condition held, or counted as if it did.
	Changes, Matched int
	// Branches are the parts that && || ! and ?: of the condition put together,
	// in the order of the text; a rule without a condition has none.
	Branches []Branch

	program cel.Program
}

// Branch is a part of a condition that is true or false by itself.
type Branch struct {
	Text string
	// True, False and Unknown count how it came out; unknown is NULL, an error,
	// or a value that the log does not carry.
	True, False, Unknown int

	id int64
}

// Covered reports whether the rule was seen to match and, if it has a
// condition, each part of it to be true and to be false.
func (r *RuleCoverage) Covered() bool {
	for _, b := range r.Branches {
		if b.True == 0 || b.False == 0 {
			return false
		}
	}
	return r.Matched > 0
}

// NewCoverage returns a coverage of the plan's rules that has seen nothing.
func (p *Plan) NewCoverage() (*Coverage, error) {
	c := &Coverage{matcher: p.NewMatcher(Observer{}), byRule: map[*Rule]*RuleCoverage{}}
	c.matcher.UseLookups(noRows{})
	for _, r := range p.set.Rules {
		rc := &RuleCoverage{Rule: r}
		if r.cond != nil {
			var err error
			// Every part is evaluated, though one may decide.
			if rc.program, err = r.cond.env.Program(r.cond.checked, cel.EvalOptions(cel.OptTrackState, cel.OptExhaustiveEval)); err != nil {
				return nil, fmt.Errorf("coverage of rule %q: %w", r.Name, err)
			}
			if err := rc.split(r.cond.checked.NativeRep(), r.cond.checked.NativeRep().Expr()); err != nil {
				return nil, fmt.Errorf("coverage of rule %q: %w", r.Name, err)
			}
		}
		c.rules = append(c.rules, rc)
		c.byRule[r] = rc
	}
	return c, nil
}

// split finds the parts of a condition.
func (r *RuleCoverage) split(ast *celast.AST, e celast.Expr) error {
	if e.Kind() == celast.CallKind {
		switch e.AsCall().FunctionName() {
		case operators.LogicalAnd, operators.LogicalOr, operators.LogicalNot, operators.Conditional:
			for _, a := range e.AsCall().Args() {
				if err := r.split(ast, a); err != nil {
					return err
				}
			}
			return nil
		}
	}
	text, err := branchText(ast, e)
	if err != nil {
		return err
	}
	r.Branches = append(r.Branches, Branch{Text: text, id: e.ID()})
	return nil
}

var changedField = regexp.MustCompile(regexp.QuoteMeta(changedRow) + "\\.`?([^`\\s]+)`?")

// branchText is a part as it was written, near enough.
func branchText(ast *celast.AST, e celast.Expr) (string, error) {
	suffix := ""
	if e.Kind() == celast.CallKind && e.AsCall().FunctionName() == nullTest {
		e, suffix = e.AsCall().Args()[0], " == null"
	}
	text, err := cel.ExprToString(e, ast.SourceInfo())
	if err != nil {
		return "", err
	}
	return changedField.ReplaceAllString(text, `changed("$1")`) + suffix, nil
}

// Add counts what a change tries. Changes of other tables count nowhere.
func (c *Coverage) Add(chg *change.Change) error {
	if chg.Table == nil {
		return nil
	}
	var ts Targets
	if err := c.matcher.Match(&ts, chg, change.Position{}); err != nil {
		return err
	}
	tm := c.matcher.tableMatcher(chg.Table)
	for _, rm := range slices.Concat(tm.rules, tm.timed) {
		r := rm.rule
		rc := c.byRule[r]
		if !r.On.Has(chg.Op) {
			continue
		}
		rc.Changes++
		if chg.Op == change.Truncate || r.cond == nil {
			rc.Matched++
			continue
		}
		if ok, _ := c.matcher.eval.holds(r.cond, tm, chg); ok {
			rc.Matched++
		}
		rc.count(c.matcher.eval, tm, chg)
	}
	return nil
}

func (r *RuleCoverage) count(e *evaluation, tm *tableMatcher, chg *change.Change) {
	e.change, e.table, e.op, e.guessed = chg, tm, types.String(chg.Op.String()), false
	_, details, _ := r.program.Eval(e) // what could not be evaluated is unknown
	e.change, e.table = nil, nil
	for i := range r.Branches {
		b := &r.Branches[i]
		var value any
		if details != nil {
			value, _ = details.State().Value(b.id)
		}
		switch value {
		case types.True:
			b.True++
		case types.False:
			b.False++
		default:
			b.Unknown++
		}
	}
}

// noRows answers every lookup: what it gives decides nothing that is counted.
type noRows struct{}

func (noRows) Lookup(*Rule, [][]byte) (LookupResult, error) { return LookupResult{}, nil }

// Rules returns what was counted, in the order of the file.
func (c *Coverage) Rules() []*RuleCoverage { return c.rules }

package rules

import (
	"fmt"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"go.yaml.in/yaml/v3"
)

// EdgeScope is what the condition of a dependency sees: the change that began
// the cascade, by which rule, and the name that the dependency starts from. One
// is used over again by one goroutine.
type EdgeScope struct {
	// Op is the change's operation: insert, update, delete, truncate, message.
	Op string
	// Table is schema.name, unquoted; empty for a logical message.
	Table string
	// Rule is the name of the rule; empty for a logical message.
	Rule string
	// Depth is how many dependencies lie behind the name: 0 for what the rule
	// itself names. A name that is reached on several ways is looked at once, at
	// its least depth.
	Depth int
	// Values are those of the placeholders of `of`, in their order.
	Values [][]byte

	columns []string // of the dependency at hand
}

// The variables of a condition beside the placeholders.
const (
	edgeOp    = "op"
	edgeTable = "table"
	edgeRule  = "rule"
	edgeDepth = "depth"
)

var edgeVariables = []string{edgeOp, edgeTable, edgeRule, edgeDepth}

// ResolveName implements cel.Activation.
func (s *EdgeScope) ResolveName(name string) (any, bool) {
	switch name {
	case edgeOp:
		return types.String(s.Op), true
	case edgeTable:
		return types.String(s.Table), true
	case edgeRule:
		return types.String(s.Rule), true
	case edgeDepth:
		return types.Int(s.Depth), true
	}
	if i := slices.Index(s.columns, name); i >= 0 && i < len(s.Values) {
		return types.String(s.Values[i]), true
	}
	return nil, false
}

// Parent implements cel.Activation.
func (s *EdgeScope) Parent() cel.Activation { return nil }

// edgeCondition is the condition of a dependency, compiled. Dependencies with
// the same placeholders and text share one.
type edgeCondition struct {
	program cel.Program
	columns []string
}

// Holds reports whether the dependency is to be followed from a name whose
// placeholders have the values of the scope. A condition that can not be decided
// holds: err says why.
func (d *Dependency) Holds(s *EdgeScope) (ok bool, err error) {
	if d.cond == nil {
		return true, nil
	}
	s.columns = d.cond.columns
	out, _, err := d.cond.program.Eval(s)
	if err != nil {
		return true, err
	}
	b, isBool := out.(types.Bool)
	if !isBool {
		return true, fmt.Errorf("condition gave a %s, not true or false", out.Type().TypeName())
	}
	return bool(b), nil
}

// Conditional reports whether the dependency has a condition.
func (d *Dependency) Conditional() bool { return d.cond != nil }

// edgeWhen compiles the condition of a dependency.
func (b *builder) edgeWhen(n *yaml.Node, dep *Dependency) {
	text, ok := b.d.text(n, "when")
	if !ok {
		return
	}
	dep.When = text
	var errs []conditionError
	dep.cond, errs = b.edges.compile(dep.Of.Columns(), text)
	at, folded := b.d.textPlace(n), b.d.folded(n)
	for _, e := range errs {
		b.d.add(Error, CodeCondition, conditionPlace(at, folded, e.line, e.col), e.hint, "when: %s", e.message)
	}
}

// edgeConditions compiles conditions of dependencies, each once.
type edgeConditions struct {
	base *cel.Env
	envs map[string]*cel.Env // by the placeholders
	done map[string]*edgeCondition
}

// compile returns the condition over placeholders, or every mistake in it.
func (c *edgeConditions) compile(columns []string, text string) (*edgeCondition, []conditionError) {
	for _, v := range edgeVariables {
		if slices.Contains(columns, v) {
			return nil, []conditionError{{line: 1, message: fmt.Sprintf("the placeholder {%s} has the name of a variable of conditions (%s)",
				v, strings.Join(edgeVariables, ", ")), hint: "call the placeholder otherwise: its name is free"}}
		}
	}
	id := strings.Join(columns, "\x00") + "\x00\x00" + text
	if cond := c.done[id]; cond != nil {
		return cond, nil
	}
	env, err := c.env(columns)
	if err != nil {
		return nil, []conditionError{{line: 1, message: "conditions are not available: " + err.Error()}}
	}
	checked, iss := env.Compile(text)
	if iss.Err() != nil {
		return nil, issueErrors(iss)
	}
	if t := checked.OutputType(); t.Kind() != types.BoolKind {
		return nil, []conditionError{{line: 1, message: fmt.Sprintf("condition must be true or false, not %s", t)}}
	}
	program, err := env.Program(checked)
	if err != nil {
		return nil, []conditionError{{line: 1, message: err.Error()}}
	}
	cond := &edgeCondition{program: program, columns: columns}
	c.done[id] = cond
	return cond, nil
}

// env makes the environment of the placeholders, all of them text.
func (c *edgeConditions) env(columns []string) (*cel.Env, error) {
	if c.base == nil {
		base, err := cel.NewEnv(
			cel.Variable(edgeOp, cel.StringType), cel.Variable(edgeTable, cel.StringType),
			cel.Variable(edgeRule, cel.StringType), cel.Variable(edgeDepth, cel.IntType),
			cel.CrossTypeNumericComparisons(true),
			cel.ParserExpressionSizeLimit(maxExpression),
			cel.ParserRecursionLimit(maxRecursion),
		)
		if err != nil {
			return nil, err
		}
		c.base, c.envs, c.done = base, map[string]*cel.Env{}, map[string]*edgeCondition{}
	}
	id := strings.Join(columns, "\x00")
	if env := c.envs[id]; env != nil {
		return env, nil
	}
	var vars []cel.EnvOption
	for _, name := range columns {
		vars = append(vars, cel.Variable(name, cel.StringType))
	}
	env, err := c.base.Extend(vars...)
	if err != nil {
		return nil, err
	}
	c.envs[id] = env
	return env, nil
}

package rules

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	celast "cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
)

// condition is a rule's `when`: CEL over op, old and new, where
//
//   - old.x and new.x are columns, and nothing else can be done with a row but
//     to compare it with null;
//   - changed("x") is a field of a hidden third row, so that it is checked and
//     resolved as a column is;
//   - x == null is a call of its own: a column that is NULL otherwise ends the
//     evaluation, because what depends on NULL counts as true.
type condition struct {
	program cel.Program
	columns []conditionColumn
	// env and checked are what the program was made from.
	env     *cel.Env
	checked *cel.Ast
}

// conditionColumn is one column that a condition reads.
type conditionColumn struct {
	name string
	side conditionSide
	// offset of the use in the condition's text, in line and column from 1 and 0.
	line, col int
}

type conditionSide byte

const (
	readsOld conditionSide = iota
	readsNew
	readsChanged
)

const (
	changedRow    = "@changed"
	nullTest      = "lethe_is_null"
	maxExpression = 16 << 10
	maxRecursion  = 64
)

// conditionError is a mistake in a condition, with its place in the text.
type conditionError struct {
	line, col int
	message   string
	hint      string // how to cure it, if that is known
}

func changedMacro() cel.EnvOption {
	return cel.Macros(cel.GlobalMacro("changed", 1, func(eh cel.MacroExprFactory, _ celast.Expr, args []celast.Expr) (celast.Expr, *cel.Error) {
		if args[0].Kind() == celast.LiteralKind {
			if name, ok := args[0].AsLiteral().(types.String); ok && name != "" {
				return eh.NewSelect(eh.NewIdent(changedRow), string(name)), nil
			}
		}
		return nil, eh.NewError(args[0].ID(), `changed() takes the name of one column in quotes: changed("price")`)
	}))
}

// newConditionEnv makes the environment in which old and new have the types
// that column gives; column reports false for one that does not exist.
func newConditionEnv(column func(name string) (*types.Type, bool)) (*cel.Env, error) {
	registry, err := types.NewRegistry()
	if err != nil {
		return nil, err
	}
	provider := &rowProvider{Registry: registry, column: column}
	return cel.NewEnv(
		cel.CustomTypeAdapter(registry),
		cel.CustomTypeProvider(provider),
		cel.Variable("op", cel.StringType),
		cel.Variable("old", cel.ObjectType(rowType)),
		cel.Variable("new", cel.ObjectType(rowType)),
		cel.Variable(changedRow, cel.ObjectType(changedType)),
		cel.Function(nullTest, cel.Overload(nullTest+"_dyn", []*cel.Type{cel.DynType}, cel.BoolType,
			cel.OverloadIsNonStrict(), cel.UnaryBinding(testNull))),
		changedMacro(),
		cel.CrossTypeNumericComparisons(true),
		cel.EnableIdentifierEscapeSyntax(),
		cel.ParserExpressionSizeLimit(maxExpression),
		cel.ParserRecursionLimit(maxRecursion),
	)
}

func testNull(v ref.Val) ref.Val {
	switch v := v.(type) {
	case *types.Err:
		if errors.Is(v, errNull) || missing(v) {
			return types.True
		}
		return v
	case *rowVal:
		return types.Bool(!v.exists())
	case types.Null:
		return types.True
	case *types.Unknown:
		return v
	}
	return types.False
}

// missing reports whether an expression ended at a part of a json value or
// array that is not there, which the engine has no error value for. As in SQL,
// that is NULL.
func missing(err error) bool {
	if errors.Is(err, errNotInLog) || errors.Is(err, errNoRow) {
		return false // of a column that is called like that
	}
	text := err.Error()
	return strings.HasPrefix(text, "no such key: ") || strings.HasPrefix(text, "index out of bounds: ")
}

// compileCondition reads and checks a condition. It returns every mistake.
func compileCondition(env *cel.Env, text string) (*condition, []conditionError) {
	parsed, iss := env.Parse(text)
	if iss.Err() != nil {
		return nil, issueErrors(iss)
	}
	w := newConditionWalk(parsed)
	celast.PreOrderVisit(parsed.NativeRep().Expr(), celast.NewExprVisitor(w.visit))
	if len(w.errs) > 0 {
		return nil, w.errs
	}
	checked, iss := env.Check(parsed)
	if iss.Err() != nil {
		return nil, issueErrors(iss)
	}
	if t := checked.OutputType(); t.Kind() != types.BoolKind && t.Kind() != types.DynKind {
		return nil, []conditionError{{line: 1, message: fmt.Sprintf("condition must be true or false, not %s", t)}}
	}
	program, err := env.Program(checked)
	if err != nil {
		return nil, []conditionError{{line: 1, message: err.Error()}}
	}
	return &condition{program: program, columns: w.columns, env: env, checked: checked}, nil
}

func issueErrors(iss *cel.Issues) []conditionError {
	var out []conditionError
	for _, e := range iss.Errors() {
		line, col := 1, 0
		if e.Location != nil && e.Location.Line() > 0 {
			line, col = e.Location.Line(), max(e.Location.Column(), 0)
		}
		msg, hint := e.Message, ""
		msg = strings.ReplaceAll(msg, rowType, "row")
		if strings.Contains(msg, "(double, int)") {
			hint = "write the number with a point: 10.0"
		}
		out = append(out, conditionError{line: line, col: col, message: msg, hint: hint})
	}
	if len(out) == 0 {
		out = append(out, conditionError{line: 1, message: iss.Err().Error()})
	}
	return out
}

// conditionWalk looks at every node of the parsed expression once, before it
// is checked: it turns comparisons with null into tests, collects the columns,
// and refuses what the engine would take for an opaque object.
type conditionWalk struct {
	ast     *cel.Ast
	factory celast.ExprFactory
	allowed map[int64]bool
	nextID  int64
	columns []conditionColumn
	errs    []conditionError
}

func newConditionWalk(ast *cel.Ast) *conditionWalk {
	return &conditionWalk{ast: ast, factory: celast.NewExprFactory(), allowed: map[int64]bool{}, nextID: celast.MaxID(ast.NativeRep())}
}

func (w *conditionWalk) place(id int64) (line, col int) {
	loc := w.ast.NativeRep().SourceInfo().GetStartLocation(id)
	return max(loc.Line(), 1), max(loc.Column(), 0)
}

func isRow(e celast.Expr) bool {
	return e.Kind() == celast.IdentKind && slices.Contains([]string{"old", "new", changedRow}, e.AsIdent())
}

func (w *conditionWalk) visit(e celast.Expr) {
	switch e.Kind() {
	case celast.IdentKind:
		if isRow(e) && !w.allowed[e.ID()] {
			line, col := w.place(e.ID())
			w.errs = append(w.errs, conditionError{line: line, col: col,
				message: fmt.Sprintf("%s is a row: name a column of it, as in %s.id", e.AsIdent(), e.AsIdent())})
		}
	case celast.SelectKind:
		sel := e.AsSelect()
		if isRow(sel.Operand()) {
			w.allowed[sel.Operand().ID()] = true
			w.column(e.ID(), sel.Operand().AsIdent(), sel.FieldName())
		}
	case celast.CallKind:
		call := e.AsCall()
		name := call.FunctionName()
		if name != operators.Equals && name != operators.NotEquals {
			return
		}
		args := call.Args()
		for i, a := range args {
			if a.Kind() != celast.LiteralKind || a.AsLiteral() != types.NullValue {
				continue
			}
			other := args[1-i]
			if isRow(other) && other.AsIdent() != changedRow {
				w.allowed[other.ID()] = true
			}
			test := w.factory.NewCall(w.freshID(e.ID()), nullTest, other)
			if name == operators.NotEquals {
				test = w.factory.NewCall(w.freshID(e.ID()), operators.LogicalNot, test)
			}
			e.SetKindCase(test)
			return
		}
	}
}

// freshID is an id that no node of the expression has, with a place of its own.
func (w *conditionWalk) freshID(like int64) int64 {
	info := w.ast.NativeRep().SourceInfo()
	id := w.nextID
	w.nextID++
	if r, ok := info.GetOffsetRange(like); ok {
		info.SetOffsetRange(id, r)
	}
	return id
}

func (w *conditionWalk) column(id int64, row, name string) {
	s := readsNew
	switch row {
	case "old":
		s = readsOld
	case changedRow:
		s = readsChanged
	}
	line, col := w.place(id)
	// The engine puts a selection at its dot, and a call at its parenthesis.
	w.columns = append(w.columns, conditionColumn{name: name, side: s, line: line, col: col + 1})
}

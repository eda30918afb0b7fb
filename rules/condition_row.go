package rules

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/internal/keytext"
)

// The names of the types of old, new and the hidden row behind changed().
const (
	rowType     = "lethe.Row"
	changedType = "lethe.Changed"
)

var (
	errNull     = errors.New("a column is NULL")
	errNoRow    = errors.New("the change has no such row")
	errNotInLog = errors.New("the log does not carry the value")
)

// rowProvider tells the checker and the planner what columns rows have.
type rowProvider struct {
	*types.Registry
	column func(name string) (*types.Type, bool)
}

// FindStructType implements types.Provider.
func (p *rowProvider) FindStructType(name string) (*types.Type, bool) {
	if name == rowType || name == changedType {
		return types.NewTypeTypeWithParam(types.NewObjectType(name)), true
	}
	return p.Registry.FindStructType(name)
}

// FindStructFieldType implements types.Provider.
func (p *rowProvider) FindStructFieldType(structType, field string) (*types.FieldType, bool) {
	switch structType {
	case rowType:
		t, ok := p.column(field)
		if !ok {
			return nil, false
		}
		return &types.FieldType{
			Type:    t,
			IsSet:   func(row any) bool { return row.(*rowVal).has(field) },
			GetFrom: func(row any) (any, error) { return row.(*rowVal).get(field) },
		}, true
	case changedType:
		if _, ok := p.column(field); !ok {
			return nil, false
		}
		return &types.FieldType{
			Type:    types.BoolType,
			IsSet:   func(any) bool { return true },
			GetFrom: func(row any) (any, error) { return row.(*rowVal).changed(field), nil },
		}, true
	}
	return p.Registry.FindStructFieldType(structType, field)
}

// anyColumn types every column dyn: what is used where no schema is known. The
// values are typed when they arrive, by the type that the log names.
func anyColumn(string) (*types.Type, bool) { return types.DynType, true }

// OIDs of the types that conditions know.
const (
	oidBool, oidBytea, oidInt8, oidInt2, oidInt4, oidJSON = 16, 17, 20, 21, 23, 114
	oidFloat4, oidFloat8, oidTimestamp, oidTimestamptz    = 700, 701, 1114, 1184
	oidNumeric, oidJSONB                                  = 1700, 3802
	oidJSONArray, oidJSONBArray                           = 199, 3807
)

// arrayElements are the OIDs of array types, with those of their elements.
var arrayElements = map[uint32]uint32{
	oidJSONArray: oidJSON, oidJSONBArray: oidJSONB,
	1000: oidBool, 1001: oidBytea, 1002: 18, 1003: 19, 1005: oidInt2, 1007: oidInt4, 1009: oidText, 1014: oidChar, 1015: oidVarchar, 1016: oidInt8,
	1021: oidFloat4, 1022: oidFloat8, 1028: oidOID, 1041: 869, 651: 650, 1040: 829, 1115: oidTimestamp, 1182: oidDate, 1183: oidTime,
	1185: oidTimestamptz, 1231: oidNumeric, 2951: oidUUID,
}

func arrayElement(oid uint32) (element uint32, ok bool) {
	element, ok = arrayElements[oid]
	return element, ok
}

// celType is the type of a column in conditions; an array is a list; text, uuid, enum and whatever
// else is not listed are strings.
func celType(oid uint32) *types.Type {
	switch oid {
	case oidBool:
		return cel.BoolType
	case oidBytea:
		return cel.BytesType
	case oidInt2, oidInt4, oidInt8:
		return cel.IntType
	case oidFloat4, oidFloat8, oidNumeric:
		return cel.DoubleType
	case oidTimestamp, oidTimestamptz:
		return cel.TimestampType
	case oidJSON, oidJSONB:
		return cel.DynType
	}
	if element, ok := arrayElement(oid); ok {
		return cel.ListType(celType(element))
	}
	return cel.StringType
}

// celValue turns Postgres's text into a value of celType.
func celValue(oid uint32, text []byte) (any, error) {
	s := string(text)
	switch oid {
	case oidBool:
		return s == "t" || s == "true", nil
	case oidBytea:
		return hex.DecodeString(strings.TrimPrefix(s, `\x`))
	case oidInt2, oidInt4, oidInt8:
		return strconv.ParseInt(s, 10, 64)
	case oidFloat4, oidFloat8, oidNumeric:
		return strconv.ParseFloat(s, 64)
	case oidTimestamp, oidTimestamptz:
		return parseTimestamp(s)
	case oidJSON, oidJSONB:
		return parseJSON(text)
	}
	if element, ok := arrayElement(oid); ok {
		return celList(element, keytext.ArrayNode(text, false))
	}
	return s, nil
}

// celList makes a list of an array: of lists, if it has more dimensions than
// one. Elements that are NULL are null.
func celList(element uint32, n keytext.Node) (list []any, err error) {
	list = []any{}
	ok := n.Each(func(e keytext.Node) bool {
		text, null, scalar := e.Append(nil)
		var v any
		switch {
		case null:
			v = types.NullValue
		case scalar:
			v, err = celValue(element, text)
		default:
			v, err = celList(element, e)
		}
		list = append(list, v)
		return err == nil
	})
	if err == nil && !ok {
		err = errors.New("parse array: not the text of one")
	}
	return list, err
}

func parseTimestamp(s string) (time.Time, error) {
	for _, layout := range []string{"2006-01-02 15:04:05Z07", "2006-01-02 15:04:05", "2006-01-02 15:04:05Z07:00", "2006-01-02T15:04:05Z07:00"} {
		if t, err := time.Parse(layout, s); err == nil {
			return t.UTC(), nil
		}
	}
	return time.Time{}, fmt.Errorf("parse timestamp %q", s)
}

func parseJSON(text []byte) (any, error) {
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return nil, fmt.Errorf("parse json: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("parse json: text behind the value")
	}
	return jsonNumbers(v), nil
}

// jsonNumbers makes whole numbers int, so that ids above 2^53 stay exact.
func jsonNumbers(v any) any {
	switch v := v.(type) {
	case nil:
		return types.NullValue
	case json.Number:
		if i, err := v.Int64(); err == nil {
			return i
		}
		f, err := v.Float64()
		if err != nil {
			return types.WrapErr(err)
		}
		return f
	case []any:
		for i := range v {
			v[i] = jsonNumbers(v[i])
		}
	case map[string]any:
		for k := range v {
			v[k] = jsonNumbers(v[k])
		}
	}
	return v
}

// evaluation is what a condition sees of one change. One belongs to each
// matcher and is used over again.
type evaluation struct {
	change *change.Change
	table  *tableMatcher
	op     types.String
	// guessed is set when a test for presence met a value that the log does
	// not carry, which it has no other way to say.
	guessed       bool
	old, new, chg rowVal
}

func newEvaluation() *evaluation {
	e := &evaluation{}
	e.old = rowVal{e: e, side: sideOld}
	e.new = rowVal{e: e, side: sideNew}
	e.chg = rowVal{e: e, side: sideNew, hidden: true}
	return e
}

// ResolveName implements cel.Activation.
func (e *evaluation) ResolveName(name string) (any, bool) {
	switch name {
	case "op":
		return e.op, true
	case "old":
		return &e.old, true
	case "new":
		return &e.new, true
	case changedRow:
		return &e.chg, true
	}
	return nil, false
}

// Parent implements cel.Activation.
func (e *evaluation) Parent() cel.Activation { return nil }

// holds evaluates a condition. err is why it counts as true, if it was not.
func (e *evaluation) holds(c *condition, tm *tableMatcher, chg *change.Change) (result bool, err error) {
	e.change, e.table, e.op, e.guessed = chg, tm, types.String(chg.Op.String()), false
	out, _, err := c.program.Eval(e)
	e.change, e.table = nil, nil
	if err != nil {
		return true, err
	}
	b, ok := out.(types.Bool)
	switch {
	case !ok:
		return true, fmt.Errorf("condition gave a %s, not true or false", out.Type().TypeName())
	case e.guessed && !bool(b):
		return true, errNotInLog
	}
	return bool(b), nil
}

// rowVal is old, new, or the hidden row of changed().
type rowVal struct {
	e      *evaluation
	side   side
	hidden bool
}

func (r *rowVal) exists() bool {
	if r.side == sideOld {
		return r.e.change.Op != change.Insert
	}
	return r.e.change.New != nil
}

func (r *rowVal) lookup(name string) (text []byte, oid uint32, s state) {
	col, ok := r.e.table.columns[name]
	if !ok {
		return nil, 0, stateUnknown
	}
	c := &r.e.table.table.Columns[col]
	text, s = valueOf(r.e.change, r.side, col, r.e.table.identity(col))
	return text, c.Type, s
}

func (r *rowVal) get(name string) (any, error) {
	text, oid, s := r.lookup(name)
	switch s {
	case stateText:
		return celValue(oid, text)
	case stateNull:
		return nil, fmt.Errorf("%s: %w", name, errNull)
	case stateNoRow:
		return nil, fmt.Errorf("%s: %w", name, errNoRow)
	}
	return nil, fmt.Errorf("%s: %w", name, errNotInLog)
}

// has is what has(new.x) asks: whether the column is not NULL.
func (r *rowVal) has(name string) bool {
	_, _, s := r.lookup(name)
	if s >= stateOldUnknown {
		r.e.guessed = true
		return true
	}
	return s == stateText
}

func (r *rowVal) changed(name string) bool {
	col, ok := r.e.table.columns[name]
	if !ok {
		return true
	}
	return changed(r.e.change, col, r.e.table.identity(col))
}

// The methods of ref.Val let a row stand where a value does; the walk over the
// parsed expression keeps it from being used as one.

// ConvertToNative implements ref.Val.
func (r *rowVal) ConvertToNative(reflect.Type) (any, error) {
	return nil, errors.New("a row can not be converted")
}

// ConvertToType implements ref.Val.
func (r *rowVal) ConvertToType(ref.Type) ref.Val { return types.NewErr("a row can not be converted") }

// Equal implements ref.Val.
func (r *rowVal) Equal(ref.Val) ref.Val { return types.NewErr("rows can not be compared") }

// Type implements ref.Val.
func (r *rowVal) Type() ref.Type { return types.NewObjectType(rowType) }

// Value implements ref.Val.
func (r *rowVal) Value() any { return r }

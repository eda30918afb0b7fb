package explain

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/internal/keytext"
	"github.com/lethe-cache/lethe/rules"
)

// Row is a change as people write it: in a test case, in a flag, as JSON.
//
// A value is text, a number, true, false, null, or, for json columns and
// arrays written as JSON, a list or an object. Text stands for what Postgres
// would print, in UTC.
type Row struct {
	// Table is schema.name; without a schema, public.
	Table string `json:"table" yaml:"table"`
	// Op is insert, update, delete, truncate or message.
	Op string `json:"op" yaml:"op"`
	// Old and New are the rows before and after. An update without Old is one
	// whose replica identity did not change.
	Old map[string]any `json:"old,omitempty" yaml:"old"`
	New map[string]any `json:"new,omitempty" yaml:"new"`
	// Types names the Postgres types of columns, where the values do not say
	// and no schema is at hand: {ends_at: timestamptz}.
	Types map[string]string `json:"types,omitempty" yaml:"types"`
	// Identity names the columns of the replica identity where no schema is at
	// hand; ["*"] is REPLICA IDENTITY FULL. Default: id, or FULL if Old says more
	// than id: what is written is taken for what the log carries.
	Identity []string `json:"identity,omitempty" yaml:"identity"`
	// Message is the content of a logical message with the prefix lethe.
	Message map[string]any `json:"message,omitempty" yaml:"message"`
}

// oids are the types that conditions tell apart, by the names that people use.
var oids = map[string]uint32{
	"bool": 16, "boolean": 16, "bytea": 17, "bigint": 20, "int8": 20, "smallint": 21, "int2": 21, "integer": 23, "int": 23, "int4": 23,
	"text": 25, "json": 114, "real": 700, "float4": 700, "double precision": 701, "float8": 701, "varchar": 1043, "date": 1082,
	"timestamp": 1114, "timestamptz": 1184, "numeric": 1700, "decimal": 1700, "uuid": 2950, "jsonb": 3802,
	"text[]": 1009, "varchar[]": 1015, "int4[]": 1007, "integer[]": 1007, "int8[]": 1016, "bigint[]": 1016, "uuid[]": 2951, "boolean[]": 1000,
	"date[]": 1182, "timestamptz[]": 1185, "numeric[]": 1231, "json[]": 199, "jsonb[]": 3807,
}

// isArray tells the types of which a list is an array; of others it is JSON.
func isArray(oid uint32) bool {
	if oid >= firstUserOID {
		return true // an array of an enum, say
	}
	for name, o := range oids {
		if o == oid {
			return strings.HasSuffix(name, "[]")
		}
	}
	return false
}

// firstUserOID is where the types begin that a database has of its own.
const firstUserOID = 16384

func isJSON(oid uint32) bool { return oid == oids["json"] || oid == oids["jsonb"] }

// Change turns a row into what the log would carry. With a schema that has the
// table, its columns and its replica identity decide what of the old row that
// is; without one, the row itself does.
func (r *Row) Change(schema *rules.Schema) (*change.Change, error) {
	c := &change.Change{Commit: &change.Commit{XID: 1, LSN: 1, Time: time.Unix(0, 0).UTC()}}
	switch r.Op {
	case "insert":
		c.Op = change.Insert
	case "update":
		c.Op = change.Update
	case "delete":
		c.Op = change.Delete
	case "truncate":
		c.Op = change.Truncate
	case "message":
		return r.message(c)
	case "":
		return nil, errors.New("the change needs an op: insert, update, delete, truncate or message")
	default:
		return nil, fmt.Errorf("op %q: want insert, update, delete, truncate or message", r.Op)
	}
	if r.Table == "" {
		return nil, errors.New("the change needs a table")
	}
	if r.Message != nil {
		return nil, fmt.Errorf("%s of %s: a message belongs to op message", r.Op, r.Table)
	}
	if err := r.sides(c.Op); err != nil {
		return nil, err
	}
	if err := r.describe(c, schema); err != nil {
		return nil, err
	}
	var err error
	if c.Old, err = r.values(c.Table, r.Old); err != nil {
		return nil, err
	}
	if c.New, err = r.values(c.Table, r.New); err != nil {
		return nil, err
	}
	asLogged(c)
	return c, nil
}

func (r *Row) message(c *change.Change) (*change.Change, error) {
	if r.Message == nil || r.Table != "" || r.Old != nil || r.New != nil {
		return nil, errors.New("op message has a message, and neither table nor rows")
	}
	content, err := json.Marshal(r.Message)
	if err != nil {
		return nil, fmt.Errorf("message: %w", err)
	}
	c.Op, c.Prefix, c.Content = change.Message, rules.MessagePrefix, content
	return c, nil
}

// sides refuses rows that the operation does not have.
func (r *Row) sides(op change.Op) error {
	before, after := r.Old != nil, r.New != nil
	switch {
	case op == change.Insert && (before || !after):
		return fmt.Errorf("insert into %s: want new, and no old", r.Table)
	case op == change.Update && !after:
		return fmt.Errorf("update of %s: want new, and old where it matters", r.Table)
	case op == change.Delete && (after || !before):
		return fmt.Errorf("delete from %s: want old, and no new", r.Table)
	case op == change.Truncate && (after || before):
		return fmt.Errorf("truncate of %s has no rows", r.Table)
	}
	return nil
}

// describe makes the table that the change is of.
func (r *Row) describe(c *change.Change, schema *rules.Schema) error {
	name := r.Table
	if !strings.Contains(name, ".") {
		name = "public." + name
	}
	if schema != nil {
		if info := schema.Table(name); info != nil {
			c.Table = TableOf(info)
			return r.known(c.Table)
		}
	}
	c.Table = &change.Table{ID: 1, Identity: change.IdentityDefault}
	c.Table.Schema, c.Table.Name, _ = strings.Cut(name, ".")
	columns := map[string]bool{}
	for _, side := range []map[string]any{r.Old, r.New} {
		for name := range side {
			columns[name] = true
		}
	}
	for name := range r.Types {
		columns[name] = true
	}
	identity := r.Identity
	if identity == nil {
		identity = []string{"id"}
		for name := range r.Old {
			if name != "id" {
				identity = []string{"*"}
			}
		}
	}
	if slices.Equal(identity, []string{"*"}) {
		c.Table.Identity = change.IdentityFull
	}
	for _, name := range slices.Sorted(maps.Keys(columns)) {
		col := change.Column{Name: name, Key: slices.Contains(identity, name) || c.Table.Identity == change.IdentityFull}
		var err error
		if col.Type, err = r.typeOf(name); err != nil {
			return err
		}
		c.Table.Columns = append(c.Table.Columns, col)
	}
	return nil
}

// known refuses columns that the live table does not have.
func (r *Row) known(t *change.Table) error {
	for _, side := range []map[string]any{r.Old, r.New} {
		for _, name := range slices.Sorted(maps.Keys(side)) {
			if t.ColumnIndex(name) < 0 {
				return fmt.Errorf("%s has no column %q", t.QualifiedName(), name)
			}
		}
	}
	return nil
}

// typeOf is the type that is named, or the one that the values look like.
func (r *Row) typeOf(column string) (uint32, error) {
	if name, ok := r.Types[column]; ok {
		oid, ok := oids[strings.ToLower(strings.TrimSpace(name))]
		if !ok {
			return 0, fmt.Errorf("types: %s: %q is none of %s", column, name, strings.Join(slices.Sorted(maps.Keys(oids)), ", "))
		}
		return oid, nil
	}
	for _, side := range []map[string]any{r.New, r.Old} {
		switch v := side[column].(type) {
		case bool:
			return oids["bool"], nil
		case int, int64, uint64:
			return oids["bigint"], nil
		case float64:
			return oids["float8"], nil
		case json.Number:
			if strings.ContainsAny(v.String(), ".eE") {
				return oids["float8"], nil
			}
			return oids["bigint"], nil
		case map[string]any, []any:
			return oids["jsonb"], nil
		case time.Time:
			return oids["timestamptz"], nil
		}
	}
	return oids["text"], nil
}

// TableOf is a live table as the log describes it.
func TableOf(info *rules.TableInfo) *change.Table {
	t := &change.Table{ID: 1, Schema: info.Schema, Name: info.Name, Identity: info.Identity}
	for _, c := range info.Columns {
		if c.Generated != 0 && c.Generated != ' ' {
			continue // the log does not carry them
		}
		t.Columns = append(t.Columns, change.Column{Name: c.Name, Type: c.Type, Key: slices.Contains(info.IdentityColumns, c.Name)})
	}
	return t
}

func (r *Row) values(t *change.Table, side map[string]any) (change.Row, error) {
	if side == nil {
		return nil, nil
	}
	out := make(change.Row, len(t.Columns))
	for i, col := range t.Columns {
		v, ok := side[col.Name]
		if !ok {
			continue // Absent
		}
		var err error
		if out[i], err = value(v, col.Type); err != nil {
			return nil, fmt.Errorf("%s.%s: %w", t.QualifiedName(), col.Name, err)
		}
	}
	return out, nil
}

// value is the text that Postgres would print.
func value(v any, oid uint32) (change.Value, error) {
	text := func(s string) change.Value { return change.Value{Kind: change.Text, Bytes: []byte(s)} }
	switch v := v.(type) {
	case nil:
		return change.Value{Kind: change.Null}, nil
	case string:
		return text(v), nil
	case bool:
		if isJSON(oid) {
			return text(strconv.FormatBool(v)), nil
		}
		return text(strconv.FormatBool(v)[:1]), nil
	case time.Time:
		if oid == oids["date"] {
			return text(v.UTC().Format("2006-01-02")), nil
		}
		s := v.UTC().Format("2006-01-02 15:04:05.999999")
		if oid == oids["timestamptz"] {
			s += "+00"
		}
		return text(s), nil
	case int, int64, uint64, json.Number:
		return text(fmt.Sprint(v)), nil
	case float64:
		b, err := json.Marshal(v)
		return text(string(b)), err
	case []any:
		if isArray(oid) {
			list, err := elements(v)
			if err != nil {
				return change.Value{}, err
			}
			b, _, err := keytext.AppendValue(nil, list)
			return text(string(b)), err
		}
		s, err := jsonText(v)
		return text(s), err
	case map[string]any:
		s, err := jsonText(v)
		return text(s), err
	}
	return change.Value{}, fmt.Errorf("a %T is no value of a column", v)
}

func jsonText(v any) (string, error) {
	var b bytes.Buffer
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	err := encoder.Encode(v)
	return strings.TrimSuffix(b.String(), "\n"), err
}

// elements are those of an array, with objects as the text of JSON.
func elements(list []any) ([]any, error) {
	out := make([]any, len(list))
	for i, v := range list {
		var err error
		switch v := v.(type) {
		case []any:
			out[i], err = elements(v)
		case map[string]any:
			out[i], err = jsonText(v)
		default:
			out[i] = v
		}
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

// asLogged makes the old row what the log would carry of it. What an update
// does not say of the old row is as in the new one.
func asLogged(c *change.Change) {
	t := c.Table
	if c.Old == nil {
		return
	}
	for i := range c.Old {
		if c.New != nil && c.Old[i].Kind == change.Absent {
			c.Old[i] = c.New[i]
		}
	}
	if t.Identity == change.IdentityFull {
		return
	}
	moved := c.Op == change.Delete
	for i := range t.Columns {
		if !t.Columns[i].Key {
			c.Old[i] = change.Value{}
		} else if c.New != nil && !same(c.Old[i], c.New[i]) {
			moved = true
		}
	}
	if !moved {
		c.Old = nil // an update that leaves the identity as it was
	}
}

func same(a, b change.Value) bool { return a.Kind == b.Kind && bytes.Equal(a.Bytes, b.Bytes) }

package change

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strconv"
	"time"
)

// DebeziumDecoder reads change events in Debezium's JSON envelope, with or
// without the schema wrapper (docs/wire.md says how each part is read).
//
// Equal descriptions of a table yield the same *Table as long as the decoder
// lives. The zero DebeziumDecoder is ready. It is not safe for concurrent use.
type DebeziumDecoder struct {
	tables  map[string]*Table
	schemas map[string]*connectSchema
	scratch []byte
}

// maxSchemas bounds how many different schema texts a decoder remembers.
const maxSchemas = 1024

type connectSchema struct {
	Type       string            `json:"type"`
	Name       string            `json:"name"`
	Field      string            `json:"field"`
	Parameters map[string]string `json:"parameters"`
	Fields     []*connectSchema  `json:"fields"`
	Items      *connectSchema    `json:"items"`
}

func (s *connectSchema) field(name string) *connectSchema {
	if s != nil {
		for _, f := range s.Fields {
			if f.Field == name {
				return f
			}
		}
	}
	return nil
}

type debeziumEnvelope struct {
	Op     string          `json:"op"`
	Before json.RawMessage `json:"before"`
	After  json.RawMessage `json:"after"`
	Source struct {
		Schema string  `json:"schema"`
		Table  string  `json:"table"`
		TxID   *uint64 `json:"txId"`
		Millis *int64  `json:"ts_ms"`
		Micros *int64  `json:"ts_us"`
		Nanos  *int64  `json:"ts_ns"`
	} `json:"source"`
	Message *struct {
		Prefix  string `json:"prefix"`
		Content []byte `json:"content"` // base64
	} `json:"message"`
	Transaction *struct {
		TotalOrder uint64 `json:"total_order"`
	} `json:"transaction"`
	// Of heartbeats and transaction boundaries, which have no op.
	Millis *int64  `json:"ts_ms"`
	Status *string `json:"status"`
}

// Decode reads one event, the key and the value of a Kafka message, into r,
// whose changes are replaced. A tombstone, a heartbeat and a transaction
// boundary yield a record without changes. The record has InsertLSN set and
// shares no memory with its input.
//
// The same bytes fail for ever, so there is no use in trying again.
func (d *DebeziumDecoder) Decode(r *Record, key, value []byte) error {
	changes := r.Changes[:0]
	*r = Record{InsertLSN: true, Changes: changes, mem: r.mem}
	payload, schema, err := d.unwrap(value)
	if err != nil {
		return fmt.Errorf("decode debezium event: %w", err)
	}
	if payload == nil {
		return nil
	}
	var env debeziumEnvelope
	if err := json.Unmarshal(payload, &env); err != nil {
		return fmt.Errorf("decode debezium event: %w", err)
	}
	c := Change{Commit: env.commit()}
	if env.Transaction != nil && env.Transaction.TotalOrder > 0 {
		c.Ordinal = uint32(env.Transaction.TotalOrder - 1)
	}
	switch env.Op {
	case "c":
		c.Op = Insert
	case "u", "r":
		c.Op = Update
	case "d":
		c.Op = Delete
	case "t":
		c.Op = Truncate
	case "m":
		if env.Message == nil {
			return fmt.Errorf("decode debezium event: op m without a message")
		}
		c.Op, c.Prefix, c.Content = Message, env.Message.Prefix, env.Message.Content
		r.Changes = append(r.Changes, c)
		return nil
	case "":
		if env.Before == nil && env.After == nil && (env.Millis != nil || env.Status != nil) {
			return nil
		}
		return fmt.Errorf("decode debezium event: no op; flattened events (ExtractNewRecordState) do not carry what an invalidation needs")
	default:
		return fmt.Errorf("decode debezium event: unknown op %q", env.Op)
	}
	if env.Source.Table == "" {
		return fmt.Errorf("decode debezium event: op %s without source.table", env.Op)
	}
	if env.Op == "r" {
		env.Before = nil
	}
	if err := d.rows(&c, &env, schema, key); err != nil {
		return fmt.Errorf("decode debezium event of %s.%s: %w", env.Source.Schema, env.Source.Table, err)
	}
	r.Changes = append(r.Changes, c)
	return nil
}

func (env *debeziumEnvelope) commit() *Commit {
	c := &Commit{}
	if env.Source.TxID != nil {
		c.XID = *env.Source.TxID
	}
	switch s := &env.Source; {
	case s.Nanos != nil:
		c.Time = time.Unix(0, *s.Nanos).UTC()
	case s.Micros != nil:
		c.Time = time.UnixMicro(*s.Micros).UTC()
	case s.Millis != nil:
		c.Time = time.UnixMilli(*s.Millis).UTC()
	}
	return c
}

// unwrap takes the payload out of {"schema": ..., "payload": ...}, if there is
// such a wrapper. A payload that is null, or nothing at all, is nil.
func (d *DebeziumDecoder) unwrap(value []byte) (payload []byte, schema *connectSchema, err error) {
	value = bytes.TrimSpace(value)
	if len(value) == 0 || string(value) == "null" {
		return nil, nil, nil
	}
	var w struct {
		Schema  json.RawMessage `json:"schema"`
		Payload json.RawMessage `json:"payload"`
	}
	if err := json.Unmarshal(value, &w); err != nil {
		return nil, nil, err
	}
	if w.Payload == nil {
		if w.Schema != nil { // a wrapped tombstone
			return nil, nil, nil
		}
		return value, nil, nil
	}
	if isNull(w.Payload) {
		return nil, nil, nil
	}
	if isNull(w.Schema) {
		return w.Payload, nil, nil
	}
	schema, ok := d.schemas[string(w.Schema)]
	if !ok {
		schema = new(connectSchema)
		if err := json.Unmarshal(w.Schema, schema); err != nil {
			return nil, nil, fmt.Errorf("schema: %w", err)
		}
		if d.schemas == nil || len(d.schemas) >= maxSchemas {
			d.schemas = make(map[string]*connectSchema)
		}
		d.schemas[string(w.Schema)] = schema
	}
	return w.Payload, schema, nil
}

func isNull(raw json.RawMessage) bool { return len(raw) == 0 || string(raw) == "null" }

// member is one column of an event's row, as it stands in the JSON.
type member struct {
	name string
	raw  json.RawMessage
}

// members reads an object without losing the order of its columns, which
// encoding/json's maps would.
func members(raw json.RawMessage) ([]member, error) {
	if isNull(raw) {
		return nil, nil
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	if t, err := dec.Token(); err != nil {
		return nil, err
	} else if t != json.Delim('{') {
		return nil, fmt.Errorf("row is %s, want an object", strconv.Quote(fmt.Sprint(t)))
	}
	var out []member
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return nil, err
		}
		m := member{name: name.(string)} // a name is always a string
		if err := dec.Decode(&m.raw); err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, nil
}

// rows fills in the table, the old row and the new row.
func (d *DebeziumDecoder) rows(c *Change, env *debeziumEnvelope, schema *connectSchema, key []byte) error {
	before, err := members(env.Before)
	if err != nil {
		return fmt.Errorf("before: %w", err)
	}
	after, err := members(env.After)
	if err != nil {
		return fmt.Errorf("after: %w", err)
	}
	switch {
	case c.Op == Truncate:
		before, after = nil, nil
	case c.Op == Delete && before == nil:
		return fmt.Errorf("a delete without before: the table has no replica identity")
	case c.Op != Delete && after == nil:
		return fmt.Errorf("op %s without after", env.Op)
	}
	keys, err := d.keyNames(key)
	if err != nil {
		return fmt.Errorf("key: %w", err)
	}
	columns, side := after, schema.field("after")
	if columns == nil {
		columns, side = before, schema.field("before")
	}
	partial := onlyKey(before, keys)
	identity := IdentityDefault
	if before != nil && !partial {
		identity = IdentityFull
	}
	c.Table = d.table(env, columns, side, keys, identity)
	if c.Old, err = row(c.Table, before, side); err != nil {
		return fmt.Errorf("before: %w", err)
	}
	if c.New, err = row(c.Table, after, side); err != nil {
		return fmt.Errorf("after: %w", err)
	}
	for i := range c.Old {
		if partial && !c.Table.Columns[i].Key {
			c.Old[i] = Value{}
		}
	}
	for i := range c.New {
		if c.New[i].Kind == Unchanged && c.Old != nil && c.Old[i].Kind != Absent && c.Old[i].Kind != Unchanged {
			c.New[i] = c.Old[i]
		}
	}
	return nil
}

// keyNames returns the names of the columns in the message's key.
func (d *DebeziumDecoder) keyNames(key []byte) ([]member, error) {
	if !bytes.HasPrefix(bytes.TrimSpace(key), []byte("{")) {
		return nil, nil // keyed by something that is no row, or not at all
	}
	payload, _, err := d.unwrap(key)
	if err != nil {
		return nil, err
	}
	return members(payload)
}

func has(ms []member, name string) bool {
	for i := range ms {
		if ms[i].name == name {
			return true
		}
	}
	return false
}

// onlyKey reports whether an old row holds nothing but the key: that is what
// Debezium writes where the log has no more, and it writes null for the rest,
// which here would be a lie.
func onlyKey(before, keys []member) bool {
	if len(keys) == 0 {
		return false
	}
	rest := false
	for _, m := range before {
		if !has(keys, m.name) {
			if !isNull(m.raw) {
				return false
			}
			rest = true
		}
	}
	return rest
}

// table finds or makes the Table of an event.
func (d *DebeziumDecoder) table(env *debeziumEnvelope, columns []member, side *connectSchema, keys []member, identity Identity) *Table {
	b := append(d.scratch[:0], byte(identity))
	b = appendString(appendString(b, env.Source.Schema), env.Source.Table)
	for _, m := range columns {
		b = appendString(b, m.name)
		oid := connectOID(side.field(m.name))
		b = append(b, byte(oid>>24), byte(oid>>16), byte(oid>>8), byte(oid))
		if has(keys, m.name) {
			b = append(b, 1)
		} else {
			b = append(b, 0)
		}
	}
	d.scratch = b
	if t, ok := d.tables[string(b)]; ok {
		return t
	}
	t := &Table{Schema: env.Source.Schema, Name: env.Source.Table, Identity: identity, Columns: make([]Column, len(columns))}
	for i, m := range columns {
		t.Columns[i] = Column{Name: m.name, Type: connectOID(side.field(m.name)), Key: has(keys, m.name)}
	}
	if d.tables == nil || len(d.tables) >= maxInterned {
		d.tables = make(map[string]*Table)
	}
	d.tables[string(b)] = t
	return t
}

// row renders a row's members in the order of the table's columns.
func row(t *Table, ms []member, side *connectSchema) (Row, error) {
	if ms == nil {
		return nil, nil
	}
	out := make(Row, len(t.Columns))
	for _, m := range ms {
		i := t.ColumnIndex(m.name)
		if i < 0 {
			continue // a column of one side only has no place in the other
		}
		v, err := connectValue(m.raw, side.field(m.name))
		if err != nil {
			return nil, fmt.Errorf("column %s: %w", m.name, err)
		}
		out[i] = v
	}
	return out, nil
}

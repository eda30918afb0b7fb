package warmer

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgtype"
)

// column is one column of a loader's result.
type column struct {
	name string
	oid  uint32
	// key is the name as JSON, with the colon.
	key []byte
}

func newColumn(name string, oid uint32) column {
	return column{name: name, oid: oid, key: append(appendString(nil, name), ':')}
}

// appendObject appends the row as one line of JSON. values are in Postgres's
// text form, nil for NULL.
func appendObject(dst []byte, types *pgtype.Map, columns []column, values [][]byte) ([]byte, error) {
	dst = append(dst, '{')
	for i, c := range columns {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, c.key...)
		var err error
		if dst, err = appendValue(dst, types, c.oid, values[i]); err != nil {
			return nil, fmt.Errorf("column %q: %w", c.name, err)
		}
	}
	return append(dst, '}'), nil
}

// appendValue appends one value in the form that DESIGN 10 gives its type.
func appendValue(dst []byte, types *pgtype.Map, oid uint32, text []byte) ([]byte, error) {
	if text == nil {
		return append(dst, "null"...), nil
	}
	switch oid {
	case pgtype.BoolOID:
		if len(text) == 1 && text[0] == 't' {
			return append(dst, "true"...), nil
		}
		return append(dst, "false"...), nil
	case pgtype.Int2OID, pgtype.Int4OID, pgtype.Int8OID, pgtype.OIDOID, pgtype.Float4OID, pgtype.Float8OID, pgtype.NumericOID:
		return appendNumber(dst, text), nil
	case pgtype.JSONOID, pgtype.JSONBOID:
		return appendJSON(dst, text)
	case pgtype.ByteaOID:
		return appendBytea(dst, text)
	case pgtype.TimestampOID, pgtype.TimestamptzOID:
		return appendString(dst, timestamp(string(text))), nil
	}
	if t, ok := types.TypeForOID(oid); ok {
		if array, ok := t.Codec.(*pgtype.ArrayCodec); ok {
			return appendArray(dst, types, array.ElementType.OID, text)
		}
	}
	return appendString(dst, string(text)), nil
}

// appendNumber appends a number as Postgres writes it, which is how JSON does;
// NaN and the infinities are no numbers there and become strings, as to_json
// makes them.
func appendNumber(dst, text []byte) []byte {
	last := text[len(text)-1]
	if last < '0' || last > '9' {
		return appendString(dst, string(text))
	}
	return append(dst, text...)
}

// appendJSON appends a json value on one line; json (not jsonb) may have been
// stored with line breaks.
func appendJSON(dst, text []byte) ([]byte, error) {
	buf := bytes.NewBuffer(dst)
	if err := json.Compact(buf, text); err != nil {
		return nil, fmt.Errorf("compact json: %w", err)
	}
	return buf.Bytes(), nil
}

func appendBytea(dst, text []byte) ([]byte, error) {
	digits, ok := bytes.CutPrefix(text, []byte(`\x`))
	if !ok {
		return nil, fmt.Errorf("bytea is not in hex: bytea_output was changed")
	}
	raw := make([]byte, hex.DecodedLen(len(digits)))
	if _, err := hex.Decode(raw, digits); err != nil {
		return nil, fmt.Errorf("decode bytea: %w", err)
	}
	dst = append(dst, '"')
	dst = base64.StdEncoding.AppendEncode(dst, raw)
	return append(dst, '"'), nil
}

// timestamp turns Postgres's ISO form in UTC into RFC 3339. A timestamp without
// time zone counts as UTC, as it does in a name. What RFC 3339 can not say
// (infinity, years before Christ) stays as it is.
func timestamp(s string) string {
	date, clock, ok := strings.Cut(s, " ")
	if !ok || strings.HasSuffix(clock, "BC") {
		return s
	}
	return date + "T" + strings.TrimSuffix(clock, "+00") + "Z"
}

// appendString appends s as a JSON string. <, > and & stay as they are: the
// value is read by any program, not only inside HTML.
func appendString(dst []byte, s string) []byte {
	const digits = "0123456789abcdef"
	dst = append(dst, '"')
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '"' || c == '\\':
			dst = append(dst, '\\', c)
		case c == '\n':
			dst = append(dst, '\\', 'n')
		case c == '\r':
			dst = append(dst, '\\', 'r')
		case c == '\t':
			dst = append(dst, '\\', 't')
		case c < ' ':
			dst = append(dst, '\\', 'u', '0', '0', digits[c>>4], digits[c&15])
		case c < utf8.RuneSelf:
			dst = append(dst, c)
		default:
			r, size := utf8.DecodeRuneInString(s[i:])
			switch {
			case r == utf8.RuneError && size == 1:
				dst = append(dst, `\ufffd`...)
			case r == '\u2028' || r == '\u2029': // line breaks to some readers
				dst = append(dst, '\\', 'u', '2', '0', '2', digits[r&15])
			default:
				dst = append(dst, s[i:i+size]...)
			}
			i += size
			continue
		}
		i++
	}
	return append(dst, '"')
}

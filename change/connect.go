package change

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"
	"time"
)

// unavailable is what Debezium writes for a TOASTed value that the log does
// not repeat (the default of unavailable.value.placeholder).
const unavailable = "__debezium_unavailable_value"

// connectOID is the Postgres type that a schema stands for, 0 without one.
func connectOID(s *connectSchema) uint32 {
	if s == nil {
		return 0
	}
	switch s.Name {
	case "org.apache.kafka.connect.data.Decimal", "io.debezium.data.VariableScaleDecimal":
		return 1700
	case "io.debezium.time.Date", "org.apache.kafka.connect.data.Date":
		return 1082
	case "io.debezium.time.Timestamp", "io.debezium.time.MicroTimestamp", "io.debezium.time.NanoTimestamp", "org.apache.kafka.connect.data.Timestamp":
		return 1114
	case "io.debezium.time.Time", "io.debezium.time.MicroTime", "io.debezium.time.NanoTime", "org.apache.kafka.connect.data.Time":
		return 1083
	case "io.debezium.time.ZonedTimestamp":
		return 1184
	case "io.debezium.time.ZonedTime":
		return 1266
	case "io.debezium.data.Uuid":
		return 2950
	case "io.debezium.data.Json":
		return 114
	case "io.debezium.data.Bits":
		return 1562
	}
	switch s.Type {
	case "boolean":
		return 16
	case "bytes":
		return 17
	case "int64":
		return 20
	case "int8", "int16":
		return 21
	case "int32":
		return 23
	case "string":
		return 25
	case "float", "float32":
		return 700
	case "double", "float64":
		return 701
	}
	return 0
}

// connectValue renders a JSON value as Postgres's text, by its schema if there
// is one.
func connectValue(raw json.RawMessage, s *connectSchema) (Value, error) {
	if isNull(raw) {
		return Value{Kind: Null}, nil
	}
	if isUnavailable(raw) {
		return Value{Kind: Unchanged}, nil
	}
	var text string
	var err error
	switch {
	case s == nil:
		text, err = plainText(raw)
	case s.Type == "array":
		text, err = arrayText(raw, s.Items)
	case s.Name != "":
		text, err = namedText(raw, s)
	default:
		text, err = typedText(raw, s.Type)
	}
	if err != nil {
		return Value{}, err
	}
	return Value{Kind: Text, Bytes: []byte(text)}, nil
}

// isUnavailable knows the placeholder as a string, as bytes (base64), and
// inside an array or a map of one element.
func isUnavailable(raw json.RawMessage) bool {
	const quoted = `"` + unavailable + `"`
	switch s := string(raw); s {
	case quoted, `"` + base64.StdEncoding.EncodeToString([]byte(unavailable)) + `"`:
		return true
	default:
		return s[0] == '[' && strings.TrimSpace(strings.Trim(s, "[]")) == quoted ||
			s[0] == '{' && strings.HasPrefix(strings.TrimSpace(s[1:]), quoted)
	}
}

func unquote(raw json.RawMessage) (string, error) {
	var s string
	if err := json.Unmarshal(raw, &s); err != nil {
		return "", fmt.Errorf("%.40s is not a string", raw)
	}
	return s, nil
}

func integer(raw json.RawMessage) (int64, error) {
	n, err := strconv.ParseInt(string(raw), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%.40s is not an integer", raw)
	}
	return n, nil
}

func base64Bytes(raw json.RawMessage) ([]byte, error) {
	var b []byte
	if err := json.Unmarshal(raw, &b); err != nil {
		return nil, fmt.Errorf("%.40s is not base64", raw)
	}
	return b, nil
}

// plainText renders what JSON shows when nothing more is known.
func plainText(raw json.RawMessage) (string, error) {
	switch raw[0] {
	case '"':
		return unquote(raw)
	case 't':
		return "t", nil
	case 'f':
		return "f", nil
	case '{':
		return compact(raw)
	case '[':
		return arrayText(raw, nil)
	}
	if bytes.ContainsAny(raw, ".eE") {
		return floatText(raw, 64)
	}
	return string(raw), nil
}

func compact(raw json.RawMessage) (string, error) {
	var b bytes.Buffer
	err := json.Compact(&b, raw)
	return b.String(), err
}

func typedText(raw json.RawMessage, typ string) (string, error) {
	switch typ {
	case "float", "float32":
		return floatText(raw, 32)
	case "double", "float64":
		return floatText(raw, 64)
	case "bytes":
		b, err := base64Bytes(raw)
		return fmt.Sprintf(`\x%x`, b), err
	case "int8", "int16", "int32", "int64":
		n, err := integer(raw)
		return strconv.FormatInt(n, 10), err
	}
	return plainText(raw)
}

// floatText prints as Postgres does since version 12: the shortest digits that
// read back to the same number, with an exponent below 1e-4 and from 1e+15
// (1e+06 for four bytes).
func floatText(raw json.RawMessage, bits int) (string, error) {
	if raw[0] == '"' { // "NaN", "Infinity": not numbers to JSON
		return unquote(raw)
	}
	f, err := strconv.ParseFloat(string(raw), bits)
	if err != nil {
		return "", fmt.Errorf("%.40s is not a number", raw)
	}
	most := 15
	if bits == 32 {
		most = 6
	}
	sci := strconv.FormatFloat(f, 'e', -1, bits)
	exp, err := strconv.Atoi(sci[strings.IndexByte(sci, 'e')+1:])
	if err != nil || f != 0 && (exp < -4 || exp >= most) {
		return sci, nil
	}
	return strconv.FormatFloat(f, 'f', -1, bits), nil
}

// namedText renders the types that Debezium and Connect lay over JSON's.
func namedText(raw json.RawMessage, s *connectSchema) (string, error) {
	switch s.Name {
	case "org.apache.kafka.connect.data.Decimal":
		if raw[0] != '"' {
			return string(raw), nil // decimal.format=NUMERIC
		}
		scale, err := strconv.Atoi(s.Parameters["scale"])
		if err != nil {
			return "", fmt.Errorf("decimal with the scale %q", s.Parameters["scale"])
		}
		b, err := base64Bytes(raw)
		if err != nil {
			return "", err
		}
		return decimalText(b, scale)
	case "io.debezium.data.VariableScaleDecimal":
		var v struct {
			Scale int    `json:"scale"`
			Value []byte `json:"value"`
		}
		if err := json.Unmarshal(raw, &v); err != nil {
			return "", err
		}
		return decimalText(v.Value, v.Scale)
	case "io.debezium.time.Date", "org.apache.kafka.connect.data.Date":
		n, err := integer(raw)
		if err != nil || n < -math.MaxInt64/86400 || n > math.MaxInt64/86400 {
			return "", fmt.Errorf("%.40s is not a date", raw)
		}
		return dated(time.Unix(n*86400, 0), "", ""), nil
	case "io.debezium.time.Timestamp", "org.apache.kafka.connect.data.Timestamp":
		return stamp(raw, time.UnixMilli)
	case "io.debezium.time.MicroTimestamp":
		return stamp(raw, time.UnixMicro)
	case "io.debezium.time.NanoTimestamp":
		return stamp(raw, func(n int64) time.Time { return time.Unix(0, n) })
	case "io.debezium.time.Time", "org.apache.kafka.connect.data.Time":
		return clock(raw, 1000)
	case "io.debezium.time.MicroTime":
		return clock(raw, 1)
	case "io.debezium.time.NanoTime":
		return clock(raw, -1000)
	case "io.debezium.time.ZonedTimestamp":
		text, err := unquote(raw)
		if t, e := time.Parse(time.RFC3339Nano, text); err == nil && e == nil {
			return dated(t, " 15:04:05.999999", "+00"), nil
		}
		return text, err // "infinity"
	case "io.debezium.time.ZonedTime":
		text, err := unquote(raw)
		if t, e := time.Parse("15:04:05.999999999Z07:00", text); err == nil && e == nil {
			return t.UTC().Format("15:04:05.999999") + "+00", nil
		}
		return text, err
	case "io.debezium.data.Bits":
		b, err := base64Bytes(raw)
		if err != nil {
			return "", err
		}
		return bitText(b, s.Parameters["length"]), nil
	}
	return typedText(raw, s.Type)
}

// maxScale bounds the zeros that a damaged scale can ask for; Postgres's own
// bound is 16383 digits behind the point.
const maxScale = 16383

// decimalText renders unscaled * 10^-scale; unscaled is a big-endian two's
// complement number, as Java's BigInteger writes it.
func decimalText(unscaled []byte, scale int) (string, error) {
	if scale > maxScale || scale < -maxScale {
		return "", fmt.Errorf("decimal with the scale %d", scale)
	}
	n := new(big.Int).SetBytes(unscaled)
	if len(unscaled) > 0 && unscaled[0]&0x80 != 0 {
		n.Sub(n, new(big.Int).Lsh(big.NewInt(1), uint(8*len(unscaled))))
	}
	sign := ""
	if n.Sign() < 0 {
		sign = "-"
		n.Neg(n)
	}
	digits := n.String()
	if scale <= 0 {
		if n.Sign() != 0 {
			digits += strings.Repeat("0", -scale)
		}
		return sign + digits, nil
	}
	if len(digits) <= scale {
		digits = strings.Repeat("0", scale-len(digits)+1) + digits
	}
	at := len(digits) - scale
	return sign + digits[:at] + "." + digits[at:], nil
}

// Debezium's numbers for Postgres's infinite timestamps.
const (
	positiveInfinity = 9223372036825200000
	negativeInfinity = -9223372036832400000
)

func stamp(raw json.RawMessage, unit func(int64) time.Time) (string, error) {
	n, err := integer(raw)
	switch {
	case err != nil:
		return "", err
	case n == positiveInfinity:
		return "infinity", nil
	case n == negativeInfinity:
		return "-infinity", nil
	}
	return dated(unit(n), " 15:04:05.999999", ""), nil
}

// dated prints a date and what layout adds, in UTC, with the year as Postgres
// counts: there is no year 0, 1 BC stands before 1 AD.
func dated(t time.Time, layout, zone string) string {
	t = t.UTC()
	year, era := t.Year(), ""
	if year <= 0 {
		year, era = 1-year, " BC"
	}
	return fmt.Sprintf("%04d-%02d-%02d", year, t.Month(), t.Day()) + t.Format(layout) + zone + era
}

// clock prints a time of day. perMicro is the microseconds in a unit, or minus
// the units in a microsecond. 24:00:00 is a time to Postgres, so this counts
// and does not go through time.Time.
func clock(raw json.RawMessage, perMicro int64) (string, error) {
	n, err := integer(raw)
	if err != nil {
		return "", err
	}
	if perMicro < 0 {
		n /= -perMicro
	} else if n > math.MaxInt64/perMicro {
		return "", fmt.Errorf("%.40s is not a time of day", raw)
	} else {
		n *= perMicro
	}
	if n < 0 || n > 24*3600*1e6 {
		return "", fmt.Errorf("%.40s is not a time of day", raw)
	}
	text := fmt.Sprintf("%02d:%02d:%02d", n/3600e6, n/60e6%60, n/1e6%60)
	if frac := n % 1e6; frac != 0 {
		text += strings.TrimRight(fmt.Sprintf(".%06d", frac), "0")
	}
	return text, nil
}

// bitText prints bits, which arrive least significant byte first.
func bitText(b []byte, length string) string {
	n, err := strconv.Atoi(length)
	if err != nil || n < 0 || n > 8*len(b) {
		n = 8 * len(b)
	}
	out := make([]byte, n)
	for i := range out {
		bit := n - 1 - i
		out[i] = '0' + b[bit/8]>>(bit%8)&1
	}
	return string(out)
}

// arrayText prints an array as Postgres does, quoting what needs it.
func arrayText(raw json.RawMessage, items *connectSchema) (string, error) {
	var elements []json.RawMessage
	if err := json.Unmarshal(raw, &elements); err != nil {
		return "", fmt.Errorf("%.40s is not an array", raw)
	}
	var b strings.Builder
	b.WriteByte('{')
	for i, e := range elements {
		if i > 0 {
			b.WriteByte(',')
		}
		v, err := connectValue(e, items)
		switch {
		case err != nil:
			return "", err
		case v.Kind != Text:
			b.WriteString("NULL")
		case e[0] == '[':
			b.Write(v.Bytes)
		default:
			quoteElement(&b, string(v.Bytes))
		}
	}
	b.WriteByte('}')
	return b.String(), nil
}

func quoteElement(b *strings.Builder, s string) {
	if s != "" && !strings.EqualFold(s, "null") && !strings.ContainsAny(s, "{},\"\\ \t\n\r\v\f") {
		b.WriteString(s)
		return
	}
	b.WriteByte('"')
	for i := range len(s) {
		if s[i] == '"' || s[i] == '\\' {
			b.WriteByte('\\')
		}
		b.WriteByte(s[i])
	}
	b.WriteByte('"')
}

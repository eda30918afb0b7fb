package keytext

import (
	"database/sql/driver"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/big"
	"net/netip"
	"reflect"
	"strconv"
	"time"
)

// Date is the value of a column of type date. A bare time.Time stands for
// timestamptz, so the other two time types have names of their own.
type Date time.Time

// Timestamp is the value of a column of type timestamp (without time zone): its
// date and clock are taken as they stand, in whatever location.
type Timestamp time.Time

// AppendValue appends the text that Postgres prints for a value, in UTC and ISO
// style, unescaped. null is true for nil and for nil pointers.
//
//	bool                      t, f
//	integers, *big.Int        decimal
//	float32, float64          as real and double precision print them
//	string and its kin        as it is (text, enum, uuid in lower case, numeric)
//	json.Number               as it is
//	[16]byte                  uuid
//	[]byte                    bytea: \x and hexadecimal
//	time.Time                 timestamptz, in UTC, microseconds
//	Timestamp, Date           timestamp, date
//	netip.Addr, netip.Prefix  inet
//	slices and arrays         {a,"b c",NULL}
//	driver.Valuer             what it returns, unless that is a time
//
// Anything else is an error: a name that differs from the worker's by a byte
// would never be invalidated.
func AppendValue(dst []byte, v any) (out []byte, null bool, err error) {
	switch v := v.(type) {
	case nil:
		return dst, true, nil
	case string:
		return append(dst, v...), false, nil
	case bool:
		return appendBool(dst, v), false, nil
	case int:
		return strconv.AppendInt(dst, int64(v), 10), false, nil
	case int64:
		return strconv.AppendInt(dst, v, 10), false, nil
	case float64:
		return appendFloat(dst, v, 64), false, nil
	case float32:
		return appendFloat(dst, float64(v), 32), false, nil
	case time.Time:
		return appendTimestamp(dst, v.UTC(), "+00"), false, nil
	case Timestamp:
		return appendTimestamp(dst, time.Time(v), ""), false, nil
	case Date:
		return appendDate(dst, time.Time(v)), false, nil
	case []byte:
		if v == nil {
			return dst, true, nil
		}
		return hex.AppendEncode(append(dst, `\x`...), v), false, nil
	case [16]byte:
		return appendUUID(dst, v), false, nil
	case json.Number:
		return append(dst, v...), false, nil
	case *big.Int:
		if v == nil {
			return dst, true, nil
		}
		return v.Append(dst, 10), false, nil
	case netip.Addr:
		return v.AppendTo(dst), false, nil
	case netip.Prefix:
		if v.IsSingleIP() {
			return v.Addr().AppendTo(dst), false, nil
		}
		return v.AppendTo(dst), false, nil
	}
	return appendReflect(dst, v)
}

var errTime = errors.New("a time inside a driver.Valuer may be a date, a timestamp or a timestamptz: pass time.Time, Timestamp or Date")

func appendReflect(dst []byte, v any) ([]byte, bool, error) {
	rv := reflect.ValueOf(v)
	if rv.Kind() == reflect.Pointer {
		if rv.IsNil() {
			return dst, true, nil
		}
		if _, ok := v.(driver.Valuer); !ok {
			return AppendValue(dst, rv.Elem().Interface())
		}
	}
	if valuer, ok := v.(driver.Valuer); ok {
		inner, err := valuer.Value()
		if err != nil {
			return dst, false, err
		}
		if _, ok := inner.(time.Time); ok {
			return dst, false, errTime
		}
		return AppendValue(dst, inner)
	}
	switch rv.Kind() {
	case reflect.String:
		return append(dst, rv.String()...), false, nil
	case reflect.Bool:
		return appendBool(dst, rv.Bool()), false, nil
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		if _, ok := v.(time.Duration); ok {
			return dst, false, errors.New("time.Duration: pass the interval as text, as Postgres prints it")
		}
		return strconv.AppendInt(dst, rv.Int(), 10), false, nil
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return strconv.AppendUint(dst, rv.Uint(), 10), false, nil
	case reflect.Float32, reflect.Float64:
		return appendFloat(dst, rv.Float(), rv.Type().Bits()), false, nil
	case reflect.Array:
		if rv.Len() == 16 && rv.Type().Elem().Kind() == reflect.Uint8 { // uuid.UUID and the like
			var u [16]byte
			reflect.Copy(reflect.ValueOf(u[:]), rv)
			return appendUUID(dst, u), false, nil
		}
		return appendArray(dst, rv)
	case reflect.Slice:
		if rv.IsNil() {
			return dst, true, nil
		}
		if rv.Type().Elem().Kind() == reflect.Uint8 {
			return hex.AppendEncode(append(dst, `\x`...), rv.Bytes()), false, nil
		}
		return appendArray(dst, rv)
	}
	return dst, false, fmt.Errorf("no Postgres text for a %T", v)
}

func appendBool(dst []byte, b bool) []byte {
	if b {
		return append(dst, 't')
	}
	return append(dst, 'f')
}

// appendFloat prints the shortest text that reads back the same, in plain
// notation while the decimal exponent is from -4 to 14 (real: to 5).
func appendFloat(dst []byte, f float64, bits int) []byte {
	switch {
	case math.IsNaN(f):
		return append(dst, "NaN"...)
	case math.IsInf(f, 1):
		return append(dst, "Infinity"...)
	case math.IsInf(f, -1):
		return append(dst, "-Infinity"...)
	case f == 0:
		if math.Signbit(f) {
			return append(dst, "-0"...)
		}
		return append(dst, '0')
	}
	limit := 15
	if bits == 32 {
		limit = 6
	}
	var scratch [32]byte
	e := strconv.AppendFloat(scratch[:0], f, 'e', -1, bits)
	at := len(e) - 1
	for e[at] != 'e' {
		at--
	}
	exp, _ := strconv.Atoi(string(e[at+1:]))
	if exp >= -4 && exp < limit {
		return strconv.AppendFloat(dst, f, 'f', -1, bits)
	}
	return append(dst, e...)
}

func appendDate(dst []byte, t time.Time) []byte {
	year, month, day := t.Date()
	dst, bc := appendYear(dst, year)
	dst = append(dst, '-')
	dst = appendTwo(dst, int(month))
	dst = append(dst, '-')
	dst = appendTwo(dst, day)
	if bc {
		dst = append(dst, " BC"...)
	}
	return dst
}

// appendTimestamp puts the era, if it is before Christ, behind the zone.
func appendTimestamp(dst []byte, t time.Time, zone string) []byte {
	year, month, day := t.Date()
	dst, bc := appendYear(dst, year)
	dst = append(dst, '-')
	dst = appendTwo(dst, int(month))
	dst = append(dst, '-')
	dst = appendTwo(dst, day)
	dst = append(dst, ' ')
	dst = appendTwo(dst, t.Hour())
	dst = append(dst, ':')
	dst = appendTwo(dst, t.Minute())
	dst = append(dst, ':')
	dst = appendTwo(dst, t.Second())
	if us := t.Nanosecond() / 1000; us > 0 {
		digits := 6
		for us%10 == 0 {
			us /= 10
			digits--
		}
		dst = append(dst, '.')
		s := strconv.Itoa(us)
		for range digits - len(s) {
			dst = append(dst, '0')
		}
		dst = append(dst, s...)
	}
	dst = append(dst, zone...)
	if bc {
		dst = append(dst, " BC"...)
	}
	return dst
}

func appendYear(dst []byte, year int) (out []byte, bc bool) {
	if year <= 0 {
		year, bc = 1-year, true
	}
	s := strconv.Itoa(year)
	for range 4 - len(s) {
		dst = append(dst, '0')
	}
	return append(dst, s...), bc
}

func appendTwo(dst []byte, n int) []byte { return append(dst, byte('0'+n/10), byte('0'+n%10)) }

func appendUUID(dst []byte, u [16]byte) []byte {
	for i, b := range u {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			dst = append(dst, '-')
		}
		dst = hex.AppendEncode(dst, []byte{b})
	}
	return dst
}

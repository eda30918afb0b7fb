package keytext

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

// Filter changes the text of a value on its way into a name.
type Filter byte

// The filters of this version.
const (
	// Lower and Upper fold ASCII letters only, so that every language that
	// builds the same name gets the same bytes.
	Lower Filter = iota + 1
	Upper
	// URLEncode escapes every byte but A-Z a-z 0-9 - . _ ~ as %XX.
	URLEncode
	// Hash is the first 16 hexadecimal digits, in lower case, of the SHA-256 of
	// the text in UTF-8: a short name for a long value, that every language can
	// build.
	Hash
	// DateDay, DateMonth, DateYear and DateHour cut a date or timestamp, in UTC,
	// down to 2026-11-21, 2026-11, 2026 and 2026-11-21T09. A text that is no
	// date of the years 1 to 9999 (infinity, the years before Christ) has none.
	DateDay
	DateMonth
	DateYear
	DateHour
)

var filterNames = [...]string{Lower: "lower", Upper: "upper", URLEncode: "urlencode", Hash: "hash",
	DateDay: "date", DateMonth: "date:month", DateYear: "date:year", DateHour: "date:hour"}

func parseFilter(name string) (Filter, *SyntaxError) {
	for f, n := range filterNames {
		if n != "" && n == name {
			return Filter(f), nil
		}
	}
	if strings.HasPrefix(name, "date:") || strings.HasPrefix(name, "date(") {
		return 0, &SyntaxError{Message: fmt.Sprintf("unknown filter %q (there are date, date:month, date:year and date:hour)", name)}
	}
	return 0, &SyntaxError{Message: fmt.Sprintf("unknown filter %q (there are lower, upper, urlencode, hash and date)", name)}
}

// String names the filter as templates do.
func (f Filter) String() string {
	if f == 0 || int(f) >= len(filterNames) {
		return "unknown"
	}
	return filterNames[f]
}

// IsDate reports whether the filter takes dates only.
func (f Filter) IsDate() bool { return f >= DateDay && f <= DateHour }

// ApplyFilters rewrites buf[start:] by each filter in turn. ok is false if one
// of them can not take the text: there is no saying then what the name is.
func ApplyFilters(buf []byte, start int, filters []Filter) (out []byte, ok bool) {
	for _, f := range filters {
		v := buf[start:]
		switch f {
		case Lower:
			for i, c := range v {
				if 'A' <= c && c <= 'Z' {
					v[i] = c + 'a' - 'A'
				}
			}
		case Upper:
			for i, c := range v {
				if 'a' <= c && c <= 'z' {
					v[i] = c - 'a' + 'A'
				}
			}
		case URLEncode:
			buf = urlEncode(buf, start)
		case Hash:
			sum := sha256.Sum256(v)
			buf = hex.AppendEncode(buf[:start], sum[:hashBytes])
		case DateDay, DateMonth, DateYear, DateHour:
			t, ok := parseDate(v)
			if !ok {
				return buf, false
			}
			buf = t.append(buf[:start], f)
		}
	}
	return buf, true
}

// hashBytes is half the digits of Hash: 64 bits, so that among a million
// values two meet with a probability of one in 37 million.
const hashBytes = 8

func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
		c == '-' || c == '.' || c == '_' || c == '~'
}

func urlEncode(buf []byte, start int) []byte {
	const digits = "0123456789ABCDEF"
	if bytes.IndexFunc(buf[start:], func(r rune) bool { return r >= 0x80 || !unreserved(byte(r)) }) < 0 {
		return buf
	}
	in := bytes.Clone(buf[start:])
	buf = buf[:start]
	for _, c := range in {
		if unreserved(c) {
			buf = append(buf, c)
		} else {
			buf = append(buf, '%', digits[c>>4], digits[c&15])
		}
	}
	return buf
}

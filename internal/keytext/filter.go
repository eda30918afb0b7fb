package keytext

import (
	"bytes"
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
)

func parseFilter(name string) (Filter, *SyntaxError) {
	switch name {
	case "lower":
		return Lower, nil
	case "upper":
		return Upper, nil
	case "urlencode":
		return URLEncode, nil
	case "hash", "date":
		return 0, &SyntaxError{Unsupported: true, Message: fmt.Sprintf("filter %q is not supported by this version", name)}
	}
	if strings.HasPrefix(name, "date(") || strings.HasPrefix(name, "date:") {
		return 0, &SyntaxError{Unsupported: true, Message: `filter "date" is not supported by this version`}
	}
	return 0, &SyntaxError{Message: fmt.Sprintf("unknown filter %q (this version has lower, upper and urlencode)", name)}
}

// String names the filter as templates do.
func (f Filter) String() string {
	switch f {
	case Lower:
		return "lower"
	case Upper:
		return "upper"
	case URLEncode:
		return "urlencode"
	}
	return "unknown"
}

// ApplyFilters rewrites buf[start:] by each filter in turn.
func ApplyFilters(buf []byte, start int, filters []Filter) []byte {
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
		}
	}
	return buf
}

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

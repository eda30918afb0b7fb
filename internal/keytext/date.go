package keytext

import (
	"bytes"
	"time"
)

// moment is a date and an hour in UTC.
type moment struct{ year, month, day, hour int }

func (m moment) append(dst []byte, f Filter) []byte {
	dst, _ = appendYear(dst, m.year)
	if f == DateYear {
		return dst
	}
	dst = appendTwo(append(dst, '-'), m.month)
	if f == DateMonth {
		return dst
	}
	dst = appendTwo(append(dst, '-'), m.day)
	if f == DateHour {
		dst = appendTwo(append(dst, 'T'), m.hour)
	}
	return dst
}

// parseDate reads what Postgres prints for date, timestamp and timestamptz,
// and RFC 3339, which is how JSON has times: YYYY-MM-DD, then perhaps a space
// or T and HH:MM[:SS[.ffffff]], then perhaps a zone: Z or +HH[[:]MM[:SS]].
// Without a zone the clock is taken as it stands.
//
// Anything else is refused: other years, because their text has other lengths
// and an era behind it, and dates that there are not.
func parseDate(s []byte) (m moment, ok bool) {
	if m.year, s, ok = number(s, 4); !ok || m.year == 0 {
		return m, false
	}
	if m.month, s, ok = numberBehind(s, '-'); !ok {
		return m, false
	}
	if m.day, s, ok = numberBehind(s, '-'); !ok {
		return m, false
	}
	if m.month < 1 || m.month > 12 || m.day < 1 || m.day > daysIn(m.year, m.month) {
		return m, false
	}
	if len(s) == 0 {
		return m, true
	}
	if s[0] != ' ' && s[0] != 'T' {
		return m, false
	}
	var minute, second int
	if m.hour, s, ok = number(s[1:], 2); !ok || m.hour > 23 {
		return m, false
	}
	if minute, s, ok = numberBehind(s, ':'); !ok || minute > 59 {
		return m, false
	}
	if len(s) > 0 && s[0] == ':' {
		if second, s, ok = number(s[1:], 2); !ok || second > 59 {
			return m, false
		}
		if len(s) > 0 && s[0] == '.' {
			digits := s[1:]
			s = bytes.TrimLeft(digits, "0123456789")
			if len(s) == len(digits) {
				return m, false
			}
		}
	}
	offset, ok := parseZone(s)
	if !ok || offset == 0 {
		return m, ok
	}
	t := time.Date(m.year, time.Month(m.month), m.day, m.hour, minute, second-offset, 0, time.UTC)
	m = moment{t.Year(), int(t.Month()), t.Day(), t.Hour()}
	return m, m.year >= 1 && m.year <= 9999
}

// parseZone returns the seconds east of Greenwich.
func parseZone(s []byte) (offset int, ok bool) {
	if len(s) == 0 || len(s) == 1 && s[0] == 'Z' {
		return 0, true
	}
	sign := s[0]
	if sign != '+' && sign != '-' {
		return 0, false
	}
	s = s[1:]
	for unit := 3600; unit >= 1; unit /= 60 {
		var n int
		if n, s, ok = number(s, 2); !ok || n > 59 {
			return 0, false
		}
		offset += n * unit
		if len(s) == 0 {
			break
		}
		if s[0] == ':' && unit > 1 {
			s = s[1:]
		}
	}
	if sign == '-' {
		offset = -offset
	}
	return offset, len(s) == 0
}

// number takes so many digits.
func number(s []byte, digits int) (n int, rest []byte, ok bool) {
	if len(s) < digits {
		return 0, s, false
	}
	for _, c := range s[:digits] {
		if c < '0' || c > '9' {
			return 0, s, false
		}
		n = 10*n + int(c-'0')
	}
	return n, s[digits:], true
}

// numberBehind takes a separator and two digits.
func numberBehind(s []byte, separator byte) (n int, rest []byte, ok bool) {
	if len(s) == 0 || s[0] != separator {
		return 0, s, false
	}
	return number(s[1:], 2)
}

func daysIn(year, month int) int {
	return time.Date(year, time.Month(month)+1, 0, 0, 0, 0, 0, time.UTC).Day()
}

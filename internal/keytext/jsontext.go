package keytext

import "bytes"

// What follows walks over JSON without building anything: a value is where its
// text begins and ends.

const jsonSpace = " \t\n\r"

func skipSpace(s []byte, i int) int {
	for i < len(s) && (s[i] == ' ' || s[i] == '\t' || s[i] == '\n' || s[i] == '\r') {
		i++
	}
	return i
}

// skipString goes behind the string that begins at s[i].
func skipString(s []byte, i int) (end int, ok bool) {
	for i++; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '"':
			return i + 1, true
		}
	}
	return 0, false
}

// skipValue goes behind the value that begins at s[i].
func skipValue(s []byte, i int) (end int, ok bool) {
	if i >= len(s) {
		return 0, false
	}
	if s[i] == '"' {
		return skipString(s, i)
	}
	if s[i] != '{' && s[i] != '[' {
		n := bytes.IndexAny(s[i:], ",]}:\""+jsonSpace)
		if n < 0 {
			return len(s), true
		}
		return i + n, n > 0
	}
	for depth := 0; i < len(s); i++ {
		switch s[i] {
		case '"':
			if end, ok = skipString(s, i); !ok {
				return 0, false
			}
			i = end - 1
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 0 {
				return i + 1, true
			}
		}
	}
	return 0, false
}

// eachMember calls f for the members of an object: the name is what stands
// between its quotes. It returns false if s is no object.
func eachMember(s []byte, f func(name, value []byte)) bool {
	return eachItem(s, '{', '}', func(i int) (end int, more, ok bool) {
		if i >= len(s) || s[i] != '"' {
			return 0, false, false
		}
		after, ok := skipString(s, i)
		if !ok {
			return 0, false, false
		}
		colon := skipSpace(s, after)
		if colon >= len(s) || s[colon] != ':' {
			return 0, false, false
		}
		begin := skipSpace(s, colon+1)
		if end, ok = skipValue(s, begin); ok {
			f(s[i+1:after-1], s[begin:end])
		}
		return end, true, ok
	})
}

// eachElement calls f for the elements of an array until it returns false. It
// returns false if s is no array.
func eachElement(s []byte, f func(value []byte) bool) bool {
	return eachItem(s, '[', ']', func(i int) (end int, more, ok bool) {
		if end, ok = skipValue(s, i); ok {
			more = f(s[i:end])
		}
		return end, more, ok
	})
}

// eachItem goes over what stands between two brackets, with commas between.
func eachItem(s []byte, open, closing byte, item func(i int) (end int, more, ok bool)) bool {
	i := skipSpace(s, 0)
	if i >= len(s) || s[i] != open {
		return false
	}
	i = skipSpace(s, i+1)
	if i < len(s) && s[i] == closing {
		return skipSpace(s, i+1) == len(s)
	}
	for {
		end, more, ok := item(i)
		if !ok || !more {
			return ok
		}
		i = skipSpace(s, end)
		if i >= len(s) {
			return false
		}
		if s[i] == closing {
			return skipSpace(s, i+1) == len(s)
		}
		if s[i] != ',' {
			return false
		}
		i = skipSpace(s, i+1)
	}
}

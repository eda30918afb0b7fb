package keytext

import (
	"bytes"
	"strings"
)

// arrayBody takes the bounds off an array: [0:2]={a,b,c}. ok is false if the
// text does not have the form of one.
func arrayBody(s []byte) (body []byte, ok bool) {
	if len(s) > 0 && s[0] == '[' {
		at := bytes.Index(s, []byte("]={"))
		if at < 0 || len(bytes.Trim(s[:at+1], "0123456789[]:+-")) > 0 {
			return nil, false
		}
		s = s[at+2:]
	}
	if len(s) < 2 || s[0] != '{' || s[len(s)-1] != '}' {
		return nil, false
	}
	return s, true
}

// eachArrayElement calls f for the elements of an array in the text form of
// array_out until it returns false. It returns false if the text is not one.
func eachArrayElement(s []byte, elem nodeKind, f func(Node) bool) bool {
	s, ok := arrayBody(s)
	if !ok {
		return false
	}
	if i := skipSpace(s, 1); i == len(s)-1 {
		return true
	}
	for i := 1; ; i++ {
		var n Node
		if n, i, ok = arrayElement(s, skipSpace(s, i), elem); !ok {
			return false
		}
		if i = skipSpace(s, i); i >= len(s) || s[i] != ',' && s[i] != '}' {
			return false
		}
		if last := s[i] == '}'; !f(n) || last {
			return !last || i == len(s)-1
		}
	}
}

// arrayElement reads the element at s[i] and goes behind it.
func arrayElement(s []byte, i int, elem nodeKind) (n Node, end int, ok bool) {
	if i >= len(s) {
		return Node{}, 0, false
	}
	switch s[i] {
	case '"':
		if end, ok = skipString(s, i); !ok {
			return Node{}, 0, false
		}
		text := s[i+1 : end-1]
		if bytes.IndexByte(text, '\\') >= 0 {
			plain := make([]byte, 0, len(text))
			for k := 0; k < len(text); k++ {
				if text[k] == '\\' {
					k++
				}
				plain = append(plain, text[k])
			}
			text = plain
		}
		return Node{kind: elem, text: text}, end, true
	case '{':
		end, ok = skipArray(s, i)
		if !ok {
			return Node{}, 0, false
		}
		return Node{kind: nodeArray, elem: elem, text: s[i:end]}, end, true
	}
	size := bytes.IndexAny(s[i:], ",{}\"\\")
	if size < 0 {
		return Node{}, 0, false
	}
	text := bytes.TrimRight(s[i:i+size], jsonSpace)
	switch {
	case len(text) == 0:
		return Node{}, 0, false
	case len(text) == 4 && strings.EqualFold(string(text), "null"):
		return Node{}, i + size, true
	}
	return Node{kind: elem, text: text}, i + size, true
}

// skipArray goes behind the array within an array that begins at s[i].
func skipArray(s []byte, i int) (end int, ok bool) {
	for depth := 0; i < len(s); i++ {
		switch s[i] {
		case '"':
			if end, ok = skipString(s, i); !ok {
				return 0, false
			}
			i = end - 1
		case '{':
			depth++
		case '}':
			if depth--; depth == 0 {
				return i + 1, true
			}
		}
	}
	return 0, false
}

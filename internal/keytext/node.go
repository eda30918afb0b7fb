package keytext

import (
	"bytes"
	"unicode/utf16"
	"unicode/utf8"
)

// Node is a value that paths lead into: JSON, an array in Postgres's text form,
// or an element of one. It aliases the text that it was made from, and only
// what a path leads through is looked at: Postgres has checked the text, and
// what is not well formed after all is found not to fit, at the latest where it
// would be printed.
type Node struct {
	kind nodeKind
	elem nodeKind // of an array's elements
	text []byte
}

type nodeKind byte

const (
	nodeNull nodeKind = iota // SQL NULL, or nothing there
	nodeText                 // as it is to be printed
	nodeJSON
	nodeArray
)

// JSONNode is a value of type json or jsonb.
func JSONNode(text []byte) Node { return Node{kind: nodeJSON, text: text} }

// ArrayNode is an array in Postgres's text form; json says that its elements
// are of type json or jsonb.
func ArrayNode(text []byte, json bool) Node {
	n := Node{kind: nodeArray, elem: nodeText, text: text}
	if json {
		n.elem = nodeJSON
	}
	return n
}

// GuessNode is a value whose type is not known, such as a domain: an array if
// the path wants one and the text has the form of one, else JSON.
func GuessNode(text []byte, path []Step) Node {
	if len(path) > 0 && path[0].Kind != StepKey {
		if body, ok := arrayBody(text); ok && len(body) > 0 {
			return ArrayNode(text, false)
		}
	}
	return JSONNode(text)
}

// Walk follows a path without StepEach. What is not there, and what is behind a
// null, is null. ok is false where a value has not the kind that the path
// wants: an object for a name, an array for an index.
func (n Node) Walk(path []Step) (out Node, ok bool) {
	for _, s := range path {
		switch {
		case n.null():
			return Node{}, true
		case s.Kind == StepKey:
			n, ok = n.member(s.Key)
		default:
			n, ok = n.element(s.Index)
		}
		if !ok {
			return Node{}, false
		}
	}
	return n, true
}

func (n Node) null() bool {
	return n.kind == nodeNull || n.kind == nodeJSON && string(bytes.TrimSpace(n.text)) == "null"
}

// member is the one of that name, the last of several, as Postgres has it.
func (n Node) member(key string) (out Node, ok bool) {
	if n.kind != nodeJSON {
		return Node{}, false
	}
	var scratch []byte
	ok = eachMember(n.text, func(name, value []byte) {
		if bytes.IndexByte(name, '\\') >= 0 {
			var plain bool
			if scratch, plain = appendUnescaped(scratch[:0], name); !plain {
				return
			}
			name = scratch
		}
		if string(name) == key {
			out = Node{kind: nodeJSON, text: value}
		}
	})
	return out, ok
}

func (n Node) element(index int) (out Node, ok bool) {
	at := 0
	ok = n.Each(func(e Node) bool {
		if at == index {
			out = e
			return false
		}
		at++
		return true
	})
	return out, ok
}

// Each calls f for every element in order until it returns false. It returns
// false if the value is no array; null has no elements.
func (n Node) Each(f func(Node) bool) bool {
	switch {
	case n.null():
		return true
	case n.kind == nodeJSON:
		return eachElement(n.text, func(v []byte) bool { return f(Node{kind: nodeJSON, text: v}) })
	case n.kind == nodeArray:
		return eachArrayElement(n.text, n.elem, f)
	}
	return false
}

// Append appends the text of a scalar, as Postgres's ->> prints it: strings
// unescaped, numbers as they stand, true and false. null is true if there is
// no value; ok is false for an object or array, and for a string that is no
// text of Postgres's.
func (n Node) Append(dst []byte) (out []byte, null, ok bool) {
	switch {
	case n.null():
		return dst, true, true
	case n.kind == nodeText:
		return append(dst, n.text...), false, true
	case n.kind == nodeArray:
		return dst, false, false
	}
	text := bytes.TrimSpace(n.text)
	if len(text) == 0 {
		return dst, false, false
	}
	switch c := text[0]; {
	case c == '"':
		end, closed := skipString(text, 0)
		if !closed || end != len(text) {
			return dst, false, false
		}
		out, ok = appendUnescaped(dst, text[1:end-1])
		return out, false, ok
	case c == '-' || '0' <= c && c <= '9':
		if len(bytes.Trim(text, "0123456789+-.eE")) > 0 {
			return dst, false, false
		}
		return append(dst, text...), false, true
	}
	if s := string(text); s == "true" || s == "false" {
		return append(dst, s...), false, true
	}
	return dst, false, false
}

// appendUnescaped appends the text that stands between the quotes of a JSON
// string. It refuses halves of surrogate pairs and \u0000, as Postgres does.
func appendUnescaped(dst, s []byte) (out []byte, ok bool) {
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			dst = append(dst, s[i])
			continue
		}
		if i++; i == len(s) {
			return dst, false
		}
		if at := bytes.IndexByte([]byte(`"\/bfnrt`), s[i]); at >= 0 {
			dst = append(dst, "\"\\/\b\f\n\r\t"[at])
			continue
		}
		r, ok := hex4(s[i:])
		if !ok || r == 0 {
			return dst, false
		}
		i += 4
		if utf16.IsSurrogate(r) {
			if i+2 >= len(s) || s[i+1] != '\\' {
				return dst, false
			}
			low, ok := hex4(s[i+2:])
			if r = utf16.DecodeRune(r, low); !ok || r == utf8.RuneError {
				return dst, false
			}
			i += 6
		}
		dst = utf8.AppendRune(dst, r)
	}
	return dst, true
}

// hex4 reads uXXXX.
func hex4(s []byte) (r rune, ok bool) {
	if len(s) < 5 || s[0] != 'u' {
		return 0, false
	}
	for _, c := range s[1:5] {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c|0x20 && c|0x20 <= 'f':
			c = c | 0x20 - 'a' + 10
		default:
			return 0, false
		}
		r = r<<4 | rune(c)
	}
	return r, true
}

package rules

import (
	"bytes"
	"cmp"
	"slices"
	"strconv"

	"github.com/lethe-cache/lethe/internal/keytext"
)

// classIndex finds the class of a key: by the form of a template, or by a
// rendered name.
type classIndex struct {
	shapes map[string]*Class
	// sorted has the longest literal prefix first, then the most literal text.
	sorted []*Class
}

func newClassIndex(entries []*Class) classIndex {
	x := classIndex{shapes: make(map[string]*Class, len(entries)), sorted: slices.Clone(entries)}
	for _, c := range entries {
		x.shapes[c.Key.shape()] = c
	}
	slices.SortStableFunc(x.sorted, func(a, b *Class) int {
		pa, pb := a.Key.Pattern(), b.Key.Pattern()
		return cmp.Or(cmp.Compare(len(pb.Prefix()), len(pa.Prefix())), cmp.Compare(pb.LiteralLen(), pa.LiteralLen()))
	})
	return x
}

func (x *classIndex) byShape(t *Template) *Class { return x.shapes[t.shape()] }

// of is the class of a name that a dependency has: of its form, or of the name
// itself if it is one.
func (x *classIndex) of(t *Template) *Class {
	if c := x.byShape(t); c != nil || t.Pattern().Placeholders() > 0 {
		return c
	}
	return x.byName([]byte(t.Pattern().Prefix()))
}

// byName takes a name without its namespace.
func (x *classIndex) byName(name []byte) *Class {
	for _, c := range x.sorted {
		if c.matches(name) {
			return c
		}
	}
	return nil
}

func (c *Class) matches(name []byte) bool {
	p := c.Key.Pattern()
	if !bytes.HasPrefix(name, []byte(p.Prefix())) {
		return false
	}
	return p.Match(c.Unversioned(name)) || p.Match(name)
}

// Unversioned takes the @n off a name of the class, if n is one of its versions.
func (c *Class) Unversioned(name []byte) []byte {
	at := bytes.LastIndexByte(name, '@')
	if at < 0 || at == len(name)-1 {
		return name
	}
	n, err := strconv.Atoi(string(name[at+1:]))
	if err != nil || n <= 1 || !slices.Contains(c.Versions, n) {
		return name
	}
	return name[:at]
}

// VersionName is the name under which version n of an entry's value is kept.
func (c *Class) VersionName(name string, n int) string {
	if n <= 1 {
		return name
	}
	return string(appendVersion([]byte(name), n))
}

// localName takes the namespace off a full name.
func localName(namespace string, name []byte) ([]byte, bool) {
	if namespace == "" {
		return name, true
	}
	if len(name) <= len(namespace) || string(name[:len(namespace)]) != namespace || name[len(namespace)] != ':' {
		return nil, false
	}
	return name[len(namespace)+1:], true
}

// ClassOf returns the class that a full name belongs to: among those whose key
// has its form, the one with the longest literal prefix. nil if there is none.
func (s *Set) ClassOf(name []byte) *Class {
	local, ok := localName(s.Namespace, name)
	if !ok {
		return nil
	}
	return s.index.byName(local)
}

// Captures returns the values of the placeholders of the class's key in a full
// name, in the order of Key.Placeholders; ok is false if the name does not have
// the key's form.
func (c *Class) Captures(name []byte) (values []string, ok bool) {
	local, ok := localName(c.namespace, name)
	if !ok {
		return nil, false
	}
	var buf [keytext.MaxPlaceholders][]byte
	raw, ok := c.Key.Pattern().Captures(buf[:0], c.Unversioned(local))
	if !ok {
		return nil, false
	}
	values = make([]string, len(raw))
	for i, v := range raw {
		values[i] = string(v)
	}
	return values, true
}

// appendVersion appends the name under which version n of a value is kept.
func appendVersion(name []byte, n int) []byte {
	if n <= 1 {
		return name
	}
	return strconv.AppendInt(append(name, '@'), int64(n), 10)
}

// PlainPattern is what to SCAN for when plain values are raised.
type PlainPattern struct {
	// Class is nil for keys that rules build and no entry claims.
	Class *Class
	// Globs are patterns for SCAN's MATCH: the keys and their tickets, of every
	// version. They may find other keys too, which are then forgotten with them.
	Globs []string
}

// plainPattern lists the globs of a key template. A ticket is {name}:t, or
// name:t where the name has a hash tag of its own, which only shows in values.
func (s *Set) plainPattern(t *Template, versions []int) []string {
	prefix := ""
	if s.Namespace != "" {
		prefix = s.Namespace + ":"
	}
	glob := t.Pattern().Glob(prefix)
	globs := []string{glob, "{" + glob + "}:t", glob + ":t"}
	for _, v := range versions {
		if v > 1 {
			g := glob + "@" + strconv.Itoa(v)
			globs = append(globs, g, "{"+g+"}:t", g+":t")
		}
	}
	return globs
}

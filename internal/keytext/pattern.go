package keytext

import (
	"bytes"
	"regexp"
	"strings"
)

// Pattern recognises the names that a template builds. A placeholder matches
// [^:]+, the last one .+ (so that ids with colons belong to their class).
type Pattern struct {
	// literals surround the placeholders: one more than there are of them.
	literals []string
	// slow is used where the text between two placeholders does not begin
	// with a colon, so that where a value ends is a matter of trying.
	slow *regexp.Regexp
}

func newPattern(segments []Segment) Pattern {
	p := Pattern{literals: []string{""}}
	for _, s := range segments {
		if s.Column == "" {
			p.literals[len(p.literals)-1] += s.Literal
		} else {
			p.literals = append(p.literals, "")
		}
	}
	last := len(p.literals) - 1
	for i := 1; i < last; i++ {
		if !strings.HasPrefix(p.literals[i], ":") {
			p.slow = p.regexp()
			break
		}
	}
	return p
}

func (p *Pattern) regexp() *regexp.Regexp {
	var b strings.Builder
	b.WriteString(`(?s)\A`)
	last := len(p.literals) - 1
	for i, lit := range p.literals {
		b.WriteString(regexp.QuoteMeta(lit))
		switch {
		case i < last-1:
			b.WriteString(`([^:]+)`)
		case i == last-1:
			b.WriteString(`(.+)`)
		}
	}
	b.WriteString(`\z`)
	return regexp.MustCompile(b.String())
}

// Prefix is the literal text before the first placeholder.
func (p *Pattern) Prefix() string { return p.literals[0] }

// Placeholders is how many placeholders there are.
func (p *Pattern) Placeholders() int { return len(p.literals) - 1 }

// LiteralLen is the length of all literal text.
func (p *Pattern) LiteralLen() int {
	n := 0
	for _, l := range p.literals {
		n += len(l)
	}
	return n
}

// Literals returns the text around the placeholders, one piece more than there
// are placeholders. The caller must not change it.
func (p *Pattern) Literals() []string { return p.literals }

// Shape is equal for two templates whose literals are the same and stand in
// the same places, whatever their placeholders are called.
func (p *Pattern) Shape() string { return strings.Join(p.literals, "\x00") }

// Match reports whether a name has the form of the pattern. It does not
// allocate.
func (p *Pattern) Match(name []byte) bool {
	if p.slow != nil {
		return p.slow.Match(name)
	}
	return p.walk(name, nil)
}

// Captures appends the value of each placeholder to dst, as slices of name.
func (p *Pattern) Captures(dst [][]byte, name []byte) ([][]byte, bool) {
	if p.slow != nil {
		m := p.slow.FindSubmatch(name)
		if m == nil {
			return dst, false
		}
		return append(dst, m[1:]...), true
	}
	start := len(dst)
	if !p.walk(name, &dst) {
		return dst[:start], false
	}
	return dst, true
}

// walk matches where every value but the last ends at the next colon.
func (p *Pattern) walk(name []byte, out *[][]byte) bool {
	last := len(p.literals) - 1
	if last == 0 {
		return string(name) == p.literals[0]
	}
	for i := 0; i < last; i++ {
		lit := p.literals[i]
		if len(name) < len(lit) || string(name[:len(lit)]) != lit {
			return false
		}
		name = name[len(lit):]
		var value []byte
		if i < last-1 {
			end := bytes.IndexByte(name, ':')
			if end <= 0 {
				return false
			}
			value, name = name[:end], name[end:]
		} else {
			tail := p.literals[last]
			end := len(name) - len(tail)
			if end <= 0 || string(name[end:]) != tail {
				return false
			}
			value = name[:end]
		}
		if out != nil {
			*out = append(*out, value)
		}
	}
	return true
}

// Glob returns a pattern for SCAN's MATCH that finds every name of the form,
// put behind prefix; it may find others too. What has a meaning in a glob is
// escaped.
func (p *Pattern) Glob(prefix string) string {
	var b strings.Builder
	b.WriteString(escapeGlob(prefix))
	for i, lit := range p.literals {
		if i > 0 {
			b.WriteByte('*')
		}
		b.WriteString(escapeGlob(lit))
	}
	return b.String()
}

func escapeGlob(s string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`, `]`, `\]`).Replace(s)
}

// Unify reports whether some name might have the form of both patterns. It
// errs on the side of yes.
func (p *Pattern) Unify(q *Pattern) bool {
	pl, ql := p.literals[0], q.literals[0]
	if !strings.HasPrefix(pl, ql) && !strings.HasPrefix(ql, pl) {
		return false
	}
	if p.Placeholders() == 0 {
		return q.Match([]byte(pl))
	}
	if q.Placeholders() == 0 {
		return p.Match([]byte(ql))
	}
	pt, qt := p.literals[len(p.literals)-1], q.literals[len(q.literals)-1]
	return strings.HasSuffix(pt, qt) || strings.HasSuffix(qt, pt)
}

// Package keytext builds the names of cache entries and tags from templates,
// the same way for the worker, which has Postgres's text of each value, and for
// applications, which have Go values. It is a leaf: it knows neither YAML nor
// conditions, so that applications can link it.
package keytext

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// MaxTemplate is the greatest length of a template in bytes, and
// MaxPlaceholders how many placeholders it may have.
const (
	MaxTemplate     = 1024
	MaxPlaceholders = 16
)

// Side says which row a placeholder takes its value from.
type Side byte

// The sides of a change.
const (
	// Both: a name is rendered for the old row and for the new one.
	Both Side = iota
	Old
	New
)

// Segment is a piece of a template: literal text, or a placeholder.
type Segment struct {
	// Literal is the text if Column is empty.
	Literal string
	Column  string
	// Lookup says that Column is one of the result of the rule's lookup, and not
	// of the row: {lookup.category_id}.
	Lookup bool
	// Path leads from the column to a part of it.
	Path []Step
	Side Side
	// Filters are applied in order.
	Filters []Filter
	// Offset is the byte in the template's text where the segment begins.
	Offset int
}

// Template is a parsed template: immutable, safe for concurrent use.
type Template struct {
	text     string
	segments []Segment
	pattern  Pattern
}

// SyntaxError is a mistake in a template.
type SyntaxError struct {
	// Offset is the byte at which it was noticed.
	Offset  int
	Message string
}

// Error says what is wrong.
func (e *SyntaxError) Error() string { return e.Message }

// Parse reads a template: literal text with {column}, {old.column} and
// {new.column}, each optionally with a path into the column ({payload.user.id},
// {tags[0]}, {items[*].id}) and with filters ({slug|lower}), and {lookup.column};
// {{ and }} stand for braces. A column that is not a plain identifier is written {"in quotes"}.
// The error is a *SyntaxError.
func Parse(text string) (*Template, error) {
	if text == "" {
		return nil, &SyntaxError{Message: "template is empty"}
	}
	if len(text) > MaxTemplate {
		return nil, &SyntaxError{Message: fmt.Sprintf("template is %d bytes long, the limit is %d", len(text), MaxTemplate)}
	}
	if !utf8.ValidString(text) {
		return nil, &SyntaxError{Message: "template is not valid UTF-8"}
	}
	p := parser{text: text}
	if err := p.run(); err != nil {
		return nil, err
	}
	t := &Template{text: text, segments: p.segments}
	t.pattern = newPattern(p.segments)
	return t, nil
}

type parser struct {
	text     string
	pos      int
	segments []Segment
	count    int
}

func (p *parser) run() error {
	var lit strings.Builder
	start := 0
	flush := func() {
		if lit.Len() > 0 {
			p.segments = append(p.segments, Segment{Literal: lit.String(), Offset: start})
			lit.Reset()
		}
	}
	for p.pos < len(p.text) {
		c := p.text[p.pos]
		if lit.Len() == 0 {
			start = p.pos
		}
		switch {
		case c < ' ' || c == 0x7f:
			return p.errorf(p.pos, "control character %q in template", c)
		case (c == '{' || c == '}') && strings.HasPrefix(p.text[p.pos+1:], string(c)):
			lit.WriteByte(c)
			p.pos += 2
		case c == '}':
			return p.errorf(p.pos, "unexpected \"}\" in template %q (write }} for a brace)", p.text)
		case c == '{':
			flush()
			seg, err := p.placeholder()
			if err != nil {
				return err
			}
			p.segments = append(p.segments, seg)
		default:
			lit.WriteByte(c)
			p.pos++
		}
	}
	flush()
	return nil
}

// placeholder reads from an opening brace to behind the closing one.
func (p *parser) placeholder() (Segment, error) {
	open := p.pos
	body, end, ok := quotedBody(p.text[open+1:])
	if !ok {
		return Segment{}, p.errorf(open, "placeholder in template %q is not closed", p.text)
	}
	p.pos = open + 1 + end
	if p.count++; p.count > MaxPlaceholders {
		return Segment{}, p.errorf(open, "template has more than %d placeholders", MaxPlaceholders)
	}
	parts := strings.Split(body, "|")
	path := strings.TrimSpace(parts[0])
	if strings.Count(path, `"`)%2 == 1 { // a | inside quotes
		return Segment{}, p.errorf(open, "column name in placeholder {%s} may not contain |", body)
	}
	seg := Segment{Offset: open}
	for _, name := range parts[1:] {
		f, err := parseFilter(strings.TrimSpace(name))
		if err != nil {
			err.Offset = open
			return Segment{}, err
		}
		seg.Filters = append(seg.Filters, f)
	}
	first, rest := splitName(path)
	switch {
	case path != "" && path[0] != '"' && (first == "old" || first == "new") && strings.HasPrefix(rest, "."):
		seg.Side = New
		if first == "old" {
			seg.Side = Old
		}
		first, rest = splitName(rest[1:])
		if first == "lookup" && rest != "" && !strings.HasPrefix(path[len("old."):], `"`) {
			return Segment{}, p.errorf(open, "placeholder {%s}: a lookup has no side, it is made for the old row and for the new one: {lookup%s}", body, rest)
		}
	case first == "lookup" && rest != "" && path[0] != '"':
		if !strings.HasPrefix(rest, ".") {
			return Segment{}, p.errorf(open, "placeholder {%s} names no column of the lookup: write {lookup.column}", body)
		}
		seg.Lookup = true
		first, rest = splitName(rest[1:])
	}
	if first == "" {
		return Segment{}, p.errorf(open, "placeholder {%s} names no column", body)
	}
	steps, err := parsePath(rest)
	if err != nil {
		return Segment{}, p.errorf(open, "the path of placeholder {%s} %s", body, err)
	}
	seg.Column, seg.Path = first, steps
	return seg, nil
}

func (p *parser) errorf(offset int, format string, args ...any) *SyntaxError {
	return &SyntaxError{Offset: offset, Message: fmt.Sprintf(format, args...)}
}

// quotedBody returns what stands before the closing brace, which does not
// count inside quotes, and the offset behind it.
func quotedBody(s string) (body string, end int, ok bool) {
	quoted := false
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '"':
			quoted = !quoted
		case s[i] == '{' && !quoted:
			return "", 0, false
		case s[i] == '}' && !quoted:
			return s[:i], i + 1, true
		}
	}
	return "", 0, false
}

// splitName takes the first name off a path; what follows begins with its dot
// or bracket. It returns "" for a name that is neither an identifier nor in
// quotes.
func splitName(s string) (name, rest string) {
	if strings.HasPrefix(s, `"`) {
		i := strings.IndexByte(s[1:], '"')
		if i <= 0 {
			return "", ""
		}
		return s[1 : i+1], s[i+2:]
	}
	name = s
	if i := strings.IndexAny(s, ".["); i >= 0 {
		name, rest = s[:i], s[i:]
	}
	if !isIdentifier(name) {
		return "", ""
	}
	return name, rest
}

func isIdentifier(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		letter := c == '_' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c >= 0x80
		if !letter && (i == 0 || !('0' <= c && c <= '9' || c == '$')) {
			return false
		}
	}
	return s != ""
}

// String returns the template as written.
func (t *Template) String() string { return t.text }

// Segments returns the pieces; the caller must not change them.
func (t *Template) Segments() []Segment { return t.segments }

// Pattern returns what recognises names that the template builds.
func (t *Template) Pattern() *Pattern { return &t.pattern }

// Columns returns the columns of the row that placeholders name, in order, each
// once.
func (t *Template) Columns() []string { return t.columns(false) }

// LookupColumns returns the columns of the lookup that placeholders name, in
// order, each once.
func (t *Template) LookupColumns() []string { return t.columns(true) }

func (t *Template) columns(lookup bool) []string {
	var out []string
	for _, s := range t.segments {
		if s.Column != "" && s.Lookup == lookup && !slices.Contains(out, s.Column) {
			out = append(out, s.Column)
		}
	}
	return out
}

// HasLookup reports whether a placeholder takes its value from a lookup.
func (t *Template) HasLookup() bool {
	return slices.ContainsFunc(t.segments, func(s Segment) bool { return s.Lookup })
}

// HasPath reports whether a placeholder reaches into its column.
func (t *Template) HasPath() bool {
	return slices.ContainsFunc(t.segments, func(s Segment) bool { return len(s.Path) > 0 })
}

// Placeholders returns the source of every placeholder, in order, repetitions
// included: one for each capture of the pattern. It is the column, and the path
// into it if there is one.
func (t *Template) Placeholders() []string {
	var out []string
	for _, s := range t.segments {
		if s.Column != "" {
			out = append(out, s.Source())
		}
	}
	return out
}

// Append renders the template with values by placeholder, given as text.
// It is for names made of captures of another name: filters are not applied.
func (t *Template) Append(dst []byte, value func(column string) []byte) []byte {
	for i := range t.segments {
		s := &t.segments[i]
		if s.Column == "" {
			dst = append(dst, s.Literal...)
		} else {
			dst = append(dst, value(s.Column)...)
		}
	}
	return dst
}

// Render renders the template from Go values; see AppendValue for the types.
// value returns false for a column that it does not know, which is an error.
// ok is false if a value is NULL: there is no such name then. A template with
// paths or lookups is an error: they are for rules, which see rows.
func (t *Template) Render(value func(column string) (any, bool)) (name string, ok bool, err error) {
	var buf []byte
	for i := range t.segments {
		s := &t.segments[i]
		if s.Column == "" {
			buf = append(buf, s.Literal...)
			continue
		}
		if len(s.Path) > 0 {
			return "", false, fmt.Errorf("render %q: {%s} is a path, which only rules have", t.text, s.Source())
		}
		if s.Lookup {
			return "", false, fmt.Errorf("render %q: {%s} is looked up, which only rules do", t.text, s.Source())
		}
		v, known := value(s.Column)
		if !known {
			return "", false, fmt.Errorf("render %q: no value for %s", t.text, s.Column)
		}
		start := len(buf)
		out, null, err := AppendValue(buf, v)
		if err != nil {
			return "", false, fmt.Errorf("render %q: value of %s: %w", t.text, s.Column, err)
		}
		if null {
			return "", false, nil
		}
		var fits bool
		if buf, fits = ApplyFilters(out, start, s.Filters); !fits {
			return "", false, fmt.Errorf("render %q: value of %s: %q is no date from year 1 to 9999", t.text, s.Column, out[start:])
		}
	}
	return string(buf), true, nil
}

package rules

import "github.com/lethe-cache/lethe/internal/keytext"

// Template is a key or tag template with its place in the file. The rendering
// is keytext's, which applications link without the rest of this package.
type Template struct {
	*keytext.Template

	// Class is the entry whose key has the same literals, or nil.
	Class *Class

	pos place
	// moved: variables in it were expanded, so places in it are lost.
	moved bool
}

// shape is equal for templates that build the same names.
func (t *Template) shape() string { return t.Pattern().Shape() }

// Place is where the template stands: the file as it was given, line and column
// from 1.
func (t *Template) Place() (file string, line, col int) { return t.pos.file, t.pos.line, t.pos.col }

// segmentPlace is where a segment stands in the file.
func (t *Template) segmentPlace(s *keytext.Segment) place {
	p := t.pos
	if !t.moved {
		p.col += s.Offset
	}
	return p
}

package rules

import "github.com/lethe-cache/lethe/internal/keytext"

// Template is a key or tag template with its place in the file. The rendering
// is keytext's, which applications link without the rest of this package.
type Template struct {
	*keytext.Template

	// Class is the entry whose key has the same literals, or nil.
	Class *Class

	pos place
}

// shape is equal for templates that build the same names.
func (t *Template) shape() string { return t.Pattern().Shape() }

// segmentPlace is where a segment stands in the file.
func (t *Template) segmentPlace(s *keytext.Segment) place {
	p := t.pos
	p.col += s.Offset
	return p
}

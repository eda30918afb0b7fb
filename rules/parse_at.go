package rules

import (
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/lethe-cache/lethe/internal/keytext"
)

// columnMax is the greatest length of a name in Postgres.
const columnMax = 63

// ruleAt reads the column that says when. Names are rendered when the row
// changes and used when the time comes, so what looks at the other side of a
// change, or waits besides, has no meaning.
func (b *builder) ruleAt(n *yaml.Node, f fields, r *Rule) {
	column, ok := b.d.text(n, "at")
	if !ok {
		return
	}
	at := b.d.textPlace(n)
	r.pos["at"] = at
	switch {
	case strings.ContainsAny(column, "{}"):
		b.d.errorf(CodeValue, at, "\"at\" takes the name of a column, as it is called, not a template: %s", strings.Trim(column, "{}"))
		return
	case column == "" || len(column) > columnMax || column != strings.TrimSpace(column):
		b.d.errorf(CodeValue, at, "\"at\" takes the name of a column, not %s", b.d.show(n))
		return
	}
	r.At = column
	for _, other := range []struct{ field, why string }{
		{"lookup", "what is looked up when the row changes may be another when the time comes: give the table that is looked up a rule of its own"},
		{"debounce", "a time that comes is not a burst of changes"},
	} {
		if v := f.value(other.field); v != nil {
			b.d.errorf(CodeValue, f.place(other.field), "%q and \"at\" exclude each other: %s", other.field, other.why)
		}
	}
	if r.On&(OnInsert|OnUpdate) == 0 {
		b.d.errorf(CodeValue, r.pos["on"], "a rule with \"at\" needs insert or update in \"on\": other changes bring no time")
	}
	for _, t := range r.templates() {
		for i := range t.Segments() {
			if s := &t.Segments()[i]; s.Side == keytext.Old {
				b.d.errorf(CodeTemplate, t.segmentPlace(s), "{old.%s}: when the time of \"at\" comes there is one row, the new one", s.Source())
			}
		}
	}
}

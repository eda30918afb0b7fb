package rules

import (
	"fmt"
	"slices"
	"strings"

	"github.com/lethe-cache/lethe/internal/keytext"
)

// OIDs that only the way of printing cares for.
const (
	oidOID, oidUUID, oidDate, oidTime = 26, 2950, 1082, 1083
	oidText, oidVarchar, oidChar      = 25, 1043, 1042
	oidInet, oidCIDR                  = 869, 650
)

// printKind groups types that print equal values equally.
func printKind(col *ColumnInfo) string {
	switch col.Type {
	case oidInt2, oidInt4, oidInt8, oidOID:
		return "an integer"
	case oidNumeric:
		return "numeric"
	case oidFloat4:
		return "real"
	case oidFloat8:
		return "double precision"
	case oidBool:
		return "boolean"
	case oidUUID:
		return "uuid"
	case oidDate:
		return "date"
	case oidTimestamp:
		return "timestamp"
	case oidTimestamptz:
		return "timestamptz"
	case oidBytea:
		return "bytea"
	}
	return "text" // varchar, char, enum, citext: the same bytes for the same value
}

// urlSafe is what the filter urlencode leaves as it is.
const urlSafe = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"

// alphabet is every character that values of a type print with; all is true if
// there is no saying.
func alphabet(oid uint32, filters []keytext.Filter) (chars string, all bool) {
	for _, f := range slices.Backward(filters) { // the last one that decides
		switch {
		case f == keytext.URLEncode:
			return urlSafe + "%", false
		case f == keytext.Hash:
			return "0123456789abcdefABCDEF", false
		case f.IsDate():
			return "0123456789-Tt", false
		}
	}
	const digits = "0123456789"
	switch oid {
	case oidInt2, oidInt4, oidInt8:
		return digits + "-", false
	case oidOID:
		return digits, false
	case oidNumeric, oidFloat4, oidFloat8:
		return digits + "-+.eNaInfity", false
	case oidBool:
		return "tf", false
	case oidUUID:
		return digits + "abcdefABCDEF-", false
	case oidDate:
		return digits + "-infty BC", false
	case oidTime:
		return digits + ":.", false
	case oidTimestamp, oidTimestamptz:
		return digits + "-:.+ infty BC", false
	case oidBytea:
		return digits + `abcdefABCDEFx\`, false
	}
	return "", true
}

// separators finds names in which a value may contain the text that is to end
// it, so that different values build one name, or the name of another class.
func (c *checker) separators(r *Rule, t *TableInfo) {
	for _, tpl := range r.templates() {
		segs := tpl.Segments()
		for i := range segs {
			s := &segs[i]
			if s.Column == "" {
				continue
			}
			col := c.column(r, t, s)
			if col == nil {
				continue
			}
			oid := col.Type
			if element, ok := arrayElement(oid); ok && len(s.Path) > 0 {
				oid = element
			} else if len(s.Path) > 0 {
				oid = oidText
			}
			chars, all := alphabet(oid, s.Filters)
			fix := fmt.Sprintf("escape the value: {%s|urlencode}", placeholderText(s))
			if i+2 < len(segs) && segs[i+1].Column == "" { // a literal, and more behind it
				if sep := segs[i+1].Literal; all || contains(chars, sep) {
					if contains(urlSafe, sep) {
						fix = "separate with a colon, and escape the value if it may contain one"
					}
					c.warn(CodeSeparator, tpl.segmentPlace(s), fix,
						"a value of %q may contain %q, which ends it in %q: different rows can build one name", s.Source(), sep, tpl)
				}
			}
			if i == len(segs)-1 && (all || contains(chars, ":")) {
				c.overlaps(tpl, s, fix)
			}
		}
	}
}

// overlaps finds classes that claim some names of a key because a value with a
// colon makes them look like theirs.
func (c *checker) overlaps(tpl *Template, s *keytext.Segment, fix string) {
	if tpl.Class == nil {
		return
	}
	p := tpl.Pattern()
	for _, o := range c.set.Entries {
		q := o.Key.Pattern()
		if o != tpl.Class && strings.HasPrefix(q.Prefix(), p.Prefix()) && p.Unify(q) &&
			(len(q.Prefix()) > len(p.Prefix()) || q.LiteralLen() > p.LiteralLen()) {
			c.warn(CodeSeparator, tpl.segmentPlace(s), fix,
				"a value of %q with a colon makes a key of the form %q look like one of entry %q (%s)", s.Source(), tpl, o.Name, o.Key)
		}
	}
}

func contains(alphabet, text string) bool {
	return strings.Trim(text, alphabet) == ""
}

func placeholderText(s *keytext.Segment) string {
	switch s.Side {
	case keytext.Old:
		return "old." + s.Source()
	case keytext.New:
		return "new." + s.Source()
	}
	return s.Source()
}

package rules

import (
	"regexp"
	"slices"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Policy is what a team asks of its rules beyond what Lethe needs: the block
// `lint`. What breaks it is a warning.
type Policy struct {
	// Key must match every key and tag, without the namespace; nil asks nothing.
	// A template matches if one of the names does that come out when samples
	// stand for its placeholders: see policySamples.
	Key *regexp.Regexp
	// Tenant is the column that tells the tenants of a table apart: keys made of
	// a table that has it must have it too. Empty asks nothing.
	Tenant string

	keyAt, tenantAt place
}

// policySamples stand for placeholders where a template is held against an
// expression: one of each kind that names are made of. Up to four placeholders
// every combination is tried, beyond that one sample for all of them.
var policySamples = []string{"1", "a", "en", "2026-01-31", "00000000-0000-4000-8000-000000000000"}

const mostCombined = 4

var lintFields = []string{"key", "tenant"}

// policy reads the block. It is the set's, whatever file it stands in.
func (b *builder) policy(n *yaml.Node) {
	d, p := b.d, &b.set.Policy
	f, ok := d.mapping(n, "lint", lintFields, nil)
	if !ok {
		return
	}
	if text, ok := f.text("key"); ok {
		at := d.place(f.value("key"))
		switch re, err := regexp.Compile(text); {
		case err != nil:
			d.errorf(CodeValue, at, "lint.key is no regular expression: %s", strings.TrimPrefix(err.Error(), "error parsing regexp: "))
		case p.Key != nil && p.Key.String() != text:
			d.errorf(CodeDuplicate, at, "lint.key is said already, and differs (%s:%d)", p.keyAt.file, p.keyAt.line)
		default:
			p.Key, p.keyAt = re, at
		}
	}
	if text, ok := f.text("tenant"); ok {
		at := d.place(f.value("tenant"))
		switch {
		case text == "" || len(text) > 63:
			d.errorf(CodeValue, at, "lint.tenant must be the name of a column, not %s", d.show(f.value("tenant")))
		case p.Tenant != "" && p.Tenant != text:
			d.errorf(CodeDuplicate, at, "lint.tenant is said already, and differs (%s:%d)", p.tenantAt.file, p.tenantAt.line)
		default:
			p.Tenant, p.tenantAt = text, at
		}
	}
}

// matches holds a template against the expression for names.
func (p *Policy) matches(t *Template) bool {
	segs := t.Segments()
	holes := 0
	for i := range segs {
		if segs[i].Column != "" {
			holes++
		}
	}
	choice := make([]int, holes)
	for {
		var b strings.Builder
		hole := 0
		for i := range segs {
			if segs[i].Column == "" {
				b.WriteString(segs[i].Literal)
				continue
			}
			b.WriteString(policySamples[choice[hole]])
			hole++
		}
		if p.Key.MatchString(b.String()) {
			return true
		}
		if !nextChoice(choice) {
			return false
		}
	}
}

// nextChoice counts up, each place from 0 to the last sample; with too many
// places all of them go together.
func nextChoice(choice []int) bool {
	if len(choice) > mostCombined {
		next := choice[0] + 1
		for i := range choice {
			choice[i] = next
		}
		return next < len(policySamples)
	}
	for i := range choice {
		if choice[i]++; choice[i] < len(policySamples) {
			return true
		}
		choice[i] = 0
	}
	return false
}

// names finds keys and tags that the team's expression does not match.
func (l *linter) names() {
	p := &l.set.Policy
	if p.Key == nil {
		return
	}
	seen := map[string]bool{}
	look := func(s subject, list ...*Template) {
		l.subject = s
		for _, t := range list {
			if seen[t.String()] { // an entry's key says it for the rules that build it
				continue
			}
			seen[t.String()] = true
			if !p.matches(t) {
				l.warn(CodePolicyName, t.pos, "name it as the expression asks, in the application too", "%q does not match lint.key, %s", t, p.Key)
			}
		}
	}
	for _, c := range l.set.Entries {
		look(subject{entry: c.Name}, append([]*Template{c.Key}, c.Tags...)...)
	}
	for _, r := range l.set.Rules {
		look(subject{rule: r.Name}, r.templates()...)
	}
	for _, d := range l.set.Dependencies {
		look(subject{}, append([]*Template{d.Of}, d.Also...)...)
	}
	l.subject = subject{}
}

// tenants finds keys that two tenants share. has tells which tables have the
// tenant's column.
func (l *linter) tenants(has func(table string) bool) {
	column := l.set.Policy.Tenant
	if column == "" {
		return
	}
	for _, r := range l.set.Rules {
		if !has(r.QualifiedTable()) {
			continue
		}
		l.subject = subject{rule: r.Name}
		for _, k := range r.Keys {
			if slices.Contains(k.Columns(), column) || slices.Contains(k.LookupColumns(), column) {
				continue
			}
			prefix := k.Pattern().Prefix()
			l.warn(CodeTenant, k.pos, "put it into the key, here and in the entry: "+prefix+"{"+column+"}:"+strings.TrimPrefix(k.String(), prefix),
				"key %q lacks %q, which %s has: one tenant's value may be read by another", k, column, r.QualifiedTable())
		}
	}
	l.subject = subject{}
}

// usedColumn tells, without a schema, which tables have a column: those of which
// some rule uses it.
func (s *Set) usedColumn(column string) func(table string) bool {
	uses := map[string]bool{}
	for _, u := range s.Tables() {
		if slices.Contains(u.Columns, column) {
			uses[u.QualifiedName()] = true
		}
	}
	return func(table string) bool { return uses[table] }
}

// namespaceless finds a set whose names are everybody's. One that says
// `namespace: ""` has thought of it.
func (l *linter) namespaceless() {
	if !l.set.namespaced {
		l.warn(CodeNoNamespace, place{file: l.set.Files[0], line: 1, col: 1}, `add namespace: shop, or namespace: "" if names are to stand as written`,
			"there is no namespace: keys and tags stand as written, where those of other programs are too")
	}
}

// longTTL is from when on a value that nothing forgets is a finding: a user
// notices an hour.
const longTTL = time.Hour

// forgotten finds classes whose values live long and that no rule invalidates.
// Of a class that declares no tags it is assumed that its loads name those that
// rules purge.
func (l *linter) forgotten() {
	reached := map[*Class]bool{}
	tags := false
	for _, r := range l.set.Rules {
		classes, _ := l.set.touchedByRule(r)
		for _, c := range classes {
			reached[c] = true
		}
		tags = tags || len(r.Tags) > 0
	}
	for _, c := range l.set.Entries {
		long := c.TTL == TTLNever || c.TTL > longTTL
		if !long || reached[c] || tags && len(c.Tags) == 0 {
			continue
		}
		life := "for " + c.TTL.String()
		if c.TTL == TTLNever {
			life = "for ever"
		}
		l.subject = subject{entry: c.Name}
		l.warn(CodeNeverForgotten, c.pos, "add a rule for the table that it is made from, with keys: ["+c.Key.String()+"]",
			"its values live %s and no rule invalidates them: only messages, raises and the application do", life)
	}
	l.subject = subject{}
}

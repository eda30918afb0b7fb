package rules

import (
	"slices"
	"strings"

	"github.com/lethe-cache/lethe/internal/keytext"
)

// linter collects findings about a set. It shares the decoder's way of adding
// them.
type linter struct {
	decoder
	set *Set
}

func newLinter(s *Set) *linter {
	fs := slices.Clone(s.warnings)
	return &linter{decoder: decoder{findings: &fs, secrets: &s.secrets}, set: s}
}

func (l *linter) warn(code string, p place, fix, format string, args ...any) {
	l.add(Warning, code, p, fix, format, args...)
}

// Lint finds what can be found without a database: warnings, as the errors have
// been said by Parse.
func (s *Set) Lint() Findings {
	l := newLinter(s)
	l.offline()
	l.tenants(s.usedColumn(s.Policy.Tenant))
	return l.findings.sort()
}

func (l *linter) offline() {
	for _, r := range l.set.Rules {
		l.subject = subject{rule: r.Name}
		l.rewarm(r)
		l.classless(r)
		l.neverThere(r)
		l.debouncedPlain(r)
		for _, t := range r.templates() {
			l.adjacent(t)
		}
	}
	for _, c := range l.set.Entries {
		l.subject = subject{entry: c.Name}
		l.adjacent(c.Key)
	}
	l.subject = subject{}
	l.dependencies()
	l.sameKey()
	l.cycles()
	l.namespaceless()
	l.names()
	l.secretNames()
	l.forgotten()
	l.warms()
}

// rewarm finds keys that the rule rewarms and nothing can load. What a tag or
// the cascade reaches shows only when it does.
func (l *linter) rewarm(r *Rule) {
	if !r.Action.Rewarms() {
		return
	}
	for _, k := range r.Keys {
		switch {
		case k.Class == nil:
			l.warn(CodeRewarm, k.pos, "add an entry with key: "+entryForm(k)+" and a load.sql; or action: delete",
				"action %s: key %q belongs to no entry, so nothing can load it: it is forgotten only", r.Action, k)
		case k.Class.Load == nil:
			l.warn(CodeRewarm, k.pos, "add load: {sql: ...} to the entry; or action: delete",
				"action %s: entry %q has no load.sql, so nothing can load %q: it is forgotten only", r.Action, k.Class.Name, k)
		}
	}
}

func (l *linter) classless(r *Rule) {
	for _, k := range r.Keys {
		if k.Class == nil {
			l.warn(CodeNoClass, k.pos, "add an entry with key: "+entryForm(k),
				"key %q belongs to no entry: it is invalidated, but only raises of every class cover it", k)
		}
	}
}

// entryForm is the key of the entry that a rule's key would belong to: without
// sides and paths, which entries do not have.
func entryForm(t *Template) string {
	if !t.HasPath() && !t.HasLookup() {
		return t.String()
	}
	var b strings.Builder
	used := map[string]bool{}
	for _, s := range t.Segments() {
		if s.Column == "" {
			b.WriteString(strings.NewReplacer("{", "{{", "}", "}}").Replace(s.Literal))
			continue
		}
		name := s.Column
		for _, step := range s.Path {
			if step.Kind == keytext.StepKey {
				name = step.Key
			}
		}
		for used[name] {
			name += "_2"
		}
		used[name] = true
		if _, err := keytext.Parse("{" + name + "}"); err != nil {
			name = `"` + name + `"`
		}
		b.WriteString("{" + name + "}")
	}
	return b.String()
}

// neverThere finds {old.x} where there is no old row, and {new.x} likewise.
func (l *linter) neverThere(r *Rule) {
	rows := r.On &^ OnTruncate
	for _, t := range r.templates() {
		for i := range t.Segments() {
			s := &t.Segments()[i]
			if s.Side == segOld && rows == OnInsert {
				l.warn(CodeNoEffect, t.segmentPlace(s), "", "%q is never rendered: an insert has no old row", t)
			}
			if s.Side == segNew && rows == OnDelete {
				l.warn(CodeNoEffect, t.segmentPlace(s), "", "%q is never rendered: a delete has no new row", t)
			}
		}
	}
}

// debouncedPlain finds plain entries that are forgotten late: they carry no tags
// that a reader could see, so that only the sweep reaches them.
func (l *linter) debouncedPlain(r *Rule) {
	if r.Debounce == 0 {
		return
	}
	seen := map[*Class]bool{}
	for _, ts := range r.Tags {
		for _, t := range ts.All {
			for _, c := range l.set.Carriers(t) {
				if c.Mode == Plain && !seen[c] {
					seen[c] = true
					l.warn(CodeDebouncePlain, r.pos["debounce"], "take debounce out, or make the entry exact",
						"debounce delays the sweep, and entry %q is plain: its values that carry %q are forgotten by the sweep only, up to %s late", c.Name, t, r.Debounce)
				}
			}
		}
	}
}

// adjacent finds placeholders with nothing between them.
func (l *linter) adjacent(t *Template) {
	lits := t.Pattern().Literals()
	for i := 1; i < len(lits)-1; i++ {
		if lits[i] == "" {
			l.warn(CodeSeparator, t.pos, "put a separator between the placeholders",
				"%q has two placeholders with nothing between them: different values build one name", t)
			return
		}
	}
}

func (l *linter) dependencies() {
	for _, d := range l.set.Dependencies {
		for _, a := range d.Also {
			if a.Class == nil && !l.set.TagForm(a) {
				l.warn(CodeNoClass, a.pos, "add an entry with key: "+a.String()+", or declare the tag in an entry",
					"%q is neither an entry's key nor a declared tag: it is invalidated as both", a)
			}
		}
	}
}

// sameKey finds rules of one table that build keys of one form from different
// columns: one of them is most often a slip.
func (l *linter) sameKey() {
	type use struct {
		rule *Rule
		t    *Template
	}
	first := map[string]use{}
	for _, r := range l.set.Rules {
		for _, k := range r.Keys {
			id := r.QualifiedTable() + "\x00" + k.shape()
			was, ok := first[id]
			if !ok {
				first[id] = use{r, k}
				continue
			}
			if k.HasPath() || was.t.HasPath() {
				continue // each kind of event has its own members
			}
			if was.rule != r && !slices.Equal(was.t.Placeholders(), k.Placeholders()) {
				l.subject = subject{rule: r.Name}
				l.warn(CodeKeyColumns, k.pos, "check which column the key is made of; if both are meant, give the keys different literals",
					"key %q and key %q of rule %q build one form of key from different columns of %s", k, was.t, was.rule.Name, r.QualifiedTable())
			}
		}
	}
	l.subject = subject{}
}

// cycles finds dependencies that lead back to themselves. They do no harm, as
// every name is visited once, but are seldom meant.
func (l *linter) cycles() {
	const (
		fresh = iota
		open
		done
	)
	deps := l.set.Dependencies
	color := make(map[*Dependency]int, len(deps))
	var path []*Dependency
	reported := map[*Dependency]bool{}
	var visit func(d *Dependency)
	visit = func(d *Dependency) {
		color[d] = open
		path = append(path, d)
		for _, a := range d.Also {
			for _, n := range deps {
				if !n.appliesTo(a) {
					continue
				}
				switch color[n] {
				case fresh:
					visit(n)
				case open:
					at := slices.Index(path, n)
					if !reported[n] {
						reported[n] = true
						l.cycle(path[at:])
					}
				}
			}
		}
		path = path[:len(path)-1]
		color[d] = done
	}
	for _, d := range deps {
		if color[d] == fresh {
			visit(d)
		}
	}
}

func (l *linter) cycle(path []*Dependency) {
	names := make([]string, 0, len(path)+1)
	for _, d := range path {
		names = append(names, d.Of.String())
	}
	names = append(names, path[0].Of.String())
	l.warn(CodeCycle, path[0].pos, "take one of the dependencies out, if the circle is not meant",
		"dependencies go in a circle: %s", strings.Join(names, " -> "))
}

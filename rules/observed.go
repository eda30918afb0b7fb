package rules

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Uncovered finds, among the tables (schema.name) that the loads of each class
// were seen to read, those that no rule covers: a change of such a table leaves
// the class's entries as they are. The warnings stand in the order of classes
// and tables; a class that the file does not have has no place in it.
//
// A rule covers a class if it builds its keys, directly or over dependencies,
// or purges a tag that the class declares. Of a class that declares none it is
// assumed that its loads name the tags that the table's rules purge.
func (s *Set) Uncovered(observed map[string][]string) (Findings, error) {
	plan, err := s.Compile()
	if err != nil {
		return nil, err
	}
	l := &linter{decoder: decoder{findings: &Findings{}, secrets: &s.secrets}, set: s}
	for _, name := range slices.Sorted(maps.Keys(observed)) {
		class := s.Class(name)
		for _, table := range slices.Sorted(slices.Values(observed[name])) {
			if plan.covers(table, name, class) {
				continue
			}
			at, what := place{}, "no rule for that table covers it"
			l.subject = subject{entry: name}
			if class != nil {
				at = class.pos
			} else {
				what = "the rules have no such entry"
			}
			if at.file == "" && len(s.Files) > 0 {
				at.file = s.Files[0]
			}
			l.warn(CodeUncovered, at, uncoveredFix(name, table, class), "its loads read %s, and %s: its entries stay as they are when that table changes", table, what)
		}
	}
	return *l.findings, nil
}

// covers reports whether changes of a table reach a class; nil is one that the
// file does not have.
func (p *Plan) covers(table, name string, class *Class) bool {
	if class == nil {
		return slices.ContainsFunc(p.byTable[table], func(r *Rule) bool {
			return slices.ContainsFunc(r.Keys, func(k *Template) bool {
				return k.Class == nil && strings.HasPrefix(k.String(), name+":")
			})
		})
	}
	classes, _ := p.ClassesOfTable(table)
	if slices.Contains(classes, class) {
		return true
	}
	return len(class.Tags) == 0 && slices.ContainsFunc(p.byTable[table], func(r *Rule) bool { return len(r.Tags) > 0 })
}

// uncoveredFix is a rule to paste. Which columns hold the key only its author
// knows.
func uncoveredFix(name, table string, class *Class) string {
	key := name + ":{id}"
	if class != nil {
		key = class.Key.String()
	}
	rule := fmt.Sprintf(`- {name: "%s to %s", table: %s, keys: [ "%s" ]}`, table, name, table, key)
	if strings.ContainsAny(table, ` "'{}[],#`) {
		rule = fmt.Sprintf(`- {name: %q, table: %q, keys: [ %q ]}`, table+" to "+name, table, key)
	}
	return "add to rules, with the columns of " + table + " that hold the key: " + rule
}

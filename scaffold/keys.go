package scaffold

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lethe-cache/lethe/internal/keyscan"
)

// FromKeys returns a rules.yaml of plain classes for the patterns of keys that
// are in Redis, and a rule for each of which the segment before the last value is
// called like a table, in the singular or the plural, that has a primary key of
// one column. classes is how many there are.
func FromKeys(patterns []*keyscan.Pattern, s Schema, o Options) (text []byte, classes int) {
	p := &planner{taken: map[string]bool{}}
	var w writer
	w.remark("Classes for the keys that `lethe init --from-redis` found, mode plain: any program may go on to read and write them. Look through the names of placeholders, add rules, and run `lethe check`.")
	w.line("version: 1")
	w.line("namespace: %s", yamlNamespace(o.Namespace))
	w.line("entries:")
	var rules writer
	shapes := map[string]bool{}
	for _, pattern := range patterns {
		if n := pattern.Placeholders(); n == 0 || n > maxPlaceholders || pattern.Segments[0] == keyscan.Text || hasControl(pattern.String()) {
			continue
		}
		key, shape, table := keyTemplate(pattern, &s)
		if shapes[shape] {
			continue // the same key, whose values look different
		}
		shapes[shape] = true
		classes++
		class := p.unique(keyClass(pattern))
		w.nested(func() {
			w.remark("%s: about %d keys", pattern, pattern.Keys)
			w.line("%s:", scalar(class))
			w.line("  key: %s", scalar(key))
			w.line("  mode: plain")
			if ttl := niceTTL(pattern.TTLMax); ttl != "" {
				w.line("  ttl: %s", ttl)
			} else {
				w.line("  ttl: never")
			}
		})
		if table == nil {
			continue
		}
		rules.nested(func() {
			rules.line("- name: %s", scalar(class))
			rules.line("  table: %s", scalar(quoted(table.Schema, table.Name)))
			rules.line("  keys: %s", scalars([]string{key}))
		})
	}
	if rules.b.Len() > 0 {
		w.line("rules:")
	}
	return []byte(w.b.String() + rules.b.String()), classes
}

func yamlNamespace(namespace string) string {
	if namespace == "" {
		return `"" # keys stand as they are`
	}
	return scalar(namespace)
}

// keyTemplate makes a template of a pattern. table is the one whose rows the
// keys name, nil if none is called like that.
func keyTemplate(p *keyscan.Pattern, s *Schema) (key, shape string, table *Table) {
	var parts, forms []string
	used := map[string]bool{}
	before := ""
	for _, segment := range p.Segments {
		if !keyscan.IsPlaceholder(segment) {
			text := strings.NewReplacer("{", "{{", "}", "}}").Replace(segment)
			parts, forms, before = append(parts, text), append(forms, text), segment
			continue
		}
		name := strings.Trim(segment, "{}")
		if t := tableCalled(before, s); t != nil {
			name = t.PrimaryKey[0]
			if p.Placeholders() == 1 {
				table = t
			}
		}
		for base, n := name, 2; used[name]; n++ {
			name = fmt.Sprintf("%s%d", base, n)
		}
		used[name] = true
		parts, forms = append(parts, "{"+name+"}"), append(forms, "{}")
	}
	return strings.Join(parts, ":"), strings.Join(forms, ":"), table
}

// tableCalled finds the table of that name, in the singular or the plural, with
// a primary key of one column that a template can name bare.
func tableCalled(name string, s *Schema) *Table {
	if name == "" {
		return nil
	}
	i := slices.IndexFunc(s.Tables, func(t Table) bool {
		return len(t.PrimaryKey) == 1 && plainName.MatchString(t.PrimaryKey[0]) && t.carries(t.PrimaryKey) && t.Persistence != 'u' && sameThing(name, t.Name)
	})
	if i < 0 {
		return nil
	}
	return &s.Tables[i]
}

// sameThing compares names without case, separators and a plural's ending.
func sameThing(a, b string) bool {
	stem := func(s string) string {
		s = strings.NewReplacer("_", "", "-", "", " ", "").Replace(strings.ToLower(s))
		switch {
		case strings.HasSuffix(s, "ies"):
			return strings.TrimSuffix(s, "ies") + "y"
		case strings.HasSuffix(s, "sses"), strings.HasSuffix(s, "xes"), strings.HasSuffix(s, "ches"), strings.HasSuffix(s, "shes"):
			return strings.TrimSuffix(s, "es")
		case strings.HasSuffix(s, "s") && !strings.HasSuffix(s, "ss"):
			return strings.TrimSuffix(s, "s")
		}
		return s
	}
	return stem(a) == stem(b)
}

// keyClass names a class by the literals of a pattern.
func keyClass(p *keyscan.Pattern) string {
	var words []string
	for _, s := range p.Segments {
		if !keyscan.IsPlaceholder(s) && s != "" {
			words = append(words, slug(s))
		}
	}
	name := strings.Join(words, "_")
	if name == "" || '0' <= name[0] && name[0] <= '9' || name[0] == '-' {
		name = "keys_" + name
	}
	return strings.TrimSuffix(name, "_")
}

// niceTTL is the life that keys were likely given: the longest that is left,
// rounded up; "" if they have no end.
func niceTTL(longest time.Duration) string {
	if longest <= 0 {
		return ""
	}
	for _, d := range []time.Duration{time.Minute, 5 * time.Minute, 10 * time.Minute, 15 * time.Minute, 30 * time.Minute, time.Hour,
		2 * time.Hour, 6 * time.Hour, 12 * time.Hour, 24 * time.Hour, 7 * 24 * time.Hour, 30 * 24 * time.Hour} {
		if longest <= d {
			return duration(d)
		}
	}
	return "30d"
}

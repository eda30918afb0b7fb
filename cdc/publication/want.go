package publication

import (
	"slices"

	"github.com/lethe-cache/lethe/rules"
)

// want says where a table belongs.
type want struct {
	// in is the publication; empty: none.
	in string
	// list are the columns, sorted; nil: whole rows.
	list []string
	// blind: rules need updates, and none can be published.
	blind bool
	// missing are columns that rules read and that do not exist.
	missing []string
}

// wanted decides where t belongs. use is nil if no rule names it.
func wanted(cfg Config, s *state, t *table, use *rules.TableUse) want {
	if use == nil || !t.publishable() {
		return want{}
	}
	w := want{in: cfg.Name}
	needsUpdates := use.Ops&(rules.OnUpdate|rules.OnDelete) != 0
	if usable := t.usable(s); !usable || !needsUpdates {
		w.in = cfg.Inserts()
		w.blind = needsUpdates && !usable
	}
	for _, c := range use.Columns {
		if _, exists := t.generated(c); !exists {
			w.missing = append(w.missing, c)
		}
	}
	if s.guarded && s.version >= version15 && !cfg.WholeRows {
		w.list = t.columnList(s, use, w.in == cfg.Name)
	}
	return w
}

// usable reports whether Postgres lets rows of t be updated while updates of it
// are published. A table without any member yet (a partitioned one) has nothing
// to update.
func (t *table) usable(s *state) bool {
	for _, m := range t.members {
		if !m.Usable {
			return false
		}
		if s.version < version18 || m.Identity == "f" {
			continue
		}
		// From 18 on an identity with a generated column that is not published
		// counts as none. Ours publish stored ones; see options.
		for _, k := range m.Key {
			if kind, _ := t.generated(k); kind != "" && kind != "s" {
				return false
			}
		}
	}
	return true
}

// columnList returns what rules read and what identifies the row, or nil where
// a list is not possible or lists everything.
func (t *table) columnList(s *state, use *rules.TableUse, updates bool) []string {
	if t.typed {
		return nil // ALTER TYPE reaches its columns without naming the table
	}
	list := slices.Clone(use.Columns)
	for _, m := range t.members {
		if updates && m.Identity == "f" {
			return nil // FULL and a list exclude each other
		}
		if updates {
			list = append(list, m.Key...)
		}
	}
	slices.Sort(list)
	list = slices.Compact(list)
	list = slices.DeleteFunc(list, func(c string) bool { _, exists := t.generated(c); return !exists })
	for _, c := range list {
		if kind, _ := t.generated(c); kind == "s" && s.version < version18 || kind == "v" {
			return nil // must not be listed
		}
	}
	if len(list) == 0 || len(list) == len(t.columns) {
		return nil
	}
	return list
}

// satisfied reports whether t is published as w says and not otherwise.
func (t *table) satisfied(w want) bool {
	if w.in == "" {
		return len(t.in) == 0
	}
	list, in := t.in[w.in]
	if !in || len(t.in) != 1 || (list == nil) != (w.list == nil) {
		return false
	}
	sorted := slices.Sorted(slices.Values(list))
	return slices.Equal(sorted, w.list)
}

// breaks reports whether the application's updates of t fail as it is published
// now.
func (t *table) breaks(cfg Config, s *state) bool {
	list, in := t.in[cfg.Name]
	if !in {
		return false
	}
	if !t.usable(s) {
		return true
	}
	if list == nil {
		return false
	}
	for _, m := range t.members {
		if m.Identity == "f" {
			return true
		}
		for _, k := range m.Key {
			if !slices.Contains(list, k) {
				return true
			}
		}
	}
	return false
}

// enters reports whether nothing of t was published before it is as w says.
func (t *table) enters(w want) bool { return w.in != "" && len(t.in) == 0 }

// grows reports whether rules receive more once t is published as w says: it
// was published before, but not the updates, or not a column that they read.
func (t *table) grows(cfg Config, w want, use *rules.TableUse) bool {
	if len(t.in) == 0 || w.in == "" {
		return false
	}
	if _, had := t.in[cfg.Name]; !had && w.in == cfg.Name {
		return true
	}
	for _, list := range t.in {
		if list == nil {
			return false
		}
	}
	for _, c := range use.Columns {
		had := false
		for _, list := range t.in {
			had = had || slices.Contains(list, c)
		}
		if !had {
			return true
		}
	}
	return false
}

package scaffold

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lethe-cache/lethe/rules"
)

// Document returns the cache strategy that a rule set stands for, as Markdown.
// It is written for people who do not read rules.yaml: what is cached and why,
// for how long, what makes it forgotten, and who is asked about it.
func Document(set *rules.Set) []byte {
	d := &document{set: set}
	d.opening()
	d.overview()
	for _, c := range set.Entries {
		d.class(c)
	}
	d.tables()
	d.dependencies()
	d.open()
	return []byte(d.b.String())
}

type document struct {
	set *rules.Set
	b   strings.Builder
}

func (d *document) line(format string, args ...any) { fmt.Fprintf(&d.b, format+"\n", args...) }

func (d *document) opening() {
	d.line("# Cache strategy")
	d.line("")
	files := make([]string, len(d.set.Files))
	for i, f := range d.set.Files {
		files[i] = code(f)
	}
	d.line("Written by `lethe doc` from %s; change it there, not here.", strings.Join(files, ", "))
	d.line("")
	if d.set.Namespace != "" {
		d.line("Every key and tag begins with %s. Names below are without it.", code(d.set.Namespace+":"))
	} else {
		d.line("Keys and tags stand as they are written below.")
	}
	d.line("")
	d.line("A committed change of a table is followed from the database's log to the entries that it makes wrong, and these are")
	d.line("forgotten. So the life (TTL) of an entry bounds what memory it takes and what no rule knows of; it is not what keeps it true.")
}

func (d *document) overview() {
	if len(d.set.Entries) == 0 {
		return
	}
	d.line("")
	d.line("## What is cached")
	d.line("")
	d.line("| class | what | key | life | owner |")
	d.line("|---|---|---|---|---|")
	for _, c := range d.set.Entries {
		d.line("| [%s](#%s) | %s | %s | %s | %s |", cell(c.Name), anchor(c.Name), cell(c.Description), cellCode(c.Key.String()), life(c), cell(c.Owner))
	}
}

func (d *document) class(c *rules.Class) {
	d.line("")
	d.line("### %s", c.Name)
	d.line("")
	if c.Description != "" {
		d.line("%s", paragraph(c.Description))
		d.line("")
	}
	d.line("- Owner: %s", orNobody(c.Owner))
	d.line("- Key: %s", code(c.Key.String()))
	if len(c.Versions) > 1 || len(c.Versions) == 1 && c.Versions[0] != 1 {
		d.line("- Versions of its value that live side by side: %s", numbers(c.Versions))
	}
	switch c.Mode {
	case rules.Plain:
		d.line("- Mode: plain. Any program reads the value with `GET`; whoever writes it back late is not stopped unless it fills by ticket.")
	default:
		d.line("- Mode: exact. A value that was read before a change is never stored behind it.")
	}
	d.line("- Life: %s", life(c)+d.lifeReason(c))
	if c.NegativeTTL > 0 {
		d.line("- That there is no such row is remembered for %s", duration(c.NegativeTTL))
	}
	if c.MaxStale > 0 {
		d.line("- Served while the worker is known to be at most %s behind", duration(c.MaxStale))
	}
	if c.MaxValue > 0 {
		d.line("- Values above %s are not stored", bytesText(c.MaxValue))
	}
	if !c.L1 {
		d.line("- Not kept in the memory of the processes, only in Redis")
	}
	if len(c.Tags) > 0 {
		d.line("- Carries the tags %s", codes(c.Tags))
	}
	if c.Load != nil && c.Load.HTTP != nil {
		d.line("- Loaded by asking the application at %s", code(c.Load.HTTP.URL))
	} else if c.Load != nil {
		d.line("- Loaded by")
		d.line("")
		d.line("  ```sql")
		for l := range strings.SplitSeq(strings.TrimRight(c.Load.SQL, "\n"), "\n") {
			d.line("  %s", strings.TrimRight(l, " "))
		}
		d.line("  ```")
	} else {
		d.line("- Loaded by the application; warm-up and audit leave it out")
	}
	d.warmed(c)
	d.invalidated(c)
}

// warmed says when entries of a class are filled before they are asked for.
func (d *document) warmed(c *rules.Class) {
	for _, w := range d.set.Warm {
		if w.Entry != c.Name {
			continue
		}
		var when []string
		if w.OnStart {
			when = append(when, "at the start")
		}
		if w.Every > 0 {
			when = append(when, "every "+duration(w.Every))
		}
		if w.Cron != "" {
			when = append(when, fmt.Sprintf("at %s (%s)", code(w.Cron), w.Zone))
		}
		if len(w.At) > 0 {
			when = append(when, fmt.Sprintf("at %s (%s)", strings.Join(w.At, ", "), w.Zone))
		}
		if len(when) == 0 {
			when = append(when, "by `lethe warm` only")
		}
		line := "- Filled " + strings.Join(when, ", ")
		if w.Limit > 0 {
			line += fmt.Sprintf(", %d entries at most", w.Limit)
		}
		d.line("%s, for %s at most", line, duration(w.Deadline))
	}
	if len(c.Prefetch) > 0 {
		d.line("- With it, %s are filled", codes(c.Prefetch))
	}
}

// invalidated lists the rules that reach a class, by its key, by its tags or by
// dependencies.
func (d *document) invalidated(c *rules.Class) {
	d.line("")
	var lines []string
	for _, r := range d.set.Rules {
		if how := d.reaches(r, c); how != "" {
			lines = append(lines, fmt.Sprintf("- %s: rule %q, %s%s%s", code(r.QualifiedTable()), r.Name, how, when(r), aftermath(r)))
		}
	}
	if len(lines) == 0 {
		d.line("**No rule forgets it**: it is true only as far as its life is short, or the application forgets it by logical messages.")
		return
	}
	d.line("Forgotten when these tables change:")
	d.line("")
	for _, l := range lines {
		d.line("%s", l)
	}
}

// reaches says by which name a rule forgets entries of a class, "" if it does not.
func (d *document) reaches(r *rules.Rule, c *rules.Class) string {
	for _, k := range r.Keys {
		if k.Class == c {
			return "key " + code(k.String())
		}
	}
	for _, ts := range r.Tags {
		carried := true
		for _, t := range ts.All {
			carried = carried && slices.Contains(d.set.Carriers(t), c)
		}
		if carried && len(ts.All) == 1 {
			return "tag " + code(ts.All[0].String())
		}
		if carried {
			return "what carries all of the tags " + codes(ts.All)
		}
	}
	if r.Cascade.Depth == 0 {
		return ""
	}
	starts := slices.Clone(r.Keys)
	for _, ts := range r.Tags {
		starts = append(starts, ts.All...)
	}
	for _, s := range starts {
		if classes, _ := d.set.Reach(s, r.Cascade.Depth); slices.Contains(classes, c) {
			return "by way of " + code(s.String())
		}
	}
	return ""
}

func when(r *rules.Rule) string {
	text := ""
	if r.On != rules.OnAll {
		text += " (" + r.On.String() + ")"
	}
	if r.Lookup != nil {
		text += ", looked up by " + code(strings.Join(strings.Fields(r.Lookup.SQL), " "))
	}
	if r.When != "" {
		text += ", if " + code(strings.Join(strings.Fields(r.When), " "))
	}
	return text
}

func aftermath(r *rules.Rule) string {
	switch r.Action {
	case rules.Stale:
		return "; the old value is kept for readers that accept it"
	case rules.Rewarm:
		switch r.If {
		case rules.IfPresent:
			return "; what was cached is filled again"
		case rules.IfHot:
			return "; what is read most is filled again"
		case rules.IfAlways:
		}
		return "; the entry is filled again"
	case rules.Auto:
		return "; the entry is filled again where that costs less than to let readers do it"
	}
	return ""
}

// tables says where a change of a table leads.
func (d *document) tables() {
	if len(d.set.Rules) == 0 {
		return
	}
	d.line("")
	d.line("## Tables")
	d.line("")
	d.line("| table | classes | rules | owner |")
	d.line("|---|---|---|---|")
	var names []string
	for _, r := range d.set.Rules {
		names = append(names, r.QualifiedTable())
	}
	slices.Sort(names)
	for _, table := range slices.Compact(names) {
		var classes, list, owners []string
		for _, c := range d.set.Entries {
			if slices.ContainsFunc(d.set.Rules, func(r *rules.Rule) bool { return r.QualifiedTable() == table && d.reaches(r, c) != "" }) {
				classes = append(classes, fmt.Sprintf("[%s](#%s)", cell(c.Name), anchor(c.Name)))
			}
		}
		for _, r := range d.set.Rules {
			if r.QualifiedTable() != table {
				continue
			}
			text := cell(r.Name)
			if r.Description != "" {
				text += " (" + cell(r.Description) + ")"
			}
			list = append(list, text)
			if r.Owner != "" && !slices.Contains(owners, r.Owner) {
				owners = append(owners, r.Owner)
			}
		}
		d.line("| %s | %s | %s | %s |", cellCode(table), strings.Join(classes, ", "), strings.Join(list, "; "), cell(strings.Join(owners, ", ")))
	}
}

func (d *document) dependencies() {
	if len(d.set.Dependencies) == 0 {
		return
	}
	d.line("")
	d.line("## What depends on what")
	d.line("")
	for _, dep := range d.set.Dependencies {
		when := ""
		if dep.When != "" {
			when = ", when " + code(dep.When)
		}
		d.line("- whatever forgets %s also forgets %s%s", code(dep.Of.String()), codes(dep.Also), when)
	}
}

// open lists what the document could not say.
func (d *document) open() {
	var lines []string
	add := func(what string, missing func(*rules.Class) bool) {
		var names []string
		for _, c := range d.set.Entries {
			if missing(c) {
				names = append(names, code(c.Name))
			}
		}
		if len(names) > 0 {
			lines = append(lines, fmt.Sprintf("- %s: %s", what, strings.Join(names, ", ")))
		}
	}
	add("Classes without an owner", func(c *rules.Class) bool { return c.Owner == "" })
	add("Classes without a description", func(c *rules.Class) bool { return c.Description == "" })
	add("Classes without a life of their own", func(c *rules.Class) bool { return c.TTL == 0 })
	add("Classes that no rule forgets", func(c *rules.Class) bool { return !d.ruled(c) })
	if len(lines) == 0 {
		return
	}
	d.line("")
	d.line("## Still open")
	d.line("")
	for _, l := range lines {
		d.line("%s", l)
	}
}

func life(c *rules.Class) string {
	switch c.TTL {
	case 0:
		return "1h (the default)"
	case rules.TTLNever:
		return "no end"
	}
	return duration(c.TTL)
}

// lifeReason says what a life is there for, as far as rules can tell.
func (d *document) lifeReason(c *rules.Class) string {
	switch {
	case c.TTL == rules.TTLNever && d.ruled(c):
		return ": only a change, or Redis short of memory, forgets it"
	case c.TTL == rules.TTLNever:
		return ": nothing but Redis short of memory forgets it"
	case d.ruled(c):
		return ", so that what nobody asks for leaves the memory"
	}
	return ", and so long it may be out of date: no rule forgets it"
}

// ruled reports whether some rule forgets entries of a class.
func (d *document) ruled(c *rules.Class) bool {
	return slices.ContainsFunc(d.set.Rules, func(r *rules.Rule) bool { return d.reaches(r, c) != "" })
}

// duration writes 24h0m0s as 1d and 1h30m0s as 1h30m.
func duration(t time.Duration) string {
	const day = 24 * time.Hour
	if t >= day && t%day == 0 {
		return fmt.Sprintf("%dd", t/day)
	}
	text := t.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}

func bytesText(n int64) string {
	switch {
	case n%(1<<20) == 0:
		return fmt.Sprintf("%d MB", n>>20)
	case n%(1<<10) == 0:
		return fmt.Sprintf("%d KB", n>>10)
	}
	return fmt.Sprintf("%d bytes", n)
}

func numbers(list []int) string {
	out := make([]string, len(list))
	for i, n := range list {
		out[i] = fmt.Sprint(n)
	}
	return strings.Join(out, ", ")
}

func orNobody(owner string) string {
	if owner == "" {
		return "nobody yet"
	}
	return paragraph(owner)
}

func codes(templates []*rules.Template) string {
	out := make([]string, len(templates))
	for i, t := range templates {
		out[i] = code(t.String())
	}
	return strings.Join(out, ", ")
}

// code writes a text as code.
func code(s string) string {
	fence := "`"
	for strings.Contains(s, fence) {
		fence += "`"
	}
	if len(fence) > 1 {
		s = " " + s + " "
	}
	return fence + s + fence
}

// cellCode is code in a cell of a table, which a bar would end.
func cellCode(s string) string { return strings.ReplaceAll(code(s), "|", `\|`) }

// paragraph is a text on one line.
func paragraph(s string) string { return strings.Join(strings.Fields(s), " ") }

func cell(s string) string { return strings.ReplaceAll(paragraph(s), "|", `\|`) }

// anchor is how readers of Markdown name the heading of a class.
func anchor(name string) string {
	return strings.ReplaceAll(strings.ToLower(name), ".", "")
}

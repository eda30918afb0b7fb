package rules

import (
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

var (
	tagsFields       = []string{"all", "any"}
	cascadeFields    = []string{"depth", "stale_beyond"}
	dependencyFields = []string{"of", "also", "when"}

	ruleFields = []string{"name", "table", "on", "when", "keys", "tags", "lookup", "action", "if", "cascade", "strict", "debounce", "at", "owner", "description"}
)

func (b *builder) rule(n *yaml.Node) {
	d := b.d
	r := &Rule{pos: map[string]place{"": d.place(n)}, ordinal: len(b.set.Rules), On: OnAll,
		Cascade: Cascade{Depth: CascadeDepthDefault}}
	// The name first, so that every finding of the rule can carry it.
	if raw := resolve(n); raw.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(raw.Content); i += 2 {
			if v := resolve(raw.Content[i+1]); raw.Content[i].Value == "name" && v.Kind == yaml.ScalarNode {
				d.subject.rule = v.Value
			}
		}
	}
	f, ok := d.mapping(n, "the rule", ruleFields, nil)
	if !ok {
		return
	}
	for name, at := range f.keys {
		r.pos[name] = at
	}
	f.fallBack(b.inForce.rules)
	for name, def := range b.inForce.rules {
		if _, said := f.keys[name]; !said {
			r.pos[name] = def.at
		}
	}
	b.ruleName(f, r)
	if t := f.required("table"); t != nil {
		b.ruleTable(t, r)
	}
	b.ruleValues(f, r)
	if v := f.value("if"); v != nil {
		b.ruleIf(v, r)
	}
	before := len(b.findings)
	if v := f.value("keys"); v != nil {
		r.Keys = b.templates(v, "keys", false)
	}
	if v := f.value("tags"); v != nil {
		b.ruleTags(v, r)
	}
	if v := f.value("lookup"); v != nil {
		b.ruleLookup(v, r)
	}
	b.lookupUses(f, r)
	if len(r.Keys) == 0 && len(r.Tags) == 0 && len(b.findings) == before {
		d.errorf(CodeMissing, r.pos[""], "the rule needs \"keys\" or \"tags\": otherwise it invalidates nothing")
	}
	r.Debounce = f.durationUpTo("debounce", DebounceMax)
	if v := f.value("at"); v != nil {
		b.ruleAt(v, f, r)
	}
	r.Description, _ = f.text("description")
	if v := f.value("when"); v != nil {
		if text, ok := d.text(v, "when"); ok {
			r.When = text
			r.pos["when"], r.folded = d.textPlace(v), d.folded(v)
			b.ruleWhen(v, r)
		}
	}
	b.set.Rules = append(b.set.Rules, r)
}

// ruleValues reads what defaults may say for many rules.
func (b *builder) ruleValues(f fields, r *Rule) {
	if v := f.value("on"); v != nil {
		b.ruleOn(v, r)
	}
	if v := f.value("action"); v != nil {
		b.ruleAction(v, r)
	}
	if v := f.value("cascade"); v != nil {
		b.ruleCascade(v, r)
	}
	r.Strict = f.boolean("strict", false)
	r.Owner, _ = f.text("owner")
}

func (b *builder) ruleName(f fields, r *Rule) {
	n := f.required("name")
	if n == nil {
		return
	}
	name, ok := b.d.text(n, "name")
	if !ok {
		return
	}
	at := b.d.place(n)
	if name != strings.TrimSpace(name) || len(name) > 128 || strings.ContainsFunc(name, func(c rune) bool { return c < ' ' }) {
		b.d.errorf(CodeValue, at, "name must be one line of at most 128 bytes without spaces around it")
	}
	for _, o := range b.set.Rules {
		if o.Name == name {
			b.d.errorf(CodeDuplicate, at, "name is there twice (first in %s:%d)", o.pos["name"].file, o.pos["name"].line)
		}
	}
	r.Name = name
}

func (b *builder) ruleTable(n *yaml.Node, r *Rule) {
	text, ok := b.d.text(n, "table")
	if !ok {
		return
	}
	r.pos["table"] = b.d.textPlace(n)
	parts, err := splitTable(text)
	switch {
	case err != nil || len(parts) > 2:
		b.d.errorf(CodeValue, r.pos["table"], "table %q must be schema.name, with quotes where Postgres needs them", text)
	case len(parts) == 1:
		r.Schema, r.Table = "public", parts[0]
	default:
		r.Schema, r.Table = parts[0], parts[1]
	}
}

// splitTable reads a qualified name as Postgres does, but for folding: tables
// are most often written as they are called.
func splitTable(s string) ([]string, error) {
	var parts []string
	for {
		var part string
		if strings.HasPrefix(s, `"`) {
			end := 1
			for {
				i := strings.IndexByte(s[end:], '"')
				if i < 0 {
					return nil, fmt.Errorf("quote is not closed")
				}
				end += i + 1
				if !strings.HasPrefix(s[end:], `"`) {
					break
				}
				end++
			}
			part, s = strings.ReplaceAll(s[1:end-1], `""`, `"`), s[end:]
		} else {
			i := strings.IndexByte(s, '.')
			if i < 0 {
				i = len(s)
			}
			part, s = s[:i], s[i:]
			if strings.ContainsAny(part, " \t\n\"'{}*") {
				return nil, fmt.Errorf("a name like this needs quotes")
			}
		}
		if part == "" || len(part) > 63 {
			return nil, fmt.Errorf("empty or too long")
		}
		parts = append(parts, part)
		if s == "" {
			return parts, nil
		}
		if s[0] != '.' {
			return nil, fmt.Errorf("text behind a quoted name")
		}
		s = s[1:]
	}
}

func (b *builder) ruleOn(n *yaml.Node, r *Rule) {
	items, ok := b.d.list(n, "on")
	if !ok {
		return
	}
	names := []string{"insert", "update", "delete", "truncate"}
	var on Ops
	for _, item := range items {
		item = resolve(item)
		i := slices.Index(names, item.Value)
		if item.Kind != yaml.ScalarNode || i < 0 {
			b.d.errorf(CodeValue, b.d.place(item), "\"on\" takes insert, update, delete and truncate, not %s%s", b.d.show(item), suggest(item.Value, names))
			continue
		}
		if bit := Ops(1) << i; on&bit != 0 {
			b.d.errorf(CodeDuplicate, b.d.place(item), "\"on\" has %s twice", names[i])
		} else {
			on |= bit
		}
	}
	if len(items) == 0 {
		b.d.errorf(CodeValue, b.d.place(n), "\"on\" is empty: the rule would never act")
	}
	if on&OnDelete != 0 {
		on |= OnTruncate // TRUNCATE deletes every row
	}
	r.On = on
}

func (b *builder) ruleTags(n *yaml.Node, r *Rule) {
	n = resolve(n)
	if n.Kind != yaml.MappingNode {
		for _, t := range b.templates(n, "tags", false) {
			r.Tags = append(r.Tags, TagSet{All: []*Template{t}})
		}
		return
	}
	f, ok := b.d.mapping(n, "tags", tagsFields, nil)
	if !ok {
		return
	}
	all, any := f.value("all"), f.value("any")
	if (all == nil) == (any == nil) {
		b.d.errorf(CodeValue, b.d.place(n), "\"tags\" takes a list, {any: [...]} or {all: [...]}")
		return
	}
	if any != nil {
		for _, t := range b.templates(any, "tags", false) {
			r.Tags = append(r.Tags, TagSet{All: []*Template{t}})
		}
		return
	}
	if ts := b.templates(all, "tags", false); len(ts) > 0 {
		b.refuseEach(ts)
		r.Tags = append(r.Tags, TagSet{All: ts})
	}
}

func (b *builder) ruleAction(n *yaml.Node, r *Rule) {
	switch n.Value {
	case "delete":
	case "stale":
		r.Action = Stale
	case "rewarm":
		r.Action = Rewarm
	case "auto":
		r.Action = Auto
	default:
		b.d.errorf(CodeValue, b.d.place(n), "\"action\" must be delete, stale, rewarm or auto, not %s%s", b.d.show(n), suggest(n.Value, []string{"delete", "stale", "rewarm", "auto"}))
	}
}

func (b *builder) ruleIf(n *yaml.Node, r *Rule) {
	names := []string{"always", "present", "hot"}
	i := slices.Index(names, n.Value)
	switch {
	case n.Kind != yaml.ScalarNode || i < 0:
		b.d.errorf(CodeValue, b.d.place(n), "\"if\" must be always, present or hot, not %s%s", b.d.show(n), suggest(n.Value, names))
	case r.Action != Rewarm:
		b.d.errorf(CodeValue, b.d.place(n), "\"if\" says which entries are rewarmed: it needs action: rewarm, not %s", r.Action)
	default:
		r.If = RewarmIf(i)
	}
}

func (b *builder) ruleCascade(n *yaml.Node, r *Rule) {
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!bool" {
		var on bool
		if n.Decode(&on) == nil && !on {
			r.Cascade = Cascade{Bound: true}
		}
		return
	}
	if n.Kind != yaml.MappingNode {
		b.d.errorf(CodeValue, b.d.place(n), "\"cascade\" must be true, false, {depth: n} or {stale_beyond: n}, not %s", b.d.show(n))
		return
	}
	f, ok := b.d.mapping(n, "cascade", cascadeFields, nil)
	if !ok {
		return
	}
	beyond := f.value("stale_beyond")
	if beyond == nil && f.required("depth") == nil {
		return
	}
	if f.value("depth") != nil {
		depth, ok := f.integer("depth", 0, CascadeDepthMax)
		if !ok {
			return
		}
		r.Cascade = Cascade{Depth: depth, Bound: true}
	}
	if beyond == nil {
		return
	}
	fresh, ok := f.integer("stale_beyond", 0, CascadeDepthMax)
	switch {
	case !ok:
	case fresh >= r.Cascade.Depth:
		b.d.errorf(CodeValue, b.d.place(beyond), "\"stale_beyond\" must be less than the depth, %d: nothing lies beyond", r.Cascade.Depth)
	default:
		r.Cascade.StaleFrom = fresh + 1
	}
}

// refuseEach keeps [*] out of an intersection, which is of one name of each.
func (b *builder) refuseEach(ts []*Template) {
	for _, t := range ts {
		for i := range t.Segments() {
			if s := &t.Segments()[i]; s.Each() {
				b.d.errorf(CodeTemplate, t.segmentPlace(s), "all: {%s} stands for several names, and all takes one of each", s.Source())
			}
		}
	}
}

func (b *builder) dependency(n *yaml.Node) {
	d := b.d
	f, ok := d.mapping(n, "the dependency", dependencyFields, nil)
	if !ok {
		return
	}
	dep := &Dependency{pos: d.place(n)}
	if v := f.required("of"); v != nil {
		dep.Of = b.template(v, "of", true)
	}
	if v := f.required("also"); v != nil {
		dep.Also = b.templates(v, "also", true)
		if items, ok := d.list(v, "also"); ok && len(items) == 0 {
			d.errorf(CodeValue, d.place(v), "\"also\" is empty")
		}
	}
	if dep.Of == nil {
		return
	}
	known := dep.Of.Columns()
	if len(known) != dep.Of.Pattern().Placeholders() {
		d.errorf(CodeTemplate, dep.Of.pos, "of: a placeholder of %q is there twice", dep.Of)
	}
	for _, t := range append([]*Template{dep.Of}, dep.Also...) {
		for i := range t.Segments() {
			s := &t.Segments()[i]
			if s.Column != "" && !slices.Contains(known, s.Column) {
				d.errorf(CodeTemplate, t.segmentPlace(s), "also: {%s} is no placeholder of %q%s", s.Column, dep.Of, suggest(s.Column, known))
			}
			if len(s.Filters) > 0 {
				d.errorf(CodeTemplate, t.segmentPlace(s), "filters have no meaning in dependencies: the values are taken from a name as it is")
			}
		}
	}
	if v := f.value("when"); v != nil {
		b.edgeWhen(v, dep)
	}
	b.set.Dependencies = append(b.set.Dependencies, dep)
}

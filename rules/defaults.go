package rules

import (
	"maps"

	"go.yaml.in/yaml/v3"
)

var (
	defaultsFields     = []string{"entries", "rules"}
	entryDefaultFields = []string{"ttl", "negative_ttl", "max_stale", "mode", "versions", "max_value", "l1", "owner"}
	ruleDefaultFields  = []string{"on", "action", "cascade", "strict", "owner"}
)

// defaults are what entries and rules say that do not say otherwise: in the file
// that declares them and in those that it includes, where these declare none of
// the same name. They are immutable, as files share them.
type defaults struct {
	entries, rules map[string]defaultField
}

// defaultField is a value that was found good, and where its name stands.
type defaultField struct {
	node *yaml.Node
	at   place
}

// defaults reads the block. Each value is read once here as if it stood in an
// entry or a rule, so that a bad one is said once and not of every entry.
func (b *builder) defaults(n *yaml.Node, from defaults) defaults {
	f, ok := b.d.mapping(n, "defaults", defaultsFields, nil)
	if !ok {
		return from
	}
	if v := f.value("entries"); v != nil {
		from.entries = b.defaultFields(v, "defaults.entries", entryDefaultFields, from.entries, func(f fields) {
			b.entryValues(f, &Class{})
		})
	}
	if v := f.value("rules"); v != nil {
		from.rules = b.defaultFields(v, "defaults.rules", ruleDefaultFields, from.rules, func(f fields) {
			b.ruleValues(f, &Rule{pos: map[string]place{}})
		})
	}
	return from
}

func (b *builder) defaultFields(n *yaml.Node, what string, known []string, from map[string]defaultField, try func(fields)) map[string]defaultField {
	f, ok := b.d.mapping(n, what, known, nil)
	if !ok {
		return from
	}
	before := len(b.findings)
	try(f)
	if len(b.findings) > before {
		return from
	}
	out := maps.Clone(from)
	if out == nil {
		out = map[string]defaultField{}
	}
	for name := range f.at {
		if v := f.value(name); v != nil {
			out[name] = defaultField{node: v, at: f.keys[name]}
		} else {
			delete(out, name) // `ttl: ~` takes back what the including file says
		}
	}
	return out
}

// fallBack gives the mapping what it does not say itself; a field that is there
// and empty has been said.
func (f fields) fallBack(from map[string]defaultField) {
	for name, d := range from {
		if _, said := f.keys[name]; !said {
			f.at[name] = d.node
		}
	}
}

package rules

import (
	"bytes"
	"encoding/json"
	"fmt"
	"unicode/utf8"
)

// Message is an invalidation to be written into the log with
// pg_logical_emit_message(true, MessagePrefix, ...). Names are without the
// namespace.
type Message struct {
	Keys []string
	// Tags are purged each; of each of AllTags, what carries all.
	Tags    []string
	AllTags [][]string
	// Classes are raised, "*" is every class.
	Classes []string
	// Action is delete, stale, rewarm or auto; empty is delete.
	Action string
	// At is when it acts, RFC 3339; empty: at once.
	At     string
	Reason string
	// Namespace keeps the message from other deployments on the database; nil
	// tells all of them.
	Namespace *string
	// Rule is the rule that has scheduled it.
	Rule string
	// Cascade is how far dependencies are followed; zero: as by default.
	Cascade Cascade
}

// Encode is the message as JSON, in ASCII: the log carries it as it was written,
// in whatever encoding the database has.
func (m Message) Encode() ([]byte, error) {
	out := struct {
		Namespace *string         `json:"namespace,omitempty"`
		Keys      []string        `json:"keys,omitempty"`
		Tags      any             `json:"tags,omitempty"`
		Classes   []string        `json:"classes,omitempty"`
		Action    string          `json:"action,omitempty"`
		At        string          `json:"at,omitempty"`
		Reason    string          `json:"reason,omitempty"`
		Rule      string          `json:"rule,omitempty"`
		Cascade   *messageCascade `json:"cascade,omitempty"`
	}{Namespace: m.Namespace, Keys: m.Keys, Classes: m.Classes, Action: m.Action, At: m.At, Reason: m.Reason, Rule: m.Rule}
	switch {
	case len(m.AllTags) > 0 && len(m.Tags) > 0:
		out.Tags = map[string]any{"all": m.AllTags, "any": m.Tags}
	case len(m.AllTags) > 0:
		out.Tags = map[string]any{"all": m.AllTags}
	case len(m.Tags) > 0:
		out.Tags = m.Tags
	}
	out.Cascade = messageCascadeOf(m.Cascade)
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(out); err != nil {
		return nil, fmt.Errorf("encode message: %w", err)
	}
	return appendASCII(nil, bytes.TrimSpace(b.Bytes())), nil
}

// appendASCII appends JSON with every other character escaped. They stand in
// strings only.
func appendASCII(dst, text []byte) []byte {
	for len(text) > 0 {
		r, size := utf8.DecodeRune(text)
		switch {
		case r < utf8.RuneSelf:
			dst = append(dst, text[0])
		case r > 0xFFFF:
			r -= 0x10000
			dst = fmt.Appendf(dst, `\u%04x\u%04x`, 0xD800+(r>>10), 0xDC00+(r&0x3FF))
		default:
			dst = fmt.Appendf(dst, `\u%04x`, r)
		}
		text = text[size:]
	}
	return dst
}

// Scheduled is the message that does at its time what the targets of a
// TimedSet ask for. A name that JSON can not carry has its class raised.
func (p *Plan) Scheduled(rule *Rule, targets []Target) ([]byte, error) {
	m := Message{Namespace: &p.set.Namespace, Reason: "at"}
	if rule != nil {
		m.Rule, m.Cascade = rule.Name, rule.Cascade
	}
	raise := map[string]bool{}
	var base []byte
	for i := range targets {
		t := &targets[i]
		m.Action = t.Action.String()
		if rule == nil {
			m.Cascade = t.Cascade
		}
		names, sound := p.localNames(t)
		switch {
		case t.Kind == KindClass:
			raise[t.ClassName()] = true
		case !sound:
			raise[t.ClassName()] = true
			if t.Kind != KindKey {
				raise["*"] = true
			}
		case t.Kind == KindKey:
			// The names of other versions follow from the bare one.
			if base != nil && t.Class != nil && bytes.HasPrefix(t.Name, base) && isVersionOf(t.Class, t.Name[len(base):]) {
				continue
			}
			base = t.Name
			m.Keys = append(m.Keys, names[0])
		case t.Kind == KindTag:
			m.Tags = append(m.Tags, names[0])
		case t.Kind == KindAllTags:
			m.AllTags = append(m.AllTags, names)
		}
	}
	for name := range raise {
		m.Classes = append(m.Classes, name)
	}
	return m.Encode()
}

func (p *Plan) localNames(t *Target) (names []string, sound bool) {
	full := t.Names
	if t.Kind != KindAllTags {
		full = [][]byte{t.Name}
	}
	sound = true
	for _, n := range full {
		n = bytes.TrimPrefix(n, p.prefix)
		sound = sound && utf8.Valid(n)
		names = append(names, string(n))
	}
	return names, sound
}

// isVersionOf tells the ending of a value's version.
func isVersionOf(c *Class, ending []byte) bool {
	for _, v := range c.Versions {
		if v > 1 && string(appendVersion(nil, v)) == string(ending) {
			return true
		}
	}
	return false
}

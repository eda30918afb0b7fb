package rules

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/lethe-cache/lethe/change"
)

// MessagePrefix is the prefix of logical messages that applications write;
// those of Lethe itself begin with "lethe." and are none of a matcher's.
const MessagePrefix = "lethe"

// message is the content of a logical message: an invalidation that commits
// with the data of its transaction. Names are without the namespace.
type message struct {
	Keys    []string        `json:"keys"`
	Tags    json.RawMessage `json:"tags"`
	Classes []string        `json:"classes"`
	Action  string          `json:"action"`
	// At is a time (RFC 3339): the message is kept and acts then.
	At     string `json:"at"`
	Reason string `json:"reason"`
	// Namespace, if it is said, must be that of the rules: the log of a database
	// reaches every deployment on it.
	Namespace *string `json:"namespace"`
	// Rule is the name of the rule that had scheduled it, Cascade how far its
	// dependencies are followed.
	Rule    string          `json:"rule"`
	Cascade *messageCascade `json:"cascade"`
}

// messageCascade is as in a rule.
type messageCascade struct {
	Depth       *int `json:"depth,omitempty"`
	StaleBeyond *int `json:"stale_beyond,omitempty"`
}

func (c *messageCascade) cascade() (Cascade, error) {
	out := Cascade{Depth: CascadeDepthDefault}
	for _, n := range []*int{c.Depth, c.StaleBeyond} {
		if n != nil && (*n < 0 || *n > CascadeDepthMax) {
			return out, fmt.Errorf("read logical message: cascade of depth %d: want 0 to %d", *n, CascadeDepthMax)
		}
	}
	if c.Depth != nil {
		out.Depth, out.Bound = *c.Depth, true
	}
	if c.StaleBeyond != nil {
		out.StaleFrom = *c.StaleBeyond + 1
	}
	return out, nil
}

func messageCascadeOf(c Cascade) *messageCascade {
	var out messageCascade
	if c.Bound {
		out.Depth = &c.Depth
	}
	if c.StaleFrom > 0 {
		beyond := c.StaleFrom - 1
		out.StaleBeyond = &beyond
	}
	if out == (messageCascade{}) {
		return nil
	}
	return &out
}

// messageTags is the object form of tags: all is one intersection, or a list of
// them.
type messageTags struct {
	All json.RawMessage `json:"all"`
	Any []string        `json:"any"`
}

// maxName bounds the names that a message may bring.
const maxName = 4 << 10

// message appends what a logical message asks for, all of it or nothing.
func (m *Matcher) message(dst *Targets, c *change.Change, x change.Position) error {
	if c.Prefix != MessagePrefix {
		return nil
	}
	var msg message
	if err := strictJSON(c.Content, &msg); err != nil {
		return fmt.Errorf("read logical message: %w", err)
	}
	if msg.Namespace != nil && *msg.Namespace != m.plan.set.Namespace {
		return nil
	}
	var due time.Time
	if msg.At != "" {
		var err error
		if due, err = time.Parse(time.RFC3339, msg.At); err != nil {
			return fmt.Errorf("read logical message: \"at\" is a time such as 2030-01-31T12:00:00Z, not %.60q", msg.At)
		}
	}
	target := Target{X: x, Rule: m.plan.rule(msg.Rule), Cascade: Cascade{Depth: CascadeDepthDefault}}
	if c := msg.Cascade; c != nil {
		var err error
		if target.Cascade, err = c.cascade(); err != nil {
			return err
		}
	}
	switch msg.Action {
	case "", "delete":
	case "stale":
		target.Action = Stale
	case "rewarm":
		target.Action = Rewarm
	case "auto":
		target.Action = Auto
	default:
		return fmt.Errorf("read logical message: action %q is none of delete, stale, rewarm and auto", msg.Action)
	}
	any, all, err := readTags(msg.Tags)
	if err != nil {
		return fmt.Errorf("read logical message: tags: %w", err)
	}
	if err := checkNames(append(all, msg.Keys, any)...); err != nil {
		return fmt.Errorf("read logical message: %w", err)
	}
	classes := make([]*Class, len(msg.Classes))
	for i, name := range msg.Classes {
		if name == "*" {
			continue
		}
		if classes[i] = m.plan.set.Class(name); classes[i] == nil {
			if msg.Rule != "" {
				continue // there was one when it was scheduled: every class, then
			}
			return fmt.Errorf("read logical message: there is no class %q%s", name, suggest(name, m.plan.set.classNames()))
		}
	}
	if len(msg.Keys)+len(any)+len(all)+len(classes) == 0 {
		// A list that somebody made and that came out empty asks for nothing. A
		// message without any is one that lacks what it was to say.
		if msg.Keys != nil || msg.Classes != nil || len(msg.Tags) > 0 && string(msg.Tags) != "null" {
			return nil
		}
		return errors.New("read logical message: it names neither keys nor tags nor classes")
	}

	from := len(dst.List)
	for _, k := range msg.Keys {
		t := target
		t.Name = m.fullName(dst, k)
		t.Class = m.plan.ClassOf(t.Name)
		dst.AddName(t)
	}
	for _, tag := range any {
		t := target
		t.Kind, t.Name = KindTag, m.fullName(dst, tag)
		dst.AddName(t)
	}
	for _, set := range all {
		t := target
		t.Kind = KindAllTags
		for _, tag := range set {
			t.Names = append(t.Names, m.fullName(dst, tag))
		}
		dst.List = append(dst.List, t)
	}
	for _, class := range classes {
		t := target
		t.Reason = change.ReasonManual
		dst.AddClass(from, t, class)
	}
	if msg.At != "" {
		// Each message has a schedule of its own. Its content is part of the key:
		// another reader's log gives several messages one position.
		sum := sha256.Sum256(c.Content)
		key := fmt.Sprintf("%s:%08x:%x", x, c.Ordinal, sum[:8])
		dst.addTimed(from, Timed{Key: dst.Intern([]byte(key)), At: due, X: x, Ordinal: c.Ordinal})
	}
	return nil
}

func (m *Matcher) fullName(dst *Targets, name string) []byte {
	m.scratch = append(append(m.scratch[:0], m.plan.prefix...), name...)
	return dst.Intern(m.scratch)
}

func strictJSON(data []byte, v any) error {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("text behind the JSON value")
	}
	return nil
}

func readTags(raw json.RawMessage) (any []string, all [][]string, err error) {
	if len(raw) == 0 || string(raw) == "null" {
		return nil, nil, nil
	}
	if raw[0] != '{' {
		err = strictJSON(raw, &any)
		return any, nil, err
	}
	var both messageTags
	if err := strictJSON(raw, &both); err != nil {
		return nil, nil, err
	}
	if len(both.All) == 0 || string(both.All) == "null" {
		return both.Any, nil, nil
	}
	var one []string
	if err := strictJSON(both.All, &one); err != nil {
		err = strictJSON(both.All, &all)
		return both.Any, slices.DeleteFunc(all, func(set []string) bool { return len(set) == 0 }), err
	}
	if len(one) > 0 {
		all = [][]string{one}
	}
	return both.Any, all, nil
}

func checkNames(lists ...[]string) error {
	for _, list := range lists {
		for _, n := range list {
			if n == "" || len(n) > maxName {
				return fmt.Errorf("a name of %d bytes: names have 1 to %d", len(n), maxName)
			}
		}
	}
	return nil
}

package rules

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

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
	At      string          `json:"at"`
	Reason  string          `json:"reason"`
}

// messageTags is the object form of tags.
type messageTags struct {
	All []string `json:"all"`
	Any []string `json:"any"`
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
	if msg.At != "" {
		return errors.New(`read logical message: "at" is not supported by this version`)
	}
	target := Target{X: x, Cascade: Cascade{Depth: CascadeDepthDefault}}
	switch msg.Action {
	case "", "delete":
	case "stale":
		target.Action = Stale
	case "rewarm":
		target.Action = Rewarm
	default:
		return fmt.Errorf("read logical message: action %q is none of delete, stale and rewarm", msg.Action)
	}
	any, all, err := readTags(msg.Tags)
	if err != nil {
		return fmt.Errorf("read logical message: tags: %w", err)
	}
	if err := checkNames(msg.Keys, any, all); err != nil {
		return fmt.Errorf("read logical message: %w", err)
	}
	classes := make([]*Class, len(msg.Classes))
	for i, name := range msg.Classes {
		if name == "*" {
			continue
		}
		if classes[i] = m.plan.set.Class(name); classes[i] == nil {
			return fmt.Errorf("read logical message: there is no class %q%s", name, suggest(name, m.plan.set.classNames()))
		}
	}
	if len(msg.Keys)+len(any)+len(all)+len(classes) == 0 {
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
	if len(all) > 0 {
		t := target
		t.Kind = KindAllTags
		for _, tag := range all {
			t.Names = append(t.Names, m.fullName(dst, tag))
		}
		dst.List = append(dst.List, t)
	}
	for _, class := range classes {
		t := target
		t.Reason = change.ReasonManual
		dst.AddClass(from, t, class)
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

func readTags(raw json.RawMessage) (any, all []string, err error) {
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
	return both.Any, both.All, nil
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

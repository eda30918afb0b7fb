package explain

import (
	"fmt"
	"io"
	"strings"
)

// Print writes explanations for people: each change, and below it what it
// invalidates, why, and by which line.
func Print(w io.Writer, list []Explanation) error {
	var b strings.Builder
	for i, e := range list {
		if i > 0 {
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "%s\n", e.Change)
		if len(e.Steps) == 0 {
			b.WriteString("  nothing: no rule of the table matches\n")
		}
		for _, s := range e.Steps {
			fmt.Fprintf(&b, "  %s\n", s.Text())
			fmt.Fprintf(&b, "      because of %s\n", s.because())
		}
		for _, n := range e.Notes {
			fmt.Fprintf(&b, "  note: %s\n", n)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// Text is what is invalidated, how and when, in a few words.
func (s Step) Text() string {
	if s.At != "" {
		return s.text() + " at " + s.At
	}
	return s.text()
}

func (s Step) text() string {
	switch s.Kind {
	case "class":
		name := s.Name
		if name == "*" {
			name = "every class"
		}
		return "raise " + name + " (" + s.Reason + ")"
	case "tag":
		return "purge tag " + s.Name
	case "all tags":
		return "purge tags " + strings.Join(s.Names, " & ")
	}
	text := s.Action + " key " + s.Name
	if s.Class != "" {
		return text + " (" + s.Class + ")"
	}
	return text + " (no class)"
}

func (s Step) because() string {
	var b strings.Builder
	switch {
	case s.Rule != "":
		fmt.Fprintf(&b, "rule %q, %s:%d", s.Rule, s.File, s.Line)
	case s.File != "":
		fmt.Fprintf(&b, "the message, %s:%d", s.File, s.Line)
	default:
		b.WriteString("the message")
	}
	if len(s.Path) > 0 {
		b.WriteString(", through " + strings.Join(s.Path, " -> "))
	}
	return b.String()
}

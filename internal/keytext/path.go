package keytext

import (
	"fmt"
	"strconv"
	"strings"
)

// maxSteps is how many steps a path may have.
const maxSteps = 16

// Step is one step from a value to a part of it.
type Step struct {
	Kind StepKind
	// Key is the member of a StepKey, Index the element of a StepIndex,
	// counted from 0, in arrays of Postgres too.
	Key   string
	Index int
}

// StepKind says where a step leads.
type StepKind byte

// The steps that paths have.
const (
	// StepKey is .name, the member of an object.
	StepKey StepKind = iota
	// StepIndex is [n], one element of an array.
	StepIndex
	// StepEach is [*], every element of an array: one name for each.
	StepEach
)

// String is the step as templates write it.
func (s Step) String() string {
	switch s.Kind {
	case StepIndex:
		return "[" + strconv.Itoa(s.Index) + "]"
	case StepEach:
		return "[*]"
	}
	if isKey(s.Key) {
		return "." + s.Key
	}
	return `."` + s.Key + `"`
}

// Source is what a placeholder takes its value from, without the side: a column
// and the path into it.
func (s *Segment) Source() string {
	from := s.Column
	if s.Lookup {
		from = "lookup." + from
	}
	if len(s.Path) == 0 {
		return from
	}
	return from + pathText(s.Path)
}

// Each reports whether the placeholder stands for several values.
func (s *Segment) Each() bool {
	for _, step := range s.Path {
		if step.Kind == StepEach {
			return true
		}
	}
	return false
}

func pathText(path []Step) string {
	var b strings.Builder
	for _, s := range path {
		b.WriteString(s.String())
	}
	return b.String()
}

// parsePath reads the steps behind a column; the error says what is wrong.
func parsePath(s string) ([]Step, error) {
	var path []Step
	for s != "" {
		if len(path) == maxSteps {
			return nil, fmt.Errorf("has more than %d steps", maxSteps)
		}
		var step Step
		if s[0] == '[' {
			inside, rest, closed := strings.Cut(s[1:], "]")
			switch {
			case !closed:
				return nil, fmt.Errorf("has a [ that is not closed")
			case inside == "*":
				step.Kind = StepEach
			default:
				n, err := strconv.ParseUint(inside, 10, 31)
				if err != nil || strconv.FormatUint(n, 10) != inside {
					return nil, fmt.Errorf("has [%s] where [*] or a number from 0 may stand", inside)
				}
				step.Kind, step.Index = StepIndex, int(n)
			}
			path, s = append(path, step), rest
			continue
		}
		name, rest := "", ""
		if strings.HasPrefix(s, `."`) {
			end := strings.IndexByte(s[2:], '"')
			if end < 0 {
				return nil, fmt.Errorf("has quotes that are not closed")
			}
			name, rest = s[2:end+2], s[end+3:]
		} else if s[0] == '.' {
			name = s[1:]
			if i := strings.IndexAny(name, ".["); i >= 0 {
				name, rest = name[:i], name[i:]
			}
			if !isKey(name) {
				name = ""
			}
		}
		if name == "" || rest != "" && rest[0] != '.' && rest[0] != '[' {
			return nil, fmt.Errorf("has %s where .name, .\"any name\", [n] or [*] may stand", s)
		}
		path, s = append(path, Step{Key: name}), rest
	}
	return path, nil
}

// isKey is what a member may be called without quotes.
func isKey(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c != '_' && c != '$' && c != '-' && c < 0x80 && !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9') {
			return false
		}
	}
	return s != ""
}

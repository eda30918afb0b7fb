package rules

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Severity tells what stops Lethe from what people should know.
type Severity byte

// The severities of a Finding.
const (
	// Error: the rules are refused.
	Error Severity = iota
	// Warning: the rules work, but something will go wrong later.
	Warning
)

// String names the severity.
func (s Severity) String() string {
	if s == Warning {
		return "warning"
	}
	return "error"
}

// Finding is one thing that is wrong, or will be, with where and how to cure it.
type Finding struct {
	// Code identifies the kind: L001, L002 ...
	Code     string
	Severity Severity
	// File, Line and Col say where, Line and Col from 1; 0 if the finding has
	// no place of its own.
	File      string
	Line, Col int
	// Rule or Entry is the name of what it is about, at most one of them.
	Rule, Entry string
	Message     string
	// Fix says what to do, if possible something to paste.
	Fix string
}

// String renders `file:line:col: rule "name": message`.
func (f Finding) String() string {
	var b strings.Builder
	b.WriteString(f.File)
	if f.Line > 0 {
		fmt.Fprintf(&b, ":%d:%d", f.Line, f.Col)
	}
	b.WriteString(": ")
	switch {
	case f.Rule != "":
		fmt.Fprintf(&b, "rule %q: ", f.Rule)
	case f.Entry != "":
		fmt.Fprintf(&b, "entry %q: ", f.Entry)
	}
	b.WriteString(f.Message)
	return b.String()
}

// Page is where the repository's documentation explains the finding's code.
func (f Finding) Page() string { return "docs/findings.md#" + strings.ToLower(f.Code) }

// Findings is a list of findings; as an error it is all of them, one a line.
type Findings []Finding

// Error renders every finding on a line of its own.
func (fs Findings) Error() string {
	lines := make([]string, len(fs))
	for i, f := range fs {
		lines[i] = f.String()
	}
	return strings.Join(lines, "\n")
}

// Errors returns those of severity Error.
func (fs Findings) Errors() Findings { return fs.only(Error) }

// Warnings returns those of severity Warning.
func (fs Findings) Warnings() Findings { return fs.only(Warning) }

// HasErrors reports whether any of them has severity Error.
func (fs Findings) HasErrors() bool {
	return slices.ContainsFunc(fs, func(f Finding) bool { return f.Severity == Error })
}

func (fs Findings) only(s Severity) Findings {
	var out Findings
	for _, f := range fs {
		if f.Severity == s {
			out = append(out, f)
		}
	}
	return out
}

// sort orders by place, so that a reader goes through the file once, and drops
// what was found twice.
func (fs Findings) sort() Findings {
	slices.SortStableFunc(fs, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line),
			cmp.Compare(a.Col, b.Col), cmp.Compare(a.Code, b.Code))
	})
	return slices.Compact(fs)
}

// place is a position in a file.
type place struct {
	file      string
	line, col int
}

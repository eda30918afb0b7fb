package rules

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// Limits of a rules file. They keep a hostile or generated file from taking
// the process with it; real files stay far below.
const (
	maxFileSize = 4 << 20
	maxDepth    = 32
	maxNodes    = 500_000
)

// subject is what findings are about, for their prefix.
type subject struct{ rule, entry string }

// decoder walks the nodes of one file and collects what is wrong with them.
type decoder struct {
	file     string
	lines    []string
	findings *Findings
	subject  subject

	source  string
	env     func(name string) (string, bool)
	secrets *[]secret
	// written are the scalars with variables, as they were before.
	written map[*yaml.Node]string
}

func newDecoder(file string, findings *Findings, secrets *[]secret, env func(string) (string, bool)) *decoder {
	return &decoder{file: file, findings: findings, secrets: secrets, env: env, written: map[*yaml.Node]string{}}
}

func (d *decoder) add(sev Severity, code string, p place, fix, format string, args ...any) {
	for i := range args {
		args[i] = hideArg(*d.secrets, args[i])
	}
	*d.findings = append(*d.findings, Finding{
		Code: code, Severity: sev, File: p.file, Line: p.line, Col: p.col,
		Rule: hide(*d.secrets, d.subject.rule), Entry: d.subject.entry,
		Message: fmt.Sprintf(format, args...), Fix: hide(*d.secrets, fix),
	})
}

func (d *decoder) errorf(code string, p place, format string, args ...any) {
	d.add(Error, code, p, "", format, args...)
}

func (d *decoder) place(n *yaml.Node) place {
	return place{file: d.file, line: max(n.Line, 1), col: max(n.Column, 1)}
}

// textPlace is where the text of a scalar begins: behind the quote, or on the
// line after a block's indicator.
func (d *decoder) textPlace(n *yaml.Node) place {
	p := d.place(n)
	switch n.Style &^ yaml.TaggedStyle {
	case yaml.DoubleQuotedStyle, yaml.SingleQuotedStyle:
		p.col++
	case yaml.LiteralStyle, yaml.FoldedStyle:
		p.line++
		if p.line <= len(d.lines) {
			line := d.lines[p.line-1]
			p.col = 1 + len(line) - len(strings.TrimLeft(line, " "))
		}
	}
	return p
}

// folded reports whether the lines of a scalar were joined, or variables in it
// expanded, so that an offset in its text says nothing about its place in the file.
func (d *decoder) folded(n *yaml.Node) bool {
	if _, expanded := d.written[n]; expanded {
		return true
	}
	style := n.Style &^ yaml.TaggedStyle
	if style == yaml.LiteralStyle {
		return false
	}
	p := d.textPlace(n)
	return style == yaml.FoldedStyle || p.line > len(d.lines) || p.col-1+len(n.Value) > len(d.lines[p.line-1])
}

// parserMessage is how the YAML library's parser, as against its scanner, words
// its errors: it counts lines from 0 in them, and leaves out line 0.
var parserMessage = regexp.MustCompile(`did not find expected (',' or|key|'-'|node|<)`)

var yamlLine = regexp.MustCompile(`line (\d+)(?:, column (\d+))?: `)

// document parses the file's single document. nil means that a finding says
// why there is none.
func (d *decoder) document(data []byte) *yaml.Node {
	start := place{file: d.file, line: 1, col: 1}
	if len(data) > maxFileSize {
		d.errorf(CodeLimit, start, "file has %d bytes, the limit is %d", len(data), maxFileSize)
		return nil
	}
	d.source = string(data)
	d.lines = strings.Split(d.source, "\n")
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	if err := dec.Decode(&doc); err != nil {
		if errors.Is(err, io.EOF) {
			d.errorf(CodeMissing, start, "file is empty: write at least `version: 1` and rules")
		} else {
			d.yamlError(err)
		}
		return nil
	}
	var second yaml.Node
	switch err := dec.Decode(&second); {
	case err == nil:
		d.errorf(CodeSyntax, d.place(&second), "more than one YAML document in the file: write one document, or several files")
		return nil
	case !errors.Is(err, io.EOF):
		d.yamlError(err)
		return nil
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
		d.errorf(CodeMissing, start, "file is empty: write at least `version: 1` and rules")
		return nil
	}
	budget := maxNodes
	if !d.bounded(doc.Content[0], maxDepth, &budget) {
		return nil
	}
	d.expandAll(doc.Content[0], map[*yaml.Node]bool{})
	return doc.Content[0]
}

func (d *decoder) yamlError(err error) {
	p := place{file: d.file, line: 1, col: 1}
	msg := strings.TrimPrefix(err.Error(), "yaml: ")
	if m := yamlLine.FindStringSubmatch(msg); m != nil {
		p.line, _ = strconv.Atoi(m[1])
		if m[2] != "" {
			p.col, _ = strconv.Atoi(m[2])
		}
		msg = strings.Replace(msg, m[0], "", 1)
	}
	if parserMessage.MatchString(msg) && yamlLine.MatchString(err.Error()) {
		p.line++
	}
	p.line, p.col = min(max(p.line, 1), max(len(d.lines), 1)), max(p.col, 1)
	msg, _, _ = strings.Cut(msg, "\n")
	d.errorf(CodeSyntax, p, "YAML: %s", msg)
}

// bounded follows aliases and counts what a walk will visit, so that neither
// depth nor aliases of aliases can blow it up.
func (d *decoder) bounded(n *yaml.Node, depth int, budget *int) bool {
	if *budget--; *budget < 0 {
		d.errorf(CodeLimit, d.place(n), "more than %d values, aliases counted each time", maxNodes)
		return false
	}
	if depth == 0 {
		d.errorf(CodeLimit, d.place(n), "nested deeper than %d levels", maxDepth)
		return false
	}
	if n.Kind == yaml.AliasNode {
		return d.bounded(n.Alias, depth-1, budget)
	}
	for _, c := range n.Content {
		if !d.bounded(c, depth-1, budget) {
			return false
		}
	}
	return true
}

func resolve(n *yaml.Node) *yaml.Node {
	for n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	return n
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

func kindName(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.ShortTag() {
	case "!!null":
		return "nothing"
	case "!!bool":
		return "a boolean"
	case "!!int":
		return "an integer"
	case "!!float":
		return "a number"
	}
	return "text"
}

// fields is a mapping, read by name.
type fields struct {
	d    *decoder
	node *yaml.Node
	what string
	at   map[string]*yaml.Node // the values, aliases resolved
	keys map[string]place
}

// mapping reads a mapping whose keys must be among known. Those in later are
// understood by a later version, which is an error of its own.
func (d *decoder) mapping(n *yaml.Node, what string, known, later []string) (fields, bool) {
	n = resolve(n)
	f := fields{d: d, node: n, what: what, at: map[string]*yaml.Node{}, keys: map[string]place{}}
	if n.Kind != yaml.MappingNode {
		d.errorf(CodeValue, d.place(n), "%s must be a mapping, not %s", what, kindName(n))
		return f, false
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := resolve(n.Content[i]), resolve(n.Content[i+1])
		at := d.place(n.Content[i])
		if k.Kind != yaml.ScalarNode {
			d.errorf(CodeSyntax, at, "a key of %s must be text, not %s", what, kindName(k))
			continue
		}
		if first, dup := f.keys[k.Value]; dup {
			d.errorf(CodeDuplicate, at, "%q is there twice in %s (first on line %d)", k.Value, what, first.line)
			continue
		}
		f.keys[k.Value] = at
		switch {
		case known == nil || slices.Contains(known, k.Value):
			f.at[k.Value] = v
		case slices.Contains(later, k.Value):
			d.errorf(CodeUnsupported, at, "%q of %s is not supported by this version", k.Value, what)
		case k.Value == "<<":
			d.errorf(CodeUnknownField, at, "merge keys (<<) are not supported: write the fields out")
		default:
			hint := suggest(k.Value, slices.Concat(known, later))
			if n.Style&yaml.FlowStyle != 0 && isNull(v) && v.Value == "" {
				hint = " (inside of {...} a text with a comma needs quotes)" // the rest of it
			}
			d.errorf(CodeUnknownField, at, "unknown field %q in %s%s", k.Value, what, hint)
		}
	}
	return f, true
}

// value returns the node of a field, nil if it is absent or empty.
func (f fields) value(name string) *yaml.Node {
	n := f.at[name]
	if n == nil || isNull(n) {
		return nil
	}
	return n
}

// place is where a field's key stands, or the mapping if it is absent.
func (f fields) place(name string) place {
	if p, ok := f.keys[name]; ok {
		return p
	}
	return f.d.place(f.node)
}

func (f fields) required(name string) *yaml.Node {
	n := f.value(name)
	if n == nil {
		f.d.errorf(CodeMissing, f.place(name), "%s needs a %q", f.what, name)
	}
	return n
}

func (f fields) text(name string) (string, bool) {
	n := f.value(name)
	if n == nil {
		return "", false
	}
	return f.d.text(n, name)
}

func (d *decoder) text(n *yaml.Node, what string) (string, bool) {
	n = resolve(n)
	if n.Kind != yaml.ScalarNode || isNull(n) {
		d.errorf(CodeValue, d.place(n), "%q must be text, not %s", what, kindName(n))
		return "", false
	}
	return n.Value, true
}

func (f fields) boolean(name string, def bool) bool {
	n := f.value(name)
	if n == nil {
		return def
	}
	var b bool
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!bool" || n.Decode(&b) != nil {
		f.d.errorf(CodeValue, f.d.place(n), "%q must be true or false, not %s", name, f.d.show(n))
		return def
	}
	return b
}

func (f fields) integer(name string, lo, hi int) (int, bool) {
	n := f.value(name)
	if n == nil {
		return 0, false
	}
	return f.d.integer(n, name, lo, hi)
}

func (d *decoder) integer(n *yaml.Node, name string, lo, hi int) (int, bool) {
	n = resolve(n)
	var i int
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!int" || n.Decode(&i) != nil || i < lo || i > hi {
		d.errorf(CodeValue, d.place(n), "%q must be an integer from %d to %d, not %s", name, lo, hi, d.show(n))
		return 0, false
	}
	return i, true
}

func (f fields) duration(name string) time.Duration {
	n := f.value(name)
	if n == nil {
		return 0
	}
	v, err := parseDuration(n.Value)
	if n.Kind != yaml.ScalarNode || err != nil || v <= 0 {
		f.d.errorf(CodeValue, f.d.place(n), "%q must be a duration above zero such as 30s, 10m or 1h, not %s", name, f.d.show(n))
		return 0
	}
	return v
}

// durationUpTo is duration with a bound.
func (f fields) durationUpTo(name string, most time.Duration) time.Duration {
	v := f.duration(name)
	if v > most {
		n := f.value(name)
		f.d.errorf(CodeValue, f.d.place(n), "%q must be at most %s, not %s", name, most, f.d.show(n))
		return 0
	}
	return v
}

var leadingDays = regexp.MustCompile(`^(\d{1,5})d`)

// parseDuration is time.ParseDuration with days of 24 hours before the rest.
func parseDuration(s string) (time.Duration, error) {
	m := leadingDays.FindStringSubmatch(s)
	if m == nil {
		return time.ParseDuration(s)
	}
	days, _ := strconv.Atoi(m[1])
	v := time.Duration(days) * 24 * time.Hour
	if rest := s[len(m[0]):]; rest != "" {
		more, err := time.ParseDuration(rest)
		if err != nil || more < 0 {
			return 0, fmt.Errorf("parse duration %q", s)
		}
		v += more
	}
	return v, nil
}

// list reads a list; a single scalar stands for a list of one.
func (d *decoder) list(n *yaml.Node, name string) ([]*yaml.Node, bool) {
	n = resolve(n)
	switch {
	case n.Kind == yaml.SequenceNode:
		return n.Content, true
	case n.Kind == yaml.ScalarNode && !isNull(n):
		return []*yaml.Node{n}, true
	}
	d.errorf(CodeValue, d.place(n), "%q must be a list, not %s", name, kindName(n))
	return nil, false
}

// show renders a node for a message: its text as it is written, or what it is.
func (d *decoder) show(n *yaml.Node) string {
	v := n.Value
	if written, ok := d.written[n]; ok {
		v = written // what came from the environment may be secret
	} else if n.Kind != yaml.ScalarNode || isNull(n) {
		return kindName(n)
	}
	if len(v) > 60 {
		v = v[:60] + "..."
	}
	return strconv.Quote(v)
}

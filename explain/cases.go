package explain

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/rules"
)

// Case is one test of rules: changes in, names out. Names are as rules write
// them, without the namespace; those that are not listed must not come out.
type Case struct {
	Name string `yaml:"name"`
	// Change is the change, or Changes are several.
	Change  *Row  `yaml:"change"`
	Changes []Row `yaml:"changes"`
	// Lookup is what the lookups of rules give; one that it says nothing of fails
	// the case.
	Lookup []Looked `yaml:"lookup"`
	// Keys and Tags are what rules and messages name by themselves; tags of
	// which an entry must carry all are written "a & b".
	Keys []string `yaml:"keys"`
	Tags []string `yaml:"tags"`
	// Cascade are the keys and tags that follow from those by dependencies.
	Cascade []string `yaml:"cascade"`
	// Classes are the classes that are raised, "*" for every class.
	Classes []string `yaml:"classes"`

	// Line is where the case begins in its file.
	Line int `yaml:"-"`
}

// Cases is a file of cases.
type Cases struct {
	File string
	List []Case

	data []byte
	doc  yaml.Node
}

// ParseCases reads a file of cases: a mapping with the one field cases. The
// error says where the mistake is.
func ParseCases(file string, data []byte) (*Cases, error) {
	c := &Cases{File: file, data: data}
	d := yaml.NewDecoder(bytes.NewReader(data))
	d.KnownFields(true)
	var content struct {
		Cases []Case `yaml:"cases"`
	}
	if err := d.Decode(&content); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: there is more than one document (---): cases behind the first would not be run", file)
	}
	if err := yaml.Unmarshal(data, &c.doc); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	c.List = content.Cases
	if len(c.List) == 0 {
		return nil, fmt.Errorf("%s: there are no cases: want \"cases:\" with a list of name, change, keys, tags, cascade and classes", file)
	}
	for i, n := range c.nodes() {
		c.List[i].Line = n.Line
	}
	seen := map[string]bool{}
	for i := range c.List {
		t := &c.List[i]
		switch {
		case t.Name == "":
			return nil, fmt.Errorf("%s:%d: the case needs a name", file, t.Line)
		case seen[t.Name]:
			return nil, fmt.Errorf("%s:%d: the name %q is there twice", file, t.Line, t.Name)
		case (t.Change == nil) == (len(t.Changes) == 0):
			return nil, fmt.Errorf("%s:%d: case %q: want either change or changes", file, t.Line, t.Name)
		}
		seen[t.Name] = true
	}
	return c, nil
}

// nodes are the cases as they stand in the file.
func (c *Cases) nodes() []*yaml.Node {
	if top := c.doc.Content[0]; top.Kind == yaml.MappingNode {
		for i := 0; i+1 < len(top.Content); i += 2 {
			if top.Content[i].Value == "cases" {
				return top.Content[i+1].Content
			}
		}
	}
	return nil
}

// changes are those of the case as the log would carry them.
func (t *Case) changes(schema *rules.Schema) ([]*change.Change, error) {
	rows := t.Changes
	if t.Change != nil {
		rows = []Row{*t.Change}
	}
	out := make([]*change.Change, len(rows))
	for i := range rows {
		var err error
		if out[i], err = rows[i].Change(schema); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// Result is what came of a case.
type Result struct {
	Case *Case
	// Missing were expected and did not come out, Unexpected the other way
	// round, each "key product:42", "tag category:7", "cascade ...", "class ...".
	Missing, Unexpected []string
	// Notes are the explanations'.
	Notes []string

	got [4][]string
}

// Failed reports whether something is missing or unexpected.
func (r *Result) Failed() bool { return len(r.Missing)+len(r.Unexpected) > 0 }

// The lists of a case, in the order of the file.
var listNames = [4]string{"keys", "tags", "cascade", "classes"}

// words for one of each list.
var listWords = [4]string{"key", "tag", "cascade", "class"}

// Run runs a case and counts what it tries in cover, which may be nil. The
// error is that of a change that can not be made or understood.
func (e *Explainer) Run(t *Case, schema *rules.Schema, cover *rules.Coverage) (*Result, error) {
	changes, err := t.changes(schema)
	if err != nil {
		return nil, fmt.Errorf("case %q: %w", t.Name, err)
	}
	before := e.lookups
	e.lookups = Answers(t.Lookup)
	defer func() { e.lookups = before }()
	r := &Result{Case: t}
	for _, c := range changes {
		if cover != nil {
			if err := cover.Add(c); err != nil {
				return nil, fmt.Errorf("case %q: %w", t.Name, err)
			}
		}
		x, err := e.Explain(c)
		if err != nil {
			return nil, fmt.Errorf("case %q: %w", t.Name, err)
		}
		for _, n := range x.Notes {
			if !slices.Contains(r.Notes, n) {
				r.Notes = append(r.Notes, n)
			}
		}
		for i := range x.Steps {
			list, name := e.expected(&x.Steps[i])
			if !slices.Contains(r.got[list], name) {
				r.got[list] = append(r.got[list], name)
			}
		}
	}
	for i, want := range [4][]string{t.Keys, t.Tags, t.Cascade, t.Classes} {
		slices.Sort(r.got[i])
		for _, name := range want {
			if !slices.Contains(r.got[i], name) {
				r.Missing = append(r.Missing, listWords[i]+" "+name)
			}
		}
		for _, name := range r.got[i] {
			if !slices.Contains(want, name) {
				r.Unexpected = append(r.Unexpected, listWords[i]+" "+name)
			}
		}
	}
	return r, nil
}

// expected is how a case writes what was invalidated, and in which list. The
// versions of a value are one name.
func (e *Explainer) expected(s *Step) (list int, name string) {
	list, name = e.listed(s)
	if s.At != "" {
		name += " at " + s.At
	}
	return list, name
}

func (e *Explainer) listed(s *Step) (list int, name string) {
	local := func(full string) string {
		if e.set.Namespace != "" {
			full = strings.TrimPrefix(full, e.set.Namespace+":")
		}
		if c := e.set.Class(s.Class); c != nil {
			full = string(c.Unversioned([]byte(full)))
		}
		return full
	}
	switch {
	case s.Kind == "class":
		return 3, s.Name
	case s.Depth > 0:
		return 2, local(s.Name)
	case s.Kind == "key":
		return 0, local(s.Name)
	}
	names := []string{local(s.Name)}
	if len(s.Names) > 0 {
		names = names[:0]
		for _, n := range s.Names {
			names = append(names, local(n))
		}
	}
	return 1, strings.Join(names, " & ")
}

// Update returns the file with what came out in place of what was expected;
// comments and everything else stay, and so does the whole file if no case
// failed.
func (c *Cases) Update(results []*Result) ([]byte, error) {
	if !slices.ContainsFunc(results, (*Result).Failed) {
		return c.data, nil
	}
	for i, n := range c.nodes() {
		if n.Kind != yaml.MappingNode {
			return nil, fmt.Errorf("%s:%d: an alias can not be updated", c.File, n.Line)
		}
		for list, name := range listNames {
			setList(n, name, results[i].got[list])
		}
	}
	var b bytes.Buffer
	encoder := yaml.NewEncoder(&b)
	encoder.SetIndent(2)
	if err := encoder.Encode(&c.doc); err != nil {
		return nil, fmt.Errorf("%s: %w", c.File, err)
	}
	return b.Bytes(), encoder.Close()
}

// setList gives a mapping the field with that list, or takes it away if the
// list is empty.
func setList(n *yaml.Node, field string, names []string) {
	at := -1
	for i := 0; i+1 < len(n.Content); i += 2 {
		if n.Content[i].Value == field {
			at = i
		}
	}
	if len(names) == 0 {
		if at >= 0 {
			n.Content = slices.Delete(n.Content, at, at+2)
		}
		return
	}
	list := &yaml.Node{Kind: yaml.SequenceNode, Style: yaml.FlowStyle}
	for _, name := range names {
		list.Content = append(list.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Style: yaml.DoubleQuotedStyle, Value: name})
	}
	if at < 0 {
		n.Content = append(n.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: field}, list)
		return
	}
	if old := n.Content[at+1]; old.Kind == yaml.SequenceNode && slices.EqualFunc(old.Content, list.Content, func(a, b *yaml.Node) bool { return a.Value == b.Value }) {
		return // as it was written
	}
	n.Content[at+1] = list
}

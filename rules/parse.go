package rules

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"

	"cel.dev/cel-go/cel"
	"go.yaml.in/yaml/v3"

	"github.com/lethe-cache/lethe/internal/keytext"
)

// Load reads one or several files as one set: namespaces must agree, names must
// be unique across all of them. The error is Findings, or that of reading a
// file.
func Load(paths ...string) (*Set, error) { return Options{}.Load(paths...) }

// Parse reads one file's text; file is what findings call it. The error is
// Findings: every mistake that can be found without a database, at once. A text
// includes no files.
func Parse(file string, data []byte) (*Set, error) { return Options{}.Parse(file, data) }

// Options say where a set comes from.
type Options struct {
	// Env looks up what ${NAME} in the files stands for; nil is os.LookupEnv.
	Env func(name string) (value string, ok bool)
}

// Load is the package's Load, with options.
func (o Options) Load(paths ...string) (*Set, error) {
	if len(paths) == 0 {
		return nil, errors.New("load rules: no file given")
	}
	b := newBuilder(o)
	b.disk = true
	for _, p := range paths {
		data, err := os.ReadFile(p)
		if err != nil {
			return nil, fmt.Errorf("load rules: %w", err)
		}
		r := &reading{path: p, id: fileID(p)}
		if first, twice := b.files[r.id]; twice {
			b.d = newDecoder(p, &b.findings, &b.set.secrets, b.lookup)
			b.d.errorf(CodeInclude, place{file: p, line: 1, col: 1}, "%s is read already (%s)", p, first)
			continue
		}
		b.files[r.id] = "named itself"
		b.file(r, data)
	}
	return b.finish()
}

// Parse is the package's Parse, with options.
func (o Options) Parse(file string, data []byte) (*Set, error) {
	b := newBuilder(o)
	b.file(&reading{path: file}, data)
	return b.finish()
}

// builder collects files into a set.
type builder struct {
	set      *Set
	findings Findings
	d        *decoder // of the file at hand
	env      *cel.Env // made for the first condition
	edges    edgeConditions
	lookup   func(name string) (string, bool)
	disk     bool              // files may be included
	files    map[string]string // by fileID, how they came in
	forms    map[string]*Class // entries, by the form of their key

	inForce     defaults // of the file at hand
	namespaceAt place
	namespaced  bool
	edgeClasses []edgeClasses
}

func newBuilder(o Options) *builder {
	b := &builder{set: &Set{Version: 1}, lookup: o.Env, files: map[string]string{}, forms: map[string]*Class{}}
	if b.lookup == nil {
		b.lookup = os.LookupEnv
	}
	return b
}

var (
	topFields = []string{"version", "namespace", "entries", "rules", "dependencies", "warm", "include", "defaults", "lint", "edge"}
)

func (b *builder) file(r *reading, data []byte) {
	b.set.Files = append(b.set.Files, r.path)
	b.d = newDecoder(r.path, &b.findings, &b.set.secrets, b.lookup)
	doc := b.d.document(data)
	if doc == nil {
		return
	}
	top, ok := b.d.mapping(doc, "the file", topFields, nil)
	if !ok {
		return
	}
	if r.from == nil || top.value("version") != nil {
		b.version(top)
	}
	b.namespace(top)
	if n := top.value("defaults"); n != nil {
		r.defaults = b.defaults(n, r.defaults)
	}
	b.inForce = r.defaults
	if n := top.value("entries"); n != nil {
		b.entries(n)
	}
	if n := top.value("rules"); n != nil {
		b.sequence(n, "rules", b.rule)
	}
	if n := top.value("dependencies"); n != nil {
		b.sequence(n, "dependencies", b.dependency)
	}
	if n := top.value("warm"); n != nil {
		b.sequence(n, "warm", b.warm)
	}
	if n := top.value("edge"); n != nil {
		b.sequence(n, "edge", b.edgeCache)
	}
	if n := top.value("lint"); n != nil {
		b.policy(n)
	}
	if n := top.value("include"); n != nil {
		b.include(n, r)
	}
}

func (b *builder) version(top fields) {
	n := top.required("version")
	if n == nil {
		return
	}
	var v int
	if n.ShortTag() != "!!int" || n.Decode(&v) != nil || v != 1 {
		b.d.errorf(CodeValue, b.d.place(n), "version must be 1, not %s", b.d.show(n))
	}
}

var namespaceForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$`)

func (b *builder) namespace(top fields) {
	n := top.at["namespace"]
	if n == nil {
		return
	}
	ns, at := "", b.d.place(n)
	if !isNull(n) {
		var ok bool
		if ns, ok = b.d.text(n, "namespace"); !ok {
			return
		}
	}
	switch {
	case strings.EqualFold(ns, "lethe"):
		b.d.errorf(CodeNamespace, at, "namespace %q is Lethe's own: choose another", ns)
		return
	case ns != "" && !namespaceForm.MatchString(ns):
		b.d.errorf(CodeNamespace, at, "namespace %s must be up to 63 letters, digits, \"_\", \"-\" and \".\"", b.d.show(n))
		return
	case b.namespaced && ns != b.set.Namespace:
		b.d.errorf(CodeNamespace, at, "namespace %q differs from %q in %s", ns, b.set.Namespace, b.namespaceAt.file)
		return
	}
	b.set.Namespace, b.namespaceAt, b.namespaced, b.set.namespaced = ns, at, true, true
}

func (b *builder) sequence(n *yaml.Node, what string, each func(*yaml.Node)) {
	n = resolve(n)
	if n.Kind != yaml.SequenceNode {
		b.d.errorf(CodeValue, b.d.place(n), "%q must be a list, not %s", what, kindName(n))
		return
	}
	for _, item := range n.Content {
		each(item)
		b.d.subject = subject{}
	}
}

// template reads a template from a scalar. single refuses {old.x} and {new.x}:
// entries and dependencies have one row, not two.
func (b *builder) template(n *yaml.Node, what string, single bool) *Template {
	text, ok := b.d.text(n, what)
	if !ok {
		return nil
	}
	n = resolve(n)
	kt, err := keytext.Parse(text)
	if err != nil {
		at := b.d.textPlace(n)
		var se *keytext.SyntaxError
		if errors.As(err, &se) {
			if _, expanded := b.d.written[n]; !expanded {
				at.col += se.Offset
			}
		}
		b.d.errorf(CodeTemplate, at, "%s: %s", what, err)
		return nil
	}
	t := &Template{Template: kt, pos: b.d.textPlace(n)}
	_, t.moved = b.d.written[n]
	if !single {
		return t
	}
	for i := range kt.Segments() {
		s := &kt.Segments()[i]
		if s.Side != keytext.Both {
			b.d.errorf(CodeTemplate, t.segmentPlace(s), "%s: {old...} and {new...} have a meaning in rules only: there is one row here", what)
			return nil
		}
		if s.Lookup {
			b.d.errorf(CodeTemplate, t.segmentPlace(s), "%s: {%s} has a meaning in rules only, which have lookups", what, s.Source())
			return nil
		}
		if len(s.Path) > 0 {
			b.d.errorf(CodeTemplate, t.segmentPlace(s), "%s: {%s} reaches into a column, which has a meaning in rules only: give the value a name of its own here", what, s.Source())
			return nil
		}
	}
	return t
}

func (b *builder) templates(n *yaml.Node, what string, single bool) []*Template {
	items, ok := b.d.list(n, what)
	if !ok {
		return nil
	}
	var out []*Template
	for _, item := range items {
		t := b.template(item, what, single)
		if t == nil {
			continue
		}
		if slices.ContainsFunc(out, func(o *Template) bool { return o.String() == t.String() }) {
			b.d.errorf(CodeDuplicate, t.pos, "%s: %q is there twice", what, t.String())
			continue
		}
		out = append(out, t)
	}
	return out
}

// finish links what was read and returns the set, or every error.
func (b *builder) finish() (*Set, error) {
	if len(b.findings) == 0 || !b.findings.HasErrors() {
		if len(b.set.Rules) == 0 && len(b.set.Entries) == 0 {
			b.d.add(Error, CodeMissing, place{file: b.set.Files[0], line: 1, col: 1},
				"add an entry and a rule; `lethe init` writes a first file from the live schema",
				"neither entries nor rules: there is nothing to do")
		}
	}
	b.link()
	b.findings = b.findings.sort()
	if errs := b.findings.Errors(); len(errs) > 0 {
		return nil, errs
	}
	b.set.warnings = b.findings
	return b.set, nil
}

// link binds templates to classes, and checks what only the whole set shows.
func (b *builder) link() {
	s := b.set
	b.linkEdgeCaches()
	s.index, s.edges = newClassIndex(s.Entries), &formGraph{}
	for _, c := range s.Entries {
		c.Key.Class, c.namespace = c, s.Namespace
	}
	for _, r := range s.Rules {
		for _, k := range r.Keys {
			if k.Class = s.index.byShape(k); k.Class != nil && r.Action.Rewarms() {
				k.Class.Rewarmed = true
			}
		}
	}
	for _, dep := range s.Dependencies {
		dep.Of.Class = s.index.of(dep.Of)
		for _, a := range dep.Also {
			a.Class = s.index.of(a)
		}
	}
	for _, w := range s.Warm {
		b.d.subject = subject{entry: w.Entry}
		if s.Class(w.Entry) == nil {
			b.d.errorf(CodeClass, w.pos, "warm: there is no entry %q%s", w.Entry, suggest(w.Entry, s.classNames()))
		}
	}
	for _, c := range s.Entries {
		b.d.subject = subject{entry: c.Name}
		for _, t := range c.Prefetch {
			switch t.Class = s.index.byShape(t); t.Class {
			case nil:
				b.d.errorf(CodeClass, t.pos, "prefetch: no entry has a key of the form %q: only entries can be filled", t)
			case c:
				b.d.errorf(CodeValue, t.pos, "prefetch: %q is the entry's own key", t)
			}
		}
	}
	b.d.subject = subject{}
}

func (s *Set) classNames() []string {
	names := make([]string, len(s.Entries))
	for i, c := range s.Entries {
		names[i] = c.Name
	}
	return names
}

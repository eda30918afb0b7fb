package rules

import (
	"net/url"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

var (
	edgeFields = []string{"name", "url", "format", "everything", "classes", "keys", "tags", "with_namespace", "batch",
		"timeout", "again", "pending", "headers", "headers_env", "secret_env", "token_env"}
	edgeName     = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$`)
	headerName   = regexp.MustCompile("^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}$")
	variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	// edgeTag is a label that stands in both headers as it is.
	edgeTag = regexp.MustCompile(`^[A-Za-z0-9_.~:/@-]{1,255}$`)
	// ownHeaders are set by Lethe or by the transport.
	ownHeaders = []string{"content-length", "content-type", "host", "surrogate-key", "lethe-signature", "lethe-timestamp", "transfer-encoding", "connection"}
)

func (b *builder) edgeCache(n *yaml.Node) {
	d := b.d
	f, ok := d.mapping(n, "the edge", edgeFields, nil)
	if !ok {
		return
	}
	e := &EdgeCache{pos: d.place(n), Keys: f.boolean("keys", true), Tags: f.boolean("tags", true),
		Namespaced: f.boolean("with_namespace", false)}
	if v := f.required("name"); v != nil {
		e.Name, _ = d.text(v, "name")
		if e.Name != "" && !edgeName.MatchString(e.Name) {
			d.errorf(CodeValue, d.place(v), "\"name\" must be up to 63 letters, digits, \"_\", \"-\" and \".\", not %s", d.show(v))
		}
		if i := slices.IndexFunc(b.set.EdgeCaches, func(o *EdgeCache) bool { return o.Name == e.Name }); i >= 0 {
			first := b.set.EdgeCaches[i].pos
			d.errorf(CodeDuplicate, d.place(v), "edge %q is there twice (first in %s:%d)", e.Name, first.file, first.line)
		}
	}
	if v := f.required("url"); v != nil {
		e.URL = d.httpURL(v, "url")
	}
	if v := f.value("format"); v != nil {
		if i := slices.Index(edgeFormats, v.Value); i >= 0 {
			e.Format = EdgeFormat(i)
		} else {
			d.errorf(CodeValue, d.place(v), "\"format\" must be lethe, surrogate-key or cache-tag, not %s%s", d.show(v), suggest(v.Value, edgeFormats))
		}
	}
	b.edgeEverything(f, e)
	if v := f.value("classes"); v != nil {
		e.Classes = d.texts(v, "classes")
		if len(e.Classes) == 0 {
			d.errorf(CodeValue, d.place(v), "\"classes\" is empty: leave it out for all of them")
		}
		b.edgeClasses = append(b.edgeClasses, edgeClasses{d: d, n: v})
	}
	if !e.Keys && !e.Tags {
		d.errorf(CodeValue, f.place("keys"), "neither keys nor tags: there is nothing to tell the edge")
	}
	b.edgeNumbers(f, e)
	e.Headers = d.headers(f, "headers")
	e.HeadersEnv = d.headers(f, "headers_env")
	for name := range e.Headers {
		if _, twice := e.HeadersEnv[name]; twice {
			d.errorf(CodeDuplicate, f.place("headers_env"), "header %q is in headers and in headers_env", name)
		}
	}
	e.SecretEnv, e.TokenEnv = d.variableOf(f, "secret_env"), d.variableOf(f, "token_env")
	b.set.EdgeCaches = append(b.set.EdgeCaches, e)
}

// edgeEverything reads how the endpoint is told to forget all it has. It can
// not be left out where the format has no words for it: what can not be known
// exactly, and what is too much, is told so.
func (b *builder) edgeEverything(f fields, e *EdgeCache) {
	v := f.value("everything")
	if v == nil {
		if e.Format == EdgeSurrogateKey {
			b.d.add(Error, CodeMissing, f.place("everything"), "everything: the URL that purges all (Fastly: .../purge_all), or a tag that every response carries",
				"the edge needs \"everything\": a list of names can not say that all is to be forgotten")
		}
		return
	}
	text, ok := b.d.text(v, "everything")
	switch {
	case !ok:
	case strings.Contains(text, "://"):
		e.Everything = b.d.httpURL(v, "everything")
	case !edgeTag.MatchString(text):
		b.d.errorf(CodeValue, b.d.place(v), "\"everything\" must be a URL or a tag of letters, digits and \"_.~:/@-\", not %s", b.d.show(v))
	default:
		e.Everything = text
	}
}

func (b *builder) edgeNumbers(f fields, e *EdgeCache) {
	e.Batch, e.Timeout, e.Again, e.Pending = EdgeBatchDefault, EdgeTimeoutDefault, EdgeAgainDefault, EdgePendingDefault
	most := EdgeBatchMax
	switch e.Format {
	case EdgeSurrogateKey:
		most = EdgeBatchHeaderMax
	case EdgeCacheTag:
		e.Batch = EdgeBatchTagDefault
	}
	if v, ok := f.integer("batch", 1, most); ok {
		e.Batch = v
	}
	if v := f.durationUpTo("timeout", EdgeTimeoutMax); v > 0 {
		e.Timeout = v
	}
	if v := f.durationUpTo("again", EdgeAgainMax); v > 0 {
		e.Again = v
		if v < EdgeAgainMin {
			n := f.value("again")
			b.d.errorf(CodeValue, b.d.place(n), "\"again\" must be at least %s, not %s: an origin that is cut off may answer from its own cache for as long",
				EdgeAgainMin, b.d.show(n))
		}
	}
	if v, ok := f.integer("pending", 100, 10_000_000); ok {
		e.Pending = v
	}
}

// httpURL reads an absolute URL. One that holds a password would be printed
// with everything that names it.
func (d *decoder) httpURL(n *yaml.Node, what string) string {
	text, ok := d.text(n, what)
	if !ok {
		return ""
	}
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
		d.errorf(CodeValue, d.place(n), "%q must be a URL that begins with https:// or http://, not %s", what, d.show(n))
	case u.User != nil:
		d.errorf(CodeValue, d.place(n), "%q must not hold a user or password: use headers_env or token_env", what)
	default:
		return text
	}
	return ""
}

func (d *decoder) texts(n *yaml.Node, what string) []string {
	items, _ := d.list(n, what)
	var out []string
	for _, item := range items {
		if text, ok := d.text(item, what); ok {
			out = append(out, text)
		}
	}
	return out
}

// credential is what the name of a header looks like whose value nobody writes
// into a file.
var credential = regexp.MustCompile(`(?i)authorization|token|secret|passw|cookie|api-?key|auth-?key|fastly-key|credential`)

func (d *decoder) headers(f fields, field string) map[string]string {
	n := f.value(field)
	if n == nil {
		return nil
	}
	all, ok := d.mapping(n, field, nil, nil)
	if !ok {
		return nil
	}
	out := map[string]string{}
	for name, v := range all.at {
		at := all.keys[name]
		value, ok := d.text(v, name)
		switch {
		case !ok:
		case !headerName.MatchString(name):
			d.errorf(CodeValue, at, "%q is no name of an HTTP header", name)
		case slices.Contains(ownHeaders, strings.ToLower(name)):
			d.errorf(CodeValue, at, "header %q is written by Lethe itself", name)
		case field == "headers_env" && !variableName.MatchString(value):
			d.errorf(CodeValue, d.place(v), "header %q: %s is no name of a variable of the environment", name, d.show(v))
		case field == "headers" && credential.MatchString(name):
			d.add(Error, CodeValue, at, "headers_env: {"+name+": NAME}", "header %q looks like a credential, which must not stand in the file: name a variable of the environment instead", name)
		case strings.ContainsAny(value, "\r\n\x00"):
			d.errorf(CodeValue, d.place(v), "header %q holds a line break", name)
		default:
			out[name] = value
		}
	}
	return out
}

func (d *decoder) variableOf(f fields, field string) string {
	v := f.value(field)
	if v == nil {
		return ""
	}
	name, ok := d.text(v, field)
	if ok && !variableName.MatchString(name) {
		d.errorf(CodeValue, d.place(v), "%q must be the name of a variable of the environment, not %s", field, d.show(v))
		return ""
	}
	return name
}

// edgeClasses are names of classes that are looked up once all are read.
type edgeClasses struct {
	d *decoder
	n *yaml.Node
}

// linkEdgeCaches checks what only the whole set shows.
func (b *builder) linkEdgeCaches() {
	for _, l := range b.edgeClasses {
		items, _ := l.d.list(l.n, "classes")
		for _, item := range items {
			if item = resolve(item); item.Kind == yaml.ScalarNode && b.set.Class(item.Value) == nil {
				l.d.errorf(CodeClass, l.d.place(item), "edge: there is no entry %q%s", item.Value, suggest(item.Value, b.set.classNames()))
			}
		}
	}
}

package rules

import (
	"math"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

var (
	entryFields = []string{"key", "ttl", "negative_ttl", "max_stale", "load", "tags", "mode", "keep", "stale_for",
		"versions", "max_value", "l1", "prefetch", "owner", "description"}
	loadFields = []string{"sql", "http"}
	entryLater = []string{"tenant"}
	className  = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]{0,63}$`)
)

func (b *builder) entries(n *yaml.Node) {
	all, ok := b.d.mapping(n, "entries", nil, nil)
	if !ok {
		return
	}
	for i := 0; i+1 < len(all.node.Content); i += 2 {
		name := resolve(all.node.Content[i]).Value
		if at, here := all.keys[name]; here && at == b.d.place(all.node.Content[i]) {
			b.entry(name, all.node.Content[i], all.node.Content[i+1])
		}
		b.d.subject = subject{}
	}
}

func (b *builder) entry(name string, key, n *yaml.Node) {
	d := b.d
	at := d.place(key)
	if !className.MatchString(name) {
		d.errorf(CodeValue, at, "entry name %q must begin with a letter and go on with up to 63 letters, digits, \"_\", \"-\" and \".\"", name)
		return
	}
	d.subject.entry = name
	if first := b.set.Class(name); first != nil {
		d.errorf(CodeDuplicate, at, "entry is there twice (first in %s:%d)", first.pos.file, first.pos.line)
		return
	}
	f, ok := d.mapping(n, "the entry", entryFields, entryLater)
	if !ok {
		return
	}
	f.fallBack(b.inForce.entries)
	c := &Class{Name: name, pos: at, ordinal: len(b.set.Entries), Keep: f.boolean("keep", false)}
	c.Description, _ = f.text("description")
	b.entryValues(f, c)
	b.staleFor(f, c)
	if v := f.value("tags"); v != nil {
		c.Tags = b.templates(v, "tags", true)
	}
	if k := f.required("key"); k != nil {
		c.Key = b.template(k, "key", true)
	}
	if c.Key == nil {
		return // said above; without a key the entry is of no use to the rest
	}
	if v := f.value("load"); v != nil {
		b.load(v, c)
	}
	if v := f.value("prefetch"); v != nil {
		b.prefetch(v, c)
	}
	shape := c.Key.shape()
	if o := b.forms[shape]; o != nil {
		d.errorf(CodeDuplicate, c.Key.pos, "key %q has the same form as that of entry %q: a key would belong to both", c.Key, o.Name)
		return
	}
	b.forms[shape] = c
	b.set.Entries = append(b.set.Entries, c)
}

// entryValues reads what defaults may say for many entries.
func (b *builder) entryValues(f fields, c *Class) {
	c.L1 = f.boolean("l1", true)
	c.Owner, _ = f.text("owner")
	c.NegativeTTL = f.duration("negative_ttl")
	c.MaxStale = f.duration("max_stale")
	if t := f.value("ttl"); t != nil && t.Value == "never" {
		c.TTL = TTLNever
	} else {
		c.TTL = f.duration("ttl")
	}
	b.mode(f, c)
	c.Versions = []int{1}
	if v := f.value("versions"); v != nil {
		c.Versions = b.d.versions(v)
	}
	if v := f.value("max_value"); v != nil {
		c.MaxValue = b.d.size(v, "max_value")
	}
}

func (b *builder) mode(f fields, c *Class) {
	n := f.value("mode")
	if n == nil {
		return
	}
	switch n.Value {
	case "exact":
	case "plain":
		c.Mode = Plain
		if c.Keep {
			b.d.errorf(CodeValue, f.place("keep"), "\"keep\" has no meaning for plain entries: they carry no stamp that could cover an invalidation")
		}
	default:
		b.d.errorf(CodeValue, b.d.place(n), "\"mode\" must be exact or plain, not %s%s", b.d.show(n), suggest(n.Value, []string{"exact", "plain"}))
	}
}

// staleFor is for entries whose old value may be served for a while.
func (b *builder) staleFor(f fields, c *Class) {
	if c.StaleFor = f.duration("stale_for"); c.StaleFor > 0 && c.Mode == Plain {
		b.d.errorf(CodeValue, f.place("stale_for"), "\"stale_for\" has no meaning for plain entries: whoever reads them could not tell a stale value from a fresh one")
	}
}

// versions reads the value versions that live at the same time: a list, or the
// highest of them.
func (d *decoder) versions(n *yaml.Node) []int {
	const most = 1000
	if n.Kind == yaml.ScalarNode {
		top, ok := d.integer(n, "versions", 1, 16)
		if !ok {
			return []int{1}
		}
		out := make([]int, top)
		for i := range out {
			out[i] = i + 1
		}
		return out
	}
	items, _ := d.list(n, "versions")
	var out []int
	for _, item := range items {
		if v, ok := d.integer(item, "versions", 1, most); ok {
			out = append(out, v)
		}
	}
	if len(out) > 16 {
		d.errorf(CodeValue, d.place(n), "\"versions\" has %d values, the limit is 16", len(out))
	}
	if len(out) == 0 {
		out = []int{1}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

var sizeForm = regexp.MustCompile(`^(\d{1,12}) ?(B|KB|MB|KiB|MiB)?$`)

// size reads a number of bytes, with KB and MB as powers of 1024.
func (d *decoder) size(n *yaml.Node, name string) int64 {
	m := sizeForm.FindStringSubmatch(n.Value)
	if n.Kind == yaml.ScalarNode && m != nil {
		v, _ := strconv.ParseInt(m[1], 10, 64)
		switch {
		case strings.HasPrefix(m[2], "K"):
			v <<= 10
		case strings.HasPrefix(m[2], "M"):
			v <<= 20
		}
		if v > 0 && v <= math.MaxInt32 {
			return v
		}
	}
	d.errorf(CodeValue, d.place(n), "%q must be a number of bytes up to 2 GB, such as 4096, 64KB or 1MB, not %s", name, d.show(n))
	return 0
}

// param finds @name; @@ is an operator of Postgres, and what stands in quotes
// or comments is text.
var param = regexp.MustCompile(`'(?:[^']|'')*'|"(?:[^"]|"")*"|--[^\n]*|(?s:/\*.*?\*/)|@@|@>|<@|@([A-Za-z_][A-Za-z0-9_]*)`)

func (b *builder) load(n *yaml.Node, c *Class) {
	d := b.d
	f, ok := d.mapping(n, "load", loadFields, []string{"go", "rate", "concurrency", "batch", "timeout"})
	if !ok {
		return
	}
	if h := f.value("http"); h != nil {
		if f.value("sql") != nil {
			d.errorf(CodeValue, f.place("http"), "load takes sql or http, not both")
		}
		if loader := b.httpLoader(h); loader != nil {
			c.Load = &Loader{HTTP: loader, pos: d.place(h)}
		}
		return
	}
	sqlNode := f.required("sql")
	if sqlNode == nil {
		return
	}
	sql, ok := d.text(sqlNode, "sql")
	if !ok {
		return
	}
	l := &Loader{SQL: sql, pos: d.textPlace(sqlNode)}
	columns := c.Key.Columns()
	for _, m := range param.FindAllStringSubmatch(sql, -1) {
		name := m[1]
		if name == "" || slices.Contains(l.Params, name) {
			continue
		}
		if !slices.Contains(columns, name) {
			d.errorf(CodeValue, l.pos, "load.sql names @%s, which is no placeholder of the key %q%s", name, c.Key, suggest(name, columns))
			continue
		}
		l.Params = append(l.Params, name)
	}
	for _, col := range columns {
		if !slices.Contains(l.Params, col) {
			d.errorf(CodeValue, l.pos, "load.sql does not use @%s: it must select by every placeholder of the key %q", col, c.Key)
		}
	}
	c.Load = l
}

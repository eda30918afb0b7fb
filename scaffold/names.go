package scaffold

import (
	"encoding/json"
	"regexp"
	"strings"
	"unicode"

	"github.com/lethe-cache/lethe/internal/keytext"
	"github.com/lethe-cache/lethe/rules"
)

const maxPlaceholders = keytext.MaxPlaceholders

// className is how the class of a table's rows is called, and what its keys
// begin with: two classes never build one key, whatever the values are.
func className(t *Table) string {
	name := slug(t.Name)
	if t.Schema != "public" {
		name = slug(t.Schema) + "." + name
	}
	if '0' <= name[0] && name[0] <= '9' || name[0] == '-' {
		name = "t_" + name
	}
	return name
}

var notInClass = regexp.MustCompile(`[^A-Za-z0-9_-]`)

func slug(name string) string { return notInClass.ReplaceAllString(name, "_") }

// Namespace makes a namespace of the name of a database.
func Namespace(database string) string {
	name := strings.TrimLeft(slug(database), "_-")
	if len(name) > 63 {
		name = name[:63]
	}
	if name == "" || name == "lethe" {
		return "app"
	}
	return name
}

func hasControl(s string) bool { return strings.ContainsFunc(s, unicode.IsControl) }

// clean makes a name fit for a comment of one line.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '?'
		}
		return r
	}, s)
}

// nameable reports whether a template can name a column.
func nameable(column string) bool {
	return !hasControl(column) && !strings.ContainsAny(column, `"|{}$`)
}

var plainName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// placeholder is a column in a template. What is not made of harmless characters
// only is escaped, so that no value can look like a separator.
func placeholder(t *Table, column string) string { return templateName(t, column, column) }

// param is the name of a column in a loader, where only plain names can stand.
// No two columns of a table share one.
func param(t *Table, column string) string {
	if plainName.MatchString(column) {
		return column
	}
	taken := map[string]bool{}
	for _, c := range t.Columns {
		if plainName.MatchString(c.Name) {
			taken[c.Name] = true
		}
	}
	for _, c := range t.Columns {
		if taken[c.Name] {
			continue
		}
		name := strings.ReplaceAll(slug(c.Name), "-", "_")
		if '0' <= name[0] && name[0] <= '9' {
			name = "c_" + name
		}
		for taken[name] {
			name += "_"
		}
		if taken[name] = true; c.Name == column {
			return name
		}
	}
	return column // no column of the table
}

func templateName(t *Table, column, name string) string {
	if !plainName.MatchString(name) {
		name = `"` + name + `"`
	}
	if c := t.Column(column); c != nil && !harmless(c) {
		name += "|urlencode"
	}
	return "{" + name + "}"
}

// harmless types print without a colon: integers, uuid, numeric, bool, date.
func harmless(c *rules.ColumnInfo) bool {
	switch c.Type {
	case 16, 20, 21, 23, 26, 700, 701, 1082, 1700, 2950:
		return true
	}
	return false
}

// bulky types are left out of a row's value: whoever caches pictures knows.
func bulky(c *rules.ColumnInfo) bool {
	switch c.TypeName {
	case "bytea", "tsvector", "xml", "oid":
		return true
	}
	return false
}

func quoted(schema, name string) string {
	return rules.QuoteIdent(schema) + "." + rules.QuoteIdent(name)
}

var plainScalar = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]*$`)

// yamlWords mean something else to YAML when they stand bare.
var yamlWords = map[string]bool{
	"null": true, "true": true, "false": true, "yes": true, "no": true, "on": true, "off": true, "y": true, "n": true, ".": true,
}

// scalar writes a text as YAML, in quotes where it needs them.
func scalar(s string) string {
	switch {
	case plainScalar.MatchString(s) && !yamlWords[strings.ToLower(s)]:
		return s
	case hasControl(s):
		quoted, _ := json.Marshal(s) // never fails for a string
		return string(quoted)
	case strings.ContainsAny(s, `"\`):
		return "'" + strings.ReplaceAll(s, "'", "''") + "'"
	}
	return `"` + s + `"`
}

func scalars(list []string) string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = scalar(s)
		if out[i] == s { // names in lists are templates: all of them in quotes
			out[i] = `"` + s + `"`
		}
	}
	return "[" + strings.Join(out, ", ") + "]"
}

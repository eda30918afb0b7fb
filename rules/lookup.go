package rules

import (
	"errors"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/lethe-cache/lethe/change"
)

// LookupRowsMax is how many rows one lookup may give. Beyond it the classes of
// the names that would be made of them are raised.
const LookupRowsMax = NamesMax

// ErrNoLookups is the error of Match for a change that needs a lookup where
// nobody makes it.
var ErrNoLookups = errors.New("the rule needs a lookup, and there is no database to make it in")

// Lookup is how a rule finds values that the rows of its table do not have.
type Lookup struct {
	// SQL is the SELECT as it is written.
	SQL string
	// Params are the columns of the rule's table that it names as @column, in
	// the order of their first use: the parameters $1, $2 ... of Statement.
	Params []string
	// Columns are those of its result that keys and tags name, in order.
	Columns []string

	positional string
	pos        place
	places     []place // of Params
}

// Statement is the lookup as it is executed: Columns of at most one row more
// than LookupRowsMax, by parameters $1, $2 ... The SELECT stands in it as a
// subquery, where Postgres takes no statement that changes anything.
func (l *Lookup) Statement() string {
	columns := make([]string, len(l.Columns))
	for i, c := range l.Columns {
		columns[i] = "lookup." + quoteIdent(c)
	}
	return "SELECT " + strings.Join(columns, ", ") + " FROM (\n" + l.positional + "\n) AS lookup LIMIT " + strconv.Itoa(LookupRowsMax+1)
}

// Description is a statement with the parameters of Statement and every column
// of the result. It is for asking what these are; it is not executed.
func (l *Lookup) Description() string { return "SELECT * FROM (\n" + l.positional + "\n) AS lookup" }

// LookupRequest is one lookup to be made.
type LookupRequest struct {
	Rule *Rule
	// Params are the values of Rule.Lookup.Params as Postgres prints them; none
	// is NULL.
	Params [][]byte
}

// LookupResult is what a lookup gave.
type LookupResult struct {
	// Types are the OIDs of the columns; nil if they are not known.
	Types []uint32
	// Rows have the values of Rule.Lookup.Columns, as Postgres prints them.
	Rows []change.Row
	// More says that there were more rows than LookupRowsMax; Rows counts for
	// nothing then.
	More bool
}

// Lookups answers the lookups of a Matcher.
type Lookups interface {
	// Lookup returns the rows for these values of r.Lookup.Params, which it must
	// not keep: they are the change's memory. They must come from a snapshot of
	// the primary that is younger than the change's arrival. An error is one
	// that a repetition does not cure; Match returns it.
	Lookup(r *Rule, params [][]byte) (LookupResult, error)
}

var lookupFields = []string{"sql"}

// lookupParam finds @column and @"Column"; what stands in quotes or comments is
// text, and @@, @> and <@ are operators.
var lookupParam = regexp.MustCompile(param.String() + `|@"((?:[^"]|"")+)"|\$(?:[A-Za-z_]\w*)?\$|\$\d+|;`)

// firstWord skips comments and parentheses.
var firstWord = regexp.MustCompile(`^(?:\s|--[^\n]*\n|(?s:/\*.*?\*/)|\()*([A-Za-z]+)`)

func (b *builder) ruleLookup(n *yaml.Node, r *Rule) {
	d := b.d
	f, ok := d.mapping(n, "the lookup", lookupFields, nil)
	if !ok {
		return
	}
	v := f.required("sql")
	if v == nil {
		return
	}
	sql, ok := d.text(v, "sql")
	if !ok {
		return
	}
	l := &Lookup{SQL: sql, pos: d.textPlace(v)}
	sql = strings.TrimRight(sql, "; \t\r\n")
	word := ""
	if m := firstWord.FindStringSubmatch(sql); m != nil {
		word = strings.ToUpper(m[1])
	}
	if !slices.Contains([]string{"SELECT", "WITH", "VALUES", "TABLE"}, word) {
		d.errorf(CodeValue, l.pos, "lookup.sql must be a SELECT")
		return
	}
	folded := d.folded(v)
	var out strings.Builder
	last := 0
	for _, m := range lookupParam.FindAllStringSubmatchIndex(sql, -1) {
		at := l.pos
		if !folded {
			at = at.within(sql, m[0])
		}
		var name string
		switch {
		case m[2] >= 0:
			name = sql[m[2]:m[3]]
		case m[4] >= 0:
			name = strings.ReplaceAll(sql[m[4]:m[5]], `""`, `"`)
		case sql[m[0]] == ';':
			d.errorf(CodeValue, at, "lookup.sql must be one statement")
			return
		case sql[m[0]] == '$':
			d.errorf(CodeValue, at, "lookup.sql: parameters are columns of the rule's table, written @column, and texts stand in single quotes")
			return
		default:
			continue
		}
		i := slices.Index(l.Params, name)
		if i < 0 {
			i = len(l.Params)
			l.Params, l.places = append(l.Params, name), append(l.places, at)
		}
		out.WriteString(sql[last:m[0]] + "$" + strconv.Itoa(i+1))
		last = m[1]
	}
	l.positional = out.String() + sql[last:]
	r.Lookup = l
}

// lookupUses links a rule's lookup and the placeholders that need it.
func (b *builder) lookupUses(f fields, r *Rule) {
	_, said := f.keys["lookup"]
	for _, t := range r.templates() {
		for i := range t.Segments() {
			s := &t.Segments()[i]
			switch {
			case !s.Lookup:
			case r.Lookup != nil && !slices.Contains(r.Lookup.Columns, s.Column):
				r.Lookup.Columns = append(r.Lookup.Columns, s.Column)
			case !said:
				b.d.errorf(CodeTemplate, t.segmentPlace(s), "{%s} needs a lookup, which the rule does not have: lookup: {sql: SELECT ...}", s.Source())
			}
		}
	}
	if r.Lookup != nil && len(r.Lookup.Columns) == 0 {
		b.d.add(Warning, CodeNoEffect, r.pos["lookup"], "name a column of it in a key or tag, {lookup.column}, or take it out",
			"the lookup is never made: no key or tag of the rule names {lookup.column}")
		r.Lookup = nil
	}
}

// within is the place of an offset in a text that begins at p.
func (p place) within(text string, offset int) place {
	before := text[:offset]
	if n := strings.Count(before, "\n"); n > 0 {
		// A block's lines are indented as its first one is.
		p.line += n
		before = before[strings.LastIndexByte(before, '\n')+1:]
	}
	p.col += len(before)
	return p
}

// columnUses lists the columns of the rule's table that a lookup goes by. The
// names that come of it need their values as if these stood in them.
func (l *Lookup) columnUses(templates []*Template) []columnUse {
	i := slices.IndexFunc(templates, func(t *Template) bool { return t.HasLookup() })
	out := make([]columnUse, len(l.Params))
	for k, name := range l.Params {
		out[k] = columnUse{name: name, old: true, in: templates[i], place: l.places[k]}
	}
	return out
}

// HasLookups reports whether some rule has a lookup.
func (p *Plan) HasLookups() bool { return p.lookups }

// LookupAnswer is the answer to a LookupRequest. Err says that there is none, for
// a reason that a repetition does not cure.
type LookupAnswer struct {
	LookupResult
	Err error
}

// LookupError is the error of Match for a change whose lookup failed.
type LookupError struct {
	Rule string
	Err  error
}

// Error names the rule.
func (e *LookupError) Error() string { return "lookup of rule \"" + e.Rule + "\": " + e.Err.Error() }

// Unwrap returns what failed.
func (e *LookupError) Unwrap() error { return e.Err }

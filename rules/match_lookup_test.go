package rules_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/rules"
)

// reviews has id as its replica identity; reviewsFull logs whole rows.
var reviews, reviewsFull = func() (a, b *change.Table) {
	a = &change.Table{ID: 9, Schema: "public", Name: "reviews", Identity: change.IdentityDefault, Columns: []change.Column{
		{Name: "id", Type: 20, Key: true}, {Name: "product_id", Type: 20}, {Name: "lang", Type: 25}}}
	full := *a
	full.Identity, full.Columns = change.IdentityFull, slices.Clone(a.Columns)
	for i := range full.Columns {
		full.Columns[i].Key = true
	}
	return a, &full
}()

// answers are lookups by their parameters, joined with commas; those that were
// asked for are counted.
type answers struct {
	by    map[string]rules.LookupResult
	err   error
	asked []string
}

func (a *answers) Lookup(_ *rules.Rule, params [][]byte) (rules.LookupResult, error) {
	id := joined(params)
	a.asked = append(a.asked, id)
	return a.by[id], a.err
}

func joined(params [][]byte) string {
	texts := make([]string, len(params))
	for i, p := range params {
		texts[i] = string(p)
	}
	return strings.Join(texts, ",")
}

const lookupEntries = `version: 1
entries:
  category: {key: "category:{id}", tags: ["of:{x}"]}
  pair: {key: "pair:{a}:{b}"}
`

func TestMatchLookups(t *testing.T) {
	t.Parallel()
	two := rules.LookupResult{Types: []uint32{20, 3802}, Rows: []change.Row{row("7", `{"n": ["a", "b"]}`), row("8", "NULL")}}
	one := rules.LookupResult{Types: []uint32{20, 3802}, Rows: []change.Row{row("9", `{"n": ["B"]}`)}}
	found := map[string]rules.LookupResult{"1": two, "2": one, "4": {More: true}, "": one}
	const keys = `keys: ["category:{lookup.c}"], `
	insert := &change.Change{Op: change.Insert, Table: reviews, New: row("10", "1", "en")}
	moved := &change.Change{Op: change.Update, Table: reviewsFull, Old: row("10", "1", "en"), New: row("10", "2", "de")}
	for _, c := range []struct {
		name, rule string
		change     *change.Change
		want, asks string
	}{
		{"an insert", keys, insert, "key category:7; key category:8 (0 0 0 0)", "1"},
		{"a row that moves", keys, moved, "key category:9; key category:7; key category:8 (0 0 0 0)", "2 1"},
		{"a row that stays is looked up for both sides", keys, &change.Change{Op: change.Update, Table: reviewsFull, Old: row("10", "2", "en"), New: row("10", "2", "de")}, "key category:9 (0 0 0 0)", "2 2"},
		{"and both sides are named", `keys: ["pair:{lang}:{lookup.c}"], `, &change.Change{Op: change.Update, Table: reviewsFull, Old: row("10", "2", "en"), New: row("10", "2", "de")}, "key pair:de:9; key pair:en:9 (0 0 0 0)", "2 2"},
		{"a side of the row", `keys: ["pair:{old.lang}:{lookup.c}"], `, moved, "key pair:en:9; key pair:en:7; key pair:en:8 (0 0 0 0)", "2 1"},
		{"a delete", keys, &change.Change{Op: change.Delete, Table: reviewsFull, Old: row("10", "2", "en")}, "key category:9 (0 0 0 0)", "2"},
		{"NULL looks nothing up", keys, &change.Change{Op: change.Insert, Table: reviews, New: row("10", "NULL", "en")}, " (0 0 0 0)", ""},
		{"no row, no name", keys, &change.Change{Op: change.Insert, Table: reviews, New: row("10", "3", "en")}, " (0 0 1 0)", "3"},
		{"too many rows raise", keys + `tags: ["of:{lookup.c}"], `, &change.Change{Op: change.Insert, Table: reviews, New: row("10", "4", "en")}, "raise category lookup; raise * lookup (0 0 0 1)", "4"},
		{"an old value that is hidden", keys, &change.Change{Op: change.Update, Table: reviews, Old: row("11", "-", "-"), New: row("10", "2", "en")}, "key category:9 (1 0 0 0)", "2"},
		{"hidden, where no old row is", keys, &change.Change{Op: change.Update, Table: reviews, New: row("10", "2", "en")}, "key category:9 (1 0 0 0)", "2"},
		{"hidden, strict", keys + "strict: true, ", &change.Change{Op: change.Update, Table: reviews, New: row("10", "2", "en")}, "raise category old_value; key category:9 (1 0 0 0)", "2"},
		{"a new value that is hidden", keys, &change.Change{Op: change.Update, Table: reviews, New: row("10", "~", "en")}, "raise category old_value (0 2 0 0)", ""},
		{"the key is known to stay", `lookup: {sql: "SELECT c FROM x WHERE a = @id"}, keys: ["category:{lookup.c}"], `, &change.Change{Op: change.Update, Table: reviews, New: row("2", "5", "en")}, "key category:9 (0 0 0 0)", "2"},
		{"paths and filters", `tags: ["of:{lookup.d.n[0]|lower}"], `, moved, "tag of:b; tag of:a (0 0 0 0)", "2 1"},
		{"each", `tags: ["of:{lookup.d.n[*]}:{lookup.c}"], `, moved, "tag of:B:9; tag of:a:7; tag of:b:7 (0 0 0 0)", "2 1"},
		{"all", `tags: {all: ["of:{lookup.c}", "lang:{lang}"]}, `, moved, "all of:9&lang:de; all of:7&lang:en; all of:8&lang:en (0 0 0 0)", "2 1"},
		{"all, the same", `tags: {all: ["of:{lookup.c}", "p:{product_id}"]}, `, &change.Change{Op: change.Update, Table: reviewsFull, Old: row("10", "2", "en"), New: row("10", "2", "de")}, "all of:9&p:2 (0 0 0 0)", "2 2"},
		{"no parameters", `lookup: {sql: "SELECT c FROM x"}, keys: ["category:{lookup.c}"], `, insert, "key category:9 (0 0 0 0)", ""},
		{"a condition", keys + `when: 'new.lang == "fr"', `, insert, " (0 0 0 0)", ""},
		{"other operations", keys + "on: [delete], ", insert, " (0 0 0 0)", ""},
		{"beside others", `keys: ["category:{product_id}", "category:{lookup.c}"], `, insert, "key category:1; key category:7; key category:8 (0 0 0 0)", "1"},
		{"truncate", keys, &change.Change{Op: change.Truncate, Table: reviews}, "raise category truncate (0 0 0 0)", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			rule := c.rule
			if !strings.Contains(rule, "lookup: ") {
				rule += `lookup: {sql: "SELECT c, d FROM x WHERE a = @product_id"}, `
			}
			plan := compile(t, lookupEntries+"rules: [{name: r, table: public.reviews, "+strings.TrimSuffix(rule, ", ")+"}]\n")
			var n [4]int
			m := plan.NewMatcher(rules.Observer{
				OldValueUnknown: func(*rules.Rule) { n[0]++ }, NewValueUnknown: func(*rules.Rule) { n[1]++ },
				LookupEmpty: func(*rules.Rule) { n[2]++ }, LookupTooMany: func(*rules.Rule) { n[3]++ },
			})
			// Columns of the result are those that the rule names, in its order.
			narrow := map[string]rules.LookupResult{}
			for id, r := range found {
				out := rules.LookupResult{More: r.More}
				for _, column := range plan.Set().Rules[0].Lookup.Columns {
					i := strings.Index("cd", column)
					if r.Types != nil {
						out.Types = append(out.Types, r.Types[i])
					}
					for k := range r.Rows {
						if len(out.Rows) <= k {
							out.Rows = append(out.Rows, nil)
						}
						out.Rows[k] = append(out.Rows[k], r.Rows[k][i])
					}
				}
				narrow[id] = out
			}
			a := &answers{by: narrow}
			m.UseLookups(a)
			var ts rules.Targets
			for range 2 { // scratch memory is used again
				ts.Reset()
				n, a.asked = [4]int{}, nil
				var need []string
				m.Lookups(c.change, func(_ *rules.Rule, params [][]byte) { need = append(need, joined(params)) })
				if err := m.Match(&ts, c.change, change.Position{}); err != nil {
					t.Fatal(err)
				}
				if !slices.Equal(need, a.asked) {
					t.Errorf("Lookups told of %q, Match asked for %q", need, a.asked)
				}
			}
			if got := show(&ts) + " (" + strings.Trim(strings.Join(strings.Fields(fmt.Sprint(n)), " "), "[]") + ")"; got != c.want {
				t.Errorf("targets\n%s\nwant\n%s", got, c.want)
			}
			if got := strings.Join(a.asked, " "); got != c.asks {
				t.Errorf("asked for %q, want %q", got, c.asks)
			}
		})
	}
}

// A lookup that fails leaves nothing of the change behind: what it touches is
// raised as a whole.
func TestMatchLookupFails(t *testing.T) {
	t.Parallel()
	plan := compile(t, lookupEntries+`rules:
  - {name: first, table: public.reviews, keys: ["category:{product_id}"]}
  - {name: looks, table: public.reviews, keys: ["category:{lookup.c}"], lookup: {sql: "SELECT c FROM x WHERE a = @product_id"}}
`)
	insert := &change.Change{Op: change.Insert, Table: reviews, New: row("10", "1", "en")}
	cause := errors.New("refused")
	for _, c := range []struct {
		name    string
		lookups rules.Lookups
		want    error
	}{{"refused", &answers{err: cause}, cause}, {"nobody looks up", nil, rules.ErrNoLookups}} {
		var ts rules.Targets
		m := plan.NewMatcher(rules.Observer{})
		m.UseLookups(c.lookups)
		err := m.Match(&ts, insert, change.Position{})
		var lookup *rules.LookupError
		if !errors.As(err, &lookup) || lookup.Rule != "looks" || !errors.Is(err, c.want) || len(ts.List) != 0 {
			t.Errorf("%s: %v with %d targets, want %v and none", c.name, err, len(ts.List), c.want)
		}
	}
}

// A raise makes up for names that are not known, and not for what is to happen
// later: the schedules of a change stay when a lookup of its table fails.
func TestMatchLookupFailsBesideSchedules(t *testing.T) {
	t.Parallel()
	plan := compile(t, lookupEntries+`rules:
  - {name: looks, table: public.reviews, keys: ["category:{lookup.c}"], lookup: {sql: "SELECT c FROM x WHERE a = @product_id"}}
  - {name: later, table: public.reviews, keys: ["category:{product_id}"], at: lang}
`)
	var ts rules.Targets
	m := plan.NewMatcher(rules.Observer{})
	m.UseLookups(&answers{err: errors.New("refused")})
	insert := &change.Change{Op: change.Insert, Table: reviewsFull, New: row("10", "1", "2030-01-01 00:00:00+00")}
	var lookup *rules.LookupError
	if err := m.Match(&ts, insert, change.Position{}); !errors.As(err, &lookup) || len(ts.List) != 0 || len(ts.Timed) != 1 {
		t.Errorf("%v with %d targets and %d schedules, want a lookup's error, none and one", err, len(ts.List), len(ts.Timed))
	}
}

// What is looked up is part of what a rule is: another statement names others.
func TestLookupIsOfTheUnit(t *testing.T) {
	t.Parallel()
	of := func(sql string) *rules.Set {
		return parse(t, lookupEntries+`rules: [{name: r, table: public.reviews, keys: ["category:{lookup.c}"], lookup: {sql: "`+sql+`"}}]`)
	}
	added, removed := rules.Difference(of("SELECT c FROM x WHERE a = @id"), of("SELECT c FROM y WHERE a = @id"))
	if len(added) != 1 || len(removed) != 1 {
		t.Errorf("another statement adds %q and removes %q, want the rule both times", added, removed)
	}
	if a, r := rules.Difference(of("SELECT c FROM x"), of("SELECT c FROM x")); len(a)+len(r) != 0 {
		t.Errorf("the same statement is a difference: %q %q", a, r)
	}
}

func TestLookupStatement(t *testing.T) {
	t.Parallel()
	set := parse(t, lookupEntries+`rules:
  - name: r
    table: public.reviews
    keys: ["pair:{lookup.\"Odd name\"}:{lookup.c}"]
    lookup:
      sql: |
        SELECT c, "Odd name" FROM x WHERE a = @product_id AND b = @"Odd ""one""" AND c=@product_id AND '@d' <> 'x' -- @e
        ;
`)
	l := set.Rules[0].Lookup
	want := "SELECT lookup.\"Odd name\", lookup.c FROM (\nSELECT c, \"Odd name\" FROM x WHERE a = $1 AND b = $2 AND c=$1 AND '@d' <> 'x' -- @e\n) AS lookup LIMIT 1001"
	if got := l.Statement(); got != want {
		t.Errorf("statement\n%s\nwant\n%s", got, want)
	}
	if !slices.Equal(l.Params, []string{"product_id", `Odd "one"`}) {
		t.Errorf("parameters %q", l.Params)
	}
	tables := set.Tables()
	if !slices.Equal(tables[0].Columns, []string{`Odd "one"`, "product_id"}) || !slices.Equal(tables[0].OldColumns, tables[0].Columns) {
		t.Errorf("columns %q, of the old row %q: the parameters are to be logged, and nothing else", tables[0].Columns, tables[0].OldColumns)
	}
}

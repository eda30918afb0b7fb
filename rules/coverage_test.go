package rules_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/rules"
)

func TestCoverage(t *testing.T) {
	t.Parallel()
	set, err := rules.Parse("rules.yaml", []byte(`version: 1
rules:
  - {name: always, table: public.a, keys: ["a:{id}"], on: [insert]}
  - {name: cond, table: public.a, keys: ["b:{id}"], when: 'new.n > 5 && (changed("s") || op == "delete") || !(new.s == null)'}
  - {name: elsewhere, table: public.b, keys: ["c:{id}"]}
`))
	if err != nil {
		t.Fatal(err)
	}
	plan, err := set.Compile()
	if err != nil {
		t.Fatal(err)
	}
	c, err := plan.NewCoverage()
	if err != nil {
		t.Fatal(err)
	}
	table := &change.Table{Schema: "public", Name: "a", Identity: change.IdentityFull,
		Columns: []change.Column{{Name: "id", Type: 20, Key: true}, {Name: "n", Type: 20, Key: true}, {Name: "s", Type: 25, Key: true}}}
	row := func(values ...string) change.Row {
		r := make(change.Row, len(values))
		for i, v := range values {
			r[i] = change.Value{Kind: change.Text, Bytes: []byte(v)}
			if v == "NULL" {
				r[i] = change.Value{Kind: change.Null}
			}
		}
		return r
	}
	report := func() string {
		var b strings.Builder
		for _, r := range c.Rules() {
			fmt.Fprintf(&b, "%s %d/%d %v\n", r.Rule.Name, r.Matched, r.Changes, r.Covered())
			for _, br := range r.Branches {
				fmt.Fprintf(&b, "  %s: %d %d %d\n", br.Text, br.True, br.False, br.Unknown)
			}
		}
		return b.String()
	}
	for _, step := range []struct {
		c    change.Change
		want string
	}{
		{change.Change{Op: change.Insert, Table: table, New: row("1", "9", "NULL")}, `always 1/1 true
cond 1/1 false
  new.n > 5: 1 0 0
  changed("s"): 1 0 0
  op == "delete": 0 1 0
  new.s == null: 1 0 0
elsewhere 0/0 false
`},
		{change.Change{Op: change.Update, Table: table, Old: row("1", "9", "NULL"), New: row("1", "3", "NULL")}, `always 1/1 true
cond 1/2 false
  new.n > 5: 1 1 0
  changed("s"): 1 1 0
  op == "delete": 0 2 0
  new.s == null: 2 0 0
elsewhere 0/0 false
`},
		{change.Change{Op: change.Update, Table: table, Old: row("1", "9", "x"), New: row("1", "NULL", "x")}, `always 1/1 true
cond 2/3 false
  new.n > 5: 1 1 1
  changed("s"): 1 2 0
  op == "delete": 0 3 0
  new.s == null: 2 1 0
elsewhere 0/0 false
`},
		{change.Change{Op: change.Delete, Table: table, Old: row("1", "9", "x")}, `always 1/1 true
cond 3/4 true
  new.n > 5: 1 1 2
  changed("s"): 2 2 0
  op == "delete": 1 3 0
  new.s == null: 2 1 1
elsewhere 0/0 false
`},
	} {
		step.c.Commit = &change.Commit{}
		if err := c.Add(&step.c); err != nil {
			t.Fatal(err)
		}
		if got := report(); got != step.want {
			t.Errorf("%v: got\n%s\nwant\n%s", step.c.Op, got, step.want)
		}
	}
}

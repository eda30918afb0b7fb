package rules_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/rules"
)

// spread is a set of n rules as a team grows one: a class and 1, 2 or 3 rules to
// a table, a key and a tag to a rule. What a table has does not depend on n.
func spread(t testing.TB, n int) (plan *rules.Plan, tables []*change.Table) {
	var entries, list strings.Builder
	for left := n; left > 0; {
		k := len(tables)
		name := "t" + strconv.Itoa(k)
		fmt.Fprintf(&entries, "  %s: {key: '%s:{id}'}\n", name, name)
		for i := range min(1+k%3, left) {
			fmt.Fprintf(&list, "- {name: %s_%d, table: %s, keys: ['%s:{id}'], tags: ['%s_%d:{category_id}']}\n", name, i, name, name, name, i)
			left--
		}
		table := *products
		if k%2 == 1 {
			table = *productsFull
		}
		table.ID, table.Name = uint32(k+1), name
		tables = append(tables, &table)
	}
	return compile(t, "version: 1\nnamespace: shop\nentries:\n"+entries.String()+"rules:\n"+list.String()), tables
}

// streamOf is what a log brings: statements that touch several rows of one table,
// the tables in no order; 6 of 10 changes are updates, 3 inserts, 1 a delete.
func streamOf(tables []*change.Table) []change.Change {
	const length, statement = 4096, 4
	r := rand.New(rand.NewPCG(1, 2))
	out := make([]change.Change, length)
	for i := range out {
		table := tables[r.IntN(len(tables))]
		if i%statement != 0 {
			table = out[i-1].Table
		}
		id, category := strconv.Itoa(1_000_000+r.IntN(1_000_000)), strconv.Itoa(r.IntN(1000))
		c := change.Change{Op: change.Update, Table: table, New: row(id, "slug-"+id, category, "9.99", `{"a":1}`)}
		full := table.Identity == change.IdentityFull
		switch k := r.IntN(10); {
		case k < 3:
			c.Op = change.Insert
		case k < 4:
			c.Op, c.New = change.Delete, nil
			c.Old = row(id, "-", "-", "-", "-")
			if full {
				c.Old = row(id, "slug-"+id, category, "9.99", `{"a":1}`)
			}
		case full:
			c.Old = row(id, "slug-"+id, category, "8.99", `{"a":1}`)
		}
		out[i] = c
	}
	return out
}

// matching runs a stream through a matcher in batches as the worker does.
func matching(b *testing.B, m *rules.Matcher, stream []change.Change) {
	const batch = 1024 // names
	var ts rules.Targets
	b.ReportAllocs()
	n, names := 0, 0
	for b.Loop() {
		if len(ts.List) >= batch {
			names += len(ts.List)
			ts.Reset()
		}
		if err := m.Match(&ts, &stream[n%len(stream)], change.Position{}); err != nil {
			b.Fatal(err)
		}
		n++
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "changes/s")
	b.ReportMetric(float64(names)/float64(n), "names/op")
}

// BenchmarkMatch: what a table has stays, the other tables grow.
func BenchmarkMatch(b *testing.B) {
	for _, n := range []int{10, 100, 1000, 10_000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			plan, tables := spread(b, n)
			matching(b, plan.NewMatcher(rules.Observer{}), streamOf(tables))
		})
	}
}

// BenchmarkMatchTable: the rules of the one table grow, all rules are 1,000.
func BenchmarkMatchTable(b *testing.B) {
	for _, n := range []int{1, 10, 100, 1000} {
		b.Run(strconv.Itoa(n), func(b *testing.B) {
			plan, tables := oneTable(b, n, 1000)
			matching(b, plan.NewMatcher(rules.Observer{}), streamOf(tables))
		})
	}
}

// oneTable gives n of all rules to one table, and the others to a table each.
func oneTable(t testing.TB, n, all int) (*rules.Plan, []*change.Table) {
	var list strings.Builder
	for i := range all {
		table := "products"
		if i >= n {
			table = fmt.Sprint("other_", i)
		}
		fmt.Fprintf(&list, "- {name: r%d, table: %s, keys: ['product:{id}'], tags: ['c%d:{category_id}']}\n", i, table, i)
	}
	plan := compile(t, "version: 1\nnamespace: shop\nentries: {product: {key: 'product:{id}'}}\nrules:\n"+list.String())
	return plan, []*change.Table{products}
}

// BenchmarkMatchByHand is the measure of the machine: the names of BenchmarkMatch
// built by code that knows the rule, without its cases, into targets as wide.
func BenchmarkMatchByHand(b *testing.B) {
	_, tables := spread(b, 1000)
	stream := streamOf(tables)
	const batch = 1024 // names
	var list []rules.Target
	var buf []byte
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		if len(list) >= batch {
			list, buf = list[:0], buf[:0]
		}
		c := &stream[n%len(stream)]
		for range 1 + (c.Table.ID-1)%3 {
			r := c.New
			if r == nil {
				r = c.Old
			}
			for col, prefix := range [...]string{0: "shop:product:", 2: "shop:category:"} {
				if prefix == "" || r[col].Kind != change.Text {
					continue
				}
				start := len(buf)
				buf = append(append(buf, prefix...), r[col].Bytes...)
				list = append(list, rules.Target{Name: buf[start:len(buf):len(buf)]})
			}
		}
		n++
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "changes/s")
}

// BenchmarkMatchCondition has a condition in place of the tag.
func BenchmarkMatchCondition(b *testing.B) {
	m := compile(b, "version: 1\nrules:\n- {name: r, table: products, keys: ['product:{id}'], when: 'changed(\"price\") || changed(\"slug\")'}\n").NewMatcher(rules.Observer{})
	matching(b, m, []change.Change{{Op: change.Update, Table: productsFull, Old: row("1", "a", "7", "1", "{}"), New: row("1", "a", "8", "1", "{}")}})
}

// Once every table was seen, matching is free of allocations, however many
// tables there are.
func TestMatchDoesNotAllocate(t *testing.T) {
	for _, n := range []int{1000, 3000} {
		plan, tables := spread(t, n)
		m := plan.NewMatcher(rules.Observer{})
		stream := streamOf(tables)
		// Each table twice: what is bounded must not begin anew in the second round.
		for _, table := range slices.Concat(tables, tables) {
			stream = append(stream, change.Change{Op: change.Insert, Table: table, New: row("1", "b", "8", "1", "{}")})
		}
		var ts rules.Targets
		match := func() {
			ts.Reset()
			for i := range stream {
				if err := m.Match(&ts, &stream[i], change.Position{}); err != nil {
					t.Fatal(err)
				}
			}
		}
		match()
		if len(ts.List) < 2*n {
			t.Fatalf("%d rules gave %d targets, so not every table was tried", n, len(ts.List))
		}
		if allocs := testing.AllocsPerRun(3, match); allocs != 0 {
			t.Errorf("%d rules: %v allocations for %d changes", n, allocs, len(stream))
		}
	}
}

// The rules of other tables are not looked at: a condition that meets NULL is
// reported, so the reports tell which rules were.
func TestMatchLooksAtTheRulesOfTheTableOnly(t *testing.T) {
	t.Parallel()
	const ofTable = 7
	for _, all := range []int{10, 1000, 3000} {
		var list strings.Builder
		var want []string
		for i := range all {
			table := fmt.Sprint("other_", i)
			if i%(all/ofTable) == 0 && len(want) < ofTable {
				table = "products"
				want = append(want, fmt.Sprint("r", i))
			}
			fmt.Fprintf(&list, "- {name: r%d, table: %s, keys: ['k%d:{id}'], when: 'new.price > 5.0'}\n", i, table, i)
		}
		var got []string
		m := compile(t, "version: 1\nrules:\n"+list.String()).NewMatcher(rules.Observer{
			ConditionUnknown: func(r *rules.Rule, _ error) { got = append(got, r.Name) },
		})
		var ts rules.Targets
		c := &change.Change{Op: change.Update, Table: products, New: row("1", "b", "8", "NULL", "{}")}
		if err := m.Match(&ts, c, change.Position{}); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, want) {
			t.Errorf("of %d rules these were looked at: %v, want %v", all, got, want)
		}
		if len(ts.List) != ofTable {
			t.Errorf("of %d rules %d gave a name, want %d", all, len(ts.List), ofTable)
		}
	}
}

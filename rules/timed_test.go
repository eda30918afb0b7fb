package rules_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/rules"
)

// showTimed renders what becomes of schedules.
func showTimed(ts *rules.Targets) string {
	var out []string
	for i := range ts.Timed {
		t := &ts.Timed[i]
		s := [...]string{"set", "drop", "drop all", "unknown"}[t.Kind]
		if t.Key != nil {
			s += " " + string(t.Key)
		}
		if t.Kind == rules.TimedSet {
			list := rules.Targets{List: ts.TimedTargets(t)}
			s += " " + t.At.Format(time.RFC3339Nano) + " " + show(&list)
		}
		out = append(out, s)
	}
	return strings.Join(out, "; ")
}

var sales = &change.Table{ID: 7, Schema: "public", Name: "sales", Identity: change.IdentityDefault, Columns: []change.Column{
	{Name: "id", Type: 20, Key: true}, {Name: "product_id", Type: 20}, {Name: "ends_at", Type: 1184},
}}

func full(t *change.Table) *change.Table {
	out := *t
	out.Identity, out.Columns = change.IdentityFull, slices.Clone(t.Columns)
	for i := range out.Columns {
		out.Columns[i].Key = true
	}
	return &out
}

const sale = `
version: 1
namespace: shop
entries: {product: {key: "product:{id}", versions: 2}}
rules:
  - {name: sale ends, table: public.sales, keys: ["product:{product_id}"], at: ends_at%s}
`

func TestTimed(t *testing.T) {
	t.Parallel()
	const noon, date = "2030-01-31 12:00:00+00", `2030-01-31T12:00:00Z`
	const due = date + ` key shop:product:5; key shop:product:5@2`
	tests := []struct {
		name, more string
		op         change.Op
		table      *change.Table
		old, new   change.Row
		want       string
	}{
		{"insert", "", change.Insert, sales, nil, row("1", "5", noon), `set ["1"] ` + due},
		{"NULL", "", change.Insert, sales, nil, row("1", "5", "NULL"), `drop ["1"]`},
		{"infinity", "", change.Update, sales, nil, row("1", "5", "infinity"), `drop ["1"]`},
		{"a NULL name", "", change.Insert, sales, nil, row("1", "NULL", noon), `drop ["1"]`},
		{"delete", "", change.Delete, sales, row("1", "-", "-"), nil, `drop ["1"]`},
		{"delete that on leaves out", ", on: [insert]", change.Delete, sales, row("1", "-", "-"), nil, `drop ["1"]`},
		{"delete that when refuses", ", when: op == 'insert'", change.Delete, sales, row("1", "-", "-"), nil, `drop ["1"]`},
		{"update that on leaves out", ", on: [insert]", change.Update, sales, nil, row("1", "5", noon), ``},
		{"when refuses", ", when: new.product_id > 5", change.Update, sales, nil, row("1", "5", noon), ``},
		{"when agrees", ", when: new.product_id == 5", change.Update, sales, nil, row("1", "5", noon), `set ["1"] ` + due},
		{"another key", "", change.Update, sales, row("1", "-", "-"), row("2", "5", noon), `drop ["1"]; set ["2"] ` + due},
		{"another key, when refuses", ", when: changed('ends_at')", change.Update, full(sales), row("1", "5", noon), row("2", "5", noon),
			`drop ["1","5","` + noon + `"]; set ["2","5","` + noon + `"] ` + due},
		{"truncate", "", change.Truncate, sales, nil, nil, `drop all`},
		{"the time is not in the log", "", change.Update, sales, nil, row("1", "5", "-"), `unknown ["1"]`},
		{"the key is not in the log", "", change.Update, sales, nil, row("~", "5", noon), `unknown`},
		{"a long key", "", change.Insert, sales, nil, row(strings.Repeat("x", 600), "5", noon), ``},
	}
	for _, tt := range tests {
		plan := compile(t, fmt.Sprintf(sale, tt.more))
		var ts rules.Targets
		err := plan.NewMatcher(rules.Observer{}).Match(&ts, &change.Change{Op: tt.op, Table: tt.table, Old: tt.old, New: tt.new}, change.Position{})
		if err != nil || len(ts.List) > 0 {
			t.Errorf("%s: error %v, %s at once; want neither", tt.name, err, show(&ts))
		}
		got := showTimed(&ts)
		if tt.name == "a long key" {
			if key := ts.Timed[0].Key; len(key) != len("sha256:")+64 {
				t.Errorf("%s: key %s, want a hash", tt.name, key)
			}
			continue
		}
		if got != tt.want {
			t.Errorf("%s: got\n%s, want\n%s", tt.name, got, tt.want)
		}
	}
}

// Rows are told apart by their bytes, whether JSON can carry them or not.
func TestTimedKeys(t *testing.T) {
	t.Parallel()
	m := compile(t, fmt.Sprintf(sale, "")).NewMatcher(rules.Observer{})
	long := strings.Repeat("x", 600)
	seen := map[string]string{}
	for _, id := range []string{"1", "\xff", "\xfe", "\ufffd", long, long + "y", "NULL"} {
		var ts rules.Targets
		c := &change.Change{Op: change.Insert, Table: sales, New: row(id, "5", "2030-01-31 12:00:00+00")}
		if err := m.Match(&ts, c, change.Position{}); err != nil {
			t.Fatal(err)
		}
		key := string(ts.Timed[0].Key)
		if other, ok := seen[key]; ok {
			t.Errorf("%.10q and %.10q have one key", id, other)
		}
		seen[key] = id
	}
}

// A text that is no time must not pass for one: the change becomes a dead
// letter. What was matched before it in the batch stays.
func TestTimedBadTime(t *testing.T) {
	t.Parallel()
	plan := compile(t, fmt.Sprintf(sale, ""))
	m := plan.NewMatcher(rules.Observer{})
	var ts rules.Targets
	good := &change.Change{Op: change.Insert, Table: sales, New: row("1", "5", "2030-01-31 12:00:00+00")}
	if err := m.Match(&ts, good, change.Position{}); err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{"soon", "2030-02-30 00:00:00+00", "2030-01-31 25:00:00+00", "", "2030-01-31 12:00:00 Europe/Paris"} {
		err := m.Match(&ts, &change.Change{Op: change.Insert, Table: sales, New: row("1", "5", text)}, change.Position{})
		if err == nil || !strings.Contains(err.Error(), `rule "sale ends": at: column "ends_at"`) {
			t.Errorf("%q: error %v", text, err)
		}
	}
	if len(ts.Timed) != 1 {
		t.Errorf("%s, want the one of before", showTimed(&ts))
	}
}

func TestTimedForms(t *testing.T) {
	t.Parallel()
	plan := compile(t, fmt.Sprintf(sale, ""))
	for text, want := range map[string]string{
		"2030-01-31 12:00:00.5+00":     "2030-01-31T12:00:00.5Z",
		"2030-01-31 12:00:00.123456":   "2030-01-31T12:00:00.123456Z",
		"2030-01-31":                   "2030-01-31T00:00:00Z",
		"2030-01-31 12:00:00+05:30":    "2030-01-31T06:30:00Z",
		"1890-01-31 12:00:00-01:15:30": "1890-01-31T13:15:30Z",
		"2030-01-31T12:00:00Z":         "2030-01-31T12:00:00Z",
		"12030-01-31 12:00:00+00":      "12030-01-31T12:00:00Z",
		"0044-03-15 12:00:00+00 BC":    "-0043-03-15T12:00:00Z",
		"-infinity":                    "0001-01-01T00:00:00Z",
	} {
		var ts rules.Targets
		err := plan.NewMatcher(rules.Observer{}).Match(&ts, &change.Change{Op: change.Insert, Table: sales, New: row("1", "5", text)}, change.Position{})
		if err != nil {
			t.Error(err)
			continue
		}
		if got := ts.Timed[0].At.Format(time.RFC3339Nano); got != want {
			t.Errorf("%s is %s, want %s", text, got, want)
		}
	}
}

// Whatever a rule names, the message that is stored names the same when it
// comes back: the same targets, of the same rule, as deep.
func TestScheduledComesBack(t *testing.T) {
	t.Parallel()
	plan := compile(t, `
version: 1
namespace: shop
entries: {product: {key: "product:{id}", versions: [1, 3]}}
rules:
  - name: "the end 🎉"
    table: public.sales
    keys: ["product:{product_id}", "x:{id}"]
    tags: {all: ["a:{id}", "é:{product_id}"]}
    action: stale
    cascade: {depth: 2, stale_beyond: 1}
    at: ends_at
  - {name: two, table: public.sales, keys: ["product:{product_id}"], tags: ["t:{id}", "u:{id}"], cascade: false, at: ends_at}
  - {name: three, table: public.sales, keys: ["product:{product_id}"], action: rewarm, at: ends_at, cascade: {depth: 3, stale_beyond: 0}}
`)
	m := plan.NewMatcher(rules.Observer{})
	var ts rules.Targets
	c := &change.Change{Op: change.Insert, Table: sales, New: row("ü<1>", "5", "2030-01-31 12:00:00+00")}
	if err := m.Match(&ts, c, change.Position{}); err != nil || len(ts.Timed) != 3 {
		t.Fatalf("%v, %s", err, showTimed(&ts))
	}
	for i := range ts.Timed {
		timed := &ts.Timed[i]
		content, err := plan.Scheduled(timed.Rule, ts.TimedTargets(timed))
		if err != nil {
			t.Fatal(err)
		}
		if slices.ContainsFunc(content, func(b byte) bool { return b >= 0x80 }) {
			t.Errorf("%s is not ASCII", content)
		}
		var back rules.Targets
		if err := m.Match(&back, &change.Change{Op: change.Message, Prefix: rules.MessagePrefix, Content: content}, change.Position{}); err != nil {
			t.Fatalf("%s: %v", content, err)
		}
		list := rules.Targets{List: ts.TimedTargets(timed)}
		if got, want := inOrder(&back), inOrder(&list); got != want || got == "" {
			t.Errorf("%s:\n%s, want\n%s", content, got, want)
		}
		for _, target := range back.List {
			if target.Rule != timed.Rule || target.Cascade != timed.Rule.Cascade {
				t.Errorf("%s: %s is of rule %v, cascade %v", content, target.Name, target.Rule, target.Cascade)
			}
		}
	}
}

func inOrder(ts *rules.Targets) string {
	list := strings.Split(show(ts), "; ")
	slices.Sort(list)
	return strings.Join(list, "; ")
}

// A name that JSON can not carry would come back as another one.
func TestScheduledOfBytes(t *testing.T) {
	t.Parallel()
	plan := compile(t, "version: 1\nnamespace: shop\nentries: {product: {key: 'product:{id}'}}\nrules:\n"+
		"- {name: a, table: public.sales, keys: ['product:{product_id}'], at: ends_at}\n"+
		"- {name: b, table: public.sales, tags: ['t:{product_id}'], at: ends_at}\n")
	m := plan.NewMatcher(rules.Observer{})
	var ts rules.Targets
	c := &change.Change{Op: change.Insert, Table: sales, New: row("1", "\xff", "2030-01-31 12:00:00+00")}
	if err := m.Match(&ts, c, change.Position{}); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{`"classes":["product"]`, `"classes":["*"]`} {
		content, err := plan.Scheduled(ts.Timed[i].Rule, ts.TimedTargets(&ts.Timed[i]))
		if err != nil || !strings.Contains(string(content), want) || strings.Contains(string(content), "fffd") {
			t.Errorf("%s (%v), want %s", content, err, want)
		}
	}
}

// A rule that is another schedules anew; one that is only called otherwise, or
// owned by others, goes on with what it has.
func TestScheduleID(t *testing.T) {
	t.Parallel()
	id := func(text string) uint64 {
		plan := compile(t, "version: 1\nentries: {p: {key: 'p:{id}'}}\nrules: ["+text+"]\n")
		return plan.ScheduleID(plan.Set().Rules[0])
	}
	base := id("{name: a, table: s, keys: ['p:{x}'], at: ends_at}")
	if base == 0 || id("{name: b, table: s, keys: ['p:{x}'], at: ends_at, owner: me}") != base {
		t.Error("a rule that was renamed has another id")
	}
	for _, other := range []string{
		"{name: a, table: s, keys: ['p:{x}'], at: starts_at}", "{name: a, table: s, keys: ['p:{y}'], at: ends_at}", "{name: a, table: z, keys: ['p:{x}'], at: ends_at}",
		"{name: a, table: s, keys: ['p:{x}'], at: ends_at, action: stale}", "{name: a, table: s, keys: ['p:{x}'], at: ends_at, when: new.x == 1}",
	} {
		if id(other) == base {
			t.Errorf("%s has the id of another rule", other)
		}
	}
}

// A row that is found in the table is scheduled if any change of it would have
// been.
func TestExisting(t *testing.T) {
	t.Parallel()
	for when, want := range map[string]bool{
		"": true, ", when: op == 'insert'": true, ", when: op == 'update'": true, ", when: changed('ends_at')": true,
		", when: new.product_id == 5": true, ", when: new.product_id == 6": false,
	} {
		plan := compile(t, fmt.Sprintf(sale, when))
		var ts rules.Targets
		err := plan.NewMatcher(rules.Observer{}).Existing(&ts, plan.Set().Rules[0], sales, row("1", "5", "2030-01-31 12:00:00+00"), change.Position{Era: 1, LSN: 9})
		if err != nil || (len(ts.Timed) == 1) != want {
			t.Errorf("%s: %s (%v), want a schedule: %v", when, showTimed(&ts), err, want)
		}
	}
}

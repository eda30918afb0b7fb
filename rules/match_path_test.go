package rules_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/rules"
)

// events is an outbox under REPLICA IDENTITY FULL.
var events = &change.Table{ID: 7, Schema: "public", Name: "events", Identity: change.IdentityFull, Columns: []change.Column{
	{Name: "id", Type: 20, Key: true}, {Name: "type", Type: 25, Key: true}, {Name: "payload", Type: 3802, Key: true}, {Name: "tags", Type: 1009, Key: true}, {Name: "docs", Type: 3807, Key: true}, {Name: "mood", Type: 90001, Key: true},
}}

const pathEntries = `version: 1
entries:
  user: {key: "user:{id}"}
  item: {key: "item:{id}"}
  pair: {key: "pair:{a}:{b}"}
  tagged: {key: "tagged:{t}"}
`

func matchPath(t *testing.T, rule string, c *change.Change) string {
	t.Helper()
	plan := compile(t, pathEntries+"rules: [{name: r, table: public.events, "+rule+"}]\n")
	var ts rules.Targets
	old, now := 0, 0
	m := plan.NewMatcher(rules.Observer{OldValueUnknown: func(*rules.Rule) { old++ }, NewValueUnknown: func(*rules.Rule) { now++ }})
	for range 2 { // scratch memory is used again
		ts.Reset()
		old, now = 0, 0
		if err := m.Match(&ts, c, change.Position{}); err != nil {
			t.Fatal(err)
		}
	}
	return fmt.Sprintf("%s (%d %d)", show(&ts), old, now)
}

func TestMatchPaths(t *testing.T) {
	t.Parallel()
	insert := func(values ...string) *change.Change {
		return &change.Change{Op: change.Insert, Table: events, New: row(values...)}
	}
	payload := func(doc string) *change.Change { return insert("1", "t", doc, "{}", "{}", "x") }
	keyed := *events
	keyed.Identity = change.IdentityDefault
	keyed.Columns = append([]change.Column(nil), events.Columns...)
	for i := range keyed.Columns {
		keyed.Columns[i].Key = i == 0
	}
	const items = `{"items": [{"id": 1, "v": [{"s": "a"}, {"s": "b"}]}, {"id": 2, "v": []}, {"id": 1, "v": [{"s": "a"}]}], "x": [7, 8]}`
	for _, c := range []struct {
		name, rule string
		change     *change.Change
		want       string
	}{
		{"a member", `keys: ["user:{payload.user_id}"]`, payload(`{"user_id": 42}`), "key user:42 (0 0)"},
		{"deep, with filters", `keys: ["user:{payload.user.mail|lower|urlencode}"]`, payload(`{"user": {"mail": "A@b"}}`), "key user:a%40b (0 0)"},
		{"missing", `keys: ["user:{payload.user_id}"]`, payload(`{}`), " (0 0)"},
		{"null", `keys: ["user:{payload.user_id}"]`, payload(`{"user_id": null}`), " (0 0)"},
		{"NULL column", `keys: ["user:{payload.user_id}", "item:{payload.a[*]}"]`, payload("NULL"), " (0 0)"},
		{"a container raises", `keys: ["user:{payload.user_id}"]`, payload(`{"user_id": {}}`), "raise user old_value (0 1)"},
		{"of another shape raises", `keys: ["user:{payload.user.id}"]`, payload(`{"user": "bob"}`), "raise user old_value (0 1)"},
		{"NULL goes before", `keys: ["pair:{payload.o}:{payload.x}"]`, payload(`{"o": {}}`), " (0 0)"},
		{"date", `keys: ["user:{payload.at|date}"]`, payload(`{"at": "2026-11-21T23:30:00-01:00"}`), "key user:2026-11-22 (0 0)"},
		{"no date", `keys: ["user:{payload.at|date}"]`, payload(`{"at": 7}`), "raise user old_value (0 1)"},

		{"each, once", `keys: ["item:{payload.items[*].id}"]`, payload(items), "key item:1; key item:2 (0 0)"},
		{"one of them", `keys: ["item:{payload.items[1].id}"]`, payload(items), "key item:2 (0 0)"},
		{"out of range", `keys: ["item:{payload.items[3].id}"]`, payload(items), " (0 0)"},
		{"together", `keys: ["pair:{payload.items[*].id}:{payload.items[*].v[0].s}"]`, payload(items), "key pair:1:a (0 0)"},
		{"nested", `keys: ["pair:{payload.items[*].id}:{payload.items[*].v[*].s}"]`, payload(items), "key pair:1:a; key pair:1:b (0 0)"},
		{"product", `keys: ["pair:{payload.x[*]}:{payload.items[*].id}"]`, payload(items), "key pair:7:1; key pair:7:2; key pair:8:1; key pair:8:2 (0 0)"},
		{"each of no array raises", `keys: ["item:{payload.items[*].id}"]`, payload(`{"items": {"id": 1}}`), "raise item old_value (0 1)"},
		{"a broken element raises beside the others", `keys: ["item:{payload.items[*].id}"]`, payload(`{"items": [{"id": 1}, {"id": []}, {"id": 3}, {}, null]}`), "key item:1; key item:3; raise item old_value (0 1)"},
		{"none", `keys: ["item:{payload.items[*].id}"]`, payload(`{"items": []}`), " (0 0)"},
		{"the whole document", `keys: ["item:{payload[*]}"]`, payload(`[1, "two", true, null]`), "key item:1; key item:two; key item:true (0 0)"},

		{"array", `keys: ["tagged:{tags[*]}"]`, insert("1", "t", "{}", `{a,"b c",NULL,a}`, "{}", "x"), "key tagged:a; key tagged:b c (0 0)"},
		{"array index", `keys: ["tagged:{tags[1]}"]`, insert("1", "t", "{}", `[5:6]={a,b}`, "{}", "x"), "key tagged:b (0 0)"},
		{"matrix raises", `keys: ["tagged:{tags[*]}"]`, insert("1", "t", "{}", `{{a},{b}}`, "{}", "x"), "raise tagged old_value (0 1)"},
		{"matrix", `keys: ["tagged:{tags[*][*]}"]`, insert("1", "t", "{}", `{{a},{b}}`, "{}", "x"), "key tagged:a; key tagged:b (0 0)"},
		{"jsonb[]", `keys: ["item:{docs[*].id}"]`, insert("1", "t", "{}", "{}", `{"{\"id\": 4}","{\"id\": 5}"}`, "x"), "key item:4; key item:5 (0 0)"},
		{"unknown type, array", `keys: ["tagged:{mood[*]}"]`, insert("1", "t", "{}", "{}", "{}", "{sad,glad}"), "key tagged:sad; key tagged:glad (0 0)"},
		{"unknown type, json", `keys: ["user:{mood.id}", "tagged:{mood.l[*]}"]`, insert("1", "t", "{}", "{}", "{}", `{"id": 3, "l": [1]}`), "key user:3; key tagged:1 (0 0)"},
		{"unknown type, json list", `keys: ["tagged:{mood[*]}"]`, insert("1", "t", "{}", "{}", "{}", `["x"]`), "key tagged:x (0 0)"},
		{"tags", `tags: ["t:{tags[*]}"]`, insert("1", "t", "{}", `{a,b}`, "{}", "x"), "tag t:a; tag t:b (0 0)"},

		{"both rows", `keys: ["tagged:{tags[*]}"]`, &change.Change{Op: change.Update, Table: events,
			Old: row("1", "t", "{}", "{a,b}", "{}", "x"), New: row("1", "t", "{}", "{b,c}", "{}", "x")}, "key tagged:b; key tagged:c; key tagged:a (0 0)"},
		{"one row", `keys: ["tagged:{new.tags[*]}", "user:{old.payload.a}"]`, &change.Change{Op: change.Update, Table: events,
			Old: row("1", "t", `{"a": 1}`, "{a,b}", "{}", "x"), New: row("1", "t", `{"a": 2}`, "{b,c}", "{}", "x")}, "key tagged:b; key tagged:c; key user:1 (0 0)"},
		{"old and new", `keys: ["pair:{old.tags[*]}:{new.tags[*]}"]`, &change.Change{Op: change.Update, Table: events,
			Old: row("1", "t", `{}`, "{a,b}", "{}", "x"), New: row("1", "t", `{}`, "{c}", "{}", "x")}, "key pair:a:c; key pair:b:c (0 0)"},
		{"delete", `keys: ["tagged:{tags[*]}", "user:{new.payload.a}"]`, &change.Change{Op: change.Delete, Table: events,
			Old: row("1", "t", `{"a": 1}`, "{a,b}", "{}", "x")}, "key tagged:a; key tagged:b (0 0)"},
		{"old hidden", `keys: ["tagged:{tags[*]}"]`, &change.Change{Op: change.Update, Table: &keyed, New: row("1", "t", "{}", "{b}", "{}", "x")}, "key tagged:b (1 0)"},
		{"old hidden, strict", `strict: true, keys: ["tagged:{tags[*]}"]`, &change.Change{Op: change.Update, Table: &keyed, New: row("1", "t", "{}", "{b}", "{}", "x")}, "key tagged:b; raise tagged old_value (1 0)"},
		{"unchanged TOAST, both rows", `keys: ["tagged:{tags[*]}"]`, &change.Change{Op: change.Update, Table: events,
			Old: row("1", "t", "{}", "{a}", "{}", "x"), New: row("1", "t", "{}", "~", "{}", "x")}, "key tagged:a (0 0)"},
		{"unchanged TOAST", `keys: ["tagged:{tags[*]}", "user:{payload.a}"]`, &change.Change{Op: change.Update, Table: &keyed, New: row("1", "t", "~", "~", "{}", "x")},
			"raise tagged old_value; raise user old_value (0 2)"},
		{"no such column", `keys: ["tagged:{gone[*]}"]`, payload(`{}`), "raise tagged old_value (0 1)"},
	} {
		if got := matchPath(t, c.rule, c.change); got != c.want {
			t.Errorf("%s: %s\n got %s\nwant %s", c.name, c.rule, got, c.want)
		}
	}
}

// A thousand names are named, one more raises the class; so does a product
// that is too large to be looked through.
func TestMatchPathLimits(t *testing.T) {
	t.Parallel()
	list := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, ",%d", i)
		}
		return "{" + b.String()[1:] + "}"
	}
	match := func(template, tags string) string {
		return matchPath(t, `keys: ["`+template+`"]`, &change.Change{Op: change.Insert, Table: events, New: row("1", "t", `{"n": [`+strings.Repeat("null,", 999)+`null]}`, tags, "{}", "x")})
	}
	if got := match("tagged:{tags[*]}", list(rules.NamesMax)); strings.Count(got, "key ") != rules.NamesMax || strings.Contains(got, "raise") {
		t.Errorf("at the limit: %d names: %.200s", strings.Count(got, "key "), got)
	}
	if got := match("tagged:{tags[*]}", list(rules.NamesMax+1)); !strings.HasSuffix(got, "raise tagged old_value (0 1)") {
		t.Errorf("beyond the limit: ...%s", got[len(got)-100:])
	}
	if got, want := match("pair:{tags[*]}:{payload.n[*]}", list(900)), "raise pair old_value (0 1)"; got != want {
		t.Errorf("a large product without names: got %.200s, want %s", got, want)
	}
}

// A path without [*] allocates nothing, as columns do not.
func TestMatchPathAllocates(t *testing.T) {
	plan := compile(t, pathEntries+`rules: [{name: r, table: public.events, keys: ["user:{payload.user.id}"]}]`)
	c := &change.Change{Op: change.Insert, Table: events, New: row("1", "t", `{"at": [1, {"x": "]"}], "user": {"id": "u-1"}}`, "{}", "{}", "x")}
	m := plan.NewMatcher(rules.Observer{})
	var ts rules.Targets
	if n := testing.AllocsPerRun(100, func() {
		ts.Reset()
		if err := m.Match(&ts, c, change.Position{}); err != nil || len(ts.List) != 1 {
			t.Fatal(err, show(&ts))
		}
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestTablesNamesTheColumnOfAPath(t *testing.T) {
	t.Parallel()
	uses := parse(t, pathEntries+`rules: [{name: r, table: public.events, keys: ["user:{payload.user.id}", "item:{new.docs[*].id}"]}]`).Tables()
	if got, want := fmt.Sprint(uses[0].Columns, uses[0].OldColumns), "[docs payload] [payload]"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

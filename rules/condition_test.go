package rules_test

import (
	"strings"
	"testing"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/rules"
)

// typed has a column of every type that conditions tell apart.
var typed = &change.Table{ID: 2, Schema: "public", Name: "typed", Identity: change.IdentityDefault, Columns: []change.Column{
	{Name: "id", Type: 20, Key: true}, {Name: "price", Type: 1700}, {Name: "ratio", Type: 701}, {Name: "name", Type: 25},
	{Name: "ok", Type: 16}, {Name: "at", Type: 1184}, {Name: "doc", Type: 3802}, {Name: "raw", Type: 17}, {Name: "Odd name", Type: 23},
	{Name: "tags", Type: 1009}, {Name: "ids", Type: 1016}, {Name: "grid", Type: 1007}, {Name: "docs", Type: 3807},
}}

var typedFull = func() *change.Table { t := *typed; t.Identity = change.IdentityFull; return &t }()

func typedRow(over ...string) change.Row {
	v := []string{"7", "12.50", "0.25", "lamp", "t", "2026-11-21 12:00:00.5+00", `{"user": {"id": 9007199254740993}, "tags": ["a", "b"], "none": null}`, `\x00ff`, "3",
		`{a,"b c",NULL}`, "{1,9007199254740993}", "{{1,2},{3,4}}", `{"{\"id\": 5}",NULL}`}
	for i := 0; i+1 < len(over); i += 2 {
		v[typed.ColumnIndex(over[i])] = over[i+1]
	}
	return row(v...)
}

func TestCondition(t *testing.T) {
	t.Parallel()
	insert := &change.Change{Op: change.Insert, Table: typed, New: typedRow()}
	full := func(over ...string) *change.Change {
		return &change.Change{Op: change.Update, Table: typedFull, Old: typedRow(), New: typedRow(over...)}
	}
	blind := func(over ...string) *change.Change {
		return &change.Change{Op: change.Update, Table: typed, New: typedRow(over...)}
	}
	del := &change.Change{Op: change.Delete, Table: typedFull, Old: typedRow()}
	tests := []struct {
		when    string
		c       *change.Change
		want    bool
		guessed string // part of the error that made it true
	}{
		{`op == "insert"`, insert, true, ""},
		{`op == "insert"`, del, false, ""},
		{`new.id == 7 && new.price > 12 && new.price < 12.6`, insert, true, ""},
		{`new.price == 12.5`, insert, true, ""},
		{`new.ratio * 4.0 == 1.0`, insert, true, ""},
		{`new.name.startsWith("la")`, insert, true, ""},
		{`new.name in ["kettle", "drum"]`, insert, false, ""},
		{`!new.ok`, insert, false, ""},
		{`new.at > timestamp("2026-11-21T12:00:00Z")`, insert, true, ""},
		{`new.at > timestamp("2026-11-21T12:00:01Z")`, insert, false, ""},
		{`new.doc.user.id == 9007199254740993`, insert, true, ""},
		{`new.doc.user.id == 9007199254740992`, insert, false, ""},
		{`new.doc.tags.exists(x, x == "b")`, insert, true, ""},
		{`new.doc.none == null`, insert, true, ""},
		{`new.doc.missing == 1`, insert, true, "no such key"},
		{`new.doc["user"]["id"] > 5 && new.doc["tags"][1] == "b"`, insert, true, ""},
		{`"b" in new.doc.tags && size(new.doc.tags) == 2`, insert, true, ""},
		{`"c" in new.doc.tags`, insert, false, ""},
		// What is not there in a json value is NULL.
		{`new.doc.missing != null`, insert, false, ""},
		{`new.doc.missing == null`, insert, true, ""},
		{`new.doc["missing"].more == null`, insert, true, ""},
		{`new.doc.none.more != null`, insert, false, ""},
		{`new.doc.user.missing != null && new.doc.user.missing == 1`, insert, false, ""},
		{`new.doc.tags[2] != null`, insert, false, ""},
		{`new.doc.missing != null`, full("doc", "NULL"), false, ""},
		{`new.doc.missing != null`, full("doc", "{broken"), true, "json"},
		{`has(new.doc.user)`, insert, true, ""},
		{`has(new.doc.missing)`, insert, false, ""},
		// Arrays are lists.
		{`"b c" in new.tags && size(new.tags) == 3 && new.tags[2] == null`, insert, true, ""},
		{`"c" in new.tags`, insert, false, ""},
		{`9007199254740993 in new.ids`, insert, true, ""},
		{`9007199254740992 in new.ids`, insert, false, ""},
		{`new.ids.exists(x, x > 9007199254740992)`, insert, true, ""},
		{`new.grid[1][0] == 3`, insert, true, ""},
		{`new.docs[0].id == 5 && new.docs[1] == null`, insert, true, ""},
		{`size(new.tags) == 0`, full("tags", "{}"), true, ""},
		{`"a" in new.tags`, full("tags", "NULL"), true, "NULL"},
		{`"a" in new.tags`, full("tags", "{broken"), true, "array"},
		{`"x" in new.tags && !("x" in old.tags)`, full("tags", "{x}"), true, ""},
		{`new.raw == b"\x00\xff"`, insert, true, ""},
		{"new.`Odd name` == 3", insert, true, ""},
		// Rows that are not there.
		{`old == null`, insert, true, ""},
		{`new == null`, del, true, ""},
		{`old != null && old.id == 8`, del, false, ""},
		{`old.id == 8`, insert, true, "no such row"},
		// changed
		{`changed("name")`, insert, true, ""},
		{`changed("name")`, del, true, ""},
		{`changed("name")`, full("name", "drum"), true, ""},
		{`changed("name")`, full("price", "1"), false, ""},
		{`changed("name")`, full("name", "NULL"), true, ""},
		{`changed("name")`, &change.Change{Op: change.Update, Table: typedFull, Old: typedRow("name", "NULL"), New: typedRow("name", "NULL")}, false, ""},
		{`changed("name")`, blind(), true, ""},             // the old value is not in the log
		{`changed("name")`, blind("name", "~"), false, ""}, // a TOASTed value that was not touched
		{`changed("id")`, blind(), false, ""},              // identity columns without an old row are the same
		{`changed("id")`, blind("id", "-"), true, ""},      // not published
		{`changed("Odd name")`, full("Odd name", "4"), true, ""},
		{`changed("name") && op == "update"`, full(), false, ""},
		// NULL counts as true where it decides, and only there.
		{`new.price > 100`, full("price", "NULL"), true, "NULL"},
		{`new.name == "drum"`, full("name", "NULL"), true, "NULL"},
		{`new.name == "drum" && new.id == 8`, full("name", "NULL"), false, ""},
		{`new.name == "drum" || new.id == 7`, full("name", "NULL"), true, ""},
		{`new.name == null`, full("name", "NULL"), true, ""},
		{`new.name != null`, full("name", "NULL"), false, ""},
		{`null == new.name`, full(), false, ""},
		{`has(new.name)`, full("name", "NULL"), false, ""},
		{`has(new.name)`, full(), true, ""},
		// Values that the log does not carry count as true.
		{`old.name == "drum"`, blind(), true, "does not carry"},
		{`old.id == 8`, blind(), false, ""},
		{`!has(old.name)`, blind(), true, "does not carry"},
		{`new.name == "drum"`, blind("name", "~"), true, "does not carry"},
		// Errors of evaluation.
		{`1 / (new.id - 7) == 1`, insert, true, "division"},
		{`new.price > "x"`, insert, true, "no such overload"},
		{`new.name`, insert, true, "not true or false"},
		{`new.price > 1`, full("price", "many"), true, "invalid syntax"},
		{`new.doc.a == 1`, full("doc", "{broken"), true, "json"},
		{`new.missing == 1`, insert, true, "does not carry"},
		{`changed("missing")`, full(), true, ""},
	}
	for _, tt := range tests {
		yaml := "version: 1\nrules:\n- {name: r, table: typed, keys: [k], when: " + quoteYAML(tt.when) + "}\n"
		var n counts
		var ts rules.Targets
		if err := compile(t, yaml).NewMatcher(n.observer()).Match(&ts, tt.c, change.Position{}); err != nil {
			t.Errorf("%s: %v", tt.when, err)
			continue
		}
		if got := len(ts.List) > 0; got != tt.want {
			t.Errorf("%s on %s: %v, want %v (error %v)", tt.when, tt.c.Op, got, tt.want, n.err)
		}
		if (n.cond == 1) != (tt.guessed != "") || n.err != nil && !strings.Contains(n.err.Error(), tt.guessed) {
			t.Errorf("%s on %s: counted %d, error %v; want %q", tt.when, tt.c.Op, n.cond, n.err, tt.guessed)
		}
	}
}

func quoteYAML(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// The debezium spelling of true, and infinity, which has no CEL value.
func TestConditionValuesOfOtherSpelling(t *testing.T) {
	t.Parallel()
	for when, want := range map[string]struct {
		row  change.Row
		hit  bool
		cond int
	}{
		`new.ok`: {typedRow("ok", "true"), true, 0},
		`new.at > timestamp("2026-01-01T00:00:00Z") && false`: {typedRow("at", "infinity"), false, 0},
		`new.at > timestamp("2027-01-01T00:00:00Z")`:          {typedRow("at", "infinity"), true, 1},
		`new.at == timestamp("2026-01-01T00:00:00Z")`:         {typedRow("at", "2026-01-01 00:00:00"), true, 0},
	} {
		var n counts
		var ts rules.Targets
		plan := compile(t, "version: 1\nrules:\n- {name: r, table: typed, keys: [k], when: "+quoteYAML(when)+"}\n")
		if err := plan.NewMatcher(n.observer()).Match(&ts, &change.Change{Op: change.Insert, Table: typed, New: want.row}, change.Position{}); err != nil {
			t.Fatal(err)
		}
		if got := len(ts.List) > 0; got != want.hit || n.cond != want.cond {
			t.Errorf("%s: %v, counted %d (%v); want %v, %d", when, got, n.cond, n.err, want.hit, want.cond)
		}
	}
}

package scaffold

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/rules"
)

var update = flag.Bool("update", false, "write the golden files")

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs (go test -update writes it):\n%s", path, got)
	}
}

// types by name, as pg_type has them.
var types = map[string]uint32{
	"integer": 23, "bigint": 20, "text": 25, "uuid": 2950, "bytea": 17, "character(5)": 1042, "timestamp with time zone": 1184, "tsvector": 3614,
}

// table makes an ordinary table; the columns are "name type", the first keys of
// them are the primary key.
func table(schema, name string, keys int, columns ...string) Table {
	t := Table{TableInfo: rules.TableInfo{Schema: schema, Name: name, Kind: 'r', Persistence: 'p', Identity: change.IdentityDefault}, Rows: -1}
	for i, c := range columns {
		at := strings.LastIndex(c, ": ")
		col, typ := c[:at], c[at+2:]
		t.Columns = append(t.Columns, rules.ColumnInfo{Name: col, Type: types[typ], TypeName: typ, NotNull: i < keys, Toastable: typ == "text" || typ == "bytea"})
		if i < keys {
			t.PrimaryKey = append(t.PrimaryKey, col)
		}
	}
	t.IdentityColumns = t.PrimaryKey
	return t
}

func foreign(from string, columns []string, to string, refs ...string) rules.ForeignKey {
	return rules.ForeignKey{Name: "fk", Table: from, Columns: columns, RefTable: to, RefColumns: refs, OnDelete: 'a', OnUpdate: 'a'}
}

// odd is a schema of everything that has to be looked at twice.
func odd() Schema {
	users := table("public", "users", 1, "id: bigint", "name: text", "password_hash: text", "photo: bytea", "manager: bigint")
	users.Rows = 12_345
	full := table("public", "orders", 1, "id: bigint", "user_id: bigint", "code: text", "status: text")
	full.Identity, full.IdentityColumns, full.Rows = change.IdentityFull, []string{"id", "user_id", "code", "status"}, 5_000_000
	events := table("public", "events", 1, "id: uuid", "user_id: bigint")
	events.Identity, events.IdentityColumns, events.Rows = change.IdentityFull, []string{"id", "user_id"}, 90_000_000
	nothing := table("public", "nothing", 1, "id: bigint", "user_id: bigint")
	nothing.Identity, nothing.IdentityColumns = change.IdentityNothing, nil
	unlogged := table("public", "sessions", 1, "id: bigint")
	unlogged.Persistence = 'u'
	parts := table("public", "parts", 2, "id: bigint", "day: timestamp with time zone", "user_id: bigint")
	parts.Kind = 'p'
	parts.Leaves = []rules.TableName{{Schema: "public", Name: "parts_1"}, {Schema: "Old", Name: "parts_2"}}
	generated := table("public", "generated", 1, "id: bigint")
	generated.Columns[0].Generated = 's'
	return Schema{
		Database: "Shop-1",
		Tables: []Table{
			full, users, events, nothing, unlogged, parts, generated,
			table("public", "log", 0, "user_id: bigint", "what: text"),
			table("public", "note", 0, "what: text"),
			table("public", "tokens", 1, "token: text", "user_id: bigint"),
			table("public", "codes", 2, "country: character(5)", "code: text", "name: text", "words: tsvector"),
			table("public", "profile", 1, "user_id: bigint", "about: text"),
			table("public", "true", 1, "ids: integer", "select: integer"),
			table("public", "Odd Name", 2, "a b: integer", "c'd: text", "a_b: integer", "a-b: integer"),
			table("public", "odd_name", 1, "id: integer"),
			table("public", "odd Name", 1, "id: integer"),
			table("public", "bad\nname", 1, "bad|column: integer"),
			table("public", "users_by_manager", 1, "id: integer"),
			table("Sales", "users", 1, "id: integer", "ids: integer"),
			table("public", "2020", 1, "id: integer"),
		},
		ForeignKeys: []rules.ForeignKey{
			foreign("public.users", []string{"manager"}, "public.users", "id"),
			foreign("public.orders", []string{"user_id"}, "public.users", "id"),
			foreign("public.orders", []string{"user_id"}, "public.profile", "user_id"), // the same list again
			foreign("public.orders", []string{"code"}, "public.elsewhere", "code"),
			foreign("public.events", []string{"user_id"}, "public.users", "id"),
			foreign("public.nothing", []string{"user_id"}, "public.users", "id"),
			foreign("public.parts", []string{"user_id"}, "public.users", "id"),
			foreign("public.log", []string{"user_id"}, "public.users", "id"),
			foreign("public.tokens", []string{"user_id"}, "public.users", "id"),
			foreign("public.profile", []string{"user_id"}, "public.users", "id"), // one row each
			foreign("public.codes", []string{"country"}, "public.countries", "code"),
			foreign("public.true", []string{"ids"}, "public.odd_name", "id"),
			foreign("public.Odd Name", []string{"a b"}, "public.odd_name", "id"),
			foreign("Sales.users", []string{"ids"}, "public.odd_name", "id"),
		},
	}
}

// live is a schema as the check sees it.
func live(s Schema) rules.Schema {
	out := rules.Schema{ForeignKeys: s.ForeignKeys}
	for _, t := range s.Tables {
		out.Tables = append(out.Tables, t.TableInfo)
	}
	return out
}

func TestRules(t *testing.T) {
	t.Parallel()
	text, classes := Rules(odd(), Options{})
	golden(t, "odd.golden.yaml", text)
	set, err := rules.Parse("rules.yaml", text)
	if err != nil {
		t.Fatal(err)
	}
	if set.Namespace != "Shop-1" {
		t.Errorf("namespace %q, want the database's name", set.Namespace)
	}
	for _, f := range set.Check(live(odd())) {
		if f.Code != rules.CodePartition { // nobody can write a rule without it
			t.Errorf("check finds %s [%s]", f, f.Code)
		}
	}
	if _, err := set.Compile(); err != nil {
		t.Error(err)
	}

	if rows := len(slices.DeleteFunc(slices.Clone(set.Entries), func(c *rules.Class) bool { return len(c.Tags) > 0 })); classes != rows {
		t.Errorf("%d classes of rows are told, there are %d", classes, rows)
	}

	t.Run("deterministic", func(t *testing.T) {
		s := odd()
		slices.Reverse(s.Tables)
		if again, _ := Rules(s, Options{}); !bytes.Equal(again, text) {
			t.Error("the order of the tables shows in the file")
		}
	})
	t.Run("no class builds the names of another", func(t *testing.T) {
		seen := map[string]string{}
		for _, c := range set.Entries {
			first, _, _ := strings.Cut(c.Key.String(), ":")
			if other := seen[first]; other != "" {
				t.Errorf("the keys of %s and %s both begin with %s", c.Name, other, first)
			}
			seen[first] = c.Name
		}
	})
}

// TestRulesUncommented: what stands in comments is right as soon as the log
// carries what it needs, and only the marks are taken away.
func TestRulesUncommented(t *testing.T) {
	t.Parallel()
	s := odd()
	s.Tables = slices.DeleteFunc(s.Tables, func(x Table) bool { return x.Name != "users" || x.Schema != "public" })
	text, _ := Rules(s, Options{Namespace: "shop"})
	var lines []string
	for line := range strings.Lines(string(text)) {
		bare := strings.TrimLeft(line, " ")
		if rest, ok := strings.CutPrefix(bare, "# "); ok && (strings.Contains(rest, ": ") || strings.HasSuffix(rest, ":\n") || strings.HasPrefix(rest, "    ")) &&
			!strings.Contains(rest, "Not loaded") && !strings.HasPrefix(rest, "The ") && !strings.HasPrefix(rest, "list. ") && !strings.HasPrefix(rest, "After ") {
			line = line[:len(line)-len(bare)] + rest
		}
		lines = append(lines, line)
	}
	set, err := rules.Parse("rules.yaml", []byte(strings.Join(lines, "")))
	if err != nil {
		t.Fatalf("%v\n%s", err, strings.Join(lines, ""))
	}
	users := &s.Tables[0]
	users.Identity, users.IdentityColumns = change.IdentityFull, []string{"id", "name", "password_hash", "photo", "manager"}
	if found := set.Check(live(s)); len(found) > 0 {
		t.Errorf("check finds %v", found)
	}
	if set.Class("users_by_manager") == nil || len(set.Rules[0].Tags) != 1 {
		t.Errorf("the list of users by manager is not there:\n%s", strings.Join(lines, ""))
	}
}

func TestRulesOfNothing(t *testing.T) {
	t.Parallel()
	unlogged := table("public", "x", 1, "id: integer")
	unlogged.Persistence = 'u'
	for _, s := range []Schema{{}, {Tables: []Table{unlogged}}} {
		if text, classes := Rules(s, Options{}); classes != 0 || !bytes.Contains(text, []byte("entries: {}")) {
			t.Errorf("%d tables: %d classes, want none:\n%s", len(s.Tables), classes, text)
		}
	}
}

func TestStatements(t *testing.T) {
	t.Parallel()
	got := statements(`CREATE UNIQUE INDEX CONCURRENTLY "a;b" ON x (y); ALTER TABLE x REPLICA IDENTITY USING INDEX "a;b";`)
	want := []string{`CREATE UNIQUE INDEX CONCURRENTLY "a;b" ON x (y);`, `ALTER TABLE x REPLICA IDENTITY USING INDEX "a;b";`}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

package rules_test

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/rules"
)

var update = flag.Bool("update", false, "write the findings of testdata/*.yaml anew")

// testSchema has a table for each trap.
func testSchema() rules.Schema {
	column := func(name string, oid uint32, typeName string) rules.ColumnInfo {
		toast := oid == 25 || oid == 3802 || oid == 1700
		return rules.ColumnInfo{Name: name, Type: oid, TypeName: typeName, NotNull: true, Toastable: toast}
	}
	id := column("id", 20, "bigint")
	generated := column("search", 25, "text")
	generated.Generated = 's'
	nullable := column("meta", 3802, "jsonb")
	nullable.NotNull = false
	key := func(t rules.TableInfo) rules.TableInfo {
		t.Schema = "public"
		if t.Kind == 0 {
			t.Kind = 'r'
		}
		if t.Persistence == 0 {
			t.Persistence = 'p'
		}
		if t.Identity == 0 {
			t.Identity = change.IdentityDefault
		}
		if t.PrimaryKey == nil && t.Column("id") != nil {
			t.PrimaryKey = []string{"id"}
		}
		if t.IdentityColumns == nil {
			t.IdentityColumns = t.PrimaryKey
		}
		return t
	}
	described := map[string]rules.StatementInfo{}
	for sql, info := range map[string]rules.StatementInfo{
		"SELECT id::numeric FROM products":      {Columns: []rules.ColumnInfo{column("id", 1700, "numeric")}},
		"SELECT id AS product_id FROM products": {Columns: []rules.ColumnInfo{column("product_id", 20, "bigint")}},
		"SELECT ident FROM products":            {Columns: []rules.ColumnInfo{column("ident", 20, "bigint")}},
		"SELECT nothing\nFROM nowhere\n":        {Error: `relation "nowhere" does not exist`},
	} {
		described[(&rules.Warm{SQL: sql}).Statement(0)] = info
	}
	described["SELECT id, name FROM products WHERE id = ANY($1) AND '@id' <> name"] = rules.StatementInfo{Columns: []rules.ColumnInfo{id, column("name", 25, "text")}}
	described["SELECT naem FROM products WHERE slug = ANY($1)"] = rules.StatementInfo{Error: `column "naem" does not exist`}
	return rules.Schema{
		Statements: described,
		Names:      []string{"public.products", "public.orders", "pg_catalog.pg_class"},
		Tables: []rules.TableInfo{
			key(rules.TableInfo{Name: "products", Columns: []rules.ColumnInfo{id, column("name", 25, "text"), column("price", 1700, "numeric(12,2)"), column("slug", 25, "text"),
				column("category_id", 20, "bigint"), column("updated_at", 1184, "timestamp with time zone"), nullable, generated}}),
			key(rules.TableInfo{Name: "categories", Columns: []rules.ColumnInfo{id, column("name", 25, "text")}}),
			key(rules.TableInfo{Name: "reviews", Columns: []rules.ColumnInfo{id, column("product_id", 20, "bigint")},
				Indexes: []rules.IndexInfo{{Name: "partial", Columns: []string{"id", "product_id"}, Unique: true, Partial: true}, {Name: "reviews identity", Columns: []string{"id", "product_id"}, Unique: true}}}),
			key(rules.TableInfo{Name: "clicks", Columns: []rules.ColumnInfo{column("product_id", 20, "bigint")}}),
			key(rules.TableInfo{Name: "sessions", Persistence: 'u', Columns: []rules.ColumnInfo{id}}),
			key(rules.TableInfo{Name: "events", Kind: 'p', Columns: []rules.ColumnInfo{id}}),
			key(rules.TableInfo{Name: "events_2026", PartitionOf: "public.events", Columns: []rules.ColumnInfo{id}}),
			key(rules.TableInfo{Name: "settings", Identity: change.IdentityFull, IdentityColumns: []string{"name", "value"}, Columns: []rules.ColumnInfo{column("name", 25, "text"), column("value", 25, "text")}}),
			key(rules.TableInfo{Name: "best_sellers", Kind: 'v', Columns: []rules.ColumnInfo{id}}),
			{Schema: "Weird.Schema", Name: `My "Table"`, Kind: 'r', Persistence: 'p', Identity: change.IdentityDefault, PrimaryKey: []string{"Some Column"}, IdentityColumns: []string{"Some Column"},
				Columns: []rules.ColumnInfo{column("Some Column", 23, "integer")}},
			key(rules.TableInfo{Name: "t", Columns: []rules.ColumnInfo{id}}),
			key(rules.TableInfo{Name: "outbox", Identity: change.IdentityFull, IdentityColumns: []string{"id", "type", "payload", "tags", "ids", "docs", "made"}, Columns: []rules.ColumnInfo{id, column("type", 25, "text"),
				column("payload", 3802, "jsonb"), column("tags", 1009, "text[]"), column("ids", 1016, "bigint[]"), column("docs", 3807, "jsonb[]"), column("made", 1082, "date"), column("own", 90001, "payload_domain")}}),
			key(rules.TableInfo{Name: "sales", Columns: []rules.ColumnInfo{id, column("product_id", 20, "bigint"), column("ends_at", 1184, "timestamp with time zone")}}),
			key(rules.TableInfo{Name: "makers", Columns: []rules.ColumnInfo{id}}),
		},
		Lookups: func() map[string]rules.LookupInfo {
			category := rules.LookupInfo{Columns: []rules.ColumnInfo{column("category_id", 20, "bigint"), column("name", 25, "text")}, Tables: []string{"public.products"}}
			return map[string]rules.LookupInfo{
				"reviews move the rating": category, "unknown column": category, "no parts": category, "no rule of its own": category, "unknown parameter": category,
				"refused": {Refusal: `relation "produkts" does not exist (42P01)`},
				"twice":   {Columns: []rules.ColumnInfo{column("id", 20, "bigint"), column("id", 20, "bigint")}},
			}
		}(),
		ForeignKeys: []rules.ForeignKey{
			{Name: "reviews_maker", Table: "public.reviews", RefTable: "public.makers", OnDelete: 'c', OnUpdate: 'a'},
			{Name: "favourites_maker", Table: "public.favourites", RefTable: "public.makers", OnDelete: 'n', OnUpdate: 'c'},
			{Name: "orders_maker", Table: "public.orders", RefTable: "public.makers", OnDelete: 'r', OnUpdate: 'a'},
		},
	}
}

// testEnv is the environment of the files in testdata.
func testEnv(name string) (string, bool) {
	v, ok := map[string]string{
		"TTL": "90s", "TABLE": "public.products", "OWNER": "", "L1": "false", "SIZE": "64KB", "SECRET": "hunter2", "TENANT": "acme",
		"BAD_TTL": "hunter2", "LIST": "[a, b]", "LINES": "a\nb: c", "DIR": "include", "NUMBER": "7", "NOTHING": "~",
	}[name]
	return v, ok
}

func findingsOf(t *testing.T, path string) (rules.Findings, bool) {
	t.Helper()
	set, err := rules.Options{Env: testEnv}.Load(path)
	if err != nil {
		var fs rules.Findings
		if !errors.As(err, &fs) {
			t.Fatalf("Parse: %v is no list of findings", err)
		}
		return fs, false
	}
	return set.Check(testSchema()), true
}

// Every bad file has errors, every good file has none; what is found stands
// beside it.
func TestFindings(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var good, bad int
	codes := map[string]bool{}
	for _, path := range files {
		name := strings.TrimSuffix(filepath.Base(path), ".yaml")
		fs, _ := findingsOf(t, path)
		var b strings.Builder
		for _, f := range fs {
			codes[f.Code] = true
			fmt.Fprintf(&b, "%s %s %s\n", f.Code, f.Severity, f)
			if f.Fix != "" {
				fmt.Fprintf(&b, "    fix: %s\n", f.Fix)
			}
			if f.File == "" || f.Line < 1 || f.Col < 1 {
				t.Errorf("%s: finding without a place: %s", name, f)
			}
		}
		switch {
		case strings.HasSuffix(name, ".bad"):
			bad++
			if !fs.HasErrors() {
				t.Errorf("%s: no errors", name)
			}
		case strings.HasSuffix(name, ".good"):
			good++
			if fs.HasErrors() {
				t.Errorf("%s: errors:\n%s", name, fs.Errors())
			}
		default:
			t.Errorf("%s is neither .good.yaml nor .bad.yaml", path)
		}
		got := strings.ReplaceAll(b.String(), "testdata/", "")
		golden := strings.TrimSuffix(path, ".yaml") + ".findings"
		if *update {
			if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
			continue
		}
		want, err := os.ReadFile(golden)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s: found\n%swant\n%s", name, got, want)
		}
	}
	if bad < 60 || good < 30 {
		t.Errorf("%d bad and %d good files", bad, good)
	}
	for _, c := range []string{rules.CodeSyntax, rules.CodeUnknownField, rules.CodeMissing, rules.CodeValue, rules.CodeDuplicate, rules.CodeUnsupported,
		rules.CodeTemplate, rules.CodeCondition, rules.CodeTable, rules.CodeColumn, rules.CodeClass, rules.CodeNoIdentity, rules.CodeLimit, rules.CodeNamespace, rules.CodeFits,
		rules.CodeHiddenOld, rules.CodeChangedHidden, rules.CodeToast, rules.CodeUnlogged, rules.CodePartition, rules.CodeForeignKey, rules.CodeKeyColumns,
		rules.CodeCycle, rules.CodeZone, rules.CodeSeparator, rules.CodeNoClass, rules.CodeNoLoader, rules.CodeRewarm, rules.CodeGenerated, rules.CodeNoEffect,
		rules.CodeInclude, rules.CodeEnvironment, rules.CodeIncludeNone, rules.CodePolicyName, rules.CodeTenant, rules.CodeStatement, rules.CodeNeverWarmed, rules.CodeWarmType, rules.CodeNoNamespace, rules.CodeSecret, rules.CodeNeverForgotten} {
		if !codes[c] {
			t.Errorf("no file in testdata brings about %s", c)
		}
	}
}

// The form that DESIGN promises, to the letter.
func TestFindingForm(t *testing.T) {
	t.Parallel()
	set, err := rules.Parse("rules.yaml", []byte("version: 1\nrules:\n  - name: product page\n    table: public.products\n    keys: [\"{prcie}\"]\n"))
	if err != nil {
		t.Fatal(err)
	}
	got := set.Check(testSchema()).Errors().Error()
	if want := `rules.yaml:5:13: rule "product page": column "prcie" does not exist in public.products (did you mean "price"?)`; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// Several files are one set; what they disagree on is said of the later one.
func TestLoadSeveralFiles(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	a := file("a.yaml", "version: 1\nnamespace: shop\nentries: {product: {key: 'product:{id}'}}\n")
	b := file("b.yaml", "version: 1\nrules: [{name: r, table: products, keys: ['product:{id}']}]\n")
	c := file("c.yaml", "version: 1\nnamespace: store\nentries: {product: {key: 'p:{id}'}}\nrules: [{name: r, table: products, keys: ['product:{id}']}]\n")
	set, err := rules.Load(a, b)
	if err != nil {
		t.Fatal(err)
	}
	if set.Namespace != "shop" || set.Rules[0].Keys[0].Class != set.Class("product") {
		t.Errorf("namespace %q, class %v", set.Namespace, set.Rules[0].Keys[0].Class)
	}
	_, err = rules.Load(a, b, c)
	if err == nil {
		t.Fatal("files that disagree were taken")
	}
	for _, want := range []string{`namespace "store" differs from "shop"`, "entry is there twice", "name is there twice"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error does not say %q:\n%s", want, err)
		}
	}
	if _, err := rules.Load(filepath.Join(dir, "none.yaml")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Load of a missing file: %v", err)
	}
	if _, err := rules.Load(); err == nil {
		t.Error("Load of nothing succeeded")
	}
}

// FuzzParse: no text makes the parser panic or hang, every error has a place,
// and what is accepted can be compiled, linted and checked.
func FuzzParse(f *testing.F) {
	files, _ := filepath.Glob("testdata/*.yaml")
	for _, path := range append(files, "../rules.yaml") {
		data, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	schema := testSchema()
	f.Fuzz(func(t *testing.T, data []byte) {
		set, err := rules.Parse("f.yaml", data)
		if err != nil {
			var fs rules.Findings
			if !errors.As(err, &fs) || len(fs) == 0 {
				t.Fatalf("error %v is no list of findings", err)
			}
			for _, x := range fs {
				if x.File != "f.yaml" || x.Line < 1 || x.Col < 1 || x.Message == "" || x.Severity != rules.Error {
					t.Fatalf("finding %+v", x)
				}
			}
			return
		}
		plan, err := set.Compile()
		if err != nil {
			t.Fatal(err)
		}
		set.Check(schema)
		plan.PlainPatterns()
		m := plan.NewMatcher(rules.Observer{})
		m.UseLookups(ones{})
		for _, u := range set.Tables() {
			table := &change.Table{Schema: u.Schema, Name: u.Name}
			var old, now change.Row
			for _, c := range u.Columns {
				table.Columns = append(table.Columns, change.Column{Name: c, Type: 25})
			}
			for range u.Columns {
				old, now = append(old, change.Value{Kind: change.Null}), append(now, change.Value{Kind: change.Text, Bytes: []byte("1")})
			}
			if now == nil {
				now = change.Row{}
			}
			var ts rules.Targets
			for _, op := range []change.Op{change.Insert, change.Update, change.Delete, change.Truncate} {
				c := &change.Change{Op: op, Table: table}
				if op == change.Update || op == change.Delete {
					c.Old = old
				}
				if op == change.Insert || op == change.Update {
					c.New = now
				}
				if err := m.Match(&ts, c, change.Position{}); err != nil && !strings.HasSuffix(err.Error(), `"1" is no time`) {
					t.Fatal(err)
				}
			}
			for i := range ts.List {
				plan.ClassOf(ts.List[i].Name)
			}
		}
	})
}

// ones answers every lookup with a row of ones.
type ones struct{}

func (ones) Lookup(r *rules.Rule, _ [][]byte) (rules.LookupResult, error) {
	row := make(change.Row, len(r.Lookup.Columns))
	for i := range row {
		row[i] = change.Value{Kind: change.Text, Bytes: []byte("1")}
	}
	return rules.LookupResult{Rows: []change.Row{row}}, nil
}

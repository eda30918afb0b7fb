package rules_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/shop"
	"github.com/lethe-cache/lethe/rules"
)

func connect(t *testing.T) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), harness.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func exec(t *testing.T, conn *pgx.Conn, sql string) {
	t.Helper()
	// One statement at a time: CREATE INDEX CONCURRENTLY takes no company.
	for stmt := range strings.SplitSeq(sql, ";") {
		if strings.TrimSpace(stmt) == "" {
			continue
		}
		if _, err := conn.Exec(t.Context(), stmt); err != nil {
			t.Fatalf("%s: %v", stmt, err)
		}
	}
}

// liveSchema reads what Check needs of schema public.
func liveSchema(t *testing.T, conn *pgx.Conn) rules.Schema {
	t.Helper()
	ctx := t.Context()
	var s rules.Schema
	rows, err := conn.Query(ctx, `
		SELECT c.oid, c.relname, c.relkind::text, c.relpersistence::text, c.relreplident::text,
		       coalesce((SELECT n.nspname || '.' || p.relname FROM pg_inherits i JOIN pg_class p ON p.oid = i.inhparent JOIN pg_namespace n ON n.oid = p.relnamespace
		                 WHERE i.inhrelid = c.oid AND c.relispartition), '')
		FROM pg_class c WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'p', 'v') ORDER BY c.oid`)
	if err != nil {
		t.Fatal(err)
	}
	var oids []uint32
	var oid uint32
	var name, kind, persistence, identity, partitionOf string
	if _, err := pgx.ForEachRow(rows, []any{&oid, &name, &kind, &persistence, &identity, &partitionOf}, func() error {
		oids = append(oids, oid)
		s.Tables = append(s.Tables, rules.TableInfo{Schema: "public", Name: name, Kind: kind[0], Persistence: persistence[0], Identity: change.Identity(identity[0]), PartitionOf: partitionOf})
		s.Names = append(s.Names, "public."+name)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for i := range s.Tables {
		table := &s.Tables[i]
		rows, _ := conn.Query(ctx, `SELECT attname, atttypid, format_type(atttypid, atttypmod), attnotnull, attstorage <> 'p', attgenerated::text
			FROM pg_attribute WHERE attrelid = $1 AND attnum > 0 AND NOT attisdropped ORDER BY attnum`, oids[i])
		var col rules.ColumnInfo
		var generated string
		if _, err := pgx.ForEachRow(rows, []any{&col.Name, &col.Type, &col.TypeName, &col.NotNull, &col.Toastable, &generated}, func() error {
			c := col
			if generated != "" {
				c.Generated = generated[0]
			}
			table.Columns = append(table.Columns, c)
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		rows, _ = conn.Query(ctx, `SELECT c.relname, x.indisunique, x.indpred IS NOT NULL, NOT x.indimmediate, x.indexprs IS NOT NULL, x.indisprimary, x.indisreplident,
			ARRAY(SELECT a.attname::text FROM unnest(x.indkey) WITH ORDINALITY k(n, o) JOIN pg_attribute a ON a.attrelid = x.indrelid AND a.attnum = k.n WHERE k.o <= x.indnkeyatts ORDER BY k.o)
			FROM pg_index x JOIN pg_class c ON c.oid = x.indexrelid WHERE x.indrelid = $1 ORDER BY c.relname`, oids[i])
		var ix rules.IndexInfo
		var primary, replident bool
		var columns []string
		if _, err := pgx.ForEachRow(rows, []any{&ix.Name, &ix.Unique, &ix.Partial, &ix.Deferrable, &ix.Expressions, &primary, &replident, &columns}, func() error {
			x := ix
			x.Columns = slices.Clone(columns)
			table.Indexes = append(table.Indexes, x)
			if primary {
				table.PrimaryKey = x.Columns
			}
			if primary && table.Identity == change.IdentityDefault || replident && table.Identity == change.IdentityIndex {
				table.IdentityColumns = x.Columns
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if table.Identity == change.IdentityFull {
			for _, c := range table.Columns {
				table.IdentityColumns = append(table.IdentityColumns, c.Name)
			}
		}
	}
	rows, _ = conn.Query(ctx, `SELECT conname, conrelid::regclass::text, confrelid::regclass::text, confdeltype::text, confupdtype::text FROM pg_constraint WHERE contype = 'f'`)
	var fk rules.ForeignKey
	var del, upd string
	if _, err := pgx.ForEachRow(rows, []any{&fk.Name, &fk.Table, &fk.RefTable, &del, &upd}, func() error {
		f := fk
		f.Table, f.RefTable, f.OnDelete, f.OnUpdate = "public."+f.Table, "public."+f.RefTable, del[0], upd[0]
		s.ForeignKeys = append(s.ForeignKeys, f)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return s
}

// The worked example has nothing wrong with it on the schema that it is for.
func TestExampleIsRightOnTheShop(t *testing.T) {
	t.Parallel()
	conn := connect(t)
	if _, err := conn.Exec(t.Context(), shop.Schema); err != nil {
		t.Fatal(err)
	}
	set, err := rules.Load("../rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if fs := set.Check(liveSchema(t, conn)); len(fs) > 0 {
		t.Errorf("rules.yaml on the shop:\n%s", fs)
	}
	// The loaders are statements that the server takes, and each returns a row
	// for a key that there is.
	for _, c := range set.Entries {
		if c.Load == nil {
			continue
		}
		sql := c.Load.SQL
		args := make([]any, len(c.Load.Params))
		for i, p := range c.Load.Params {
			sql = strings.ReplaceAll(sql, "@"+p, fmt.Sprint("$", i+1))
			args[i] = []int64{1, 2}
			if p == "slug" {
				args[i] = []string{"bright-kettle-1"}
			}
		}
		rows, err := conn.Query(t.Context(), sql, args...)
		if err != nil {
			t.Errorf("loader of %s: %v", c.Name, err)
			continue
		}
		n := 0
		for rows.Next() {
			n++
		}
		if rows.Err() != nil || n == 0 {
			t.Errorf("loader of %s: %d rows, error %v", c.Name, n, rows.Err())
		}
	}
}

// Each trap of a live schema is found, and the fix that the finding gives cures
// it: the statement runs, and the finding is gone.
func TestFixesCureTheFindings(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, code, sql, rule string
		incurable             bool
	}{
		{"no identity, primary key there", rules.CodeNoIdentity, "CREATE TABLE t (id int PRIMARY KEY); ALTER TABLE t REPLICA IDENTITY NOTHING", `{keys: ["a:{id}"]}`, false},
		{"no identity, unique index there", rules.CodeNoIdentity, "CREATE TABLE t (id int NOT NULL); CREATE UNIQUE INDEX t_id ON t (id)", `{keys: ["a:{id}"]}`, false},
		{"no identity, index that will not do", rules.CodeNoIdentity, "CREATE TABLE t (id int); CREATE UNIQUE INDEX t_id ON t (id)", `{keys: ["a:{id}"]}`, false},
		{"identity index dropped", rules.CodeNoIdentity, "CREATE TABLE t (id int NOT NULL); CREATE UNIQUE INDEX t_id ON t (id); ALTER TABLE t REPLICA IDENTITY USING INDEX t_id; DROP INDEX t_id", `{keys: ["a:{id}"]}`, false},
		{"hidden old value, index to make", rules.CodeHiddenOld, `CREATE TABLE t (id int PRIMARY KEY, slug text NOT NULL, "User" int NOT NULL)`, `{keys: ["a:{slug}"], tags: ["u:{\"User\"}"]}`, false},
		{"hidden old value, index there", rules.CodeHiddenOld, "CREATE TABLE t (id int PRIMARY KEY, slug text NOT NULL UNIQUE)", `{keys: ["a:{slug}"]}`, false},
		{"hidden old value, deferrable index", rules.CodeHiddenOld, "CREATE TABLE t (id int PRIMARY KEY, slug text NOT NULL UNIQUE DEFERRABLE)", `{keys: ["a:{slug}"]}`, false},
		{"hidden old value that may be NULL", rules.CodeHiddenOld, "CREATE TABLE t (id int PRIMARY KEY, slug text)", `{keys: ["a:{slug}"]}`, false},
		{"hidden old value of json", rules.CodeHiddenOld, "CREATE TABLE t (id int PRIMARY KEY, doc json NOT NULL)", `{keys: ["a:{doc}"]}`, false},
		{"hidden old value in jsonb", rules.CodeHiddenOld, "CREATE TABLE t (id int PRIMARY KEY, doc jsonb NOT NULL)", `{keys: ["a:{doc.x}"]}`, false},
		{"hidden old value in an array", rules.CodeHiddenOld, "CREATE TABLE t (id int PRIMARY KEY, tags text[] NOT NULL)", `{tags: ["a:{tags[*]}"]}`, false},
		{"TOAST in a path", rules.CodeToast, "CREATE TABLE t (id int PRIMARY KEY, doc jsonb NOT NULL)", `{on: update, keys: ["a:{new.doc.x}"]}`, false},
		{"path into text", rules.CodeFits, "CREATE TABLE t (id int PRIMARY KEY, doc text)", `{on: insert, keys: ["a:{doc.x}"]}`, true},
		{"member of an array's element", rules.CodeFits, "CREATE TABLE t (id int PRIMARY KEY, m varchar(8)[])", `{on: insert, keys: ["a:{m.x}"]}`, true},
		{"date of a number", rules.CodeFits, "CREATE TABLE t (id int PRIMARY KEY)", `{on: insert, keys: ["a:{id|date}"]}`, true},
		{"TOAST", rules.CodeToast, "CREATE TABLE t (id int PRIMARY KEY, slug text NOT NULL)", `{on: update, keys: ["a:{new.slug}"]}`, false},
		{"unlogged", rules.CodeUnlogged, "CREATE UNLOGGED TABLE t (id int PRIMARY KEY)", `{keys: ["a:{id}"]}`, false},
		{"partition root", rules.CodePartition, "CREATE TABLE t (id int PRIMARY KEY) PARTITION BY RANGE (id)", `{keys: ["a:{id}"]}`, true},
		{"foreign key", rules.CodeForeignKey, "CREATE TABLE t (id int PRIMARY KEY); CREATE TABLE child (id int PRIMARY KEY, t int REFERENCES t ON DELETE CASCADE)", `{keys: ["a:{id}"]}`, true},
		{"generated", rules.CodeGenerated, "CREATE TABLE t (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) STORED)", `{keys: ["a:{id}:{twice}"]}`, true},
		{"view", rules.CodeTable, "CREATE TABLE base (id int PRIMARY KEY); CREATE VIEW t AS SELECT * FROM base", `{keys: ["a:{id}"]}`, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			conn := connect(t)
			exec(t, conn, tt.sql)
			set := parse(t, "version: 1\nrules:\n- "+strings.Replace(tt.rule, "{", "{name: r, table: t, ", 1)+"\n")
			find := func() *rules.Finding {
				for _, f := range set.Check(liveSchema(t, conn)) {
					if f.Code == tt.code {
						return &f
					}
				}
				return nil
			}
			f := find()
			if f == nil {
				t.Fatalf("%s was not found:\n%s", tt.code, set.Check(liveSchema(t, conn)))
			}
			if tt.incurable {
				return
			}
			exec(t, conn, f.Fix)
			if f := find(); f != nil {
				t.Errorf("the fix did not cure it: %s", f)
			}
		})
	}
}

// The types of CEL follow the live schema.
func TestTypesFollowTheLiveSchema(t *testing.T) {
	t.Parallel()
	conn := connect(t)
	exec(t, conn, `CREATE TYPE mood AS ENUM ('good'); CREATE TABLE t (id int PRIMARY KEY, a smallint, b numeric(8,2), c real, d varchar(8), e uuid, f mood, g boolean,
		h timestamptz, i timestamp, j jsonb, k bytea, l date, m int[])`)
	schema := liveSchema(t, conn)
	for when, ok := range map[string]bool{
		`new.a == 1 && new.b == 1.0 && new.c < 2 && new.d == "x" && new.e == "y" && new.f == "good" && new.g`:                                       true,
		`new.h < timestamp("2026-01-01T00:00:00Z") && new.i == new.h && new.j.x.y == 3 && new.k == b"x" && new.l < "2026-01-01" && new.m == [1, 2]`: true,
		`new.a == "1"`: false,
		`new.f == 1`:   false,
		`new.g == "t"`: false,
		`new.h > 5`:    false,
		`new.l > timestamp("2026-01-01T00:00:00Z")`: false,
		`new.a + new.b > 1.0`:                       false,
		`new.j`:                                     true,
		`new.d`:                                     false,
	} {
		set := parse(t, "version: 1\nrules:\n- {name: r, table: t, on: insert, keys: [k], when: "+quoteYAML(when)+"}\n")
		errs := set.Check(schema).Errors()
		if (len(errs) == 0) != ok {
			t.Errorf("%s: accepted %v, want %v\n%s", when, len(errs) == 0, ok, errs)
		}
		for _, f := range errs {
			if f.Code != rules.CodeCondition || f.Rule != "r" || f.Line != 3 {
				t.Errorf("%s: finding %+v", when, f)
			}
		}
	}
}

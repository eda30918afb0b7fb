package catalog_test

import (
	"context"
	"maps"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/lethe-cache/lethe/cdc/catalog"
	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/rules"
)

func TestMain(m *testing.M) { harness.Main(m) }

const tables = `
CREATE SCHEMA "Other";
CREATE TYPE size AS ENUM ('s', 'm', 'l');
CREATE TABLE a (id int PRIMARY KEY, size size NOT NULL, name varchar(20), doc jsonb, gone int, twice int GENERATED ALWAYS AS (id * 2) STORED);
ALTER TABLE a DROP COLUMN gone;
CREATE UNIQUE INDEX a_name ON a (name) WHERE name <> '';
CREATE UNIQUE INDEX a_lower ON a (lower(name));
CREATE INDEX a_doc ON a ((doc -> 'x'));
CREATE TABLE "Other"."B b" (id int NOT NULL, "Ref" int REFERENCES a ON DELETE CASCADE ON UPDATE SET NULL, UNIQUE (id) DEFERRABLE);
CREATE TABLE full_rows (x int, y int); ALTER TABLE full_rows REPLICA IDENTITY FULL;
CREATE TABLE by_index (u int NOT NULL, v int NOT NULL, w int); CREATE UNIQUE INDEX by_index_uv ON by_index (v, u) INCLUDE (w);
ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_uv;
CREATE TABLE deferred (id int PRIMARY KEY DEFERRABLE);
CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY);
CREATE VIEW view AS SELECT id FROM a;
CREATE TABLE root (id int NOT NULL, region text NOT NULL, x int) PARTITION BY LIST (region);
CREATE TABLE root_eu PARTITION OF root FOR VALUES IN ('eu') PARTITION BY RANGE (id);
CREATE TABLE root_eu_1 PARTITION OF root_eu FOR VALUES FROM (0) TO (10); ALTER TABLE root_eu_1 ADD PRIMARY KEY (id, region);
CREATE TABLE root_us PARTITION OF root FOR VALUES IN ('us'); ALTER TABLE root_us REPLICA IDENTITY FULL;
CREATE TABLE bare (id int NOT NULL, region text NOT NULL, PRIMARY KEY (id, region)) PARTITION BY LIST (region);
CREATE TABLE bare_eu PARTITION OF bare FOR VALUES IN ('eu'); ALTER TABLE bare_eu REPLICA IDENTITY NOTHING;
`

func TestServerRead(t *testing.T) {
	t.Parallel()
	conn, err := pgx.Connect(t.Context(), harness.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	if _, err := conn.Exec(t.Context(), tables); err != nil {
		t.Fatal(err)
	}
	names := []string{"public.a", "Other.B b", "public.full_rows", "public.by_index", "public.deferred", "public.unlogged", "public.view",
		"public.root", "public.root_eu_1", "public.bare", "public.nowhere"}
	s, err := catalog.Read(t.Context(), conn, names)
	if err != nil {
		t.Fatal(err)
	}
	if len(s.Tables) != len(names)-1 || s.Table("public.nowhere") != nil {
		t.Errorf("%d tables, want all but the one that does not exist", len(s.Tables))
	}

	t.Run("identity", func(t *testing.T) {
		for name, want := range map[string]struct {
			identity change.Identity
			columns  []string
		}{
			"public.a":         {change.IdentityDefault, []string{"id"}},
			"Other.B b":        {change.IdentityDefault, nil},
			"public.full_rows": {change.IdentityFull, []string{"x", "y"}},
			"public.by_index":  {change.IdentityIndex, []string{"v", "u"}},
			"public.deferred":  {change.IdentityDefault, nil},
			"public.root":      {change.IdentityDefault, []string{"id", "region"}}, // what all leaves have
			"public.root_eu_1": {change.IdentityDefault, []string{"id", "region"}},
			"public.bare":      {change.IdentityNothing, []string{}}, // its leaf has none
		} {
			got := s.Table(name)
			if got.Identity != want.identity || !slices.Equal(got.IdentityColumns, want.columns) {
				t.Errorf("%s: identity %c %q, want %c %q", name, got.Identity, got.IdentityColumns, want.identity, want.columns)
			}
		}
	})
	t.Run("kind", func(t *testing.T) {
		for name, want := range map[string]string{"public.a": "rp", "public.root": "pp", "public.view": "vp", "public.unlogged": "ru"} {
			if got := s.Table(name); string([]byte{got.Kind, got.Persistence}) != want {
				t.Errorf("%s: kind %c and persistence %c, want %s", name, got.Kind, got.Persistence, want)
			}
		}
		if got := s.Table("public.root_eu_1").PartitionOf; got != "public.root" {
			t.Errorf("partition of %q, want the root", got)
		}
	})
	t.Run("columns", func(t *testing.T) {
		got := s.Table("public.a")
		var names []string
		for _, c := range got.Columns {
			names = append(names, c.Name)
		}
		if want := []string{"id", "size", "name", "doc", "twice"}; !slices.Equal(names, want) {
			t.Fatalf("columns %q, want %q", names, want)
		}
		if c := got.Column("id"); c.Type != 23 || c.TypeName != "integer" || !c.NotNull || c.Toastable || c.Generated != 0 {
			t.Errorf("id is %+v", c)
		}
		if c := got.Column("doc"); c.TypeName != "jsonb" || c.NotNull || !c.Toastable {
			t.Errorf("doc is %+v", c)
		}
		if c := got.Column("name"); c.TypeName != "character varying(20)" {
			t.Errorf("name is %+v", c)
		}
		if c := got.Column("twice"); c.Generated != 's' {
			t.Errorf("twice is %+v, want it to be generated", c)
		}
		enums, err := catalog.Enums(t.Context(), conn, &s)
		if err != nil {
			t.Fatal(err)
		}
		if got := enums[got.Column("size").Type]; !slices.Equal(got, []string{"s", "m", "l"}) || len(enums) != 1 {
			t.Errorf("enums %v, want one", enums)
		}
	})
	t.Run("indexes", func(t *testing.T) {
		got := make(map[string]rules.IndexInfo)
		for _, x := range s.Table("public.a").Indexes {
			got[x.Name] = x
		}
		if keys := slices.Sorted(maps.Keys(got)); !slices.Equal(keys, []string{"a_lower", "a_name", "a_pkey"}) {
			t.Fatalf("indexes %q", keys)
		}
		if !got["a_name"].Partial || !got["a_lower"].Expressions || got["a_pkey"].Partial || !slices.Equal(got["a_pkey"].Columns, []string{"id"}) {
			t.Errorf("indexes %+v", got)
		}
		if x := s.Table("Other.B b").Indexes; len(x) != 1 || !x[0].Deferrable {
			t.Errorf("indexes %+v, want one that is deferrable", x)
		}
		if x := s.Table("public.by_index").Indexes; len(x) != 1 || !slices.Equal(x[0].Columns, []string{"v", "u"}) {
			t.Errorf("indexes %+v, want one without the included column", x)
		}
	})
	t.Run("foreign keys", func(t *testing.T) {
		if len(s.ForeignKeys) != 1 {
			t.Fatalf("foreign keys %+v, want one", s.ForeignKeys)
		}
		k := s.ForeignKeys[0]
		if k.Table != "Other.B b" || k.RefTable != "public.a" || k.OnDelete != 'c' || k.OnUpdate != 'n' ||
			!slices.Equal(k.Columns, []string{"Ref"}) || !slices.Equal(k.RefColumns, []string{"id"}) {
			t.Errorf("foreign key %+v", k)
		}
	})
	t.Run("leaves", func(t *testing.T) {
		want := []rules.TableName{{Schema: "public", Name: "root_eu_1"}, {Schema: "public", Name: "root_us"}}
		if got := s.Table("public.root").Leaves; !slices.Equal(got, want) {
			t.Errorf("leaves of root %v, want %v", got, want)
		}
		if got := s.Table("public.a").Leaves; got != nil {
			t.Errorf("leaves of an ordinary table %v", got)
		}
	})
	t.Run("user tables", func(t *testing.T) {
		if _, err := conn.Exec(t.Context(), `INSERT INTO root SELECT i, 'eu', i FROM generate_series(1, 5) i; INSERT INTO root VALUES (1, 'us', 1);
			ANALYZE root; CREATE SCHEMA lethe; CREATE TABLE lethe.own (id int); CREATE TEMP TABLE temporary (id int)`); err != nil {
			t.Fatal(err)
		}
		tables, err := catalog.UserTables(t.Context(), conn)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, u := range tables {
			got = append(got, u.QualifiedName())
			if u.QualifiedName() == "public.root" && u.Rows != 6 {
				t.Errorf("root has %d rows by estimate, want 6", u.Rows)
			}
			if u.QualifiedName() == "public.a" && u.Rows > 0 {
				t.Errorf("a has %d rows by estimate, want none", u.Rows)
			}
		}
		want := []string{"Other.B b", "public.a", "public.bare", "public.by_index", "public.deferred", "public.full_rows", "public.root", "public.unlogged"}
		if !slices.Equal(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
	t.Run("names", func(t *testing.T) {
		if !slices.Contains(s.Names, "public.a") || !slices.Contains(s.Names, "Other.B b") || slices.Contains(s.Names, "public.view") {
			t.Errorf("names %q", s.Names)
		}
	})
}

func TestTables(t *testing.T) {
	t.Parallel()
	got := catalog.Tables([]rules.TableUse{{Schema: "public", Name: "b"}, {Schema: "public", Name: "a"}, {Schema: "public", Name: "b"}})
	if want := []string{"public.a", "public.b"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

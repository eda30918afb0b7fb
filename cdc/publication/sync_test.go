package publication_test

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/lethe-cache/lethe/cdc/publication"
	"github.com/lethe-cache/lethe/rules"
)

func TestServerSyncMakesBothPublications(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, false,
		`CREATE TABLE a (id int PRIMARY KEY, x int, y int)`,
		`CREATE TABLE b (id int, x int)`,
		`CREATE TABLE c (id int PRIMARY KEY, x int)`,
		`CREATE TABLE "Odd ""name" ("Id" int PRIMARY KEY)`)
	odd := use(`Odd "name`, rules.OnAll, "Id")
	uses := []rules.TableUse{use("a", rules.OnAll, "x"), use("b", rules.OnInsert, "x"), use("c", rules.OnInsert|rules.OnTruncate, "id"), odd}
	c := d.sync(uses...)
	if got, want := c.Created, []string{"lethe", "lethe_inserts"}; !slices.Equal(got, want) {
		t.Errorf("created %q, want %q", got, want)
	}
	if got, want := c.Entered, []string{`public.Odd "name`, "public.a", "public.b", "public.c"}; !slices.Equal(got, want) {
		t.Errorf("entered %q, want %q", got, want)
	}
	for table, want := range map[string]string{"public.a": "lethe", "public.b": "lethe_inserts", "public.c": "lethe_inserts", `public.Odd "name`: "lethe"} {
		if got := d.published(table); len(got) != 1 || strings.Split(got[0], ":")[0] != want {
			t.Errorf("%s is in %q, want %s alone", table, got, want)
		}
	}
	for _, s := range []string{`UPDATE a SET x = 1`, `UPDATE b SET x = 1`, `DELETE FROM b`, `UPDATE c SET x = 1`} {
		d.exec(s)
	}

	t.Run("again changes nothing", func(t *testing.T) {
		var before, after string
		const xmins = `SELECT string_agg(xmin::text, ',' ORDER BY oid) FROM (SELECT oid, xmin FROM pg_publication UNION ALL SELECT oid, xmin FROM pg_publication_rel) x`
		if err := d.conn.QueryRow(d.Context(), xmins).Scan(&before); err != nil {
			t.Fatal(err)
		}
		if c := d.sync(uses...); c.Any() {
			t.Errorf("changed %+v", c)
		}
		if err := d.conn.QueryRow(d.Context(), xmins).Scan(&after); err != nil {
			t.Fatal(err)
		}
		if before != after {
			t.Error("a row of the catalog was written although nothing differs")
		}
	})
	t.Run("a rule less", func(t *testing.T) {
		c := d.sync(uses[0])
		if got, want := c.Left, []string{`public.Odd "name`, "public.b", "public.c"}; !slices.Equal(got, want) {
			t.Errorf("left %q, want %q", got, want)
		}
		if len(c.Entered)+len(c.Grew) > 0 {
			t.Errorf("entered %q, grew %q, want none", c.Entered, c.Grew)
		}
	})
}

func TestSyncReportsWhatCanNotBePublished(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, false,
		`CREATE TABLE a (id int, x int)`,
		`CREATE UNLOGGED TABLE u (id int PRIMARY KEY)`,
		`CREATE VIEW v AS SELECT * FROM a`)
	c := d.sync(use("a", rules.OnAll, "x", "gone"), use("u", rules.OnAll), use("v", rules.OnAll), use("nowhere", rules.OnAll))
	if got, want := c.Missing, []string{"public.nowhere", "public.u", "public.v"}; !slices.Equal(got, want) {
		t.Errorf("missing %q, want %q", got, want)
	}
	if got, want := c.MissingColumns, []string{"public.a.gone"}; !slices.Equal(got, want) {
		t.Errorf("missing columns %q, want %q", got, want)
	}
	if got, want := c.Blind, []string{"public.a"}; !slices.Equal(got, want) {
		t.Errorf("blind %q, want %q", got, want)
	}
	d.exec(`UPDATE a SET x = 1`)
}

func TestSyncRefusesPublicationsThatHarm(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, false, `CREATE TABLE a (id int PRIMARY KEY)`, `CREATE PUBLICATION lethe FOR ALL TABLES`)
	_, err := publication.Sync(t.Context(), d.conn, config, []rules.TableUse{use("a", rules.OnAll)})
	if e := new(publication.UnusableError); !errors.As(err, &e) || e.Name != "lethe" {
		t.Errorf("error is %v, want an UnusableError of lethe", err)
	}
	if d.version() < 150000 {
		return
	}
	d = newDatabase(t, false, `CREATE TABLE a (id int PRIMARY KEY)`, `CREATE PUBLICATION lethe FOR TABLES IN SCHEMA public`)
	_, err = publication.Sync(t.Context(), d.conn, config, []rules.TableUse{use("a", rules.OnAll)})
	if e := new(publication.UnusableError); !errors.As(err, &e) {
		t.Errorf("error is %v, want an UnusableError", err)
	}
}

func TestValidate(t *testing.T) {
	t.Parallel()
	for name, ok := range map[string]bool{
		"lethe": true, "_x9": true, strings.Repeat("a", 55): true,
		"": false, "Lethe": false, "9x": false, `a"b`: false, "a b": false, strings.Repeat("a", 56): false,
	} {
		if err := (publication.Config{Name: name}).Validate(); (err == nil) != ok {
			t.Errorf("Validate of %q: %v, want ok %v", name, err, ok)
		}
	}
}

// A publication that somebody made by hand, with less than it should publish.
func TestServerSyncMendsOptions(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, false,
		`CREATE TABLE a (id int PRIMARY KEY, x int)`, `CREATE TABLE b (x int)`,
		`CREATE PUBLICATION lethe FOR TABLE a, b WITH (publish = 'insert')`,
		`CREATE PUBLICATION lethe_inserts`)
	uses := []rules.TableUse{use("a", rules.OnAll, "x"), use("b", rules.OnInsert, "x")}
	c := d.sync(uses...)
	if got, want := c.Grew, []string{"public.a"}; !slices.Equal(got, want) {
		t.Errorf("grew %q, want %q", got, want)
	}
	// b must never stand in a publication of updates, neither the one that it
	// was in nor the one that it went to.
	d.exec(`UPDATE b SET x = 1`)
	d.exec(`UPDATE a SET x = 1`)
	if c := d.sync(uses...); c.Any() || len(c.Grew) > 0 {
		t.Errorf("a second run changes %+v", c)
	}
}

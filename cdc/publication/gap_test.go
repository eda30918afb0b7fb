package publication_test

import (
	"errors"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lethe-cache/lethe/cdc/publication"
	"github.com/lethe-cache/lethe/migrations"
	"github.com/lethe-cache/lethe/rules"
)

// slot makes a slot of pgoutput and returns a function that reads what it
// ships: one letter for each message, messages of prefix lethe.* with their
// content.
func (d *database) slot() func() []string {
	d.Helper()
	name := d.conn.Config().Database
	if _, err := d.conn.Exec(d.Context(), `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, name); err != nil {
		d.Fatal(err)
	}
	return func() []string {
		d.Helper()
		rows, err := d.conn.Query(d.Context(), `SELECT CASE get_byte(data, 0) WHEN 77 THEN encode(data, 'escape') ELSE chr(get_byte(data, 0)) END
			FROM pg_logical_slot_get_binary_changes($1, NULL, NULL, 'proto_version', '1', 'publication_names', 'lethe,lethe_inserts', 'messages', 'true')`, name)
		if err != nil {
			d.Fatal(err)
		}
		got, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			d.Fatal(err)
		}
		for i, m := range got {
			if at := strings.Index(m, "lethe."); at > 0 {
				got[i] = m[at:]
			}
		}
		return got
	}
}

// TestPublicationGrowsRaisesTwice, the part of this package: a transaction that
// was running when its table entered ships only what it wrote afterwards. Sync
// names the table, and a snapshot taken when it has returned shows that the
// transaction still runs, so that the second raise can wait for it.
func TestPublicationGrowsRaisesTwice(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, true, `CREATE TABLE a (id int PRIMARY KEY, x int, y int)`, `CREATE TABLE b (id int PRIMARY KEY)`)
	d.sync(use("b", rules.OnAll, "id"))
	ships := d.slot()
	writer := d.connect(d.url)
	tx, err := writer.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var xid string
	if err := tx.QueryRow(t.Context(), `INSERT INTO a VALUES (1, 1, 1) RETURNING pg_current_xact_id()::text`).Scan(&xid); err != nil {
		t.Fatal(err)
	}

	if c := d.sync(use("a", rules.OnAll, "x"), use("b", rules.OnAll, "id")); !slices.Equal(c.Entered, []string{"public.a"}) {
		t.Errorf("entered %q, want a", c.Entered)
	}
	var running bool
	err = d.conn.QueryRow(t.Context(), `SELECT NOT pg_visible_in_snapshot($1::text::xid8, pg_current_snapshot())`, xid).Scan(&running)
	if err != nil || !running {
		t.Errorf("the writer runs in the snapshot after Sync: %v (%v), want true", running, err)
	}
	if _, err := tx.Exec(t.Context(), `INSERT INTO a VALUES (2, 2, 2)`); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	inserts := 0
	for _, m := range ships() {
		if m == "I" {
			inserts++
		}
	}
	if inserts != 1 {
		t.Errorf("%d of 2 inserts came, want 1: the gap that the raises are for", inserts)
	}

	t.Run("columns", func(t *testing.T) {
		(&database{T: t}).lists()
		c := d.sync(use("a", rules.OnAll, "x", "y"), use("b", rules.OnAll, "id"))
		if !slices.Equal(c.Grew, []string{"public.a"}) || len(c.Entered) > 0 {
			t.Errorf("grew %q, entered %q, want a to grow", c.Grew, c.Entered)
		}
		// Fewer columns are no gap.
		if c := d.sync(use("a", rules.OnAll, "x"), use("b", rules.OnAll, "id")); len(c.Grew)+len(c.Entered) > 0 {
			t.Errorf("grew %q, entered %q, want none", c.Grew, c.Entered)
		}
	})
	t.Run("updates", func(t *testing.T) {
		if c := d.sync(use("a", rules.OnInsert, "x"), use("b", rules.OnAll, "id")); !slices.Equal(c.Moved, []string{"public.a"}) || len(c.Grew) > 0 {
			t.Errorf("moved %q, grew %q, want a to move", c.Moved, c.Grew)
		}
		if c := d.sync(use("a", rules.OnAll, "x"), use("b", rules.OnAll, "id")); !slices.Equal(c.Grew, []string{"public.a"}) {
			t.Errorf("grew %q, want a", c.Grew)
		}
	})
}

// TestServerMoveLosesNothing: a table moves between the publications and grows
// and shrinks while its rows are written. Every insert is shipped exactly once.
func TestServerMoveLosesNothing(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, true, `CREATE TABLE a (id int PRIMARY KEY, x int, y int)`)
	d.sync(use("a", rules.OnAll, "x"))
	ships := d.slot()
	stop, stopped := make(chan struct{}), make(chan int, 1)
	writer := d.connect(d.url)
	go func() {
		n := 0
		defer func() { stopped <- n }()
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := writer.Exec(d.Context(), `INSERT INTO a VALUES ($1, 1, 1)`, n); err != nil {
				t.Errorf("insert: %v", err)
				return
			}
			n++
			if _, err := writer.Exec(d.Context(), `UPDATE a SET x = 2 WHERE id = $1`, n-1); err != nil {
				t.Errorf("update: %v", err)
				return
			}
		}
	}()
	for range 10 {
		d.sync(use("a", rules.OnInsert, "x"))
		d.sync(use("a", rules.OnAll, "x", "y"))
		d.sync(use("a", rules.OnAll, "x"))
	}
	close(stop)
	want, got := <-stopped, 0
	for _, m := range ships() {
		if m == "I" {
			got++
		}
	}
	if got != want || want == 0 {
		t.Errorf("%d inserts came, want %d", got, want)
	}
}

// TestServerGuardTellsOfDDL: rows change without a row change in the log. The
// message commits with the DDL.
func TestServerGuardTellsOfDDL(t *testing.T) {
	t.Parallel()
	d := newDatabase(t, true, append(slices.Clone(partitioned), `CREATE TABLE b (id int PRIMARY KEY, x int)`, `CREATE TABLE other (id int)`,
		`CREATE TABLE a_us PARTITION OF a FOR VALUES IN ('us')`)...)
	d.sync(use("a", rules.OnInsert, "x"), use("b", rules.OnAll, "x"))
	ships := d.slot()
	for _, step := range []struct{ ddl, want string }{
		{`ALTER TABLE b ALTER x TYPE int USING x * 2`, "public.b"},
		{`ALTER TABLE b RENAME COLUMN x TO xx`, "public.b"},
		{`ALTER TABLE a_eu ADD CHECK (x > 0)`, "public.a"},
		{`ALTER TABLE a DETACH PARTITION a_us`, "public.a"},
		{`ALTER TABLE a ATTACH PARTITION a_us FOR VALUES IN ('us')`, "public.a"},
		{`DROP TABLE a_us`, "public.a"},
		{`DROP TABLE b`, "public.b"},
		{`ALTER TABLE other ADD COLUMN x int`, ""},
		{`DROP TABLE other`, ""},
		{`BEGIN; ALTER TABLE a ADD COLUMN z int; ROLLBACK`, ""},
	} {
		d.exec(step.ddl)
		got := ""
		for _, m := range ships() {
			if strings.HasPrefix(m, "lethe.ddl") {
				got = m
			}
		}
		if step.want == "" && got != "" || !strings.Contains(got, step.want) {
			t.Errorf("after %s the log says %q, want it to name %q", step.ddl, got, step.want)
		}
	}
}

// role makes a login role of this test and returns a connection as it.
func (d *database) role(statements ...string) *pgx.Conn {
	d.Helper()
	d.exec(d.named(`CREATE ROLE role_%s LOGIN`))
	for _, s := range statements {
		d.exec(d.named(s))
	}
	u, err := url.Parse(d.url)
	if err != nil {
		d.Fatal(err)
	}
	u.User = url.User(d.named("role_%s"))
	return d.connect(u.String())
}

func TestServerOrdinaryRole(t *testing.T) {
	t.Parallel()
	uses := []rules.TableUse{use("a", rules.OnAll, "x")}

	t.Run("owns its tables", func(t *testing.T) {
		t.Parallel()
		d := newDatabase(t, false, `CREATE TABLE a (id int PRIMARY KEY, x int, y int)`)
		conn := d.role(`GRANT CREATE ON DATABASE %s TO role_%s`, `ALTER TABLE a OWNER TO role_%s`)
		c, err := publication.Sync(t.Context(), conn, config, uses)
		if err != nil || !slices.Equal(c.Entered, []string{"public.a"}) {
			t.Fatalf("entered %q (%v), want a", c.Entered, err)
		}
		if c.Guarded {
			t.Error("guarded without a guard")
		}
		// The guard comes later, from a superuser, and looks after what is there.
		if _, err := migrations.Apply(t.Context(), d.conn, migrations.Options{Role: d.named("role_%s")}); err != nil {
			t.Fatal(err)
		}
		c, err = publication.Sync(t.Context(), conn, config, uses)
		if err != nil || !c.Guarded {
			t.Fatalf("guarded %v (%v), want true", c.Guarded, err)
		}
		d.exec(`ALTER TABLE a REPLICA IDENTITY NOTHING; UPDATE a SET x = 1`)
	})

	t.Run("may nothing", func(t *testing.T) {
		t.Parallel()
		d := newDatabase(t, true, `CREATE TABLE a (id int PRIMARY KEY, x int, y int)`)
		conn := d.role()
		_, err := publication.Sync(t.Context(), conn, config, uses)
		var denied *publication.DeniedError
		if !errors.As(err, &denied) || len(denied.Statements) != 1 || !strings.HasPrefix(denied.Statements[0], `CREATE PUBLICATION "lethe"`) {
			t.Fatalf("error is %v, want a DeniedError with the statement to run", err)
		}
		// What the administrator has made is used as it is.
		d.sync(uses...)
		if c, err := publication.Sync(t.Context(), conn, publication.Config{Name: "lethe", WholeRows: d.version() < 150000}, uses); err != nil || c.Any() {
			t.Errorf("changed %+v (%v), want nothing", c, err)
		}
		// The rules have grown, and the error says what to run.
		d.exec(`CREATE TABLE b (id int PRIMARY KEY)`)
		_, err = publication.Sync(t.Context(), conn, config, append(uses, use("b", rules.OnAll, "id")))
		if !errors.As(err, &denied) {
			t.Fatalf("error is %v, want a DeniedError", err)
		}
		if want := []string{`ALTER PUBLICATION "lethe" ADD TABLE ONLY "public"."b";`}; !slices.Equal(denied.Statements, want) {
			t.Errorf("statements %q, want %q", denied.Statements, want)
		}
	})

	t.Run("may not lead the guard to the publication of others", func(t *testing.T) {
		t.Parallel()
		d := newDatabase(t, true, `CREATE PUBLICATION theirs`)
		_, err := d.role().Exec(t.Context(), `SELECT lethe.guard_publication('theirs')`)
		if e := new(pgconn.PgError); !errors.As(err, &e) || e.Code != "42501" {
			t.Errorf("error is %v, want insufficient privilege", err)
		}
	})
}

package publication_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lethe-cache/lethe/cdc/publication"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/migrations"
	"github.com/lethe-cache/lethe/rules"
)

func TestMain(m *testing.M) { harness.Main(m) }

var config = publication.Config{Name: "lethe"}

// database is one test's own.
type database struct {
	*testing.T
	url  string
	conn *pgx.Conn // Lethe's
	app  *pgx.Conn // the application's
}

// newDatabase makes a database with the statements run in it and, if guarded,
// the guard installed.
func newDatabase(t *testing.T, guarded bool, statements ...string) *database {
	t.Helper()
	d := &database{T: t, url: harness.Database(t)}
	d.conn, d.app = d.connect(d.url), d.connect(d.url)
	if guarded {
		res, err := migrations.Apply(t.Context(), d.conn, migrations.Options{})
		if err != nil || len(res.Degraded) > 0 {
			t.Fatalf("migrate: %v %v", err, res.Degraded)
		}
	}
	for _, s := range statements {
		d.exec(s)
	}
	return d
}

func (d *database) connect(url string) *pgx.Conn {
	d.Helper()
	conn, err := pgx.Connect(d.Context(), url)
	if err != nil {
		d.Fatal(err)
	}
	d.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// exec runs a statement of the application, which must succeed.
func (d *database) exec(sql string) {
	d.Helper()
	if _, err := d.app.Exec(d.Context(), sql); err != nil {
		d.Fatalf("%s: %v", sql, err)
	}
}

// fails runs a statement of the application that must fail with the message.
func (d *database) fails(sql, message string) {
	d.Helper()
	_, err := d.app.Exec(d.Context(), sql)
	var e *pgconn.PgError
	if !errors.As(err, &e) {
		d.Fatalf("%s: %v, want it to fail: the damage that is to be prevented", sql, err)
	}
	if got := e.Message + " " + e.Detail; !strings.Contains(got, message) {
		d.Fatalf("%s: %q, want %q", sql, got, message)
	}
}

func (d *database) sync(uses ...rules.TableUse) publication.Changes {
	d.Helper()
	c, err := publication.Sync(d.Context(), d.conn, config, uses)
	if err != nil {
		d.Fatal(err)
	}
	return c
}

// published returns "publication: columns" of a table, each column listed.
func (d *database) published(table string) []string {
	d.Helper()
	sql := `SELECT pubname || ': ' || array_to_string(attnames, ',') FROM pg_publication_tables WHERE schemaname || '.' || tablename = $1 ORDER BY 1`
	if d.version() < 150000 {
		sql = `SELECT pubname || ': ' FROM pg_publication_tables WHERE schemaname || '.' || tablename = $1 ORDER BY 1`
	}
	rows, err := d.conn.Query(d.Context(), sql, table)
	if err != nil {
		d.Fatal(err)
	}
	got, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		d.Fatal(err)
	}
	return got
}

func (d *database) wantPublished(table string, want ...string) {
	d.Helper()
	if got := d.published(table); !slices.Equal(got, want) {
		d.Errorf("%s is published as %q, want %q", table, got, want)
	}
}

func (d *database) version() int { return harness.Postgres(d).VersionNum() }

// lists skips a test about column lists where there are none.
func (d *database) lists() {
	d.Helper()
	if d.version() < 150000 {
		d.Skip("left out: column lists exist from Postgres 15 on")
	}
}

func use(table string, ops rules.Ops, columns ...string) rules.TableUse {
	slices.Sort(columns)
	return rules.TableUse{Schema: "public", Name: table, Ops: ops, Columns: columns}
}

// named puts the name of the database in the place of %s: roles are shared by
// the databases of a server.
func (d *database) named(sql string) string {
	return strings.ReplaceAll(sql, "%s", d.conn.Config().Database)
}

type watcher struct {
	d *database
	*publication.Watcher
}

// newWatcher makes a Watcher that has checked once.
func newWatcher(d *database, uses ...rules.TableUse) watcher {
	d.Helper()
	w := watcher{d, publication.NewWatcher(config, uses)}
	if c := w.check(); c.Any() || len(c.Altered) > 0 {
		d.Fatalf("the first check changes %+v", c)
	}
	return w
}

func (w watcher) check() publication.Changes {
	w.d.Helper()
	c, err := w.Check(w.d.Context(), w.d.conn)
	if err != nil {
		w.d.Fatal(err)
	}
	return c
}

package pgcheck_test

import (
	"context"
	"net/url"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/lethe-cache/lethe/cdc/pgcheck"
	"github.com/lethe-cache/lethe/cdc/publication"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
	"github.com/lethe-cache/lethe/migrations"
	"github.com/lethe-cache/lethe/rules"
)

func TestMain(m *testing.M) { harness.Main(m) }

type fixture struct {
	*testing.T
	url  string
	conn *pgx.Conn
	cfg  pgcheck.Config
}

func newFixture(t *testing.T, address string, statements ...string) *fixture {
	t.Helper()
	f := &fixture{T: t, url: address}
	f.conn = f.connect("")
	f.cfg = pgcheck.Config{Slot: "lethe_" + f.conn.Config().Database, Publication: "lethe"}
	for _, s := range statements {
		f.exec(s)
	}
	return f
}

func (f *fixture) connect(role string) *pgx.Conn {
	f.Helper()
	u, err := url.Parse(f.url)
	if err != nil {
		f.Fatal(err)
	}
	if role != "" {
		u.User = url.User(role)
	}
	conn, err := pgx.Connect(f.Context(), u.String())
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func (f *fixture) exec(sql string) {
	f.Helper()
	if _, err := f.conn.Exec(f.Context(), sql); err != nil {
		f.Fatalf("%s: %v", sql, err)
	}
}

func (f *fixture) migrate() {
	f.Helper()
	if _, err := migrations.Apply(f.Context(), f.conn, migrations.Options{}); err != nil {
		f.Fatal(err)
	}
}

func (f *fixture) sync() {
	f.Helper()
	if _, err := publication.Sync(f.Context(), f.conn, publication.Config{Name: "lethe"}, f.cfg.Uses); err != nil {
		f.Fatal(err)
	}
}

func (f *fixture) checks(conn *pgx.Conn) []pgcheck.Check {
	f.Helper()
	checks, err := pgcheck.Checks(f.Context(), conn, f.cfg)
	if err != nil {
		f.Fatal(err)
	}
	for _, c := range checks {
		if c.Name == "" || c.Detail == "" || c.Status != pgcheck.OK && c.Fix == "" {
			f.Errorf("check %+v has no name, no detail, or no fix", c)
		}
	}
	return checks
}

// want looks for one check by its name.
func (f *fixture) want(conn *pgx.Conn, name string, status pgcheck.Status, fix string) {
	f.Helper()
	for _, c := range f.checks(conn) {
		if c.Name == name {
			if c.Status != status || !strings.Contains(c.Fix, fix) {
				f.Errorf("%s is %s (%s; %s), want %s with the fix %q", name, c.Status, c.Detail, c.Fix, status, fix)
			}
			return
		}
	}
	f.Errorf("there is no check %q, want it to be %s", name, status)
}

func use(name string, ops rules.Ops, columns ...string) rules.TableUse {
	return rules.TableUse{Schema: "public", Name: name, Ops: ops, Columns: columns}
}

func TestServerAllIsWell(t *testing.T) {
	t.Parallel()
	f := newFixture(t, harness.Database(t), `CREATE TABLE a (id int PRIMARY KEY, x int, y int)`)
	f.cfg.Uses = []rules.TableUse{use("a", rules.OnAll, "x")}
	// Before the first start nothing is there, and nothing has failed.
	if got := pgcheck.Worst(f.checks(f.conn)); got != pgcheck.Warn {
		t.Errorf("worst before the start is %s, want warn: migrations are pending", got)
	}
	f.migrate()
	f.sync()
	f.exec(`SELECT pg_create_logical_replication_slot('` + f.cfg.Slot + `', 'pgoutput')`)
	for _, c := range f.checks(f.conn) {
		expected := c.Name == "max_slot_wal_keep_size" || c.Name == "slot survives a failover"
		if c.Status != pgcheck.OK && !expected {
			t.Errorf("%s is %s: %s", c.Name, c.Status, c.Detail)
		}
	}
	f.want(f.conn, "guard", pgcheck.OK, "")
}

func TestServerFindsEachFault(t *testing.T) {
	t.Parallel()
	f := newFixture(t, harness.Database(t),
		`CREATE TABLE a (id int PRIMARY KEY, x int, y int)`,
		`CREATE TABLE bare (x int)`,
		`CREATE UNLOGGED TABLE unlogged (id int PRIMARY KEY)`,
		`CREATE TABLE whole (id int); ALTER TABLE whole REPLICA IDENTITY FULL`)
	f.cfg.Uses = []rules.TableUse{use("a", rules.OnAll, "x", "gone"), use("bare", rules.OnUpdate, "x"), use("unlogged", rules.OnAll),
		use("whole", rules.OnAll, "id"), use("nowhere", rules.OnAll)}
	f.want(f.conn, "publication", pgcheck.OK, "")
	f.want(f.conn, "migration 0003_guard", pgcheck.Warn, "lethe migrate --role")
	f.migrate()
	f.sync()
	f.want(f.conn, "table public.a", pgcheck.OK, "")
	f.want(f.conn, "column public.a.gone", pgcheck.Fail, "")
	f.want(f.conn, "table public.bare", pgcheck.Fail, `ALTER TABLE "public"."bare" ADD PRIMARY KEY`)
	f.want(f.conn, "table public.unlogged", pgcheck.Fail, "SET LOGGED")
	f.want(f.conn, "table public.nowhere", pgcheck.Fail, "")
	f.want(f.conn, "column lists", pgcheck.Warn, "REPLICA IDENTITY USING INDEX")

	f.exec(`ALTER EVENT TRIGGER lethe_guard_after DISABLE`)
	f.want(f.conn, "guard", pgcheck.Warn, "ENABLE ALWAYS")
	f.exec(`ALTER TABLE a REPLICA IDENTITY NOTHING`)
	f.want(f.conn, "publication does no harm", pgcheck.Fail, `ALTER PUBLICATION "lethe" DROP TABLE ONLY "public"."a"`)
	f.exec(`ALTER EVENT TRIGGER lethe_guard_after ENABLE ALWAYS; ALTER TABLE a REPLICA IDENTITY DEFAULT`)
	f.exec(`ALTER PUBLICATION lethe DROP TABLE whole`)
	f.want(f.conn, "publication", pgcheck.Warn, `ADD TABLE ONLY "public"."whole"`)
	f.exec(`DROP PUBLICATION lethe; CREATE PUBLICATION lethe FOR ALL TABLES`)
	f.want(f.conn, "publication", pgcheck.Fail, "LETHE_PUBLICATION")

	f.exec(`SELECT pg_create_logical_replication_slot('` + f.cfg.Slot + `', 'test_decoding')`)
	f.want(f.conn, "slot", pgcheck.Fail, "pg_drop_replication_slot")
}

func TestServerOrdinaryRole(t *testing.T) {
	t.Parallel()
	f := newFixture(t, harness.Database(t), `CREATE TABLE a (id int PRIMARY KEY, x int, y int)`)
	role := "check_" + f.conn.Config().Database
	f.exec(`CREATE ROLE ` + role + ` LOGIN`)
	f.cfg.Uses = []rules.TableUse{use("a", rules.OnAll, "x")}
	conn := f.connect(role)
	f.want(conn, "replication privilege", pgcheck.Fail, "REPLICATION")
	f.want(conn, "publication", pgcheck.Fail, "GRANT CREATE ON DATABASE")
	f.want(conn, "table public.a", pgcheck.Fail, "owner")
	f.migrate()
	f.sync()
	f.want(conn, "table public.a", pgcheck.Warn, "GRANT SELECT")
	f.want(conn, "lethe.source", pgcheck.Warn, "GRANT SELECT, INSERT, UPDATE, DELETE ON lethe.source")
	f.exec(`GRANT SELECT ON a TO ` + role + `; ALTER ROLE ` + role + ` REPLICATION`)
	f.want(conn, "table public.a", pgcheck.OK, "")
	f.want(conn, "replication privilege", pgcheck.OK, "")
}

func TestServerSettings(t *testing.T) {
	t.Parallel()
	server := harness.NewPostgres(t, servers.PostgresConfig{Settings: map[string]string{
		"wal_level": "replica", "max_replication_slots": "0", "max_wal_senders": "0", "wal_sender_timeout": "0",
		"synchronous_standby_names": "nobody", "max_slot_wal_keep_size": "1GB",
	}})
	f := newFixture(t, server.URL("postgres"))
	f.want(f.conn, "wal_level", pgcheck.Fail, "ALTER SYSTEM SET wal_level")
	f.want(f.conn, "max_replication_slots", pgcheck.Fail, "ALTER SYSTEM SET max_replication_slots")
	f.want(f.conn, "max_wal_senders", pgcheck.Fail, "ALTER SYSTEM SET max_wal_senders")
	f.want(f.conn, "wal_sender_timeout", pgcheck.Warn, "wal_sender_timeout")
	f.want(f.conn, "synchronous_standby_names", pgcheck.Warn, "synchronous_standby_names")
	f.want(f.conn, "max_slot_wal_keep_size", pgcheck.OK, "")
	if got := pgcheck.Worst(f.checks(f.conn)); got != pgcheck.Fail {
		t.Errorf("worst is %s, want fail", got)
	}
}

func TestServerStandby(t *testing.T) {
	t.Parallel()
	primary := harness.NewPostgres(t, servers.PostgresConfig{})
	standby := harness.NewStandby(t, primary, servers.StandbyConfig{})
	f := newFixture(t, standby.URL("postgres"))
	f.want(f.conn, "primary", pgcheck.Fail, "target_session_attrs")
}

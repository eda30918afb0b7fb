package source_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lethe-cache/lethe/cdc/source"
	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
	"github.com/lethe-cache/lethe/migrations"
)

func TestMain(m *testing.M) { harness.Main(m) }

func connect(t *testing.T, address string) *pgx.Conn {
	t.Helper()
	var conn *pgx.Conn
	// A server that restarts after a crash refuses connections for a moment.
	harness.Eventually(t, 30*time.Second, func() (err error) {
		conn, err = pgx.Connect(t.Context(), address)
		return err
	})
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func run(t *testing.T, conn *pgx.Conn, sql string, args ...any) {
	t.Helper()
	if _, err := conn.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func migrate(t *testing.T, conn *pgx.Conn, opts migrations.Options) migrations.Result {
	t.Helper()
	res, err := migrations.Apply(t.Context(), conn, opts)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// as is the address for another role.
func as(t *testing.T, address, role string) string {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.User(role)
	return u.String()
}

func open(t *testing.T, tr *source.Tracker, conn *pgx.Conn, hints source.Hints) (change.Source, []source.Due) {
	t.Helper()
	src, due, err := tr.Open(t.Context(), conn, hints)
	if err != nil {
		t.Fatal(err)
	}
	return src, due
}

func raised(t *testing.T, tr *source.Tracker, conn *pgx.Conn) {
	t.Helper()
	if err := tr.Raised(t.Context(), conn); err != nil {
		t.Fatal(err)
	}
}

// wantRaise checks that "*" is raised, twice, with a cause of its own.
func wantRaise(t *testing.T, due []source.Due, reason string) {
	t.Helper()
	if len(due) != 1 {
		t.Fatalf("%d raises are due, want 1: %+v", len(due), due)
	}
	d := due[0]
	if len(d.Classes) != 1 || d.Classes[0] != "*" || d.Reason != reason || !d.Again || d.Cause == "" || d.Bound.LSN == 0 {
		t.Errorf("due is %+v, want * for %s, twice, with a bound", d, reason)
	}
}

func TestServerSameInstanceLosesNothing(t *testing.T) {
	t.Parallel()
	address := harness.Database(t)
	conn := connect(t, address)
	migrate(t, conn, migrations.Options{})
	src, due := open(t, source.New("s", nil), conn, source.Hints{})
	wantRaise(t, due, change.ReasonSource)
	if src.Era != 1 || src.SystemID == 0 || src.Timeline != 1 {
		t.Errorf("source is %+v, want era 1 on timeline 1", src)
	}

	// Lethe dies before the raise is durable: it is due again, the same one.
	tr := source.New("s", nil)
	again, dueAgain := open(t, tr, conn, source.Hints{})
	wantRaise(t, dueAgain, change.ReasonSource)
	if again != src || dueAgain[0].Cause != due[0].Cause {
		t.Errorf("got %+v %q, want the same source and cause, %+v %q", again, dueAgain[0].Cause, src, due[0].Cause)
	}
	raised(t, tr, conn)

	// A cut connection, and another death.
	for range 2 {
		got, due := open(t, source.New("s", nil), connect(t, address), source.Hints{Log: src, Redis: src})
		if got != src || len(due) > 0 {
			t.Errorf("got %+v with %+v due, want %+v and nothing", got, due, src)
		}
	}
}

func TestServerEraIsNeverUsedTwice(t *testing.T) {
	t.Parallel()
	conn := connect(t, harness.Database(t))
	migrate(t, conn, migrations.Options{})
	in, err := source.Read(t.Context(), conn)
	if err != nil {
		t.Fatal(err)
	}
	known := func(era uint16) change.Source {
		return change.Source{Era: era, SystemID: in.SystemID, Timeline: in.Timeline}
	}
	other := change.Source{Era: 9, SystemID: in.SystemID + 1, Timeline: 7}
	causes := make(map[string]bool)
	for _, step := range []struct {
		name  string
		hints source.Hints
		era   uint16
		due   bool
	}{
		{"the table was lost, Redis remembers", source.Hints{Redis: known(4)}, 5, true},
		{"the log is ahead", source.Hints{Log: known(6), Redis: known(5)}, 7, true},
		{"Redis is behind: its worker sees to it", source.Hints{Log: known(7), Redis: known(2)}, 7, false},
		{"another system in Redis", source.Hints{Redis: other}, 10, true},
		{"another system in Redis, of our era", source.Hints{Redis: change.Source{Era: 10, SystemID: 1, Timeline: 1}}, 11, true},
		{"all is well", source.Hints{Log: known(11), Redis: known(11)}, 11, false},
	} {
		tr := source.New("s", nil)
		src, due := open(t, tr, conn, step.hints)
		if src.Era != step.era || (len(due) > 0) != step.due {
			t.Errorf("%s: era %d and %d due, want era %d and due %v", step.name, src.Era, len(due), step.era, step.due)
		}
		for _, d := range due {
			if causes[d.Cause] {
				t.Errorf("%s: cause %q is used twice", step.name, d.Cause)
			}
			causes[d.Cause] = true
		}
		raised(t, tr, conn)
	}

	t.Run("and never wraps", func(t *testing.T) {
		src, due := open(t, source.New("s", nil), conn, source.Hints{Redis: known(65535)})
		wantRaise(t, due, change.ReasonUnknownEra)
		if src.Era != 0 {
			t.Errorf("era is %d, want 0", src.Era)
		}
	})
}

// TestPhantomAfterCrash, the part of this package: with
// synchronous_commit=off a value can be read, cached, and lost in a crash. The
// postmaster survives the crash of a backend, so only the checkpointer tells.
func TestPhantomAfterCrash(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name     string
		ordinary bool
		migrated bool
	}{
		{"superuser", false, true},
		{"ordinary role with lethe.source()", true, true},
		{"ordinary role by the statistics", true, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			server := harness.NewPostgres(t, servers.PostgresConfig{Settings: map[string]string{"restart_after_crash": "on"}})
			address := server.URL("postgres")
			admin := connect(t, address)
			run(t, admin, `CREATE ROLE app LOGIN; GRANT CREATE ON DATABASE postgres TO app`)
			user := address
			if test.ordinary {
				user = as(t, address, "app")
			}
			if test.migrated {
				migrate(t, admin, migrations.Options{Role: "app"})
			} else {
				// What an ordinary role installs sees no more than the role.
				if res := migrate(t, connect(t, user), migrations.Options{}); len(res.Degraded) != 1 {
					t.Errorf("degraded %q, want the guard", res.Degraded)
				}
			}
			conn := connect(t, user)
			before, err := source.Read(t.Context(), conn)
			if err != nil {
				t.Fatal(err)
			}
			tr := source.New("s", nil)
			open(t, tr, conn, source.Hints{})
			raised(t, tr, conn)
			if _, due := open(t, tr, conn, source.Hints{}); len(due) > 0 {
				t.Fatalf("%+v is due before the crash", due)
			}

			victim := connect(t, address)
			if out, err := exec.CommandContext(t.Context(), "kill", "-9", strconv.FormatUint(uint64(victim.PgConn().PID()), 10)).CombinedOutput(); err != nil {
				t.Fatalf("kill a backend: %v %s", err, out)
			}
			harness.Eventually(t, 30*time.Second, func() error {
				if conn.Ping(t.Context()) == nil {
					return errors.New("the server has not noticed yet")
				}
				return nil
			})

			conn = connect(t, user)
			after, err := source.Read(t.Context(), conn)
			if err != nil {
				t.Fatal(err)
			}
			if !after.PostmasterStart.Equal(before.PostmasterStart) {
				t.Error("the postmaster has started again: the test tests nothing")
			}
			if after.CheckpointerStart.Equal(before.CheckpointerStart) || after.Same(before) {
				t.Error("the crash can not be told")
			}
			src, due := open(t, source.New("s", nil), conn, source.Hints{})
			wantRaise(t, due, change.ReasonSource)
			if src.Era != 2 {
				t.Errorf("era is %d, want 2", src.Era)
			}
		})
	}
}

// TestServerProtocol is for the shard that runs on every version: the tests
// that PROTOCOL names, which run by themselves where none is asked for.
func TestServerProtocol(t *testing.T) {
	if os.Getenv("LETHE_TEST_POSTGRES") == "" {
		t.Skip("the same tests run under their own names")
	}
	t.Run("phantom_after_crash", TestPhantomAfterCrash)
	t.Run("promotion_era", TestPromotionEra)
	t.Run("old_primary_refused", TestOldPrimaryRefused)
	t.Run("standby_as_primary_refused", TestStandbyAsPrimaryRefused)
}

// cluster is a primary with a standby, and the source that a reader knew.
type cluster struct {
	standby           *servers.Postgres
	conn, sconn, user *pgx.Conn // to the primary, to the standby, to it as an ordinary role
	first             change.Source
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	primary := harness.NewPostgres(t, servers.PostgresConfig{})
	c := &cluster{conn: connect(t, primary.URL("postgres"))}
	run(t, c.conn, `CREATE ROLE app LOGIN`)
	migrate(t, c.conn, migrations.Options{})
	tr := source.New("s", nil)
	c.first, _ = open(t, tr, c.conn, source.Hints{})
	raised(t, tr, c.conn)
	c.standby = harness.NewStandby(t, primary, servers.StandbyConfig{})
	c.sconn = connect(t, c.standby.URL("postgres"))
	c.user = connect(t, as(t, c.standby.URL("postgres"), "app"))
	// Until the standby follows: it has the function then, too.
	harness.Eventually(t, 30*time.Second, func() error {
		in, err := source.Read(t.Context(), c.user)
		if err != nil {
			return err
		}
		if !in.InRecovery || !in.Function || in.Replay == 0 || in.SystemID != c.first.SystemID || in.Timeline != c.first.Timeline {
			return fmt.Errorf("the standby says %+v, want that it follows the primary, with its replay LSN", in)
		}
		return nil
	})
	return c
}

func (c *cluster) promote(t *testing.T) {
	t.Helper()
	if err := c.standby.Promote(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func wantRefused(t *testing.T, err error, permanent bool) {
	t.Helper()
	var refused *source.RefusedError
	if !errors.As(err, &refused) || refused.Permanent() != permanent {
		t.Errorf("error is %v, want a RefusedError, for good: %v", err, permanent)
	}
}

func TestPromotionEra(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.promote(t)
	// A session of before the promotion goes on, and must tell the new truth.
	in, err := source.Read(t.Context(), c.user)
	if err != nil || in.InRecovery || in.Timeline != c.first.Timeline+1 || in.Insert == 0 {
		t.Errorf("after the promotion %+v (%v), want a primary on the next timeline", in, err)
	}
	second, due := open(t, source.New("s", nil), c.sconn, source.Hints{Log: c.first, Redis: c.first})
	wantRaise(t, due, change.ReasonSource)
	if second.Era != c.first.Era+1 || second.Timeline != c.first.Timeline+1 {
		t.Errorf("source is %+v after %+v, want the next era and timeline", second, c.first)
	}
}

func TestStandbyAsPrimaryRefused(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	_, _, err := source.New("s", nil).Open(t.Context(), c.sconn, source.Hints{})
	wantRefused(t, err, false)
	c.promote(t)
	open(t, source.New("s", nil), c.sconn, source.Hints{})
}

func TestOldPrimaryRefused(t *testing.T) {
	t.Parallel()
	conn := connect(t, harness.Database(t))
	migrate(t, conn, migrations.Options{})
	src, _ := open(t, source.New("s", nil), conn, source.Hints{})
	later := src
	later.Era, later.Timeline = src.Era+1, src.Timeline+1
	// Its own table knows nothing of the promotion; Redis and the log do.
	for _, hints := range []source.Hints{{Redis: later}, {Log: later}} {
		_, _, err := source.New("s", nil).Open(t.Context(), conn, hints)
		wantRefused(t, err, true)
	}
	run(t, conn, `UPDATE lethe.source SET timeline = 7`)
	_, _, err := source.New("s", nil).Open(t.Context(), conn, source.Hints{})
	wantRefused(t, err, true)
	if !strings.Contains(err.Error(), "timeline 7") {
		t.Errorf("error is %q, want it to name timeline 7", err)
	}
	// Another system may be on any timeline.
	run(t, conn, `UPDATE lethe.source SET system_id = system_id + 1`)
	open(t, source.New("s", nil), conn, source.Hints{})
}

func TestServerRestartBeginsAnEra(t *testing.T) {
	t.Parallel()
	server := harness.NewPostgres(t, servers.PostgresConfig{})
	conn := connect(t, server.URL("postgres"))
	migrate(t, conn, migrations.Options{})
	tr := source.New("s", nil)
	open(t, tr, conn, source.Hints{})
	raised(t, tr, conn)
	if err := server.Stop("immediate"); err != nil {
		t.Fatal(err)
	}
	if err := server.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	src, due := open(t, tr, connect(t, server.URL("postgres")), source.Hints{})
	wantRaise(t, due, change.ReasonSource)
	if src.Era != 2 {
		t.Errorf("era is %d, want 2", src.Era)
	}
}

func TestServerWithoutRightsEveryStartForgets(t *testing.T) {
	t.Parallel()
	address := harness.Database(t)
	admin := connect(t, address)
	var name string
	if err := admin.QueryRow(t.Context(), `SELECT 'nothing_' || current_database()`).Scan(&name); err != nil {
		t.Fatal(err)
	}
	run(t, admin, `CREATE ROLE `+name+` LOGIN`)
	for _, step := range []string{"no schema", "no right to the table"} {
		if step == "no right to the table" {
			migrate(t, admin, migrations.Options{})
		}
		conn := connect(t, as(t, address, name))
		tr := source.New("s", nil)
		src, due := open(t, tr, conn, source.Hints{Redis: change.Source{Era: 3}})
		wantRaise(t, due, change.ReasonUnknownEra)
		if src.Era != 0 || src.SystemID == 0 {
			t.Errorf("%s: source is %+v, want era 0 and the system", step, src)
		}
		// Not durable yet, so a reconnect asks again; afterwards it does not.
		_, due = open(t, tr, conn, source.Hints{})
		wantRaise(t, due, change.ReasonUnknownEra)
		raised(t, tr, conn)
		if _, due := open(t, tr, conn, source.Hints{}); len(due) > 0 {
			t.Errorf("%s: %+v is due on the same instance", step, due)
		}
		if err := tr.StoreConfirmed(t.Context(), conn, 100); err != nil {
			t.Errorf("%s: store a position: %v", step, err)
		}
		other := source.New("s", nil)
		_, due = open(t, other, conn, source.Hints{})
		wantRaise(t, due, change.ReasonUnknownEra)
	}
}

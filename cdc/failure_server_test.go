package cdc

import (
	"context"
	"errors"
	"fmt"
	"net/url"
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

// Rows of one transaction lie before those of another that commits earlier, so
// a row's LSN says nothing about where to go on.
func TestFailureMode03RowPositionAsCursor(t *testing.T) {
	t.Parallel()
	u := harness.Database(t)
	c, one, two := connect(t, u), connect(t, u), connect(t, u)
	exec(t, c, `CREATE TABLE a (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE a`)
	w := newSink()
	r := start(t, u, w)
	r.streaming(t)
	w.set(func() { w.auto = false })
	w.take()
	exec(t, one, `BEGIN; INSERT INTO a VALUES (1)`)
	exec(t, two, `BEGIN; INSERT INTO a VALUES (2)`)
	exec(t, one, `INSERT INTO a VALUES (3)`)
	exec(t, two, `INSERT INTO a VALUES (4); COMMIT`)
	w.waitEvent(t, "insert public.a id='4'")
	var at change.LSN
	w.set(func() {
		for _, b := range w.batches {
			if len(b.ends) > 0 {
				at = b.ends[0]
				w.setDurable(b.seq)
			}
		}
	})
	harness.Eventually(t, 10*time.Second, harness.True("the slot is confirmed", func() bool { return r.State().Confirmed >= at }))
	exec(t, one, `INSERT INTO a VALUES (5); COMMIT`)
	w.waitEvent(t, "insert public.a id='5'")
	w.take()
	r.Replay()
	w.waitEvent(t, "insert public.a id='5'")
	// The whole of the first, though its rows lie below what is confirmed;
	// nothing of the second.
	equal(t, w.take(), []string{"insert public.a id='1'", "insert public.a id='3'", "insert public.a id='5'"})
}

// behindAProxy is a database with the table a in publication p: a connection to
// it, and a URL that leads through a proxy.
func behindAProxy(t *testing.T) (c *pgx.Conn, proxy *servers.Proxy, through string) {
	t.Helper()
	direct := harness.Database(t)
	u, err := url.Parse(direct)
	if err != nil {
		t.Fatal(err)
	}
	proxy = harness.Proxy(t, u.Host)
	u.Host = proxy.Addr()
	c = connect(t, direct)
	exec(t, c, `CREATE TABLE a (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE a`)
	return c, proxy, u.String()
}

// A proxy that knows no function calls, and hangs up instead of saying so, costs
// one session.
func TestReaderBehindAProxyWithoutFunctionCalls(t *testing.T) {
	t.Parallel()
	c, proxy, u := behindAProxy(t)
	proxy.Forbid(functionCall(0)[:5]) // the kind and the length
	w := newSink()
	r := start(t, u, w)
	r.streaming(t)
	for i := range 3 {
		exec(t, c, fmt.Sprintf(`INSERT INTO a VALUES (%d)`, i))
		w.waitEvent(t, fmt.Sprintf("insert public.a id='%d'", i))
	}
}

// A cut that no side is told of, on a real server: the session ends after
// ReceiveTimeout and the next one goes through.
func TestFailureMode06ReconnectsThroughADeadNetwork(t *testing.T) {
	t.Parallel()
	c, proxy, u := behindAProxy(t)
	w := newSink()
	r := start(t, u, w, func(cfg *Config) {
		cfg.ReceiveTimeout, cfg.StatusInterval = 600*time.Millisecond, 200*time.Millisecond
		cfg.Heartbeat = -1 // or an ordinary connection notices first
		cfg.ConnectTimeout = time.Second
	})
	r.streaming(t)
	proxy.Blackhole(true)
	exec(t, c, `INSERT INTO a VALUES (1)`)
	harness.Eventually(t, 20*time.Second, harness.True("the silence is noticed", func() bool { return !r.State().Streaming() }))
	proxy.Blackhole(false)
	proxy.Cut()
	w.waitEvent(t, "insert public.a id='1'")
}

func TestServerFailureMode07SlotInUse(t *testing.T) {
	t.Parallel()
	u := harness.Database(t)
	c := connect(t, u)
	exec(t, c, `CREATE TABLE a (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE a`)
	first := start(t, u, newSink())
	first.streaming(t)
	w := newSink()
	second := start(t, u, w)
	harness.Eventually(t, 10*time.Second, func() error {
		if s := second.State(); s.Phase != PhaseWaitingForSlot || !strings.Contains(s.LastError, "is active") {
			return fmt.Errorf("state is %+v", s)
		}
		return nil
	})
	exec(t, c, `INSERT INTO a VALUES (1)`)
	if err := first.stop(); err != nil {
		t.Fatal(err)
	}
	second.streaming(t)
	exec(t, c, `INSERT INTO a VALUES (2)`)
	w.waitEvent(t, "insert public.a id='2'")
}

func TestFailureMode08SlotRecreatedBySomebody(t *testing.T) {
	t.Parallel()
	u := harness.Database(t)
	c := connect(t, u)
	exec(t, c, `CREATE TABLE a (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE a`)
	if _, err := migrations.Apply(t.Context(), c, migrations.Options{}); err != nil {
		t.Fatal(err)
	}
	tracked := func(cfg *Config) { cfg.Source = source.New(cfg.Slot, cfg.Logger) }
	w := newSink()
	r := start(t, u, w, tracked)
	w.wait(t, "the raises of the first start", func() bool { return w.count("raise source *") == 2 })
	r.streaming(t)
	exec(t, c, `INSERT INTO a VALUES (1)`)
	w.waitEvent(t, "insert public.a id='1'")
	v := w.v()
	harness.Eventually(t, 10*time.Second, func() error {
		if s := r.State(); s.Confirmed < v {
			return fmt.Errorf("confirmed %s, v was %s", s.Confirmed, v)
		}
		return nil
	})
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	// Nothing happened: nothing is forgotten.
	w = newSink()
	r = start(t, u, w, tracked)
	r.streaming(t)
	exec(t, c, `INSERT INTO a VALUES (2)`)
	w.waitEvent(t, "insert public.a id='2'")
	for _, e := range w.take() {
		if strings.HasPrefix(e, "raise") {
			t.Errorf("a plain restart raised: %s", e)
		}
	}
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
	// Somebody makes the slot anew, under the same name.
	slot := slotOf(t)
	harness.Eventually(t, 10*time.Second, func() error {
		_, err := c.Exec(t.Context(), `SELECT pg_drop_replication_slot($1)`, slot)
		return err
	})
	exec(t, c, `INSERT INTO a VALUES (3)`)
	exec(t, c, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')`, slot)
	w = newSink()
	r = start(t, u, w, tracked)
	w.wait(t, "two raises", func() bool { return w.count("raise slot_lost *") == 2 })
	r.streaming(t)
	// And under our hands: the stream is cut, the slot dropped.
	w.take()
	harness.Eventually(t, 10*time.Second, func() error {
		_, _ = c.Exec(t.Context(), `SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1`, slot)
		_, err := c.Exec(t.Context(), `SELECT pg_drop_replication_slot($1)`, slot)
		return err
	})
	w.wait(t, "two raises", func() bool { return w.count("raise slot_lost *") >= 2 })
	r.streaming(t)
	exec(t, c, `INSERT INTO a VALUES (4)`)
	w.waitEvent(t, "insert public.a id='4'")
}

func TestFailureMode10OversizeValue(t *testing.T) {
	t.Parallel()
	u := harness.Database(t)
	c := connect(t, u)
	exec(t, c, `CREATE TABLE a (id int PRIMARY KEY, v text); CREATE PUBLICATION p FOR TABLE a`)
	w := newSink()
	start(t, u, w).streaming(t)
	exec(t, c, `INSERT INTO a VALUES (1, repeat('x', 30000000))`)
	exec(t, c, `INSERT INTO a VALUES (2, 'y')`)
	w.waitEvent(t, "insert public.a id='1' v=30000000 bytes")
	w.waitEvent(t, "insert public.a id='2' v='y'")
}

func TestServerSurvivesRestart(t *testing.T) {
	t.Parallel()
	p := harness.NewPostgres(t, servers.PostgresConfig{})
	u := p.URL("postgres")
	c := connect(t, u)
	exec(t, c, `CREATE TABLE a (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE a`)
	w := newSink()
	r := start(t, u, w)
	r.streaming(t)
	exec(t, c, `INSERT INTO a VALUES (1)`)
	w.waitEvent(t, "insert public.a id='1'")
	// What is not durable may not hold up the shutdown of the database.
	w.set(func() { w.auto = false })
	exec(t, c, `INSERT INTO a VALUES (2)`)
	w.waitEvent(t, "insert public.a id='2'")
	began := time.Now()
	if err := p.Stop("fast"); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took > 30*time.Second { // wal_sender_timeout is 60 s
		t.Errorf("the database took %v to stop", took)
	}
	harness.Eventually(t, 10*time.Second, harness.True("the reader says that it is not streaming", func() bool {
		s := r.State()
		return s.Phase == PhaseConnecting && s.LastError != ""
	}))
	w.take()
	if err := p.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.streaming(t)
	c = connect(t, u)
	exec(t, c, `INSERT INTO a VALUES (3)`)
	w.waitEvent(t, "insert public.a id='3'")
	w.waitEvent(t, "insert public.a id='2'") // it was not durable
}

// A crash may take visible commits back (synchronous_commit=off) and gives
// their LSNs and xids out again: another era, everything raised.
func TestPhantomAfterCrash(t *testing.T) {
	t.Parallel()
	p := harness.NewPostgres(t, servers.PostgresConfig{})
	u := p.URL("postgres")
	c := connect(t, u)
	exec(t, c, `CREATE TABLE a (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE a`)
	if _, err := migrations.Apply(t.Context(), c, migrations.Options{}); err != nil {
		t.Fatal(err)
	}
	w := newSink()
	r := start(t, u, w, func(cfg *Config) { cfg.Source = source.New(cfg.Slot, cfg.Logger) })
	w.wait(t, "the raises of the first start", func() bool { return w.count("raise source *") == 2 })
	r.streaming(t)
	era := r.State().Source.Era
	w.take()
	p.Kill()
	if err := p.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.wait(t, "both raises of the new era", func() bool { return w.count("raise source *") == 2 })
	w.set(func() {
		for _, b := range w.batches {
			if len(b.raises) > 0 && b.source.Era != era+1 {
				t.Errorf("a raise came under era %d, want %d", b.source.Era, era+1)
			}
			for _, x := range b.raises {
				if x.Bound.Era != era+1 || x.Bound.LSN == 0 {
					t.Errorf("bound is %v", x.Bound)
				}
			}
		}
	})
	// Connections that are cut, without a crash, are no reason to forget.
	r.streaming(t)
	c = connect(t, u)
	harness.Eventually(t, 10*time.Second, func() error {
		if query[bool](t, c, `SELECT raise_due FROM lethe.source`) {
			return errors.New("the raise is not noted as durable")
		}
		return nil
	})
	w.take()
	exec(t, c, `SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots`)
	exec(t, c, `INSERT INTO a VALUES (1)`)
	w.waitEvent(t, "insert public.a id='1'")
	r.streaming(t)
	for _, e := range w.take() {
		if strings.HasPrefix(e, "raise") {
			t.Errorf("a cut connection raised: %s", e)
		}
	}
}

func TestPermanentErrorsHaveHints(t *testing.T) {
	t.Parallel()
	u := harness.Database(t)
	c := connect(t, u)
	role := "plain_" + strings.TrimPrefix(slotOf(t), "test")[:20]
	exec(t, c, `CREATE ROLE `+role+` LOGIN`)
	exec(t, c, `CREATE PUBLICATION p`)
	other := slotOf(t) + "_o"
	exec(t, c, `SELECT pg_create_physical_replication_slot($1)`, other)
	plain, err := url.Parse(u)
	if err != nil {
		t.Fatal(err)
	}
	plain.User = url.User(role)
	for name, tc := range map[string]struct {
		configure func(*Config)
		want      []string
	}{
		"no publication": {func(c *Config) { c.Publications = []string{"p", "missing"} }, []string{"publication missing does not exist"}},
		"no privilege":   {func(c *Config) { c.URL = plain.String() }, []string{"REPLICATION"}},
		"somebody's":     {func(c *Config) { c.Slot = other }, []string{"belongs to somebody else", "LETHE_SLOT"}},
		"no database":    {func(c *Config) { c.URL = strings.Replace(u, "/test_", "/none_", 1) }, []string{"create the database"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := start(t, u, newSink(), tc.configure)
			<-r.done
			if !IsPermanent(r.err) {
				t.Fatalf("Run returned %v, want an *Error", r.err)
			}
			for _, w := range tc.want {
				if !strings.Contains(r.err.Error(), w) {
					t.Errorf("error %q does not say %q", r.err, w)
				}
			}
		})
	}
}

// A publication that is dropped while it is read is made again by whoever keeps
// it in step with the rules; the Reader waits for that, and says so. The slot
// can not be read over the hole, so it is made anew.
func TestServerPublicationDroppedWhileRunning(t *testing.T) {
	t.Parallel()
	u := harness.Database(t)
	c := connect(t, u)
	exec(t, c, `CREATE TABLE a (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE a`)
	w := newSink()
	r := start(t, u, w)
	r.streaming(t)
	w.take()
	exec(t, c, `DROP PUBLICATION p`)
	exec(t, c, `INSERT INTO a VALUES (1)`)
	if query[int](t, c, `SELECT current_setting('server_version_num')::int`) < 180000 { // later ones skip what is not published
		harness.Eventually(t, 20*time.Second, func() error {
			select {
			case <-r.done:
				t.Fatalf("Run returned: %v", r.err)
			default:
			}
			if s := r.State(); !strings.Contains(s.LastError, "publication p does not exist") {
				return fmt.Errorf("state is %+v", s)
			}
			return nil
		})
	}
	exec(t, c, `CREATE PUBLICATION p FOR TABLE a`)
	if query[int](t, c, `SELECT current_setting('server_version_num')::int`) < 180000 {
		w.wait(t, "the raises of the hole", func() bool { return w.count("raise slot_lost *") == 2 })
	}
	r.streaming(t)
	exec(t, c, `INSERT INTO a VALUES (2)`)
	w.waitEvent(t, "insert public.a id='2'")
}

// A server that ends idle sessions must not end the gate's: it idles whenever
// the database does, and the next change would wait for a new session.
func TestServerIdleSessionsAreKept(t *testing.T) {
	t.Parallel()
	u := harness.Database(t)
	c := connect(t, u)
	exec(t, c, `CREATE TABLE a (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE a`)
	exec(t, c, `ALTER DATABASE `+c.Config().Database+` SET idle_session_timeout = '300ms'`)
	r := start(t, u, newSink())
	r.streaming(t)
	harness.Eventually(t, 30*time.Second, harness.True("the sessions have idled for a second", func() bool { return time.Since(r.State().Since) > time.Second }))
	const sql = `SELECT count(*)::int FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'lethe'`
	if got := query[int](t, c, sql); got != 3 {
		t.Errorf("%d connections are left, want the stream and two ordinary ones", got)
	}
}

// Without the right to store the position, a slot that somebody else has moved
// is noticed within one process at least.
func TestServerSlotMovedWhileEraIsUnknown(t *testing.T) {
	t.Parallel()
	c, proxy, u := behindAProxy(t)
	w := newSink()
	r := start(t, u, w, func(cfg *Config) { cfg.Source = source.New(cfg.Slot, cfg.Logger) })
	r.streaming(t)
	w.wait(t, "the raises of the start", func() bool { return w.count("raise unknown_era *") == 2 })
	harness.Eventually(t, 10*time.Second, harness.True("the slot is confirmed", func() bool { return r.State().Confirmed > 0 }))
	w.take()
	proxy.Blackhole(true)
	exec(t, c, `SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = $1`, slotOf(t))
	exec(t, c, `INSERT INTO a VALUES (1)`)
	harness.Eventually(t, 10*time.Second, func() error {
		_, err := c.Exec(t.Context(), `SELECT pg_replication_slot_advance($1, pg_current_wal_flush_lsn())`, slotOf(t))
		return err
	})
	proxy.Blackhole(false)
	proxy.Cut()
	// If the raises of the start were not settled when the session was cut, they
	// come again: they are of everything, twice, and stand for the slot's.
	w.wait(t, "two raises", func() bool {
		return w.count("raise slot_lost *") == 2 || w.count("raise unknown_era *") == 2
	})
}

func TestWALLevelIsPermanent(t *testing.T) {
	t.Parallel()
	p := harness.NewPostgres(t, servers.PostgresConfig{Settings: map[string]string{"wal_level": "replica"}})
	r := start(t, p.URL("postgres"), newSink())
	<-r.done
	if !IsPermanent(r.err) || !strings.Contains(r.err.Error(), "wal_level = logical") {
		t.Errorf("Run returned %v, want a permanent error with the command", r.err)
	}
}

// A refused connection is tried again until somebody listens.
func TestRetriesRefusedConnections(t *testing.T) {
	t.Parallel()
	r := start(t, "postgres://nobody@127.0.0.1:1/none?sslmode=disable", newSink())
	harness.Eventually(t, 10*time.Second, harness.True("the error shows", func() bool { return r.State().LastError != "" }))
	select {
	case <-r.done:
		t.Fatalf("Run returned %v", r.err)
	default:
	}
	if err := r.stop(); err != nil {
		t.Errorf("Run returned %v after ctx ended, want nil", err)
	}
}

// An ordinary role with LOGIN and REPLICATION is enough.
func TestServerOrdinaryRole(t *testing.T) {
	t.Parallel()
	u := harness.Database(t)
	c := connect(t, u)
	role := slotOf(t)
	exec(t, c, `CREATE ROLE `+role+` LOGIN REPLICATION`)
	exec(t, c, `CREATE TABLE a (id int PRIMARY KEY); CREATE PUBLICATION p FOR TABLE a`)
	as, err := url.Parse(u)
	if err != nil {
		t.Fatal(err)
	}
	as.User = url.User(role)
	w := newSink()
	r := start(t, as.String(), w)
	r.streaming(t)
	exec(t, c, `INSERT INTO a VALUES (1)`)
	w.waitEvent(t, "insert public.a id='1'")
	if err := r.stop(); err != nil {
		t.Fatal(err)
	}
}

func TestSlotBeyondItsBudgetIsGivenUp(t *testing.T) {
	t.Parallel()
	u := harness.Database(t)
	c := connect(t, u)
	exec(t, c, `CREATE TABLE a (id int PRIMARY KEY, v text); CREATE PUBLICATION p FOR TABLE a`)
	w := newSink()
	r := start(t, u, w, func(cfg *Config) { cfg.WALBudget = 1 << 20 })
	r.streaming(t)
	w.set(func() { w.auto = false }) // nothing becomes durable any more
	exec(t, c, `INSERT INTO a SELECT i, repeat('x', 1000) FROM generate_series(1, 3000) i`)
	w.wait(t, "a second slot", func() bool { return w.count("raise slot_lost *") >= 3 })
}

func TestConfigSaysEverythingThatIsWrong(t *testing.T) {
	t.Parallel()
	_, err := New(Config{Slot: "Bad-Slot", Publications: []string{`x"; DROP`}, StatusInterval: -1})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"Config.URL", "Config.Slot", "Config.Publications", "Config.Writer", "Config.StatusInterval"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not name %s", err, want)
		}
	}
}

var _ SourceTracker = (*source.Tracker)(nil)

// hints is here to be sure that an error of Hints is not permanent.
func TestHintsAreAskedAgain(t *testing.T) {
	t.Parallel()
	u := harness.Database(t)
	c := connect(t, u)
	exec(t, c, `CREATE PUBLICATION p`)
	asked := make(chan struct{}, 100)
	n := 0
	r := start(t, u, newSink(), func(cfg *Config) {
		cfg.Source = source.New(cfg.Slot, cfg.Logger)
		cfg.Hints = func(context.Context) (source.Hints, error) {
			asked <- struct{}{}
			if n++; n == 1 {
				return source.Hints{}, fmt.Errorf("not yet")
			}
			return source.Hints{}, nil
		}
	})
	r.streaming(t)
	if len(asked) < 2 {
		t.Errorf("asked %d times, want again after the error", len(asked))
	}
}

package client

import (
	"context"
	"errors"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

const updateItem = "UPDATE item SET value = value + 10 WHERE id = 1 RETURNING value"

func increment(ctx context.Context, tx pgx.Tx) (v int64, err error) {
	return v, tx.QueryRow(ctx, updateItem).Scan(&v)
}

// rows is a class whose loader reads the row 1 of the database.
func (w *world) rows(c *Client) *Class[int64] {
	w.t.Helper()
	e := Entries[int64](c, "item", LoadWith(func(ctx context.Context, _ string, l *Load) (int64, error) {
		w.loads.Add(1)
		return query(selectItem, 1)(ctx, l)
	}))
	w.live(c)
	return e
}

// stored is the value that the database has.
func stored(t *testing.T, p *pgxpool.Pool) (v int64) {
	t.Helper()
	if err := p.QueryRow(context.Background(), selectItem, 1).Scan(&v); err != nil {
		t.Fatal(err)
	}
	return v
}

func TestUpdate(t *testing.T) {
	t.Parallel()
	w, p := newDatabase(t, harness.Database(t))
	c := w.open(Options{Database: p}, hooks{})
	e := w.rows(c)
	w.get(t.Context(), e, "item:1")
	w.beat(lsn(t, p)+1<<20, 90) // v is past the commit as soon as it is there
	w.live(c)
	w.loads.Store(0)
	v, err := e.Update(t.Context(), "item:1", func(ctx context.Context, tx pgx.Tx) (int64, error) {
		if _, err := increment(ctx, tx); err != nil {
			return 0, err
		}
		return 99, nil
	})
	w.must(err)
	c.fills.Wait()
	w.want("what fn returned", v, int64(99))
	w.wantLoads(1)
	w.want("in L1", inL1(e, "item:1"), true)
	w.want("read: what the loader read", w.get(t.Context(), e, "item:1"), int64(11))
	w.wantLoads(0)
	if h, _ := w.header("item:1"); h.Stamp != w.v {
		t.Errorf("stamp is %v, want v: %v", h.Stamp, w.v)
	}
	w.want("connections in use", p.Stat().AcquiredConns(), int32(0))

	// Without a loader it is left to the invalidation.
	bare := Entries[int64](c, "item")
	v, err = bare.Update(t.Context(), "item:1", increment)
	w.must(err)
	w.want("what fn returned", v, int64(21))
	w.want("in the database", stored(t, p), int64(21))
	// So it is if the loader fails.
	broken := Entries[int64](c, "item", LoadWith(func(context.Context, string, *Load) (int64, error) { return 0, errors.New("broken") }))
	v, err = broken.Update(t.Context(), "item:1", increment)
	w.must(err)
	w.want("what fn returned", v, int64(31))
}

// The refresh waits until v covers the commit, so that what it stores carries a
// stamp that says so.
func TestUpdateRefreshWaitsForV(t *testing.T) {
	t.Parallel()
	w, p := newDatabase(t, harness.Database(t))
	c := w.open(Options{Database: p, TokenWait: time.Minute}, hooks{})
	e := w.rows(c)
	done := make(chan error)
	go func() {
		_, err := e.Update(context.Background(), "item:1", increment)
		done <- err
	}()
	harness.Eventually(t, 20*time.Second, harness.True("it is committed", func() bool { return stored(t, p) == 11 }))
	select {
	case err := <-done:
		t.Fatalf("the update did not wait for v: %v", err)
	default:
	}
	w.wantLoads(0)
	w.beat(lsn(t, p), 90)
	w.must(<-done)
	c.fills.Wait()
	w.wantLoads(1)
	h, ok := w.header("item:1")
	if !ok || h.Stamp != w.v {
		t.Errorf("stamp is %v (stored: %v), want v: %v", h.Stamp, ok, w.v)
	}
}

func TestUpdateRollsBack(t *testing.T) {
	t.Parallel()
	w, p := newDatabase(t, harness.Database(t))
	for _, sql := range []string{
		"CREATE TABLE child (item int REFERENCES item DEFERRABLE INITIALLY DEFERRED)",
	} {
		_, err := p.Exec(t.Context(), sql)
		w.must(err)
	}
	c := w.open(Options{Database: p}, hooks{})
	e := w.rows(c)
	broken := errors.New("broken")
	for name, fn := range map[string]func(context.Context, pgx.Tx) (int64, error){
		"error": func(ctx context.Context, tx pgx.Tx) (int64, error) {
			v, err := increment(ctx, tx)
			return v, errors.Join(err, broken)
		},
		"refused by COMMIT": func(ctx context.Context, tx pgx.Tx) (int64, error) {
			v, err := increment(ctx, tx)
			if err == nil {
				_, err = tx.Exec(ctx, "INSERT INTO child VALUES (77)")
			}
			return v, err
		},
		"an error that fn swallowed": func(ctx context.Context, tx pgx.Tx) (int64, error) {
			v, err := increment(ctx, tx)
			_, _ = tx.Exec(ctx, "nonsense")
			return v, err
		},
		"cancelled before COMMIT": nil,
	} {
		ctx, cancel := context.WithCancel(t.Context())
		if fn == nil {
			fn = func(ctx context.Context, tx pgx.Tx) (int64, error) {
				v, err := increment(ctx, tx)
				cancel()
				return v, err
			}
		}
		v, err := e.Update(ctx, "item:1", fn)
		cancel()
		if err == nil || errors.Is(err, ErrUnknownOutcome) || v != 0 {
			t.Errorf("%s: got %d, %v; want an error of a known outcome", name, v, err)
		}
		if name == "error" && !errors.Is(err, broken) {
			t.Errorf("got %v, want fn's error", err)
		}
		w.want(name+": in the database", stored(t, p), int64(1))
	}
	func() {
		defer func() { _ = recover() }()
		_, _ = e.Update(t.Context(), "item:1", func(ctx context.Context, tx pgx.Tx) (int64, error) {
			_, _ = increment(ctx, tx)
			panic("ouch")
		})
		t.Error("a panic was swallowed")
	}()
	w.want("after a panic", stored(t, p), int64(1))
	w.wantLoads(0)
	if _, ok := w.header("item:1"); ok {
		t.Error("something was cached")
	}
	harness.Eventually(t, 10*time.Second, harness.True("no connection is in use", func() bool { return p.Stat().AcquiredConns() == 0 }))
}

// The connection is lost while COMMIT is under way: after the server has it,
// and before.
func TestUpdateUnknownOutcome(t *testing.T) {
	t.Parallel()
	w, p := newDatabase(t, harness.Database(t))
	for _, sql := range []string{
		// COMMIT waits where the test wants it to.
		"CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_advisory_xact_lock(4711); RETURN NULL; END'",
		"CREATE CONSTRAINT TRIGGER hold AFTER UPDATE ON item DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION hold()",
	} {
		_, err := p.Exec(t.Context(), sql)
		w.must(err)
	}
	u, err := url.Parse(p.Config().ConnString())
	w.must(err)
	proxy := harness.Proxy(t, u.Host)
	host, port, err := net.SplitHostPort(proxy.Addr())
	w.must(err)
	u.Host = net.JoinHostPort(host, port)
	through := pool(t, u.String(), nil)
	c := w.open(Options{Database: through}, hooks{})
	e := w.rows(c)
	w.beat(lsn(t, p)+1<<20, 90)
	w.live(c)

	waiting := func() (pid int) {
		t.Helper()
		harness.Eventually(t, 20*time.Second, func() error {
			return p.QueryRow(context.Background(), "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711 AND NOT granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())").Scan(&pid)
		})
		return pid
	}
	for _, c := range []struct {
		name string
		// end is called while COMMIT waits; release lets it go on.
		end  func(pid int, release func())
		want int64
	}{
		{"committed, the answer lost", func(_ int, release func()) {
			proxy.Blackhole(true)
			release()
			harness.Eventually(t, 20*time.Second, harness.True("it is committed", func() bool { return stored(t, p) == 11 }))
			proxy.Cut()
			proxy.Blackhole(false)
		}, 11},
		{"not committed, the backend terminated", func(pid int, release func()) {
			_, err := p.Exec(context.Background(), "SELECT pg_terminate_backend($1)", pid)
			w.must(err)
			release()
		}, 11},
	} {
		lock, err := p.Begin(t.Context())
		w.must(err)
		_, err = lock.Exec(t.Context(), "SELECT pg_advisory_xact_lock(4711)")
		w.must(err)
		done := make(chan error, 1)
		go func() {
			_, err := e.Update(context.Background(), "item:1", increment)
			done <- err
		}()
		c.end(waiting(), func() { w.must(lock.Rollback(context.Background())) })
		if err := <-done; !errors.Is(err, ErrUnknownOutcome) {
			t.Errorf("%s: got %v, want ErrUnknownOutcome", c.name, err)
		}
		w.want(c.name, stored(t, p), c.want)
	}
	w.wantLoads(0)
	if _, ok := w.header("item:1"); ok {
		t.Error("something was cached")
	}
}

func TestUpdateMistakes(t *testing.T) {
	t.Parallel()
	w, p := newDatabase(t, harness.Database(t))
	c, without := w.open(Options{Database: p}, hooks{}), w.open(Options{}, hooks{})
	if _, err := w.rows(without).Update(t.Context(), "item:1", increment); !errors.Is(err, ErrNoDatabase) {
		t.Errorf("got %v, want ErrNoDatabase", err)
	}
	e := w.rows(c)
	if _, err := e.Update(t.Context(), "", increment); err == nil {
		t.Error("an empty key is no error")
	}
	_, err := e.Update(t.Context(), "item:1", func(ctx context.Context, tx pgx.Tx) (int64, error) {
		return 5, tx.Conn().Close(ctx)
	})
	if err == nil || errors.Is(err, ErrUnknownOutcome) {
		t.Errorf("got %v, want an error of a known outcome: COMMIT was not sent", err)
	}
	if _, err := e.Update(t.Context(), "item:1", nil); err == nil {
		t.Error("no function is no error")
	}
	_, err = e.Get(t.Context(), "item:2", func(ctx context.Context, _ *Load) (int64, error) { return e.Update(ctx, "item:1", increment) })
	if err == nil || !strings.Contains(err.Error(), "must not write") {
		t.Errorf("got %v, want that a loader must not write", err)
	}
	_, err = e.Update(t.Context(), "item:1", func(ctx context.Context, tx pgx.Tx) (int64, error) { return 5, tx.Commit(ctx) })
	if !errors.Is(err, ErrUnknownOutcome) {
		t.Errorf("got %v, want ErrUnknownOutcome: fn has committed by itself", err)
	}
}

func TestUpdateOnStandby(t *testing.T) {
	t.Parallel()
	primary := harness.NewPostgres(t, servers.PostgresConfig{})
	standby := harness.NewStandby(t, primary, servers.StandbyConfig{})
	w := newWorld(t)
	c := w.open(Options{Database: pool(t, standby.URL("postgres"), nil)}, hooks{})
	_, err := w.rows(c).Update(t.Context(), "item:1", func(context.Context, pgx.Tx) (int64, error) {
		t.Error("fn was called")
		return 0, nil
	})
	if !errors.Is(err, ErrStandby) {
		t.Errorf("got %v, want ErrStandby", err)
	}
}

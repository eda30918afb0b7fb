package client

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
	"github.com/lethe-cache/lethe/migrations"
)

func pool(t *testing.T, url string, change func(*pgxpool.Config)) *pgxpool.Pool {
	t.Helper()
	cfg, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	cfg.MaxConns = 4
	if change != nil {
		change(cfg)
	}
	p, err := pgxpool.NewWithConfig(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// newDatabase is a world whose source is a real primary, with a table of items.
func newDatabase(t *testing.T, url string) (*world, *pgxpool.Pool) {
	t.Helper()
	p := pool(t, url, nil)
	ctx := t.Context()
	for _, sql := range []string{"CREATE TABLE item (id int PRIMARY KEY, value bigint)", "INSERT INTO item VALUES (1, 1)"} {
		if _, err := p.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	var system int64
	var timeline int32
	var insert string
	if err := p.QueryRow(ctx, wroteSQL).Scan(&insert, new(bool), &system, &timeline); err != nil {
		t.Fatal(err)
	}
	w := newWorldAt(t, harness.Redis(t).Addr(), change.Source{Era: testEra, SystemID: uint64(system), Timeline: uint32(timeline)})
	return w, p
}

// lsn is where a server writes.
func lsn(t *testing.T, p *pgxpool.Pool) uint64 {
	t.Helper()
	var text string
	if err := p.QueryRow(t.Context(), "SELECT pg_current_wal_insert_lsn()::text").Scan(&text); err != nil {
		t.Fatal(err)
	}
	n, err := change.ParseLSN(text)
	if err != nil {
		t.Fatal(err)
	}
	return uint64(n)
}

const selectItem = "SELECT value FROM item WHERE id = $1"

// refused reads a key with one statement and returns why the value was not
// cached, "" if it was.
func refused(t *testing.T, c *Client, load func(context.Context, *Load) (int64, error)) string {
	t.Helper()
	e := Entries[int64](c, "item")
	harness.Eventually(t, 10*time.Second, harness.True("live", func() bool { return c.State() == Live }))
	before := c.Stats().Classes["item"]
	if _, err := e.Get(t.Context(), "item:1", load); err != nil {
		t.Fatal(err)
	}
	c.fills.Wait()
	after := c.Stats().Classes["item"]
	for reason, n := range after.Refused {
		if n > before.Refused[reason] {
			if inL1(e, "item:1") {
				t.Errorf("the value is in L1 although it was refused: %s", reason)
			}
			return reason
		}
	}
	if after.Fills == before.Fills {
		return "neither filled nor refused"
	}
	return ""
}

func query(sql string, args ...any) func(context.Context, *Load) (int64, error) {
	return func(ctx context.Context, l *Load) (v int64, err error) {
		return v, l.QueryRow(ctx, sql, args...).Scan(&v)
	}
}

func TestLoadFromPrimary(t *testing.T) {
	t.Parallel()
	w, p := newDatabase(t, harness.Database(t))
	c := w.open(Options{Database: p, L1Bytes: -1}, hooks{})
	w.want("refused", refused(t, c, query(selectItem, 1)), "")
	h, _ := w.header("item:1")
	w.want("stamp", h.Stamp, at(100))
	w.unlink("item:1", 110)
	// Again, on a connection that is known.
	w.want("refused", refused(t, c, query(selectItem, 1)), "")

	e := Entries[int64](c, "item")
	var sum int64
	_, err := e.Get(t.Context(), "item:rows", func(ctx context.Context, l *Load) (int64, error) {
		rows, err := l.Query(ctx, "SELECT generate_series(1, 4)::bigint")
		if err != nil {
			return 0, err
		}
		defer rows.Close()
		for rows.Next() {
			var n int64
			if err := rows.Scan(&n); err != nil {
				return 0, err
			}
			sum += n
		}
		return sum, rows.Err()
	})
	w.must(err)
	w.want("sum", sum, int64(10))
	if _, err := e.Get(t.Context(), "item:none", query(selectItem, 99)); !errors.Is(err, pgx.ErrNoRows) {
		t.Errorf("got %v, want pgx.ErrNoRows", err)
	}
	if _, err := e.Get(t.Context(), "item:bad", query("SELECT nonsense")); err == nil {
		t.Error("a bad statement is no error")
	}
	if _, err := e.Get(t.Context(), "item:bad", query("SELECT 1/$1::bigint", 0)); err == nil {
		t.Error("a failing statement is no error")
	}
	w.want("connections in use", p.Stat().AcquiredConns(), int32(0))
}

func TestOwnXidNotCached(t *testing.T) {
	t.Parallel()
	w, p := newDatabase(t, harness.Database(t))
	c := w.open(Options{Database: p}, hooks{})
	w.want("refused", refused(t, c, query("UPDATE item SET value = value + 1 WHERE id = $1 RETURNING value", 1)), "own_xid")
	w.want("refused", refused(t, c, query("SELECT txid_current()")), "own_xid")
}

func TestRepeatableReadNotCached(t *testing.T) {
	t.Parallel()
	w, p := newDatabase(t, harness.Database(t))
	strict := pool(t, p.Config().ConnString(), func(cfg *pgxpool.Config) {
		cfg.ConnConfig.RuntimeParams["default_transaction_isolation"] = "repeatable read"
	})
	w.want("refused", refused(t, w.open(Options{Database: strict}, hooks{}), query(selectItem, 1)), "isolation")

	// A connection that comes from the pool with a transaction open.
	open := pool(t, p.Config().ConnString(), func(cfg *pgxpool.Config) {
		cfg.PrepareConn = func(ctx context.Context, conn *pgx.Conn) (bool, error) {
			_, err := conn.Exec(ctx, "BEGIN")
			return err == nil, err
		}
	})
	w.want("refused", refused(t, w.open(Options{Database: open}, hooks{}), query(selectItem, 1)), "transaction")
}

// The database is not the one that the invalidations come from.
func TestOldPrimaryNotCached(t *testing.T) {
	t.Parallel()
	w := newWorld(t) // system 7
	_, p := newDatabase(t, harness.Database(t))
	c := w.open(Options{Database: p}, hooks{})
	w.want("refused", refused(t, c, query(selectItem, 1)), "source")
}

func TestOpenRowsNotCached(t *testing.T) {
	t.Parallel()
	w, p := newDatabase(t, harness.Database(t))
	c := w.open(Options{Database: p}, hooks{})
	var rows pgx.Rows
	w.want("refused", refused(t, c, func(ctx context.Context, l *Load) (v int64, err error) {
		rows, err = l.Query(ctx, "SELECT generate_series(1, 3)::bigint")
		return 1, err
	}), "open_rows")
	rows.Close()
}

// written is a world in which a row is cached, and written since. The workers have
// not heard of it.
type written struct {
	*world
	p     *pgxpool.Pool
	c     *Client
	e     *Class[int64]
	x     uint64 // where the write stands
	token string
}

func newWritten(t *testing.T, wrote func(*Client, context.Context, Queryer) (string, error)) written {
	t.Helper()
	w, p := newDatabase(t, harness.Database(t))
	c := w.open(Options{Database: p, TokenWait: time.Minute}, hooks{})
	e := Entries[int64](c, "item", LoadWith(func(ctx context.Context, _ string, l *Load) (int64, error) {
		w.loads.Add(1)
		return query(selectItem, 1)(ctx, l)
	}))
	w.beat(lsn(t, p), 90)
	w.live(c)
	w.get(t.Context(), e, "item:1")
	tx, err := p.Begin(t.Context())
	w.must(err)
	_, err = tx.Exec(t.Context(), "UPDATE item SET value = 2")
	w.must(err)
	if _, err := wrote(c, t.Context(), tx); err == nil {
		t.Error("a token of a transaction that is not committed")
	}
	x := lsn(t, p)
	w.must(tx.Commit(t.Context()))
	token, err := wrote(c, t.Context(), p)
	w.must(err)
	return written{world: w, p: p, c: c, e: e, x: x, token: token}
}

func TestWroteTokens(t *testing.T) {
	t.Parallel()
	w := newWritten(t, (*Client).Wrote)
	c, e, p, x, token := w.c, w.e, w.p, w.x, w.token
	done := make(chan int64)
	go func() {
		v, _ := e.Get(c.After(context.Background(), token), "item:1")
		done <- v
	}()
	w.invalidate("item:1", x)
	w.beat(lsn(t, p), lsn(t, p))
	w.want("read your write", <-done, int64(2))
	// A refresh after the write waits for v and contains it.
	v, err := e.Refresh(c.After(t.Context(), token), "item:1")
	w.must(err)
	w.want("refreshed", v, int64(2))
}

// With a database an invalidation by hand travels through the log.
func TestInvalidateByLogicalMessage(t *testing.T) {
	t.Parallel()
	w, p := newDatabase(t, harness.Database(t))
	_, err := p.Exec(t.Context(), "SELECT pg_create_logical_replication_slot('by_hand', 'test_decoding')")
	w.must(err)
	c := w.open(Options{Database: p}, hooks{})
	w.must(c.Invalidate(t.Context(), "item:1", "item:2"))
	w.must(c.InvalidateTags(t.Context(), All("a", "b")))
	rows, err := p.Query(t.Context(), "SELECT data FROM pg_logical_slot_get_changes('by_hand', NULL, NULL) WHERE data LIKE 'message:%'")
	w.must(err)
	got, err := pgx.CollectRows(rows, pgx.RowTo[string])
	w.must(err)
	want := []string{`{"keys":["item:1","item:2"]}`, `{"tags":{"all":["a","b"]}}`}
	if len(got) != len(want) {
		t.Fatalf("got %q", got)
	}
	for i := range want {
		w.want("message", got[i], fmt.Sprintf("message: transactional: 1 prefix: lethe, sz: %d content:%s", len(want[i]), want[i]))
	}
	_, err = p.Exec(t.Context(), "SELECT pg_drop_replication_slot('by_hand')")
	w.must(err)
}

// A value read from a standby carries what the standby had replayed, and is
// refused where the table has seen more.
func TestLoadFromStandby(t *testing.T) {
	t.Parallel()
	primary := harness.NewPostgres(t, servers.PostgresConfig{})
	standby := harness.NewStandby(t, primary, servers.StandbyConfig{})
	w, p := newDatabase(t, primary.URL("postgres"))
	r := pool(t, standby.URL("postgres"), nil)
	conn, err := p.Acquire(t.Context())
	w.must(err)
	_, err = migrations.Apply(t.Context(), conn.Conn(), migrations.Options{})
	conn.Release()
	w.must(err)
	replayed := func() {
		t.Helper()
		target := lsn(t, p)
		harness.Eventually(t, 20*time.Second, func() error {
			var ok bool
			err := r.QueryRow(t.Context(), "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn AND EXISTS (SELECT FROM pg_proc WHERE proname = 'source')", change.LSN(target).String()).Scan(&ok)
			if err == nil && !ok {
				err = errors.New("the standby is behind")
			}
			return err
		})
	}
	replayed()
	c := w.open(Options{Database: r, L1Bytes: -1, TokenWait: 50 * time.Millisecond}, hooks{})
	w.want("refused", refused(t, c, query(selectItem, 1)), "")
	h, _ := w.header("item:1")
	if h.Stamp == at(100) || h.Stamp.LSN > change.LSN(lsn(t, p)) {
		t.Errorf("stamp is %v, want the standby's position", h.Stamp)
	}
	// A commit that the standby is far from having replayed.
	far := lsn(t, p) + 1<<30
	w.unlink("item:1", far)
	w.want("refused", refused(t, c, query(selectItem, 1)), coherence.RefusedTable.String())
	if _, err := Entries[int64](c, "item").Get(c.After(t.Context(), at(far).String()), "item:1", query(selectItem, 1)); !errors.Is(err, ErrBehind) {
		t.Errorf("got %v, want ErrBehind", err)
	}
	// A batch from the standby: each key is judged by its own bucket.
	batch := Entries[int64](c, "item", LoadManyWith(func(ctx context.Context, keys []string, l *BatchLoad) (map[string]int64, error) {
		var v int64
		err := l.QueryRow(ctx, selectItem, 1).Scan(&v)
		return map[string]int64{keys[0]: v, keys[1]: v}, err
	}))
	got, err := batch.GetMany(t.Context(), []string{"item:1", "item:2"})
	w.must(err)
	c.fills.Wait()
	w.want("values", len(got), 2)
	if _, ok := w.header("item:1"); ok {
		t.Error("the standby is far behind what item:1 misses, and it was cached")
	}
	h, ok := w.header("item:2")
	if !ok || h.Stamp == at(100) || h.Stamp.LSN > change.LSN(lsn(t, p)) {
		t.Errorf("stamp of item:2 is %v (stored: %v), want the standby's position", h.Stamp, ok)
	}
	// By hand, on a standby: in Redis.
	w.must(c.Invalidate(t.Context(), "item:1"))
}

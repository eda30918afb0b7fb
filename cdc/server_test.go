package cdc

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lethe-cache/lethe/internal/harness"
)

// connect opens an ordinary connection for the length of the test.
func connect(t testing.TB, url string) *pgx.Conn {
	t.Helper()
	c, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

func exec(t testing.TB, c *pgx.Conn, sql string, args ...any) {
	t.Helper()
	if _, err := c.Exec(t.Context(), sql, args...); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

func query[T any](t testing.TB, c *pgx.Conn, sql string, args ...any) T {
	t.Helper()
	var v T
	if err := c.QueryRow(t.Context(), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// slotOf names a slot after the test: slots are the server's, not the
// database's.
func slotOf(t testing.TB) string {
	s := strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, strings.ToLower(t.Name()))
	return s[:min(len(s), 63)]
}

// testLogger writes to the test's log.
func testLogger(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(testWriter{t}, nil))
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	if w.t.Context().Err() == nil { // the log is closed with the test
		w.t.Log(strings.TrimSpace(string(b)))
	}
	return len(b), nil
}

// running is a Reader at work.
type running struct {
	*Reader
	stop func() error // ends it and waits
	done chan struct{}
	err  error
}

// start runs a Reader of the publication p until the test ends.
func start(t testing.TB, url string, w *sink, configure ...func(*Config)) *running {
	t.Helper()
	cfg := Config{
		URL: url, Slot: slotOf(t), Publications: []string{"p"}, Writer: w, Logger: testLogger(t),
		MarkInterval: 10 * time.Millisecond, Heartbeat: 50 * time.Millisecond, StoreInterval: 20 * time.Millisecond,
	}
	for _, f := range configure {
		f(&cfg)
	}
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	run := &running{Reader: r, done: make(chan struct{})}
	go func() {
		defer close(run.done)
		run.err = r.Run(ctx)
	}()
	run.stop = func() error {
		cancel()
		<-run.done
		return run.err
	}
	t.Cleanup(func() { _ = run.stop() })
	return run
}

// streaming waits until the Reader reads.
func (r *running) streaming(t testing.TB) {
	t.Helper()
	harness.Eventually(t, 30*time.Second, func() error {
		select {
		case <-r.done:
			t.Fatalf("Run returned: %v", r.err)
		default:
		}
		if s := r.State(); !s.Streaming() || len(s.Raises) > 0 {
			return fmt.Errorf("state is %+v", s)
		}
		return nil
	})
}

func equal(t testing.TB, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("got\n  %s\nwant\n  %s", strings.Join(got, "\n  "), strings.Join(want, "\n  "))
	}
}

func TestServerDecodesEveryKindOfChange(t *testing.T) {
	t.Parallel()
	url := harness.Database(t)
	c := connect(t, url)
	exec(t, c, `CREATE TABLE item (id int PRIMARY KEY, name text, big text, at timestamptz, n numeric, f float8, b bytea, ok bool, gap interval, tags int[])`)
	exec(t, c, `ALTER TABLE item ALTER big SET STORAGE EXTERNAL`)
	exec(t, c, `CREATE TABLE other (id int PRIMARY KEY); CREATE TABLE quiet (id int)`)
	exec(t, c, `CREATE TABLE whole (id int, big text); ALTER TABLE whole REPLICA IDENTITY FULL; ALTER TABLE whole ALTER big SET STORAGE EXTERNAL`)
	exec(t, c, `CREATE PUBLICATION p FOR TABLE item, other, whole`)
	w := newSink()
	start(t, url, w).streaming(t)
	w.take()

	exec(t, c, `SET timezone = 'Asia/Tokyo'`)
	exec(t, c, `INSERT INTO item VALUES (1, 'a', repeat('x', 9000), '2026-01-02 03:04:05+09', 1.50, 0.1, '\x00ff', true, '1 day 2 hours', '{1,2}')`)
	exec(t, c, `UPDATE item SET name = NULL WHERE id = 1`)
	exec(t, c, `UPDATE item SET id = 2 WHERE id = 1`)
	exec(t, c, `DELETE FROM item WHERE id = 2`)
	exec(t, c, `INSERT INTO whole VALUES (1, repeat('y', 9000))`)
	exec(t, c, `UPDATE whole SET id = 2`)
	exec(t, c, `INSERT INTO quiet VALUES (1)`)
	exec(t, c, `BEGIN; INSERT INTO other VALUES (7); SELECT pg_logical_emit_message(true, 'lethe', 'tx'); TRUNCATE item, other; COMMIT`)
	exec(t, c, `SELECT pg_logical_emit_message(true, 'lethe.mine', 'x'), pg_logical_emit_message(true, 'somebody', 'x')`)
	exec(t, c, `SELECT pg_logical_emit_message(false, 'lethe', 'now')`)
	exec(t, c, `BEGIN; INSERT INTO other VALUES (8); SAVEPOINT s; INSERT INTO other VALUES (9); ROLLBACK TO s; INSERT INTO other VALUES (10); COMMIT`)
	exec(t, c, `BEGIN; INSERT INTO other VALUES (11); ROLLBACK`)
	exec(t, c, `INSERT INTO other VALUES (12)`)
	w.waitEvent(t, "insert public.other id='12'")
	rest := ` at='2026-01-01 18:04:05+00' n='1.50' f='0.1' b='\x00ff' ok='t' gap='1 day 02:00:00' tags='{1,2}'`
	absent := ` name=ABSENT big=ABSENT at=ABSENT n=ABSENT f=ABSENT b=ABSENT ok=ABSENT gap=ABSENT tags=ABSENT`
	equal(t, w.take(), []string{
		"insert public.item id='1' name='a' big=9000 bytes" + rest,
		"update public.item id='1' name=NULL big=UNCHANGED" + rest,
		"update public.item id='2' name=NULL big=UNCHANGED" + rest + " | old id='1'" + absent,
		"delete public.item | old id='2'" + absent,
		"insert public.whole id='1' big=9000 bytes",
		"update public.whole id='2' big=9000 bytes | old id='1' big=9000 bytes",
		"insert public.other id='7'",
		"message lethe tx",
		"truncate public.item",
		"truncate public.other",
		"message lethe now",
		"insert public.other id='8'",
		"insert public.other id='10'",
		"insert public.other id='12'",
	})
}

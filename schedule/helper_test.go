package schedule

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/invalidator"
	"github.com/lethe-cache/lethe/migrations"
)

func TestMain(m *testing.M) { harness.Main(m) }

// patience is how long a test waits for what must happen.
const patience = harness.Patience

// world is a database with the tables, and a slot that sees all messages.
type world struct {
	t    *testing.T
	pool *pgxpool.Pool
	slot string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	url := harness.Database(t)
	pool, err := pgxpool.New(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, pool: pool}
	t.Cleanup(pool.Close)
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	if _, err := migrations.Apply(t.Context(), conn.Conn(), migrations.Options{LockTimeout: patience}); err != nil {
		t.Fatal(err)
	}
	w.exec(`CREATE PUBLICATION p`)
	w.one(&w.slot, `SELECT slot_name FROM pg_create_logical_replication_slot('schedule_' || current_database(), 'pgoutput')`)
	t.Cleanup(func() {
		_, _ = pool.Exec(context.Background(), `SELECT pg_drop_replication_slot($1)`, w.slot)
	})
	return w
}

func (w *world) exec(sql string, args ...any) {
	w.t.Helper()
	if _, err := w.pool.Exec(w.t.Context(), sql, args...); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
}

func (w *world) one(into any, sql string, args ...any) {
	w.t.Helper()
	if err := w.pool.QueryRow(w.t.Context(), sql, args...).Scan(into); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
}

// messages takes what was emitted and committed since the call before.
func (w *world) messages() []string {
	w.t.Helper()
	rows, err := w.pool.Query(w.t.Context(), `SELECT data FROM pg_logical_slot_get_binary_changes($1, NULL, NULL,
		'proto_version', '1', 'publication_names', 'p', 'messages', 'true')`, w.slot)
	if err != nil {
		w.t.Fatal(err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowTo[[]byte])
	if err != nil {
		w.t.Fatal(err)
	}
	var out []string
	for _, m := range all {
		if m[0] != 'M' {
			continue
		}
		rest := m[10:] // flags, LSN
		end := strings.IndexByte(string(rest), 0)
		if string(rest[:end]) != "lethe" {
			continue
		}
		n := binary.BigEndian.Uint32(rest[end+1:])
		out = append(out, string(rest[end+5:end+5+int(n)]))
	}
	return out
}

func (w *world) store(owner string) *Store {
	w.t.Helper()
	// Each test has a database: the namespace is that of the owner's first letter.
	s, err := New(Config{Pool: w.pool, Namespace: owner[:1], Owner: owner})
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// run runs a store until the test, or what it returns, ends it.
func (w *world) run(s *Store) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := s.Run(ctx, nil); err != nil {
			w.t.Errorf("Run: %v", err)
		}
	}()
	stop = func() { cancel(); <-done }
	w.t.Cleanup(stop)
	return stop
}

// now is the database's clock.
func (w *world) now() (at time.Time) {
	w.t.Helper()
	w.one(&at, `SELECT clock_timestamp()`)
	return at
}

// state renders a schedule: its place, and what is due.
func (w *world) state(owner, key string) string {
	w.t.Helper()
	var text string
	err := w.pool.QueryRow(w.t.Context(), `SELECT ltrim(substr(position, 5, 16), '0') || ' ' || coalesce(message, '-')
		FROM lethe.schedules WHERE owner = $1 AND row_key = $2`, owner, key).Scan(&text)
	if errors.Is(err, pgx.ErrNoRows) {
		return "none"
	}
	if err != nil {
		w.t.Fatal(err)
	}
	return text
}

// item is the schedule of a row: no message, no schedule.
func item(key string, lsn change.LSN, at time.Time, message string) invalidator.ScheduleItem {
	it := invalidator.ScheduleItem{Rule: invalidator.ScheduleRule{ID: 7, Name: "r"}, Key: key, X: change.Position{Era: 1, LSN: lsn}, At: at}
	if message != "" {
		it.Message = []byte(message)
	}
	return it
}

func (w *world) put(s *Store, items ...invalidator.ScheduleItem) string {
	w.t.Helper()
	due, err := s.Put(w.t.Context(), invalidator.ScheduleBatch{Items: items})
	if err != nil {
		w.t.Fatal(err)
	}
	return fmt.Sprint(due)
}

// due lets the time come of all that is stored. What is due when it is put is
// not stored at all, so a time that is near is none for a test.
func (w *world) due() {
	w.t.Helper()
	w.exec(`UPDATE lethe.schedules SET due_at = clock_timestamp() WHERE due_at IS NOT NULL`)
}

// as is a pool of another role.
func (w *world) as(user string) *pgxpool.Pool {
	w.t.Helper()
	config := w.pool.Config().Copy()
	config.ConnConfig.User = user
	pool, err := pgxpool.NewWithConfig(w.t.Context(), config)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(pool.Close)
	return pool
}

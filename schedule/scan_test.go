package schedule

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/invalidator"
	"github.com/lethe-cache/lethe/rules"
)

func plan(t *testing.T, rule string) *rules.Plan {
	t.Helper()
	set, err := rules.Parse("rules.yaml", []byte("version: 1\nnamespace: shop\nrules:\n  - "+rule+"\n"))
	if err != nil {
		t.Fatal(err)
	}
	p, err := set.Compile()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func (w *world) scanner(s *Store, p *rules.Plan, position change.LSN) *Scanner {
	return &Scanner{Store: s, Plan: func() *rules.Plan { return p }, Page: 7,
		Position: func(context.Context) (change.Position, error) { return change.Position{Era: 1, LSN: position}, nil }}
}

// want asks for a scan of the plan's rule, as a worker does.
func (w *world) want(s *Store, p *rules.Plan) invalidator.ScheduleRule {
	w.t.Helper()
	r := p.Set().Rules[0]
	rule := invalidator.ScheduleRule{ID: p.ScheduleID(r), Name: r.Name}
	if _, err := s.Put(w.t.Context(), invalidator.ScheduleBatch{Read: []invalidator.ScheduleRule{rule}}); err != nil {
		w.t.Fatal(err)
	}
	return rule
}

func (w *world) keys(owner string) (keys []string) {
	w.t.Helper()
	rows, err := w.pool.Query(w.t.Context(), `SELECT row_key FROM lethe.schedules WHERE owner = $1 AND due_at IS NOT NULL ORDER BY row_key`, owner)
	if err != nil {
		w.t.Fatal(err)
	}
	if keys, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil {
		w.t.Fatal(err)
	}
	return keys
}

// Every row whose time is to come is scheduled, page by page, whatever the
// types of its key are, and none whose time was over when the scan was asked
// for.
func TestServerScan(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec(`CREATE TABLE sales (shop text, id int, product_id int, ends_at timestamptz, active bool, PRIMARY KEY (shop, id))`)
	w.exec(`INSERT INTO sales SELECT CASE WHEN i % 2 = 0 THEN 'a' ELSE 'B' END, i, i, now() + interval '1 day', true FROM generate_series(1, 50) i`)
	w.exec(`INSERT INTO sales VALUES ('past', 1, 1, now() - interval '1 day', true), ('never', 1, 1, 'infinity', true), ('null', 1, 1, NULL, true), ('off', 1, 1, now() + interval '1 day', false)`)
	p := plan(t, `{name: sale ends, table: sales, when: new.active, keys: ["product:{product_id}:{active}"], at: ends_at}`)
	s := w.store("a")
	sc := w.scanner(s, p, 0x100)
	if err := sc.Scan(t.Context()); err != nil || len(w.keys("a")) > 0 {
		t.Fatalf("a scan that nobody asked for: %v, %v", err, w.keys("a"))
	}
	w.want(s, p)
	if err := sc.Scan(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := w.keys("a"); len(got) != 50 || !slices.Contains(got, `["a","50"]`) || !slices.Contains(got, `["B","1"]`) {
		t.Errorf("%d rows scheduled: %v", len(got), got)
	}
	// Text as the log has it: t, not true.
	if got := w.state("a", `["a","50"]`); !strings.Contains(got, `"product:50:t"`) {
		t.Errorf("the schedule is %s", got)
	}
	// It was done, once.
	w.exec(`DELETE FROM lethe.schedules`)
	if err := sc.Scan(t.Context()); err != nil || len(w.keys("a")) > 0 {
		t.Errorf("scanned twice: %v, %v", err, w.keys("a"))
	}
}

// The log knows better than a scan what came after the scan's position, and the
// scan what came before.
func TestServerScanAndLog(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec(`CREATE TABLE sales (id int PRIMARY KEY, product_id int, ends_at timestamptz)`)
	w.exec(`INSERT INTO sales SELECT i, i, now() + interval '1 day' FROM generate_series(1, 3) i`)
	p := plan(t, `{name: sale ends, table: sales, keys: ["product:{product_id}"], at: ends_at}`)
	s := w.store("a")
	rule := w.want(s, p)
	later := w.now().Add(time.Hour)
	for _, it := range []invalidator.ScheduleItem{item(`["1"]`, 0x50, later, "older"), item(`["2"]`, 0x101, later, "newer"), item(`["3"]`, 0x101, time.Time{}, "")} {
		it.Rule = rule
		w.put(s, it)
	}
	if err := w.scanner(s, p, 0x100).Scan(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := w.state("a", `["1"]`); !strings.Contains(got, "product:1") {
		t.Errorf("what the log told before: %s", got)
	}
	if got := w.state("a", `["2"]`); got != "101 newer" {
		t.Errorf("what the log told after: %s", got)
	}
	if got := w.state("a", `["3"]`); got != "101 -" {
		t.Errorf("what the log took back after: %s", got)
	}
}

// A row whose time comes between the request and the scan was not due when the
// classes were raised: it has to fire.
func TestServerScanLate(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec(`CREATE TABLE sales (id int PRIMARY KEY, product_id int, ends_at timestamp)`)
	p := plan(t, `{name: sale ends, table: sales, keys: ["product:{product_id}"], at: ends_at}`)
	s := w.store("a")
	w.want(s, p)
	w.exec(`INSERT INTO sales VALUES (1, 5, (clock_timestamp() + interval '10 ms') AT TIME ZONE 'UTC')`)
	harness.Eventually(t, patience, func() error {
		var over bool
		if w.one(&over, `SELECT ends_at < clock_timestamp() AT TIME ZONE 'UTC' FROM sales`); !over {
			return errors.New("not yet")
		}
		return nil
	})
	// Asked for again, as by another partition: from the first time on.
	w.want(s, p)
	if err := w.scanner(s, p, 0x100).Scan(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Fire(t.Context()); n != 1 || err != nil {
		t.Errorf("fired %d (%v), want 1", n, err)
	}
	if got := w.messages(); len(got) != 1 || !strings.Contains(got[0], "product:5") {
		t.Errorf("messages %q", got)
	}
}

// What is asked for during a scan is not answered by it.
func TestServerScanAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec(`CREATE TABLE sales (id int PRIMARY KEY, product_id int, ends_at timestamptz)`)
	w.exec(`INSERT INTO sales VALUES (1, 1, now() + interval '1 day')`)
	p := plan(t, `{name: sale ends, table: sales, keys: ["product:{product_id}"], at: ends_at}`)
	s := w.store("a")
	w.want(s, p)
	sc := w.scanner(s, p, 0x100)
	asked := false
	sc.Position = func(ctx context.Context) (change.Position, error) {
		if !asked {
			asked = true
			w.want(s, p)
			// Nobody else takes what is at work.
			if _, ok, err := sc.take(ctx, p.ScheduleID(p.Set().Rules[0])); ok || err != nil {
				t.Errorf("a scan was taken twice (%v)", err)
			}
		}
		return change.Position{Era: 1, LSN: 0x100}, nil
	}
	if err := sc.Scan(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.exec(`INSERT INTO sales VALUES (2, 2, now() + interval '1 day')`)
	if err := sc.Scan(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := w.keys("a"); len(got) != 2 {
		t.Errorf("scheduled %v, want both rows", got)
	}
	// One that failed is due at once.
	w.want(s, p)
	sc.Position = func(context.Context) (change.Position, error) { return change.Position{}, errors.New("no position") }
	if err := sc.Scan(t.Context()); err == nil || !strings.Contains(err.Error(), "no position") {
		t.Errorf("error %v", err)
	}
	if _, ok, err := sc.take(t.Context(), p.ScheduleID(p.Set().Rules[0])); !ok || err != nil {
		t.Errorf("not due after a failure (%v)", err)
	}
}

// Tables without a key, with another identity, under a policy, without right.
func TestServerScanTables(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	const columns = `(id int NOT NULL, product_id int, ends_at date NOT NULL)`
	w.exec(`CREATE TABLE bare ` + columns)
	w.exec(`CREATE TABLE indexed ` + columns)
	w.exec(`CREATE UNIQUE INDEX indexed_id ON indexed (id); ALTER TABLE indexed REPLICA IDENTITY USING INDEX indexed_id`)
	w.exec(`CREATE TABLE whole (id int PRIMARY KEY, product_id int, ends_at date NOT NULL); ALTER TABLE whole REPLICA IDENTITY FULL`)
	w.exec(`CREATE TABLE parts (id int, product_id int, ends_at date NOT NULL, PRIMARY KEY (id, ends_at)) PARTITION BY RANGE (ends_at)`)
	w.exec(`CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM ('2020-01-01') TO ('2100-01-01')`)
	for _, c := range []struct{ table, on, key string }{
		{"bare", ", on: [insert]", `["9","9","2090-01-01"]`}, {"indexed", "", `["9"]`}, {"whole", "", `["9","9","2090-01-01"]`}, {"parts", "", `["9","2090-01-01"]`},
	} {
		w.exec(`INSERT INTO ` + c.table + ` SELECT i, i, '2090-01-01' FROM generate_series(1, 9) i`)
		p := plan(t, fmt.Sprintf(`{name: r, table: %s, keys: ["product:{product_id}"], at: ends_at%s}`, c.table, c.on))
		s := w.store(c.table)
		w.want(s, p)
		if err := w.scanner(s, p, 0x100).Scan(t.Context()); err != nil {
			t.Errorf("%s: %v", c.table, err)
		}
		if got := w.keys(c.table); len(got) != 9 || got[8] != c.key {
			t.Errorf("%s: scheduled %v, want 9 and the last %s", c.table, got, c.key)
		}
	}
	// A policy that hides rows must not hide them in silence.
	w.exec(`ALTER TABLE whole ENABLE ROW LEVEL SECURITY; ALTER TABLE whole FORCE ROW LEVEL SECURITY`)
	w.exec(`DO $$ BEGIN EXECUTE format('CREATE ROLE %I LOGIN', 'scan_' || current_database());
		EXECUTE format('GRANT ALL ON whole, lethe.schedules, lethe.schedule_scans TO %I', 'scan_' || current_database()); END $$`)
	config := w.pool.Config().Copy()
	config.ConnConfig.User = "scan_" + config.ConnConfig.Database
	conn, err := pgx.ConnectConfig(t.Context(), config.ConnConfig)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	p := plan(t, `{name: r, table: bare, keys: ["product:{product_id}"], at: ends_at, on: [insert]}`)
	var unreadable *UnreadableError
	if err := Readable(t.Context(), conn, p.Set()); !errors.As(err, &unreadable) || !strings.Contains(unreadable.Hint(), "GRANT SELECT ON public.bare TO") {
		t.Errorf("a table that may not be read: %v", err)
	}
	hidden, err := New(Config{Pool: w.as(config.ConnConfig.User), Namespace: "w", Owner: "whole"})
	if err != nil {
		t.Fatal(err)
	}
	p = plan(t, `{name: r, table: whole, keys: ["product:{product_id}"], at: ends_at}`)
	w.want(hidden, p)
	if err := w.scanner(hidden, p, 0x100).Scan(t.Context()); err == nil || !strings.Contains(err.Error(), "row-level security") {
		t.Errorf("rows that a policy hides: %v", err)
	}
}

// A position that is not there yet is no failure: every start begins so.
func TestScanWaitsForAPosition(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.exec(`CREATE TABLE sales (id int PRIMARY KEY, product_id int, ends_at timestamptz)`)
	w.exec(`INSERT INTO sales VALUES (1, 1, now() + interval '1 day')`)
	p := plan(t, `{name: sale ends, table: sales, keys: ["product:{product_id}"], at: ends_at}`)
	s := w.store("a")
	w.want(s, p)
	var said lockedLog
	s.cfg.Logger = slog.New(slog.NewTextHandler(&said, nil))
	sc := w.scanner(s, p, 0x100)
	var asked atomic.Int64
	sc.Position = func(context.Context) (change.Position, error) {
		if asked.Add(1) < 3 {
			return change.Position{}, fmt.Errorf("%w: no source", ErrNotYet)
		}
		return change.Position{Era: 1, LSN: 0x100}, nil
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- sc.Run(ctx) }()
	harness.Eventually(t, time.Minute, func() error {
		if got := w.keys("a"); len(got) != 1 {
			return fmt.Errorf("scheduled %v, want one row", got)
		}
		return nil
	})
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if text := said.String(); strings.Contains(text, "level=ERROR") {
		t.Errorf("the log of a start has errors:\n%s", text)
	}
}

// lockedLog may be written by a goroutine and read by a test.
type lockedLog struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lockedLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lockedLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

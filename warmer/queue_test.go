package warmer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/invalidator"
	"github.com/lethe-cache/lethe/rules"
)

const patience = harness.Patience

// queued is a bundle with a queue.
type queued struct {
	*bundle
	*Queue
	t *testing.T
}

func newQueued(t *testing.T, cfg QueueConfig) *queued {
	t.Helper()
	b := newBundle(t)
	b.record(t)
	cfg.Warmer = b.Warmer
	q, err := NewQueue(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return &queued{bundle: b, Queue: q, t: t}
}

// run runs the queue until the test is over.
func (q *queued) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- q.Run(ctx) }()
	q.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			q.t.Errorf("Run: %v", err)
		}
	})
}

// ask asks for entries, each as if it had been there.
func (q *queued) ask(locals ...string) {
	q.t.Helper()
	for _, l := range locals {
		q.askWith(invalidator.Rewarm{Outcome: coherence.OutcomeDeleted}, l)
	}
}

func (q *queued) askWith(r invalidator.Rewarm, local string) {
	q.t.Helper()
	r.Name = q.set.FullName(local)
	if r.Class = q.set.ClassOf([]byte(r.Name)); r.Class == nil {
		q.t.Fatalf("%s has no class", local)
	}
	q.Queue.Rewarm([]invalidator.Rewarm{r})
}

// total is how many entries of a class came to a result.
func (q *queued) total(class, result string) int {
	return int(testutil.ToFloat64(q.Queue.w.cfg.Metrics.rewarms.WithLabelValues(class, result)))
}

func (q *queued) wait(class, result string, n int) {
	q.t.Helper()
	harness.Eventually(q.t, patience, func() error {
		if got := q.total(class, result); got < n {
			return fmt.Errorf("%d entries of %s are %s, want %d", got, class, result, n)
		}
		return nil
	})
}

// empty waits until nothing is to be filled any more.
func (q *queued) empty() {
	q.t.Helper()
	harness.Eventually(q.t, patience, harness.True("queue is empty", func() bool {
		q.mu.Lock()
		defer q.mu.Unlock()
		return len(q.mu.items) == 0
	}))
}

func (q *queued) value(local string) string {
	q.t.Helper()
	raw, err := q.rdb.Get(q.t.Context(), q.set.FullName(local)).Bytes()
	if errors.Is(err, redis.Nil) {
		return "absent"
	}
	if err != nil {
		q.t.Fatal(err)
	}
	h, payload, err := coherence.Parse(raw)
	switch {
	case err != nil:
		return string(raw)
	case h.State != coherence.StateValue:
		return string(h.State)
	}
	return string(payload)
}

func (q *queued) header(local string) coherence.Header {
	q.t.Helper()
	raw, err := q.rdb.Get(q.t.Context(), q.set.FullName(local)).Bytes()
	if err != nil {
		return coherence.Header{}
	}
	h, _, _ := coherence.Parse(raw)
	return h
}

// invalidate does what a worker does, with X at the insert LSN.
func (q *queued) invalidate(action coherence.Action, locals ...string) {
	q.t.Helper()
	lsn, err := q.loader.InsertLSN(q.t.Context(), change.Source{})
	if err != nil {
		q.t.Fatal(err)
	}
	var list []coherence.Invalidation
	for _, l := range locals {
		list = append(list, coherence.Invalidation{
			Name: q.set.FullName(l), X: change.Position{Era: 1, LSN: lsn}, Action: action, Plain: strings.HasPrefix(l, "raw:"),
		})
	}
	if _, err := q.store.Invalidate(q.t.Context(), list); err != nil {
		q.t.Fatal(err)
	}
}

func TestQueueFillsAgain(t *testing.T) {
	t.Parallel()
	q := newQueued(t, QueueConfig{})
	q.run()
	q.ask("product:1", "product:2", "product:77", "raw:1", "versioned:2", "versioned:10")
	q.empty()
	for local, want := range map[string]string{
		"product:1": `{"id":1,"name":"p1","category_id":1}`, "product:77": "E", "raw:1": `{"id":1,"name":"p1"}`,
		"versioned:2": `{"id":2,"name":"p2"}`, "versioned:2@3": `{"id":2,"name":"p2"}`, "versioned:10": "E",
	} {
		if got := q.value(local); got != want {
			t.Errorf("%s is %q, want %q", local, got, want)
		}
	}
	if h := q.header("product:77"); !h.Lease.IsFree() {
		t.Errorf("lease %+v of what has no row: readers would wait for it", h.Lease)
	}
	if a, b, c := q.total("product", resultStored), q.total("product", resultNoRow), q.total("versioned", resultOversize); a != 2 || b != 1 || c != 1 {
		t.Errorf("stored %d, no row %d, oversize %d", a, b, c)
	}
}

func TestQueueConditions(t *testing.T) {
	t.Parallel()
	q := newQueued(t, QueueConfig{Hot: hotNames{"product:3"}})
	present, hot := invalidator.Rewarm{If: rules.IfPresent}, invalidator.Rewarm{If: rules.IfHot}
	q.askWith(present, "product:1") // was not there
	q.askWith(invalidator.Rewarm{Outcome: coherence.OutcomeDeleted, If: rules.IfPresent}, "product:2")
	q.askWith(present, "product:2") // is to be filled: it counts as there
	q.askWith(hot, "product:3")
	q.askWith(hot, "product:4")
	q.askWith(invalidator.Rewarm{Outcome: coherence.OutcomeKept}, "product:5")
	q.askWith(invalidator.Rewarm{}, "product:6")
	q.run()
	q.empty()
	for n, want := range map[string]bool{"1": false, "2": true, "3": true, "4": false, "5": false, "6": true} {
		if got := q.value("product:" + n); (got != "absent") != want {
			t.Errorf("product:%s is %q, filled want %v", n, got, want)
		}
	}
	for result, want := range map[string]int{resultAbsent: 1, resultMerged: 1, resultCold: 1, resultKept: 1, resultStored: 3} {
		if got := q.total("product", result); got != want {
			t.Errorf("%s %d, want %d", result, got, want)
		}
	}
}

type hotNames []string

func (h hotNames) Hot(class, name string) bool {
	return slices.ContainsFunc(h, func(n string) bool { return class == "product" && strings.HasSuffix(name, ":"+n) })
}

// One that is overtaken by an invalidation stores nothing, and is loaded again:
// what it read may be from before.
func TestQueueIsCancelledByANewerInvalidation(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name, local string
		action      coherence.Action
	}{
		{"Exact", "product:1", coherence.ActionKeep}, {"Stale", "product:1", coherence.ActionStale}, {"Plain", "raw:1", coherence.ActionDelete},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			q := newQueued(t, QueueConfig{})
			class := q.set.ClassOf([]byte(q.set.FullName(test.local))).Name
			conn := q.conn()
			q.exec(conn, "BEGIN", "LOCK TABLE products IN ACCESS EXCLUSIVE MODE")
			q.run()
			q.ask(test.local)
			q.loading() // it has its ticket and waits for the row
			q.exec(conn, "UPDATE products SET name = 'new' WHERE id = 1")
			// The load reads what was there before the commit or after it: both
			// are right for a loader. Here it is sure to have begun before.
			q.invalidate(test.action, test.local)
			q.ask(test.local)
			q.exec(conn, "COMMIT")
			q.wait(class, resultCancelled, 1)
			q.wait(class, resultStored, 1)
			q.empty()
			if got := q.value(test.local); !strings.Contains(got, `"new"`) {
				t.Errorf("%s is %q, want the new row", test.local, got)
			}
			if n := q.total(class, resultMerged); n != 1 {
				t.Errorf("merged %d, want 1", n)
			}
		})
	}
}

// loading waits until a load of the queue waits for a lock.
func (q *queued) loading() {
	q.t.Helper()
	conn := q.conn()
	harness.Eventually(q.t, patience, func() error {
		var n int
		if err := conn.QueryRow(q.t.Context(), "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE NOT granted AND a.application_name = 'lethe' AND a.datname = current_database()").Scan(&n); err != nil {
			return err
		}
		if n == 0 {
			return errors.New("no load waits")
		}
		return nil
	})
}

func (q *queued) conn() *pgx.Conn {
	q.t.Helper()
	conn, err := pgx.Connect(q.t.Context(), q.loader.cfg.URL)
	if err != nil {
		q.t.Fatal(err)
	}
	q.t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func (q *queued) exec(conn *pgx.Conn, sql ...string) {
	q.t.Helper()
	for _, s := range sql {
		if _, err := conn.Exec(q.t.Context(), s); err != nil {
			q.t.Fatalf("%s: %v", s, err)
		}
	}
}

// Who loads already is left alone, and what he stores is what there is.
func TestQueueLeavesALeaseAlone(t *testing.T) {
	t.Parallel()
	for _, local := range []string{"product:1", "raw:1"} {
		t.Run(local, func(t *testing.T) {
			t.Parallel()
			q := newQueued(t, QueueConfig{})
			name := q.set.FullName(local)
			class := q.set.ClassOf([]byte(name))
			control, err := q.store.Control(t.Context(), class.Name)
			if err != nil {
				t.Fatal(err)
			}
			// Long enough for the reader to store before it is over; the queue waits for it.
			reader := coherence.Lease{Holder: [8]byte{1}, Until: time.Now().Add(5 * time.Second).UnixMicro()}
			b, err := q.store.Begin(t.Context(), coherence.BeginRequest{
				Name: name, Known: control.Known(class.Name), Plain: class.Mode == rules.Plain, Lease: reader,
			})
			if err != nil || !b.Mine {
				t.Fatalf("Begin: %+v, %v", b, err)
			}
			q.run()
			q.ask(local)
			if _, err := q.store.Fill(t.Context(), coherence.FillRequest{Ticket: b.Ticket, Payload: []byte("the reader's"), TTL: time.Minute}); err != nil {
				t.Fatal(err)
			}
			q.wait(class.Name, resultPresent, 1)
			q.empty()
			if got := q.value(local); got != "the reader's" {
				t.Errorf("%s is %q, want the reader's", local, got)
			}
			if n := testutil.CollectAndCount(q.Queue.w.cfg.Metrics.loads); n != 0 {
				t.Errorf("the database was asked for what a reader loads")
			}
		})
	}
}

// A reader that died with its lease is waited for no longer than that lasts.
func TestQueueTakesALeaseThatIsOver(t *testing.T) {
	t.Parallel()
	q := newQueued(t, QueueConfig{})
	control, err := q.store.Control(t.Context(), "product")
	if err != nil {
		t.Fatal(err)
	}
	gone := coherence.Lease{Holder: [8]byte{1}, Until: time.Now().Add(50 * time.Millisecond).UnixMicro()}
	if _, err := q.store.Begin(t.Context(), coherence.BeginRequest{
		Name: q.set.FullName("product:1"), Known: control.Known("product"), Lease: gone,
	}); err != nil {
		t.Fatal(err)
	}
	q.run()
	q.ask("product:1")
	q.wait("product", resultStored, 1)
}

// While it loads, readers see a lease to wait for; of a stale value too.
func TestQueueHoldsTheLease(t *testing.T) {
	t.Parallel()
	for _, action := range []coherence.Action{coherence.ActionKeep, coherence.ActionStale} {
		t.Run(fmt.Sprint(action), func(t *testing.T) {
			t.Parallel()
			q := newQueued(t, QueueConfig{})
			q.run()
			q.ask("product:1")
			q.wait("product", resultStored, 1)
			conn := q.conn()
			q.exec(conn, "BEGIN", "LOCK TABLE products IN ACCESS EXCLUSIVE MODE")
			q.invalidate(action, "product:1")
			q.ask("product:1")
			q.loading()
			h := q.header("product:1")
			if h.Lease.Holder != q.Queue.w.leases.holder || left(h.Lease) <= 0 {
				t.Errorf("lease %+v while it is loaded", h.Lease)
			}
			if want := map[coherence.Action]coherence.State{coherence.ActionKeep: coherence.StateEmpty, coherence.ActionStale: coherence.StateStale}[action]; h.State != want {
				t.Errorf("state %c while it is loaded, want %c", h.State, want)
			}
			q.exec(conn, "ROLLBACK")
			q.wait("product", resultStored, 2)
			if got := q.value("product:1"); !strings.Contains(got, "p1") || q.header("product:1").Lease != (coherence.Lease{}) {
				t.Errorf("product:1 is %q with lease %+v", got, q.header("product:1").Lease)
			}
		})
	}
}

func TestQueueDropsTheOldest(t *testing.T) {
	t.Parallel()
	q := newQueued(t, QueueConfig{Limit: 3})
	q.askWith(invalidator.Rewarm{Delay: time.Hour}, "product:1")
	q.ask("product:2", "product:3", "product:4", "product:5")
	if n := q.total("product", resultDropped); n != 2 {
		t.Errorf("dropped %d, want 2", n)
	}
	q.run()
	q.empty()
	for n, want := range map[string]bool{"1": false, "2": false, "3": true, "4": true, "5": true} {
		if got := q.value("product:" + n); (got != "absent") != want {
			t.Errorf("product:%s is %q, filled want %v", n, got, want)
		}
	}
}

// Many entries of one class do not make those of another wait.
func TestQueueTakesClassesInTurn(t *testing.T) {
	t.Parallel()
	q := newQueued(t, QueueConfig{})
	for i := range 9 {
		q.ask(fmt.Sprintf("product:%d", i+1))
	}
	q.ask("raw:1", "versioned:1")
	var order []string
	q.mu.Lock()
	for batch := q.take(time.Now()); batch != nil; batch = q.take(time.Now()) {
		order = append(order, fmt.Sprint(batch[0].class, len(batch)))
	}
	q.mu.Unlock()
	if got, want := fmt.Sprint(order), "[product4 raw1 versioned1 product4 product1]"; got != want {
		t.Errorf("batches %s, want %s", got, want)
	}
}

// A window begins with the first change, and those within do not move it.
func TestQueueDelays(t *testing.T) {
	t.Parallel()
	q := newQueued(t, QueueConfig{})
	q.askWith(invalidator.Rewarm{Delay: time.Minute}, "product:1")
	first := q.mu.items[q.set.FullName("product:1")].due
	q.askWith(invalidator.Rewarm{Delay: time.Minute}, "product:1")
	q.askWith(invalidator.Rewarm{Delay: time.Hour}, "product:1")
	if it := q.mu.items[q.set.FullName("product:1")]; !it.due.Equal(first) || it.state != itemDelayed {
		t.Errorf("due %v, want %v", it.due, first)
	}
	if len(q.take(time.Now())) != 0 {
		t.Error("it is loaded before it is due")
	}
}

// What waits when the process ends is abandoned, and so is what comes later.
func TestQueueStops(t *testing.T) {
	t.Parallel()
	q := newQueued(t, QueueConfig{})
	conn := q.conn()
	q.exec(conn, "BEGIN", "LOCK TABLE products IN ACCESS EXCLUSIVE MODE")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- q.Run(ctx) }()
	q.ask("product:1")
	q.loading()
	q.askWith(invalidator.Rewarm{Delay: time.Hour}, "product:2")
	cancel()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(patience):
		t.Fatal("Run does not end: a load holds it")
	}
	q.ask("product:3")
	if n := q.total("product", resultStopped); n != 3 {
		t.Errorf("stopped %d, want 3", n)
	}
	if h := q.header("product:1"); !h.Lease.IsFree() {
		t.Errorf("lease %+v of a load that was given up: readers would wait for it", h.Lease)
	}
	q.exec(conn, "ROLLBACK")
}

// A database that is away costs tries, and no more.
func TestQueueWaitsForTheDatabase(t *testing.T) {
	t.Parallel()
	q := newQueued(t, QueueConfig{})
	conn := q.conn()
	q.exec(conn, "BEGIN", "ALTER TABLE products RENAME TO away",
		`CREATE FUNCTION starting() RETURNS SETOF away LANGUAGE plpgsql AS $$ BEGIN RAISE 'the database is starting' USING ERRCODE = '57P03'; END $$`,
		"CREATE VIEW products AS SELECT * FROM starting()", "COMMIT")
	q.run()
	q.ask("product:1")
	harness.Eventually(t, patience, harness.True("it was tried", func() bool {
		q.mu.Lock()
		defer q.mu.Unlock()
		it := q.mu.items[q.set.FullName("product:1")]
		return it != nil && it.tries >= 2
	}))
	q.exec(conn, "BEGIN", "DROP VIEW products", "DROP FUNCTION starting", "ALTER TABLE away RENAME TO products", "COMMIT")
	q.wait("product", resultStored, 1)
}

// A statement that is wrong is not tried again: it would fail alike.
func TestQueueGivesUpAWrongStatement(t *testing.T) {
	t.Parallel()
	q := newQueued(t, QueueConfig{})
	q.ask("product:1", "product:2")
	q.mu.Lock()
	batch := q.take(time.Now())
	q.failed(batch[0], fmt.Errorf("load: %w", &pgconn.PgError{Code: "42703"}), time.Now())
	q.failed(batch[1], fmt.Errorf("load: %w", &pgconn.PgError{Code: "57P03"}), time.Now())
	q.mu.Unlock()
	if batch[0].state != itemGone || batch[1].state != itemDelayed || q.total("product", resultGivenUp) != 1 {
		t.Errorf("states %d and %d, given up %d; want the wrong statement's alone given up", batch[0].state, batch[1].state, q.total("product", resultGivenUp))
	}
}

// What is invalidated while it is loaded is loaded again although it was stored:
// whether before the invalidation or after it nobody knows.
func TestQueueLoadsAgainWhatWasInvalidatedMeanwhile(t *testing.T) {
	t.Parallel()
	q := newQueued(t, QueueConfig{})
	q.ask("product:1", "product:2")
	q.mu.Lock()
	batch := q.take(time.Now())
	q.mu.Unlock()
	q.ask("product:1")
	q.mu.Lock()
	for _, it := range batch {
		q.ended(it, fate{kind: fateStored}, time.Now())
	}
	next := q.take(time.Now())
	q.mu.Unlock()
	if len(batch) != 2 || len(next) != 1 || next[0].name != q.set.FullName("product:1") {
		t.Errorf("loaded %d, then %d, want both and then product:1", len(batch), len(next))
	}
}

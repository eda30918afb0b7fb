package warmer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/rules"
)

// warm makes a warm-up of the bundle's rules.
func (b *bundle) warm(t testing.TB, fields string) *rules.Warm {
	t.Helper()
	text := strings.ReplaceAll(fillRules, "NS", b.set.Namespace) + "warm:\n  - {" + fields + "}\n"
	return parse(t, text).Warm[0]
}

func (b *bundle) warmups(t testing.TB) *Warmups {
	t.Helper()
	u, err := NewWarmups(WarmupConfig{Warmer: b.Warmer, Cache: b.set.Namespace})
	if err != nil {
		t.Fatal(err)
	}
	u.jitter = func(time.Duration) time.Duration { return 0 }
	return u
}

func (b *bundle) connect(t testing.TB) *pgx.Conn {
	t.Helper()
	conn, err := b.loader.connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), "SET default_transaction_read_only = off"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// A run fills what is absent, of rows that come twice each once; rows that name
// nothing are passed by.
func TestWarmupFillsWhatIsAbsent(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.record(t)
	u := b.warmups(t)
	b.fillOK(t, "product", Options{}, Result{Stored: 1}, "product:3")
	w := b.warm(t, `entry: product, sql: "SELECT id, 1 AS other FROM products UNION ALL SELECT id, 2 FROM products UNION ALL SELECT NULL, 3 UNION ALL SELECT 77, 4"`)
	p, err := u.Run(t.Context(), w, RunOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// Ten rows, twice; which of a pair is in one batch with the other is not said.
	if p.State != "done" || p.Rows != 22 || p.Of != 22 || p.Result.Stored != 9 || p.Result.NoRow != 1 || p.Result.Present < 1 {
		t.Errorf("run: %+v", p)
	}
	p, err = u.Run(t.Context(), b.warm(t, `entry: product, sql: "SELECT id FROM products ORDER BY id;", limit: 4`), RunOptions{})
	if err != nil || p.Rows != 4 || p.Of != 4 || p.Result.Present != 4 || p.Result.Stored != 0 {
		t.Errorf("second run: %+v, %v", p, err)
	}
	if got := testutil.ToFloat64(u.cfg.Metrics.read.WithLabelValues("product")); got != 26 {
		t.Errorf("lethe_warm_rows_total = %v, want 26", got)
	}
	if got := testutil.ToFloat64(u.cfg.Metrics.success.WithLabelValues("product")); got < float64(time.Now().Add(-time.Hour).Unix()) {
		t.Errorf("lethe_warm_last_success_timestamp_seconds = %v", got)
	}
}

func TestWarmupOfPlainEntriesLeavesWhatIsThere(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.record(t)
	name := b.set.FullName("raw:2")
	if err := b.rdb.Set(t.Context(), name, "mine", 0).Err(); err != nil {
		t.Fatal(err)
	}
	p, err := b.warmups(t).Run(t.Context(), b.warm(t, `entry: raw, sql: "SELECT id FROM products WHERE id < 4"`), RunOptions{})
	if err != nil || p.Result.Stored != 2 || p.Result.Present != 1 {
		t.Errorf("run: %+v, %v", p, err)
	}
	if got := b.rdb.Get(t.Context(), name).Val(); got != "mine" {
		t.Errorf("raw:2 is %q: what was there was replaced", got)
	}
}

// A warm-up is no way around the protocol: what was invalidated since the
// ticket was taken is not stored.
func TestWarmupIsRefusedByAnInvalidation(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.record(t)
	control, err := b.store.Control(t.Context(), "product")
	if err != nil {
		t.Fatal(err)
	}
	name := b.set.FullName("fn:1")
	b.loader.cfg.Funcs = map[string]LoaderFunc{"bare": func(ctx context.Context, keys []string) (map[string]Value, error) {
		// It has read the row, and then the row changes.
		name = b.set.FullName(keys[0])
		_, err := b.store.Invalidate(ctx, []coherence.Invalidation{{Name: name, X: control.V, Action: coherence.ActionDelete}})
		return map[string]Value{keys[0]: {JSON: []byte(`{"old":true}`)}}, err
	}}
	p, err := b.warmups(t).Run(t.Context(), b.warm(t, `entry: bare, sql: "SELECT 1 AS id"`), RunOptions{})
	if err != nil || p.Result.Stored != 0 || p.Result.Refused["absent"] != 1 {
		t.Errorf("run: %+v, %v", p, err)
	}
	if n := b.rdb.Exists(t.Context(), name).Val(); n != 0 {
		t.Errorf("%s holds a value that was read before its invalidation", name)
	}
}

// A class that is raised in the middle of a run: nothing of the old generation
// can be read, and the next run fills all of it again.
func TestWarmupAcrossARaise(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.record(t)
	u := b.warmups(t)
	first := true
	b.loader.cfg.Funcs = map[string]LoaderFunc{"bare": func(ctx context.Context, keys []string) (map[string]Value, error) {
		if first {
			first = false
			if _, err := b.store.Raise(ctx, coherence.RaiseRequest{Classes: []string{"bare"}, Cause: "test"}); err != nil {
				return nil, err
			}
		}
		out := map[string]Value{}
		for _, k := range keys {
			out[k] = Value{JSON: []byte(`1`)}
		}
		return out, nil
	}}
	w := b.warm(t, `entry: bare, sql: "SELECT generate_series(1, 3) AS id"`)
	if _, err := u.Run(t.Context(), w, RunOptions{}); err != nil {
		t.Fatal(err)
	}
	p, err := u.Run(t.Context(), w, RunOptions{})
	if err != nil || p.Result.Stored != 3 || p.Result.Present != 0 {
		t.Errorf("after the raise: %+v, %v: what was filled with the old generation counted as there", p, err)
	}
}

// One runs at a time, whoever asks: the second is told so, or waits.
func TestWarmupOneAtATime(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.record(t)
	in, let := make(chan struct{}), make(chan struct{})
	var first, second atomic.Bool
	b.loader.cfg.Funcs = map[string]LoaderFunc{"bare": func(context.Context, []string) (map[string]Value, error) {
		if first.CompareAndSwap(false, true) {
			close(in)
			<-let
		} else {
			second.Store(true)
		}
		return nil, nil
	}}
	w := b.warm(t, `entry: bare, sql: "SELECT 1 AS id"`)
	one, other := b.warmups(t), b.warmups(t)
	done := make(chan error, 2)
	var runs sync.WaitGroup
	release := sync.OnceFunc(func() { close(let) })
	defer func() { release(); runs.Wait() }()
	runs.Go(func() { _, err := one.Run(t.Context(), w, RunOptions{}); done <- err })
	<-in
	if p, err := other.Run(t.Context(), w, RunOptions{}); !errors.Is(err, ErrWarming) || p.State != "skipped" {
		t.Fatalf("a second run: %+v, %v, want ErrWarming", p, err)
	}
	runs.Go(func() { _, err := other.Run(t.Context(), w, RunOptions{Wait: true}); done <- err })
	harness.Eventually(t, 30*time.Second, func() error {
		if p, ok := other.Running(); !ok || p.Error != ErrWarming.Error() {
			return fmt.Errorf("the run that waits says %+v", p)
		}
		return nil
	})
	if second.Load() {
		t.Error("the one that waits has loaded")
	}
	release()
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// Two processes with one schedule run each instant once.
func TestWarmupInstantOnce(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.record(t)
	w := b.warm(t, `entry: product, sql: "SELECT id FROM products", every: 1h`)
	at := time.Unix(1_800_000_000, 0)
	run := func(u *Warmups, due time.Time) string {
		p, err := u.Run(t.Context(), w, RunOptions{due: due})
		if err != nil {
			t.Fatal(err)
		}
		return p.State
	}
	one, two := b.warmups(t), b.warmups(t)
	got := []string{run(one, at), run(two, at), run(two, at.Add(time.Hour)), run(one, at), run(one, at.Add(time.Hour))}
	if want := "done skipped done skipped skipped"; strings.Join(got, " ") != want {
		t.Errorf("runs: %v, want %s", got, want)
	}
	// One that failed was none.
	wrong := *w
	wrong.SQL = "SELECT 1/0 AS id"
	if _, err := one.Run(t.Context(), &wrong, RunOptions{due: at}); err == nil {
		t.Fatal("a division by zero succeeded")
	}
	if last, err := b.store.Warmed(t.Context(), wrong.ID()); err != nil || !last.IsZero() {
		t.Errorf("a run that failed counts as one: %v, %v", last, err)
	}
}

// A statement that hangs ends with the deadline; nothing hangs with it.
func TestWarmupDeadline(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.record(t)
	u := b.warmups(t)
	w := b.warm(t, `entry: product, sql: "SELECT id FROM products, pg_sleep(600)", deadline: 1s`)
	p, err := u.Run(t.Context(), w, RunOptions{})
	if !errors.Is(err, ErrDeadline) || p.State != "deadline" {
		t.Errorf("run: %+v, %v, want the deadline", p, err)
	}
	if _, ok := u.Running(); ok {
		t.Error("it still runs")
	}
}

func TestWarmupErrors(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.record(t)
	u := b.warmups(t)
	for fields, want := range map[string]string{
		`entry: product, sql: "SELECT x FROM products"`:                                        "does not exist",
		`entry: product, sql: "SELECT id AS ident FROM products"`:                              "no column",
		`entry: product, sql: "DELETE FROM products RETURNING id"`:                             "syntax error",
		`entry: product, sql: "SELECT id FROM products) AS x; DROP TABLE products; SELECT (1"`: "multiple commands",
		`entry: product, sql: "SELECT nextval('s') AS id"`:                                     "read-only",
		`entry: bare, sql: "SELECT 1 AS id"`:                                                   "no loader",
	} {
		if strings.Contains(fields, "nextval") {
			if _, err := b.connect(t).Exec(t.Context(), "CREATE SEQUENCE s"); err != nil {
				t.Fatal(err)
			}
		}
		p, err := u.Run(t.Context(), b.warm(t, fields), RunOptions{})
		if err == nil || !strings.Contains(err.Error(), want) || p.State != "failed" {
			t.Errorf("%s: %+v, %v, want an error with %q", fields, p.State, err, want)
		}
	}
	if b.fillOK(t, "product", Options{}, Result{Stored: 1}, "product:1"); t.Failed() {
		t.Log("the table is gone")
	}
}

// A load.sql without what a tag needs is not tried again: no time cures it, and
// what waits for the run would wait for nothing.
func TestWarmupThatCanNotFillEndsAtOnce(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.record(t)
	u := b.warmups(t)
	var said bytes.Buffer
	u.log = slog.New(slog.NewTextHandler(&said, nil))
	p, err := u.Run(t.Context(), b.warm(t, `entry: unfit, sql: "SELECT id FROM products"`), RunOptions{})
	if err == nil || !strings.Contains(err.Error(), "load.sql does not fit") || p.State != "failed" {
		t.Errorf("run: %s, %v, want it to say that load.sql does not fit", p.State, err)
	}
	if strings.Contains(said.String(), "tries again") {
		t.Errorf("it was tried again:\n%s", said.String())
	}
}

// Shutdown in the middle of a run: it ends at once, and the lock is free.
func TestWarmupStops(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.record(t)
	in := make(chan struct{})
	b.loader.cfg.Funcs = map[string]LoaderFunc{"bare": func(ctx context.Context, _ []string) (map[string]Value, error) {
		close(in)
		<-ctx.Done()
		return nil, ctx.Err()
	}}
	w := b.warm(t, `entry: bare, sql: "SELECT 1 AS id", on_start: true, every: 1h`)
	plan, err := parse(t, strings.ReplaceAll(fillRules, "NS", b.set.Namespace)+"warm: [{entry: bare, sql: 'SELECT 1 AS id', on_start: true, every: 1h}]\n").Compile()
	if err != nil {
		t.Fatal(err)
	}
	b.Warmer.cfg.Rules = func() *rules.Plan { return plan }
	u := b.warmups(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- u.Serve(ctx) }()
	<-in
	if list, over := u.Starting(); over || len(list) != 1 || !strings.Contains(list[0].String(), "bare: 0 of 1") {
		t.Errorf("at the start: %v, %v", list, over)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Serve: %v", err)
	}
	list, over := u.Starting()
	if !over || list[0].State != "stopped" {
		t.Errorf("after the stop: %+v, %v", list, over)
	}
	b.loader.cfg.Funcs = map[string]LoaderFunc{"bare": func(context.Context, []string) (map[string]Value, error) { return nil, nil }}
	if _, err := b.warmups(t).Run(t.Context(), w, RunOptions{Wait: true}); err != nil {
		t.Errorf("the next run: %v", err)
	}
}

// What is to be run at the start runs in the order of priority, once the cache
// is ready; one that fails is over after its deadline, and holds up nobody for
// ever.
func TestWarmupsAtTheStart(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.record(t)
	text := strings.ReplaceAll(fillRules, "NS", b.set.Namespace) + `
warm:
  - {entry: raw, sql: "SELECT id FROM products", on_start: true, deadline: 1s, priority: 80}
  - {entry: product, sql: "SELECT nothing", on_start: true, deadline: 1h, priority: 90}
  - {entry: product, sql: "SELECT id FROM products", on_start: true}
  - {entry: versioned, sql: "SELECT id FROM products"}
`
	plan, err := parse(t, text).Compile()
	if err != nil {
		t.Fatal(err)
	}
	b.Warmer.cfg.Rules = func() *rules.Plan { return plan }
	// One that time may cure, and does not.
	b.loader.cfg.Funcs = map[string]LoaderFunc{"raw": func(context.Context, []string) (map[string]Value, error) { return nil, errors.New("not today") }}
	u := b.warmups(t)
	ready := make(chan struct{})
	u.cfg.Ready = func() bool {
		select {
		case <-ready:
			return true
		default:
			return false
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- u.Serve(ctx) }()
	harness.Eventually(t, 30*time.Second, func() error {
		if list, _ := u.Starting(); len(list) != 3 {
			return fmt.Errorf("at the start: %v", list)
		}
		return nil
	})
	if n := b.rdb.Exists(t.Context(), b.set.FullName("product:1")).Val(); n != 0 {
		t.Error("it was warmed before the cache was ready")
	}
	close(ready)
	harness.Eventually(t, 60*time.Second, func() error {
		if list, over := u.Starting(); !over {
			return fmt.Errorf("at the start: %v", list)
		}
		return nil
	})
	cancel()
	<-done
	var got []string
	list, _ := u.Starting()
	for _, p := range list {
		got = append(got, p.Entry+" "+strings.ReplaceAll(p.State, "deadline", "failed"))
	}
	if want := "product failed, raw failed, product done"; strings.Join(got, ", ") != want {
		t.Errorf("at the start: %v, want %s", got, want)
	}
	if n := b.rdb.Exists(t.Context(), b.set.FullName("versioned:1")).Val(); n != 0 {
		t.Error("what is not to be run at the start was")
	}
}

// A schedule runs, and again; a reload that takes it out ends it.
func TestWarmupSchedule(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.record(t)
	set := parse(t, strings.ReplaceAll(fillRules, "NS", b.set.Namespace)+"warm: [{entry: product, sql: 'SELECT id FROM products', every: 1s}]\n")
	with, err := set.Compile()
	if err != nil {
		t.Fatal(err)
	}
	without, err := b.set.Compile()
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	plan := with
	b.Warmer.cfg.Rules = func() *rules.Plan { mu.Lock(); defer mu.Unlock(); return plan }
	u := b.warmups(t)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- u.Serve(ctx) }()
	runs := func() float64 { return testutil.ToFloat64(u.cfg.Metrics.runs.WithLabelValues("product", "done")) }
	harness.Eventually(t, 60*time.Second, func() error {
		if n := runs(); n < 2 {
			return fmt.Errorf("%v runs", n)
		}
		return nil
	})
	mu.Lock()
	plan = without
	mu.Unlock()
	if last, err := b.store.Warmed(t.Context(), set.Warm[0].ID()); err != nil || last.Nanosecond() != 0 {
		t.Errorf("warmed for %v, %v: the instants are those of the clock", last, err)
	}
	cancel()
	<-done
}

func planOf(p *rules.Plan) func() *rules.Plan { return func() *rules.Plan { return p } }

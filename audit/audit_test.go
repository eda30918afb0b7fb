package audit

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/rules"
	"github.com/lethe-cache/lethe/warmer"
)

func TestMain(m *testing.M) { harness.Main(m) }

var bundles atomic.Uint64

const auditRules = `
version: 1
namespace: NS
entries:
  product:
    key: product:{id}
    load: {sql: "SELECT id, name, price FROM products WHERE id = ANY(@id)"}
  raw:
    key: raw:{id}
    mode: plain
    load: {sql: "SELECT id, name FROM products WHERE id = ANY(@id)"}
  bare: {key: "bare:{id}"}
`

type bundle struct {
	t      *testing.T
	set    *rules.Set
	store  *coherence.Store
	rdb    *redis.Client
	conn   *pgx.Conn
	warm   *warmer.Warmer
	source change.Source
	cfg    Config
}

func newBundle(t *testing.T) *bundle {
	t.Helper()
	ns := "audit-" + strconv.FormatUint(bundles.Add(1), 10)
	b := &bundle{t: t}
	url := harness.Database(t)
	var err error
	check := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	b.conn, err = pgx.Connect(t.Context(), url)
	check(err)
	b.exec(`CREATE TABLE products (id bigint PRIMARY KEY, name text, price numeric)`)
	b.exec(`INSERT INTO products SELECT i, 'p' || i, i + 0.5 FROM generate_series(1, 30) i`)
	b.set, err = rules.Parse("rules.yaml", []byte(strings.ReplaceAll(auditRules, "NS", ns)))
	check(err)
	plan, err := b.set.Compile()
	check(err)
	b.store, err = coherence.Dial(t.Context(), harness.Redis(t).URL(), coherence.Options{Namespace: ns})
	check(err)
	o, err := redis.ParseURL(harness.Redis(t).URL())
	check(err)
	b.rdb = redis.NewClient(o)
	loader, err := warmer.OpenLoader(t.Context(), warmer.LoaderConfig{URL: url})
	check(err)
	t.Cleanup(func() {
		loader.Close()
		_ = b.rdb.Close()
		_ = b.store.Close()
		_ = b.conn.Close(context.Background())
	})
	b.warm, err = warmer.New(warmer.Config{Store: b.store, Loader: loader, Rules: func() *rules.Plan { return plan }})
	check(err)
	loaded, err := loader.Load(t.Context(), b.set, b.set.Class("product"), b.names("product:1"))
	check(err)
	b.source = loaded.Source
	b.source.Era = 1
	_, err = b.store.SetSource(t.Context(), b.source)
	check(err)
	b.cfg = Config{Store: b.store, Cache: OnRedis(b.rdb), Plan: plan, Loader: loader, Batch: 7, Wait: 20 * time.Second}
	var ids []uint64
	for _, u := range b.set.Units() {
		ids = append(ids, u.ID)
	}
	_, err = b.store.WriteRules(t.Context(), coherence.PartitionStep, "test", ids, true)
	check(err)
	b.applied(t.Context())
	return b
}

func (b *bundle) exec(sql string, args ...any) {
	b.t.Helper()
	if _, err := b.conn.Exec(b.t.Context(), sql, args...); err != nil {
		b.t.Fatal(err)
	}
}

func (b *bundle) names(locals ...string) []string {
	out := make([]string, len(locals))
	for i, l := range locals {
		out[i] = b.set.FullName(l)
	}
	return out
}

// applied says that everything up to now is applied, as a worker's heartbeat.
func (b *bundle) applied(ctx context.Context) {
	lsn, err := b.cfg.Loader.InsertLSN(ctx, b.source)
	if err == nil {
		p := change.Position{Era: 1, LSN: lsn}
		_, _, err = b.store.Broadcast(ctx, coherence.Message{Kind: coherence.KindHeartbeat, V: p, W: p})
	}
	if err != nil && ctx.Err() == nil {
		b.t.Error(err)
	}
}

// beating sends heartbeats until the test ends or stop is called.
func (b *bundle) beating() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var wait sync.WaitGroup
	wait.Go(func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			b.applied(ctx)
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
		}
	})
	var once sync.Once
	stop = func() { once.Do(func() { cancel(); wait.Wait() }) }
	b.t.Cleanup(stop)
	return stop
}

func (b *bundle) fill(class string, from, to int) {
	b.t.Helper()
	var names []string
	for i := from; i <= to; i++ {
		names = append(names, b.set.FullName(class+":"+strconv.Itoa(i)))
	}
	if r, err := b.warm.Fill(b.t.Context(), class, names, warmer.Options{}); err != nil || r.Stored != len(names) {
		b.t.Fatalf("Fill = %+v, %v", r, err)
	}
}

func (b *bundle) compare() *Report {
	b.t.Helper()
	r, err := Compare(b.t.Context(), b.cfg)
	if err != nil {
		b.t.Fatal(err)
	}
	return r
}

func found(r *Report) string {
	var out []string
	for _, f := range r.Findings {
		_, local, _ := strings.Cut(f.Name, ":")
		out = append(out, fmt.Sprintf("%s %s", f.Kind, local))
	}
	return strings.Join(out, ", ")
}

func TestCompareFindsNothing(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.fill("product", 1, 30)
	b.fill("raw", 1, 5)
	r := b.compare()
	if !r.OK() || r.Checked != 35 || len(r.Findings) != 0 || len(r.Skipped) != 1 {
		t.Errorf("report %+v", r)
	}
	b.cfg.Classes = []string{"raw"}
	if r := b.compare(); r.Checked != 5 {
		t.Errorf("checked %d of class raw, want 5", r.Checked)
	}
	b.cfg.Classes = []string{"bare"}
	if _, err := Compare(t.Context(), b.cfg); !errors.Is(err, warmer.ErrNoLoader) {
		t.Errorf("Compare of a class without loader: %v", err)
	}
}

func TestCompareFindsWhatIsStale(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.fill("product", 1, 10)
	b.fill("raw", 1, 3)
	b.exec(`UPDATE products SET name = 'new' WHERE id = 3`)
	b.exec(`DELETE FROM products WHERE id = 8`)
	b.exec(`UPDATE products SET name = 'new' WHERE id = 2`)
	if _, err := b.store.Invalidate(t.Context(), []coherence.Invalidation{{Name: b.names("product:2")[0], Action: coherence.ActionDelete}}); err != nil {
		t.Fatal(err)
	}
	b.beating()
	r := b.compare()
	if r.OK() || r.Stale != 4 || r.Missing != 1 || r.Unsettled != 0 {
		t.Errorf("report %+v", r)
	}
	for _, want := range []string{"stale product:3", "gone product:8", "stale raw:2", "stale raw:3"} {
		if !strings.Contains(found(r), want) {
			t.Errorf("findings %s lack %s", found(r), want)
		}
	}
	for _, f := range r.Findings {
		if f.Kind == KindStale && f.Class == "product" && (string(f.Cached) != `{"id":3,"name":"p3","price":3.5}` || string(f.Truth) != `{"id":3,"name":"new","price":3.5}`) {
			t.Errorf("finding %s: cached %s, truth %s", f.Name, f.Cached, f.Truth)
		}
	}
}

func TestCompareLeavesOutWhatIsNotServed(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.fill("product", 1, 6)
	b.beating()
	if _, err := b.store.Raise(t.Context(), coherence.RaiseRequest{Cause: "test", Classes: []string{"product"}}); err != nil {
		t.Fatal(err)
	}
	b.exec(`UPDATE products SET name = 'new'`)
	b.fill("product", 1, 4)
	// 5 and 6 are dead; 1 becomes a ticket, 2 marked, 3 nonsense, 4 a list.
	n := b.names("product:1", "product:2", "product:3", "product:4", "product:9")
	b.rdb.Del(t.Context(), n[0], n[3])
	if _, err := b.store.Begin(t.Context(), coherence.BeginRequest{Name: n[0]}); err != nil {
		t.Fatal(err)
	}
	x := change.Position{Era: 1, LSN: 1 << 60}
	if _, err := b.store.Invalidate(t.Context(), []coherence.Invalidation{{Name: n[1], X: x, Action: coherence.ActionStale}}); err != nil {
		t.Fatal(err)
	}
	b.rdb.Set(t.Context(), n[2], "nonsense", 0)
	b.rdb.LPush(t.Context(), n[3], "x")
	h := coherence.Header{State: coherence.StateValue, Generation: 1 << 62, HardExpiry: 1, Codec: coherence.CodecJSON}
	expired, err := h.Append(nil, []byte(`{"id":9,"name":"old"}`))
	if err != nil {
		t.Fatal(err)
	}
	b.rdb.Set(t.Context(), n[4], expired, 0)
	r := b.compare()
	if r.Checked != 0 || r.Dead != 2 || r.Empty != 1 || r.Marked != 1 || r.Undecodable != 2 || r.Expired != 1 || !r.OK() {
		t.Errorf("report %+v", r)
	}
}

// changing lets something happen behind the first reading of the entries.
type changing struct {
	Cache
	once sync.Once
	then func()
}

func (c *changing) Values(ctx context.Context, keys []string) ([]Value, error) {
	v, err := c.Cache.Values(ctx, keys)
	c.once.Do(c.then)
	return v, err
}

func TestCompareWaitsForWhatIsInFlight(t *testing.T) {
	t.Parallel()
	for _, applied := range []bool{true, false} {
		t.Run(map[bool]string{true: "Applied", false: "Lost"}[applied], func(t *testing.T) {
			t.Parallel()
			b := newBundle(t)
			b.fill("product", 1, 5)
			b.cfg.Batch = 100
			b.cfg.Cache = &changing{Cache: b.cfg.Cache, then: func() {
				b.exec(`UPDATE products SET name = 'new'`)
				if applied {
					var batch []coherence.Invalidation
					for i := 1; i <= 5; i++ {
						batch = append(batch, coherence.Invalidation{Name: b.set.FullName("product:" + strconv.Itoa(i)), Action: coherence.ActionDelete})
					}
					if _, err := b.store.Invalidate(t.Context(), batch); err != nil {
						t.Error(err)
					}
				}
				b.beating()
			}}
			r := b.compare()
			if want := map[bool]int{true: 0, false: 5}[applied]; r.Stale != want || r.Checked != 5 || r.Unsettled != 0 {
				t.Errorf("report %+v, want %d stale", r, want)
			}
		})
	}
	t.Run("Unsettled", func(t *testing.T) {
		t.Parallel()
		b := newBundle(t)
		b.fill("product", 1, 5)
		b.exec(`UPDATE products SET name = 'new' WHERE id < 3`)
		b.cfg.Wait = time.Millisecond // and no heartbeat
		if r := b.compare(); r.Stale != 0 || r.Unsettled != 2 || r.OK() {
			t.Errorf("report %+v, want 2 unsettled", r)
		}
	})
}

func TestEqualRows(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		cached, row       string
		equal, comparable bool
	}{
		{`{"id":1,"price":1.5}`, `{"id":1,"price":1.50}`, true, true},
		{`{"ID":1,"Price":1.5,"extra":1}`, `{"id":1,"price":1.5,"more":2}`, true, true},
		{`{"id":1}`, `{"id":2}`, false, true},
		{`{"id":9007199254740993}`, `{"id":9007199254740992}`, false, true},
		{`{"at":"2024-01-02T03:04:05Z"}`, `{"at":"2024-01-02T04:04:05+01:00"}`, true, true},
		{`{"a":null}`, `{"a":null}`, true, true},
		{`{"a":null}`, `{"a":0}`, false, true},
		{`{"a":[1,{"b":2.0}]}`, `{"a":[1.0,{"b":2}]}`, true, true},
		{`{"a":[1]}`, `{"a":[1,2]}`, false, true},
		{`{"a":{"b":1}}`, `{"a":{"c":1}}`, false, true},
		{`{"a":1e400000000}`, `{"a":2e400000000}`, false, true},
		{`{"x":1}`, `{"y":1}`, true, false},
		{`<p>`, `{"y":1}`, false, false},
		{`5`, `{"y":1}`, false, false},
	} {
		equal, comparable := equalRows([]byte(test.cached), []byte(test.row))
		if comparable != test.comparable || comparable && equal != test.equal {
			t.Errorf("equalRows(%s, %s) = %v, %v", test.cached, test.row, equal, comparable)
		}
	}
}

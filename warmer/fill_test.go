package warmer

import (
	"context"
	"errors"
	"maps"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/rules"
)

var bundles atomic.Uint64

// bundle is a database with rows, a Redis with its source recorded, a Warmer.
type bundle struct {
	*Warmer
	set    *rules.Set
	store  *coherence.Store
	rdb    *redis.Client
	loader *Loader
	source change.Source
}

const fillRules = `
version: 1
namespace: NS
entries:
  product:
    key: product:{id}
    ttl: 1h
    load: {sql: "SELECT id, name, category_id FROM products WHERE id = ANY(@id)"}
    tags: [ "category:{category_id}" ]
  raw:
    key: raw:{id}
    mode: plain
    ttl: never
    load: {sql: "SELECT id, name FROM products WHERE id = ANY(@id)"}
  versioned:
    key: versioned:{id}
    versions: [1, 3]
    max_value: 40
    load: {sql: "SELECT id, name FROM products WHERE id = ANY(@id)"}
  bare:
    key: bare:{id}
  unfit:
    key: unfit:{id}
    load: {sql: "SELECT id + 0 AS id, name FROM products WHERE id = ANY(@id)"}
    tags: [ "category:{category_id}" ]
`

func newBundle(t *testing.T) *bundle {
	t.Helper()
	url, _ := database(t,
		`CREATE TABLE products (id bigint PRIMARY KEY, name text, category_id int)`,
		`INSERT INTO products SELECT i, 'p' || i, i % 2 FROM generate_series(1, 9) i`,
		`INSERT INTO products VALUES (10, repeat('x', 100), 1)`)
	return newBundleOn(t, LoaderConfig{URL: url, Batch: 4})
}

func newBundleOn(t *testing.T, cfg LoaderConfig) *bundle {
	t.Helper()
	ns := "warmer-" + strconv.FormatUint(bundles.Add(1), 10)
	b := &bundle{set: parse(t, strings.ReplaceAll(fillRules, "NS", ns)), loader: loader(t, cfg)}
	var err error
	if b.store, err = coherence.Dial(t.Context(), harness.Redis(t).URL(), coherence.Options{Namespace: ns}); err != nil {
		t.Fatal(err)
	}
	o, err := redis.ParseURL(harness.Redis(t).URL())
	if err != nil {
		t.Fatal(err)
	}
	b.rdb = redis.NewClient(o)
	t.Cleanup(func() { _, _ = b.store.Close(), b.rdb.Close() })
	plan, err := b.set.Compile()
	if err != nil {
		t.Fatal(err)
	}
	if b.Warmer, err = New(Config{Store: b.store, Loader: b.loader, Rules: func() *rules.Plan { return plan }}); err != nil {
		t.Fatal(err)
	}
	orig, err := (&request{pool: b.loader.pool}).identify(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	b.source = orig.source
	b.source.Era = 1
	return b
}

// follow lets the one partition of the log be worked on by the bundle's rules.
func (b *bundle) follow(t testing.TB) {
	t.Helper()
	b.followed(t, b.Warmer.cfg.Rules().Set())
}

// followed lets it be worked on by a set.
func (b *bundle) followed(t testing.TB, set *rules.Set) {
	t.Helper()
	var ids []uint64
	for _, u := range set.Units() {
		ids = append(ids, u.ID)
	}
	if _, err := b.store.WriteRules(t.Context(), coherence.PartitionStep, "test", ids, false); err != nil {
		t.Fatal(err)
	}
}

// record writes the source, seeds, and lets v stand at the insert LSN.
func (b *bundle) record(t *testing.T) {
	t.Helper()
	if _, err := b.store.SetSource(t.Context(), b.source); err != nil {
		t.Fatal(err)
	}
	b.follow(t)
	lsn, err := b.loader.InsertLSN(t.Context(), b.source)
	if err != nil {
		t.Fatal(err)
	}
	p := change.Position{Era: 1, LSN: lsn}
	if _, err := b.store.Seed(t.Context(), func(context.Context) (change.Position, error) { return p, nil }); err != nil {
		t.Fatal(err)
	}
	if _, _, err := b.store.Broadcast(t.Context(), coherence.Message{Kind: coherence.KindHeartbeat, V: p}); err != nil {
		t.Fatal(err)
	}
}

func (b *bundle) names(locals ...string) []string {
	out := make([]string, len(locals))
	for i, l := range locals {
		out[i] = b.set.FullName(l)
	}
	return out
}

func (b *bundle) fillOK(t *testing.T, class string, o Options, want Result, locals ...string) {
	t.Helper()
	got, err := b.Fill(t.Context(), class, b.names(locals...), o)
	if err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(got.Refused, want.Refused) {
		t.Errorf("refused %v, want %v", got.Refused, want.Refused)
	}
	got.Refused, want.Refused = nil, nil
	if got.Stored != want.Stored || got.Present != want.Present || got.NoRow != want.NoRow || got.Oversize != want.Oversize {
		t.Errorf("Fill = %+v, want %+v", got, want)
	}
}

func TestFillExact(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.record(t)
	b.fillOK(t, "product", Options{}, Result{Stored: 6, NoRow: 1}, "product:1", "product:2", "product:3", "product:4", "product:5", "product:6", "product:77")
	raw, err := b.rdb.Get(t.Context(), b.set.FullName("product:3")).Bytes()
	if err != nil {
		t.Fatal(err)
	}
	h, payload, err := coherence.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(payload), `{"id":3,"name":"p3","category_id":1}`; got != want {
		t.Errorf("payload %s, want %s", got, want)
	}
	if h.Codec != coherence.CodecJSON || h.Stamp.Era != 1 || h.Stamp.LSN == 0 || len(h.Names) != 1 || h.Names[0].Name != b.set.FullName("category:1") || h.HardExpiry == 0 || h.Filled == 0 {
		t.Errorf("header %+v", h)
	}
	members, _, err := b.store.Members(t.Context(), b.set.FullName("category:1"), 0, 100)
	if err != nil || len(members) != 3 {
		t.Errorf("members of category:1: %q, %v", members, err)
	}
	b.fillOK(t, "product", Options{IfAbsent: true}, Result{Stored: 1, Present: 2}, "product:1", "product:2", "product:7")
	b.fillOK(t, "product", Options{}, Result{Stored: 2}, "product:1", "product:2")
}

func TestFillPlainAndVersions(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.record(t)
	b.fillOK(t, "raw", Options{}, Result{Stored: 2, NoRow: 1}, "raw:1", "raw:2", "raw:77")
	if got, err := b.rdb.Get(t.Context(), b.set.FullName("raw:2")).Result(); err != nil || got != `{"id":2,"name":"p2"}` {
		t.Errorf("raw:2 is %q, %v", got, err)
	}
	b.fillOK(t, "versioned", Options{}, Result{Stored: 2, Oversize: 2}, "versioned:1", "versioned:10")
	for _, k := range []string{"versioned:1", "versioned:1@3"} {
		if n, err := b.rdb.Exists(t.Context(), b.set.FullName(k)).Result(); err != nil || n != 1 {
			t.Errorf("%s exists: %d, %v", k, n, err)
		}
	}
}

func TestFillRefusedByInvalidation(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.record(t)
	class := b.set.Class("product")
	control, err := b.store.Control(t.Context(), "product")
	if err != nil {
		t.Fatal(err)
	}
	names := b.names("product:1", "product:2", "product:3")
	load := batch{w: b.Warmer, class: class, names: names, known: control.Known("product"), fates: make([]fate, len(names))}
	if err := load.begin(t.Context()); err != nil {
		t.Fatal(err)
	}
	if load.loaded, err = b.loader.Load(t.Context(), b.set, class, names); err != nil {
		t.Fatal(err)
	}
	// Between the load and the fill one key is invalidated, and one tag purged.
	x := control.V
	if _, err := b.store.Invalidate(t.Context(), []coherence.Invalidation{{Name: names[1], X: x, Action: coherence.ActionDelete}}); err != nil {
		t.Fatal(err)
	}
	if err := b.store.OpenPurge(t.Context(), coherence.Purge{X: x, Tags: b.names("category:1")}, x); err != nil {
		t.Fatal(err)
	}
	if err := load.store(t.Context(), names, 1); err != nil {
		t.Fatal(err)
	}
	r := load.result
	if r.Stored != 0 || r.Refused["absent"] != 1 || r.Refused["table"] != 2 {
		t.Errorf("Fill = %+v, want one refused as absent and two by the table", r)
	}
}

func TestFillChecksTheSource(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	if _, err := b.Fill(t.Context(), "product", b.names("product:1"), Options{}); !errors.Is(err, coherence.ErrNoSource) {
		t.Errorf("without a source: %v, want ErrNoSource", err)
	}
	b.source.SystemID++
	b.follow(t)
	if _, err := b.store.SetSource(t.Context(), b.source); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Fill(t.Context(), "product", b.names("product:1"), Options{}); !errors.Is(err, ErrOtherSource) {
		t.Errorf("another system: %v, want ErrOtherSource", err)
	}
	if _, err := b.Fill(t.Context(), "bare", b.names("bare:1"), Options{}); !errors.Is(err, ErrNoLoader) {
		t.Errorf("class without loader: %v, want ErrNoLoader", err)
	}
	if _, err := b.Fill(t.Context(), "nobody", nil, Options{}); err == nil {
		t.Error("unknown class: no error")
	}
}

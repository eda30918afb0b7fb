package invalidator

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/rules"
	"github.com/lethe-cache/lethe/stream"
	"github.com/lethe-cache/lethe/stream/direct"
)

func TestMain(m *testing.M) { harness.Main(m) }

// patience is how long a test waits for what must happen.
const patience = harness.Patience

const shopRules = `
version: 1
namespace: %s
entries:
  product:
    key: product:{id}
    tags: [ "category:{category_id}", "brand:{brand}" ]
  kept:
    key: kept:{id}
    keep: true
  raw:
    key: raw:{id}
    mode: plain
rules:
  - name: product
    table: public.products
    keys: [ "product:{id}" ]
  - name: kept
    table: public.products
    keys: [ "kept:{id}" ]
  - name: raw
    table: public.products
    keys: [ "raw:{id}" ]
  - name: category
    table: public.categories
    tags: [ "category:{id}" ]
  - name: both
    table: public.deals
    tags: {all: [ "category:{category_id}", "brand:{brand}" ]}
  - name: stale
    table: public.hints
    keys: [ "product:{id}" ]
    action: stale
  - name: loose
    table: public.loose
    keys: [ "loose:{id}" ]
  - name: raws
    table: public.raws
    keys: [ "raw:{id}" ]
  - name: products only
    table: public.things
    keys: [ "product:{id}" ]
`

// tables of the shop, in the order of their columns.
var shopTables = func() map[string]*change.Table {
	out := map[string]*change.Table{}
	for name, columns := range map[string][]string{
		"products": {"id", "name"}, "categories": {"id"}, "deals": {"category_id", "brand"}, "hints": {"id"}, "loose": {"id"}, "raws": {"id"}, "things": {"id"},
	} {
		t := &change.Table{ID: uint32(len(out) + 1), Schema: "public", Name: name, Identity: change.IdentityFull}
		for _, c := range columns {
			t.Columns = append(t.Columns, change.Column{Name: c, Type: 25, Key: true})
		}
		out[name] = t
	}
	return out
}()

var testSource = change.Source{Era: 1, SystemID: 7, Timeline: 1}

// world is a log, a Redis and the things between them.
type world struct {
	t     testing.TB
	cfg   Config
	set   *rules.Set
	store *coherence.Store
	rdb   *redis.Client
	log   *direct.Log
	dead  *letters

	source change.Source
	insert atomic.Uint64
	seq    uint64
	lsn    change.LSN
	xid    uint64
}

type worldConfig struct {
	url   string                   // default the shared Redis
	rules string                   // default shopRules
	store func(*coherence.Options) // may be nil
	cfg   func(*Config)            // may be nil
	// debounce, if set, is what a rule has that says rules.DebounceMax.
	debounce time.Duration
	dial     func() (*redis.Client, *coherence.Store, error) // instead of url
}

var worlds atomic.Uint64

func newWorld(t testing.TB, c worldConfig) *world {
	t.Helper()
	// A test may run more than once on the shared server.
	ns := strings.ToLower(harness.Namespace(t)) + "-" + strconv.FormatUint(worlds.Add(1), 10)
	if c.rules == "" {
		c.rules = shopRules
	}
	set, err := rules.Parse("rules.yaml", fmt.Appendf(nil, c.rules, ns))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range set.Rules {
		if c.debounce > 0 && r.Debounce == rules.DebounceMax {
			r.Debounce = c.debounce
		}
	}
	w := &world{t: t, set: set, dead: &letters{}, source: testSource, lsn: 1000, xid: 100}
	w.insert.Store(900)
	opts := coherence.Options{Namespace: ns}
	if c.store != nil {
		c.store(&opts)
	}
	if c.dial != nil {
		w.rdb, w.store, err = c.dial()
	} else {
		if c.url == "" {
			c.url = harness.Redis(t).URL()
		}
		w.store, err = coherence.Dial(t.Context(), c.url, opts)
		if err == nil {
			var o *redis.Options
			if o, err = redis.ParseURL(c.url); err == nil {
				w.rdb = redis.NewClient(o)
			}
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = w.rdb.Close()
		_ = w.store.Close()
	})
	compiled, err := NewRules(set)
	if err != nil {
		t.Fatal(err)
	}
	w.cfg = Config{
		Store: w.store, Rules: func() *Rules { return compiled }, DeadLetters: w.dead,
		InsertLSN:      func(context.Context) (change.LSN, error) { return change.LSN(w.insert.Load()), nil },
		HeartbeatEvery: 5 * time.Millisecond, CheckEvery: 20 * time.Millisecond,
	}
	if c.cfg != nil {
		c.cfg(&w.cfg)
	}
	w.newLog()
	return w
}

func (w *world) newLog() {
	w.log = direct.New(direct.Config{Keep: time.Millisecond})
	w.seq = 0
	t := w.t
	log := w.log
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = log.Close(ctx)
	})
}

// letters keeps dead letters.
type letters struct {
	mu    sync.Mutex
	list  []stream.DeadLetter
	until map[time.Time]time.Duration // what was left of each deadline at the first try under it
	err   error
}

func (l *letters) Put(ctx context.Context, d stream.DeadLetter) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if deadline, ok := ctx.Deadline(); ok && l.until[deadline] == 0 {
		if l.until == nil {
			l.until = map[time.Time]time.Duration{}
		}
		l.until[deadline] = time.Until(deadline)
	}
	if l.err != nil {
		return l.err
	}
	l.list = append(l.list, d)
	return nil
}

func (l *letters) all() []stream.DeadLetter {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.list)
}

// waits are the times that the tries of the letters were given.
func (l *letters) waits() []time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Collect(maps.Values(l.until))
}

// running is a worker at work.
type running struct {
	*Worker
	t    testing.TB
	stop context.CancelFunc
	done chan error
	over bool
}

// worker makes a worker of the world and sets it to work.
func (w *world) worker(prepare ...func(*Worker)) *running {
	w.t.Helper()
	worker, err := New(w.cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, p := range prepare {
		p(worker)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{Worker: worker, t: w.t, stop: cancel, done: make(chan error, 1)}
	log := w.log
	go func() { r.done <- log.Run(ctx, worker.Work) }()
	w.t.Cleanup(func() {
		if !r.over {
			r.Hurry()
			r.drain()
		}
	})
	return r
}

// drain stops it as the first signal does, and waits.
func (r *running) drain() {
	r.t.Helper()
	r.stop()
	r.wait()
}

// kill stops it as the second signal does, and waits.
func (r *running) kill() {
	r.t.Helper()
	r.Hurry()
	r.stop()
	r.wait()
}

func (r *running) wait() {
	r.t.Helper()
	r.over = true
	select {
	case err := <-r.done:
		if err != nil && !errors.Is(err, ErrHurry) {
			r.t.Errorf("worker ended with %v", err)
		}
	case <-time.After(patience):
		r.t.Fatal("worker did not end")
	}
}

// row is a change of one row: table, values in the order of its columns.
func row(op change.Op, table string, values ...string) change.Change {
	c := change.Change{Op: op, Table: shopTables[table]}
	var r change.Row
	for _, v := range values {
		r = append(r, change.Value{Kind: change.Text, Bytes: []byte(v)})
	}
	switch op {
	case change.Insert:
		c.New = r
	case change.Delete:
		c.Old = r
	case change.Update:
		c.Old, c.New = r, r
	}
	return c
}

func update(table string, values ...string) change.Change {
	return row(change.Update, table, values...)
}

// nextCommit gives changes a commit of their own.
func (w *world) nextCommit(changes ...change.Change) []change.Change {
	w.lsn += 100
	w.xid++
	w.insert.Store(uint64(w.lsn) + 200)
	c := &change.Commit{XID: w.xid, LSN: w.lsn, End: w.lsn + 48, Time: time.Now()}
	for i := range changes {
		changes[i].Commit, changes[i].Ordinal = c, uint32(i)
	}
	return changes
}

// x is the position of the last commit.
func (w *world) x() change.Position { return change.Position{Era: w.source.Era, LSN: w.lsn} }

// hand appends a record behind which v stands.
func (w *world) hand(v change.LSN, changes []change.Change, raises ...change.Raise) {
	w.t.Helper()
	w.seq++
	r := &change.Record{Source: w.source, V: v, Changes: changes, Raises: raises}
	if err := w.log.Append(w.t.Context(), stream.Batch{Seq: w.seq, Record: r}); err != nil {
		w.t.Fatal(err)
	}
}

// commit hands a commit on, with v behind it.
func (w *world) commit(changes ...change.Change) {
	w.t.Helper()
	changes = w.nextCommit(changes...)
	w.hand(w.lsn+50, changes)
}

// settle waits until all that was handed on is acknowledged.
func (w *world) settle() {
	w.t.Helper()
	deadline := time.After(patience)
	for w.log.Durable() < w.seq {
		select {
		case <-w.log.Advanced():
		case <-deadline:
			w.t.Fatalf("batch %d of %d acknowledged", w.log.Durable(), w.seq)
		}
	}
}

func (w *world) name(local string) string { return w.set.FullName(local) }

// plain reports whether the class of a local name is plain.
func (w *world) plain(local string) bool {
	c := w.set.ClassOf([]byte(w.name(local)))
	return c == nil || c.Mode == rules.Plain
}

func (w *world) className(local string) string {
	if c := w.set.ClassOf([]byte(w.name(local))); c != nil {
		return c.Name
	}
	return "none"
}

// begin takes the ticket of an entry, as a reader does at a miss.
func (w *world) begin(local string) coherence.Begun {
	w.t.Helper()
	class := w.className(local)
	control, err := w.store.Control(w.t.Context(), class)
	if err != nil {
		w.t.Fatal(err)
	}
	b, err := w.store.Begin(w.t.Context(), coherence.BeginRequest{Name: w.name(local), Known: control.Known(class), Plain: w.plain(local)})
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

// fill does what a reader does behind its load.
func (w *world) fill(b coherence.Begun, value string, tags ...string) coherence.Reason {
	w.t.Helper()
	r := coherence.FillRequest{Ticket: b.Ticket, Payload: []byte(value), Header: coherence.Header{Codec: coherence.CodecRaw}}
	for _, tag := range tags {
		reason, err := w.store.Register(w.t.Context(), coherence.RegisterRequest{Name: w.name(tag), Member: b.Ticket.Name, Stamp: r.RegisterStamp()})
		if err != nil {
			w.t.Fatal(err)
		}
		if reason != coherence.Stored {
			return reason
		}
		r.Header.Names = append(r.Header.Names, coherence.Name{Kind: coherence.NameTag, Name: w.name(tag)})
	}
	reason, err := w.store.Fill(w.t.Context(), r)
	if err != nil {
		w.t.Fatal(err)
	}
	return reason
}

// cache fills an entry and fails the test if that is refused.
func (w *world) cache(local, value string, tags ...string) {
	w.t.Helper()
	if reason := w.fill(w.begin(local), value, tags...); reason != coherence.Stored {
		w.t.Fatalf("fill %s: %v", local, reason)
	}
}

// state is what a client would see under a key: value, "stale", "dead" (an
// older generation), "empty" or "absent".
func (w *world) state(local string) string {
	w.t.Helper()
	s, err := w.look(local)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func (w *world) look(local string) (string, error) {
	raw, err := w.rdb.Get(w.t.Context(), w.name(local)).Bytes()
	if errors.Is(err, redis.Nil) {
		return "absent", nil
	}
	if err != nil {
		return "", err
	}
	if w.plain(local) {
		return string(raw), nil
	}
	h, payload, err := coherence.Parse(raw)
	if err != nil {
		return "", err
	}
	class := w.className(local)
	control, err := w.store.Control(w.t.Context(), class)
	switch {
	case err != nil:
		return "", err
	case h.State == coherence.StateEmpty:
		return "empty", nil
	case h.Generation < control.Known(class).Generation:
		return "dead", nil
	case h.State == coherence.StateStale:
		return "stale", nil
	}
	return string(payload), nil
}

func (w *world) wantState(local, want string) {
	w.t.Helper()
	if got := w.state(local); got != want {
		w.t.Errorf("%s is %q, want %q", local, got, want)
	}
}

// ready starts a worker, hands a first mark on and waits until it is applied
// and the tables are seeded: the state in which clients may cache.
func (w *world) ready(prepare ...func(*Worker)) *running {
	w.t.Helper()
	r := w.worker(prepare...)
	w.hand(w.lsn+50, nil)
	w.settle()
	w.waitReady(r)
	w.waitV(w.lsn + 50)
	return r
}

// waitV waits until clients know v: the next heartbeat brings that of a mark.
func (w *world) waitV(v change.LSN) {
	w.t.Helper()
	harness.Eventually(w.t, patience, func() error {
		control, err := w.store.Control(w.t.Context())
		if err == nil && control.V.LSN < v {
			err = fmt.Errorf("v is %v, want %v", control.V, v)
		}
		return err
	})
}

func (w *world) waitReady(r *running) {
	w.t.Helper()
	harness.Eventually(w.t, patience, func() error {
		if why := r.Unready(); len(why) > 0 {
			return fmt.Errorf("not ready: %s", strings.Join(why, "; "))
		}
		return nil
	})
}

// messages returns the broadcasts since a number, from the stream.
func (w *world) messages() []coherence.Message {
	w.t.Helper()
	entries, err := w.rdb.XRange(w.t.Context(), w.store.Layout().Control("stream"), "-", "+").Result()
	if err != nil {
		w.t.Fatal(err)
	}
	var out []coherence.Message
	for _, e := range entries {
		m, err := coherence.ParseMessage([]byte(e.Values["m"].(string)))
		if err != nil {
			w.t.Fatal(err)
		}
		out = append(out, m)
	}
	return out
}

// kinds renders messages shortly: "keys product:1", "purge ...".
func (w *world) kinds(from int) []string {
	var out []string
	for _, m := range w.messages()[from:] {
		names := make([]string, len(m.Names))
		for i, n := range m.Names {
			names[i] = strings.TrimPrefix(n, w.set.Namespace+":")
		}
		out = append(out, strings.TrimSpace(string(m.Kind)+" "+strings.Join(names, ",")))
	}
	return out
}

func itoa(n int) string { return strconv.Itoa(n) }

package agree

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lethe-cache/lethe/cdc"
	"github.com/lethe-cache/lethe/cdc/catalog"
	"github.com/lethe-cache/lethe/cdc/publication"
	"github.com/lethe-cache/lethe/cdc/source"
	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/explain"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/invalidator"
	"github.com/lethe-cache/lethe/migrations"
	"github.com/lethe-cache/lethe/rules"
	"github.com/lethe-cache/lethe/stream"
	"github.com/lethe-cache/lethe/stream/direct"
)

// TestServerExplainAgreesWithTheWorker makes random schemas, rules and
// transactions, and compares what a worker invalidated because of each
// transaction with what explain says of it: from the changes of the log, from
// the same statements executed and rolled back, and from rows written as JSON.
//
// LETHE_PROPERTY_SECONDS is how long it goes on (5), LETHE_PROPERTY_SEED the
// first seed, to see a failure again.
func TestServerExplainAgreesWithTheWorker(t *testing.T) {
	t.Parallel()
	seconds, seed := 5, rand.Uint64()
	if s := os.Getenv("LETHE_PROPERTY_SECONDS"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil {
			t.Fatal(err)
		}
		seconds = n
	}
	if s := os.Getenv("LETHE_PROPERTY_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seed = n
	}
	w := newAgreeWorld(t)
	var total agreeCounts
	rounds := 0
	// A round may draw rules that hardly anything touches: one or two of them, as
	// many as a slow machine has time for, are not enough.
	little := func() bool { return total.transactions == 0 || total.targets < total.transactions/2 }
	for end := time.Now().Add(time.Duration(seconds) * time.Second); time.Now().Before(end) || little() && rounds < 50; rounds++ {
		total.add(w.round(seed + uint64(rounds)))
		if t.Failed() {
			t.Fatalf("LETHE_PROPERTY_SEED=%d shows it again", seed+uint64(rounds))
		}
	}
	t.Logf("seed %d: %d rounds, %+v", seed, rounds, total)
	if little() {
		t.Errorf("too little was compared: %+v", total)
	}
}

// agreeCounts is how much was compared.
type agreeCounts struct{ transactions, failed, changes, targets, classes, cascaded int }

func (c *agreeCounts) add(o agreeCounts) {
	c.transactions += o.transactions
	c.failed += o.failed
	c.changes += o.changes
	c.targets += o.targets
	c.classes += o.classes
	c.cascaded += o.cascaded
}

// agreeWorld is a reader, a log and a worker, and what they were seen to do.
type agreeWorld struct {
	t     *testing.T
	conn  *pgx.Conn
	store *coherence.Store
	rules atomic.Pointer[invalidator.Rules]
	marks int

	mu      sync.Mutex
	applied map[change.LSN][]invalidator.Applied
	decoded map[change.LSN][]*change.Change
	marked  map[string]change.LSN // by the key of the mark
	letters []stream.DeadLetter
}

const agreePublication = "agree"

func newAgreeWorld(t *testing.T) *agreeWorld {
	t.Helper()
	database := harness.Database(t)
	w := &agreeWorld{t: t, conn: connect(t, database), applied: map[change.LSN][]invalidator.Applied{},
		decoded: map[change.LSN][]*change.Change{}, marked: map[string]change.LSN{}}
	if _, err := migrations.Apply(t.Context(), w.conn, migrations.Options{}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.conn.Exec(t.Context(), `CREATE TYPE mood AS ENUM ('sad', 'OK')`); err != nil {
		t.Fatal(err)
	}
	if _, err := publication.Sync(t.Context(), w.conn, publication.Config{Name: agreePublication}, nil); err != nil {
		t.Fatal(err)
	}
	w.use(&rules.Set{})
	namespace := strings.ToLower(harness.Namespace(t))
	store, err := coherence.Dial(t.Context(), harness.Redis(t).URL(), coherence.Options{Namespace: namespace})
	if err != nil {
		t.Fatal(err)
	}
	w.store = store
	logged := &lockedBuffer{}
	logger := slog.New(slog.NewTextHandler(logged, nil))
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("reader and worker logged:\n%s", logged)
		}
	})
	inserts, err := pgxpool.New(t.Context(), database) // asked by several goroutines
	if err != nil {
		t.Fatal(err)
	}
	worker, err := invalidator.New(invalidator.Config{
		Store: store, Rules: w.rules.Load, DeadLetters: w, HeartbeatEvery: 5 * time.Millisecond,
		InsertLSN: func(ctx context.Context) (lsn change.LSN, err error) {
			var text string
			if err := inserts.QueryRow(ctx, `SELECT pg_current_wal_insert_lsn()::text`).Scan(&text); err != nil {
				return 0, err
			}
			return change.ParseLSN(text)
		},
		Observer: invalidator.Observer{Applied: w.observe}, Logger: logger,
	})
	if err != nil {
		t.Fatal(err)
	}
	slot := fmt.Sprintf("agree_%d", time.Now().UnixNano())
	log := direct.New(direct.Config{Keep: time.Millisecond})
	reader, err := cdc.New(cdc.Config{URL: database, Slot: slot, Publications: publication.Config{Name: agreePublication}.Names(),
		Writer: tap{log, w}, Source: source.New(slot, slog.New(slog.DiscardHandler)), DeadLetters: w, Logger: logger})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	for what, run := range map[string]func() error{
		"reader": func() error { return reader.Run(ctx) },
		"worker": func() error { return log.Run(ctx, worker.Work) },
	} {
		running.Go(func() {
			if err := run(); err != nil && ctx.Err() == nil {
				t.Errorf("the %s ended: %v", what, err)
			}
		})
	}
	t.Cleanup(func() {
		cancel()
		running.Wait()
		inserts.Close()
		_ = log.Close(ctx)
		_ = store.Close()
	})
	harness.Eventually(t, 30*time.Second, func() error { // what is committed before there is a slot is not decoded
		var there bool
		if err := w.conn.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1 AND active)`, slot).Scan(&there); err != nil || !there {
			return fmt.Errorf("no slot: %w", err)
		}
		return nil
	})
	return w
}

// tap sees what the reader hands on.
type tap struct {
	stream.Writer
	w *agreeWorld
}

func (t tap) Append(ctx context.Context, b stream.Batch) error {
	t.w.mu.Lock()
	for i := range b.Record.Changes {
		c := b.Record.Changes[i]
		c.Old, c.New = cloneRow(c.Old), cloneRow(c.New)
		if c.Op != change.Message {
			t.w.decoded[c.Commit.LSN] = append(t.w.decoded[c.Commit.LSN], &c)
		}
	}
	t.w.mu.Unlock()
	return t.Writer.Append(ctx, b)
}

func cloneRow(r change.Row) change.Row {
	out := slices.Clone(r)
	for i := range out {
		out[i].Bytes = slices.Clone(out[i].Bytes)
	}
	return out
}

// Put keeps dead letters, of which there should be none.
func (w *agreeWorld) Put(_ context.Context, d stream.DeadLetter) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.letters = append(w.letters, d)
	return nil
}

const messageRule = "(message)"

func (w *agreeWorld) observe(a invalidator.Applied) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if a.Rule == messageRule {
		w.marked[a.Names[0]] = a.X.LSN
		return
	}
	w.applied[a.X.LSN] = append(w.applied[a.X.LSN], a)
}

// use puts a set in force.
func (w *agreeWorld) use(set *rules.Set) {
	w.t.Helper()
	compiled, err := invalidator.NewRules(set)
	if err != nil {
		w.t.Fatal(err)
	}
	w.rules.Store(compiled)
}

// commit executes statements and a mark in one transaction; the mark's key
// tells its position.
func (w *agreeWorld) commit(statements []string) (mark string, err error) {
	w.marks++
	key := "mark:" + strconv.Itoa(w.marks)
	tx, err := w.conn.Begin(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	for _, s := range append(slices.Clone(statements), `SELECT pg_logical_emit_message(true, 'lethe', '{"keys": ["`+key+`"]}')`) {
		if _, err := tx.Exec(w.t.Context(), s); err != nil {
			_ = tx.Rollback(w.t.Context())
			return "", fmt.Errorf("%s: %w", s, err)
		}
	}
	return w.rules.Load().Plan.Set().FullName(key), tx.Commit(w.t.Context())
}

func (w *agreeWorld) wait(mark string) {
	w.t.Helper()
	harness.Eventually(w.t, 20*time.Second, func() error {
		w.mu.Lock()
		defer w.mu.Unlock()
		if _, there := w.marked[mark]; !there {
			return errors.New("no mark " + mark)
		}
		return nil
	})
}

// settle waits until all that was committed is applied and seen: the second
// mark is of a later batch than the first.
func (w *agreeWorld) settle() {
	w.t.Helper()
	for range 2 {
		mark, err := w.commit(nil)
		if err != nil {
			w.t.Fatal(err)
		}
		w.wait(mark)
	}
}

// agreed is one transaction and what was said of it beforehand.
type agreed struct {
	statements []string
	mark       string
	bySQL      []string
}

// round makes one schema with rules, and some transactions.
func (w *agreeWorld) round(seed uint64) (n agreeCounts) {
	w.t.Helper()
	ctx := w.t.Context()
	g := newAgreeGen(seed)
	for _, s := range g.schema() {
		if _, err := w.conn.Exec(ctx, s); err != nil {
			w.t.Fatalf("seed %d: %s: %v", seed, s, err)
		}
	}
	text := g.rules(strings.ToLower(harness.Namespace(w.t)))
	set, err := rules.Parse("rules.yaml", []byte(text))
	if err != nil {
		w.t.Fatalf("seed %d: %v\n%s", seed, err, text)
	}
	var names []string
	for _, u := range set.Tables() {
		names = append(names, u.QualifiedName())
	}
	schema, err := catalog.Read(ctx, w.conn, names)
	if err != nil {
		w.t.Fatal(err)
	}
	if fs := set.Check(schema).Errors(); len(fs) > 0 {
		w.t.Fatalf("seed %d: %v\n%s", seed, fs, text)
	}
	explainer, err := explain.New(set)
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := publication.Sync(ctx, w.conn, publication.Config{Name: agreePublication}, set.Tables()); err != nil {
		w.t.Fatal(err)
	}
	w.use(set)
	w.settle()

	var list []agreed
	for i := range 12 {
		a := agreed{statements: g.transaction(i < 2)}
		before, explainErr := explain.Run(ctx, w.conn, &schema, set.Tables(), strings.Join(a.statements, "; "), 0)
		mark, err := w.commit(a.statements)
		if (explainErr == nil) != (err == nil) {
			w.t.Errorf("seed %d: %q: executed to be rolled back: %v; executed: %v", seed, a.statements, explainErr, err)
		}
		if err != nil {
			n.failed++
			continue
		}
		for _, c := range before {
			a.bySQL = append(a.bySQL, w.says(explainer, c)...)
		}
		a.mark = mark
		list = append(list, a)
	}
	w.settle()

	w.mu.Lock()
	defer w.mu.Unlock()
	for _, letter := range w.letters {
		w.t.Errorf("seed %d: a dead letter: %+v", seed, letter)
	}
	for _, a := range list {
		lsn := w.marked[a.mark]
		var worker, byLog, byJSON []string
		for _, x := range w.applied[lsn] {
			worker = append(worker, fmt.Sprintf("%s of %s: rule %s: %s", x.Op, x.Table, x.Rule, target(x.Kind.String(), x.Action.String(), x.Names, x.Depth)))
			n.targets++
			if x.Kind == rules.KindClass {
				n.classes++
			}
			if x.Depth > 0 {
				n.cascaded++
			}
		}
		for _, c := range w.decoded[lsn] {
			byLog = append(byLog, w.says(explainer, c)...)
			byJSON = append(byJSON, w.says(explainer, w.asJSON(c, &schema))...)
			n.changes++
		}
		n.transactions++
		for what, said := range map[string][]string{"of the log": byLog, "of the SQL": a.bySQL, "of the rows as JSON": byJSON} {
			if diff := differ(worker, said); diff != "" {
				w.t.Errorf("seed %d: explain %s disagrees with the worker:\n%s\ntransaction: %s\ndecoded: %s\nrules:\n%s", seed, what, diff,
					strings.Join(a.statements, ";\n"), describe(w.decoded[lsn]), text)
			}
		}
	}
	clear(w.applied)
	clear(w.decoded)
	for _, s := range g.drop() {
		if _, err := w.conn.Exec(ctx, s); err != nil {
			w.t.Fatalf("%s: %v", s, err)
		}
	}
	return n
}

func describe(list []*change.Change) string {
	var out []string
	for _, c := range list {
		out = append(out, explain.Describe(c))
	}
	return strings.Join(out, "\n         ")
}

// says is what explain says of a change, a line for each thing.
func (w *agreeWorld) says(e *explain.Explainer, c *change.Change) (out []string) {
	w.t.Helper()
	explanation, err := e.Explain(c)
	if err != nil {
		w.t.Errorf("explain: %v", err)
	}
	for _, s := range explanation.Steps {
		names := s.Names
		if names == nil {
			names = []string{s.Name}
		}
		out = append(out, fmt.Sprintf("%s of %s: rule %s: %s", c.Op, c.Table.QualifiedName(), s.Rule, target(s.Kind, s.Action, names, s.Depth)))
	}
	return out
}

func target(kind, action string, names []string, depth int) string {
	if kind == rules.KindClass.String() {
		action = "raise"
	}
	return fmt.Sprintf("%s %s %q depth %d", action, kind, names, depth)
}

// differ says what is in only one of two lists, as often as it is there.
func differ(worker, said []string) string {
	count := map[string]int{}
	for _, s := range worker {
		count[s]++
	}
	for _, s := range said {
		count[s]--
	}
	var out []string
	for _, s := range slices.Sorted(maps.Keys(count)) {
		switch n := count[s]; {
		case n > 0:
			out = append(out, fmt.Sprintf("  only the worker (%d): %s", n, s))
		case n < 0:
			out = append(out, fmt.Sprintf("  only explain (%d): %s", -n, s))
		}
	}
	return strings.Join(out, "\n")
}

// asJSON writes a change as people do, through JSON and back.
func (w *agreeWorld) asJSON(c *change.Change, schema *rules.Schema) *change.Change {
	w.t.Helper()
	row := explain.Row{Table: c.Table.QualifiedName(), Op: c.Op.String(), Old: asMap(c.Table, c.Old), New: asMap(c.Table, c.New)}
	data, err := json.Marshal(row)
	if err != nil {
		w.t.Fatal(err)
	}
	var back explain.Row
	decoder := json.NewDecoder(strings.NewReader(string(data)))
	decoder.UseNumber()
	if err := decoder.Decode(&back); err != nil {
		w.t.Fatal(err)
	}
	out, err := back.Change(schema)
	if err != nil {
		w.t.Fatalf("%s: %v", data, err)
	}
	return out
}

// asMap writes integers, booleans and jsonb as JSON has them, all else as text.
func asMap(t *change.Table, r change.Row) map[string]any {
	if r == nil {
		return nil
	}
	out := map[string]any{}
	for i, v := range r {
		name := t.Columns[i].Name
		switch v.Kind {
		case change.Null:
			out[name] = nil
		case change.Text:
			text := string(v.Bytes)
			switch t.Columns[i].Type {
			case 20, 23:
				out[name] = json.Number(text)
			case 16:
				out[name] = text == "t"
			case 3802:
				out[name] = text // null would be NULL, and text is text
				if text[0] == '{' || text[0] == '[' {
					out[name] = json.RawMessage(text)
				}
			default:
				out[name] = text
			}
		}
	}
	return out
}

func connect(t *testing.T, url string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func TestMain(m *testing.M) { harness.Main(m) }

// lockedBuffer collects what is logged while a test may read it.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

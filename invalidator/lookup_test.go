package invalidator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/rules"
)

const lookupRules = `
version: 1
namespace: %s
entries:
  product: {key: "product:{id}", tags: ["category:{category_id}"]}
  page: {key: "page:{id}"}
rules:
  - name: looks
    table: public.things
    lookup: {sql: SELECT category_id FROM products WHERE id = @id}
    keys: ["product:{lookup.category_id}"]
    cascade: {depth: 1}
  - name: names itself
    table: public.things
    keys: ["product:{id}"]
    cascade: false
dependencies:
  - {of: "product:{id}", also: ["page:{id}"]}
`

// finder answers lookups: the parameter with a c before it, unless script says
// otherwise.
type finder struct {
	mu     sync.Mutex
	calls  [][]string
	script func(call int) error
	answer func(param string) rules.LookupAnswer
	of     change.Source
}

func (f *finder) lookup(_ context.Context, of change.Source, requests []rules.LookupRequest) ([]rules.LookupAnswer, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.of = of
	var call []string
	out := make([]rules.LookupAnswer, len(requests))
	for i, r := range requests {
		param := string(r.Params[0])
		call = append(call, param)
		if f.answer != nil {
			out[i] = f.answer(param)
			continue
		}
		out[i].Rows = []change.Row{{{Kind: change.Text, Bytes: []byte("c" + param)}}}
	}
	f.calls = append(f.calls, call)
	if f.script != nil {
		if err := f.script(len(f.calls)); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (f *finder) asked() [][]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

func lookupWorld(t *testing.T, f *finder) *world {
	t.Helper()
	return newWorld(t, worldConfig{rules: lookupRules, cfg: func(c *Config) { c.Lookup = f.lookup }})
}

// Every set of parameters is looked up once in a batch, all of them together,
// and what is found is invalidated like any other name, cascade included.
func TestLookupsOfABatchAreOneCall(t *testing.T) {
	t.Parallel()
	f := &finder{}
	w := lookupWorld(t, f)
	w.ready()
	w.cache("product:c7", "old")
	w.cache("page:c7", "old")
	w.cache("product:7", "old")
	var changes []change.Change
	for i := range 1000 {
		changes = append(changes, update("things", itoa(i%20)))
	}
	w.commit(changes...)
	w.settle()
	w.wantState("product:c7", "absent")
	w.wantState("page:c7", "absent")
	w.wantState("product:7", "absent")
	if calls := f.asked(); len(calls) != 1 || len(calls[0]) != 20 {
		t.Errorf("%d calls, the first of %d lookups: want 1 of 20", len(calls), len(calls[0]))
	}
	if f.of.SystemID != testSource.SystemID || f.of.Timeline != testSource.Timeline {
		t.Errorf("looked up in %+v, want the source of the log", f.of)
	}
}

// A database that does not answer holds the batch: nothing of it is passed by
// the watermark, and all of it is done when the database is back.
func TestLookupHoldsTheWatermark(t *testing.T) {
	t.Parallel()
	away := errors.New("connection refused")
	gone := make(chan struct{})
	f := &finder{script: func(call int) error {
		select {
		case <-gone:
			return nil
		default:
			return away
		}
	}}
	w := lookupWorld(t, f)
	r := w.ready()
	w.cache("product:c7", "old")
	before := w.mark(t)
	w.commit(update("things", "7"))
	harness.Eventually(t, patience, harness.True("three attempts", func() bool { return len(f.asked()) >= 3 }))
	if got := w.mark(t); got != before {
		t.Errorf("the watermark went from %v to %v over a change whose lookup was not made", before, got)
	}
	if w.log.Durable() >= w.seq {
		t.Error("the change is acknowledged before its lookup was made")
	}
	close(gone)
	w.settle()
	w.wantState("product:c7", "absent")
	r.drain()
	if len(w.dead.all()) != 0 {
		t.Errorf("%d dead letters for a database that was away", len(w.dead.all()))
	}
}

// mark is the watermark that stands in Redis.
func (w *world) mark(t *testing.T) change.Position {
	t.Helper()
	marks, err := w.store.ReadWatermarks(t.Context(), watermarkField(0, 1))
	if err != nil || len(marks) != 1 {
		t.Fatalf("%d watermarks, %v", len(marks), err)
	}
	return marks[0].Position
}

// What the database refuses is a dead letter of each change, and one raise of
// what the table's rules can touch; other changes are not concerned.
func TestLookupThatIsRefused(t *testing.T) {
	t.Parallel()
	f := &finder{answer: func(param string) (a rules.LookupAnswer) {
		if param != "5" {
			a.Err = errors.New("permission denied")
		}
		return a
	}}
	w := lookupWorld(t, f)
	w.ready()
	w.cache("product:1", "old")
	w.cache("page:1", "old")
	w.cache("product:5", "old")
	w.commit(update("things", "5"))
	w.settle()
	w.wantState("product:5", "absent") // no row: no name, and all is well
	w.wantState("product:1", "old")
	raised := len(w.kinds(0))
	w.commit(update("things", "1"), update("things", "2"), update("things", "3"))
	w.settle()
	w.wantState("product:1", "dead")
	w.wantState("page:1", "dead")
	letters := w.dead.all()
	if len(letters) != 3 || letters[0].Reason != "lookup" || letters[0].Table != "public.things" {
		t.Fatalf("dead letters %+v, want three of the lookup", letters)
	}
	var raises int
	for _, k := range w.kinds(raised) {
		if k != "" && k[:4] == "rais" {
			raises++
		}
	}
	if raises > 2 { // one for each class
		t.Errorf("%d raises for three changes of one batch: %q", raises, w.kinds(raised))
	}
}

// Without anybody to look up nothing is left stale either.
func TestLookupWithoutADatabase(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldConfig{rules: lookupRules})
	w.ready()
	w.cache("product:c1", "old")
	w.commit(update("things", "1"))
	w.settle()
	w.wantState("product:c1", "dead")
}

func TestLookupOfTooManyRowsRaises(t *testing.T) {
	t.Parallel()
	f := &finder{answer: func(string) (a rules.LookupAnswer) { a.More = true; return a }}
	w := lookupWorld(t, f)
	w.ready()
	w.cache("product:c1", "old")
	w.cache("page:c1", "old")
	w.commit(update("things", "1"))
	w.settle()
	w.wantState("product:c1", "dead")
	w.wantState("page:c1", "dead") // what follows from the class
	if n := len(w.dead.all()); n != 0 {
		t.Errorf("%d dead letters", n)
	}
}

// What was applied before is not looked up again.
func TestLookupBelowTheWatermark(t *testing.T) {
	t.Parallel()
	f := &finder{}
	w := lookupWorld(t, f)
	r := w.ready()
	again := w.nextCommit(update("things", "1"))
	w.hand(w.lsn+50, again)
	w.settle()
	r.drain()
	w.worker()
	w.hand(w.lsn+50, again)
	w.settle()
	if calls := f.asked(); len(calls) != 1 {
		t.Errorf("looked up %q, want once", calls)
	}
}

// A reload while a lookup is on its way: the batch is finished by the rules that
// it was begun with, and the new ones raise what they newly touch.
func TestLookupAndReload(t *testing.T) {
	t.Parallel()
	f := &finder{}
	w := lookupWorld(t, f)
	set, err := rules.Parse("rules.yaml", fmt.Appendf(nil, "version: 1\nnamespace: %s\nentries:\n  product: {key: \"product:{id}\"}\nrules:\n"+
		"  - {name: looks, table: public.things, keys: [\"product:{lookup.other}\"], lookup: {sql: SELECT other FROM products WHERE id = @id}}\n", w.set.Namespace))
	if err != nil {
		t.Fatal(err)
	}
	next, err := NewRules(set)
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	current := w.cfg.Rules()
	w.cfg.Rules = func() *Rules {
		mu.Lock()
		defer mu.Unlock()
		return current
	}
	f.script = func(call int) error {
		mu.Lock()
		defer mu.Unlock()
		current = next
		return nil
	}
	w.ready()
	w.cache("product:c1", "old")
	w.cache("product:kept", "old")
	w.commit(update("things", "1"))
	w.settle()
	w.wantState("product:c1", "absent")
	w.commit(update("things", "2"))
	w.settle()
	w.wantState("product:kept", "dead") // what the changed lookup newly touches
	if calls := f.asked(); len(calls) != 2 {
		t.Errorf("looked up %q", calls)
	}
}

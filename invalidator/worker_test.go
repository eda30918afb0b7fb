package invalidator

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
)

func TestWorkerForgetsWhatChanged(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldConfig{})
	r := w.ready()
	for _, k := range []string{"product:1", "product:2", "raw:1", "raw:2"} {
		w.cache(k, "v")
	}
	before := len(w.messages())
	w.commit(update("products", "1", "new"))
	w.settle()
	for key, want := range map[string]string{"product:1": "absent", "product:2": "v", "raw:1": "absent", "raw:2": "v"} {
		w.wantState(key, want)
	}
	if got, want := w.kinds(before), []string{"k product:1,kept:1,raw:1"}; !slices.Equal(got, want) {
		t.Errorf("broadcasts %q, want %q", got, want)
	}
	m := w.messages()[before]
	if want := w.x(); m.X != want || !m.V.Covers(want) {
		t.Errorf("broadcast has X %v and v %v, want X %v and v behind it", m.X, m.V, want)
	}
	if got := testutil.ToFloat64(r.metrics.invalidations.WithLabelValues("product", OutcomeDeleted)); got != 1 {
		t.Errorf("deleted %v, want 1", got)
	}
	if got := testutil.ToFloat64(r.metrics.changes.WithLabelValues("public.products", "update")); got != 1 {
		t.Errorf("changes %v, want 1", got)
	}
}

func TestWorkerVariants(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldConfig{})
	w.ready()
	w.cache("kept:1", "misses the commit")
	w.cache("product:7", "v")
	b := w.begin("kept:2")
	w.commit(update("products", "1", "n"))
	w.settle()
	w.wantState("kept:1", "absent")
	// A value whose stamp covers the commit stays, and its ticket dies.
	w.cache("kept:1", "reflects it")
	first := w.begin("kept:1").Ticket.Incarnation
	w.hand(w.lsn+50, []change.Change{dup(w, update("products", "1", "n"))})
	w.settle()
	w.wantState("kept:1", "reflects it")
	if second := w.begin("kept:1").Ticket.Incarnation; second != first {
		t.Error("a duplicate below the watermark was applied")
	}
	// Stale keeps the value for those who ask for it.
	w.commit(update("hints", "7"))
	w.settle()
	w.wantState("product:7", "stale")
	// In one batch delete beats stale.
	w.cache("product:8", "v")
	w.hand(w.lsn+500, append(w.nextCommit(update("hints", "8")), w.nextCommit(update("products", "8", "n"))...))
	w.settle()
	w.wantState("product:8", "absent")
	if reason := w.fill(b, "old"); reason != coherence.Stored {
		t.Errorf("fill of an entry that nothing touched: %v", reason)
	}
}

// dup is a change of the last commit again.
func dup(w *world, c change.Change) change.Change {
	c.Commit = &change.Commit{XID: w.xid, LSN: w.lsn, End: w.lsn + 48}
	return c
}

func TestWorkerPurgesTags(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldConfig{cfg: func(c *Config) { c.SweepBatch = 3 }})
	w.ready()
	for i := range 10 {
		w.cache("product:"+itoa(i), "v", "category:5", "brand:"+itoa(i%2))
	}
	w.cache("product:10", "v", "category:6", "brand:0")
	w.cache("raw:1", "v", "category:5")
	before := len(w.messages())
	w.commit(update("deals", "5", "0"))
	w.settle()
	for i := range 10 {
		w.wantState("product:"+itoa(i), []string{"absent", "v"}[i%2])
	}
	w.wantState("product:10", "v")
	w.wantState("raw:1", "v")
	w.commit(update("categories", "5"))
	w.settle()
	for i := range 10 {
		w.wantState("product:"+itoa(i), "absent")
	}
	w.wantState("product:10", "v")
	w.wantState("raw:1", "absent")
	want := []string{"p category:5,brand:0", "s category:5,brand:0", "p category:5", "k raw:1", "s category:5"}
	if got := w.kinds(before); !slices.Equal(got, want) {
		t.Errorf("broadcasts %q, want %q", got, want)
	}
	control, err := w.store.Control(t.Context())
	if err != nil || len(control.Purges) != 0 {
		t.Errorf("open purges %v, %v: want none", control.Purges, err)
	}
}

func TestWorkerKeysAsNames(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldConfig{})
	w.ready()
	w.cache("product:1", "v")
	w.cache("product:page", "made of 1", "product:1")
	w.cache("product:2", "v")
	w.commit(update("products", "1", "n"))
	w.settle()
	w.wantState("product:page", "made of 1") // the class is not named
	if err := w.store.AddNamed(t.Context(), "product"); err != nil {
		t.Fatal(err)
	}
	w.commit(update("products", "1", "n"))
	w.settle()
	w.wantState("product:page", "absent")
	w.wantState("product:2", "v")
}

func TestWorkerLogicalMessages(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldConfig{})
	w.ready()
	w.cache("product:1", "v", "brand:x")
	w.cache("product:2", "v")
	w.cache("loose:1", "v")
	message := func(content string) change.Change {
		return change.Change{Op: change.Message, Prefix: "lethe", Content: []byte(content)}
	}
	w.commit(message(`{"tags":["brand:x"],"keys":["loose:1"]}`))
	w.settle()
	w.wantState("product:1", "absent")
	w.wantState("product:2", "v")
	w.wantState("loose:1", "absent")
	w.commit(message(`{"classes":["product"],"reason":"deploy"}`))
	w.settle()
	w.wantState("product:2", "dead")
	// Not JSON: a dead letter, and everything raised before the watermark.
	w.cache("product:2", "v")
	w.commit(message(`{"keys":`))
	w.settle()
	w.wantState("product:2", "dead")
	got := w.dead.all()
	if len(got) != 1 || got[0].Reason != "message" || string(got[0].Payload) != `{"keys":` || got[0].Position != w.x() {
		t.Errorf("dead letters %+v", got)
	}
}

func TestWorkerRaisesOncePerCause(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldConfig{})
	r := w.ready()
	raise := change.Raise{Cause: "slot lost at noon", Reason: change.ReasonSlotLost, Tables: []string{"public.products"}, Classes: []string{"kept"}}
	w.hand(w.lsn, nil, raise)
	w.settle()
	control, err := w.store.Control(t.Context(), "product", "kept", "raw")
	if err != nil {
		t.Fatal(err)
	}
	for _, class := range []string{"product", "kept", "raw"} {
		if c := control.Classes[class]; c.Generation == 0 || c.Bound != (change.Position{Era: 1, LSN: change.Bound(change.LSN(w.insert.Load()))}) {
			t.Errorf("record of %s is %+v", class, c)
		}
	}
	if control.Classes["*"].Generation != 0 {
		t.Error("the namespace was raised")
	}
	w.hand(w.lsn, nil, raise)
	w.settle()
	again, err := w.store.Control(t.Context(), "product")
	if err != nil || again.Classes["product"] != control.Classes["product"] {
		t.Errorf("raised again: %+v, %v", again.Classes["product"], err)
	}
	if got := testutil.ToFloat64(r.metrics.raises.WithLabelValues("product", change.ReasonSlotLost)); got != 1 {
		t.Errorf("lethe_raises_total %v, want 1", got)
	}
}

func TestWorkerDeadLetterThatCanNotBeStored(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldConfig{cfg: func(c *Config) { c.DeadLetterWait = 1 }})
	w.ready()
	w.cache("product:1", "v")
	w.dead.err = errors.New("no room")
	w.commit(change.Change{Op: change.Message, Prefix: "lethe", Content: []byte("x")})
	w.settle() // the stream goes on
	w.wantState("product:1", "dead")
}

func TestWorkerNewEraClosesThenSeeds(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldConfig{})
	r := w.ready()
	w.cache("product:1", "v", "brand:x")
	w.insert.Store(400) // below v: that is what ready waits for
	w.source = change.Source{Era: 2, SystemID: 7, Timeline: 2}
	w.lsn = 500 // LSNs of the new timeline repeat
	w.hand(w.lsn, nil, change.Raise{Cause: "promotion", Reason: change.ReasonSource, Classes: []string{"*"}})
	w.settle()
	w.wantState("product:1", "dead")
	w.waitReady(r)
	src, err := w.store.Source(t.Context())
	if err != nil || src != w.source {
		t.Fatalf("source %+v, %v; want %+v", src, err, w.source)
	}
	w.commit(update("products", "2", "n"))
	w.settle()
	w.lsn += 1000 // beyond the base of the seed
	w.hand(w.lsn+50, nil)
	w.waitV(w.lsn + 50)
	w.cache("product:1", "v2", "brand:x")
	// What is left of the old era in the log harms nobody.
	w.source = testSource
	w.lsn = 5000
	w.commit(update("products", "2", "n"))
	w.settle()
	if got, _ := w.store.Source(t.Context()); got.Era != 2 {
		t.Errorf("source went back to %+v", got)
	}
	w.wantState("product:1", "v2")
}

func TestWorkerUnknownEraIsNeverStamped(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldConfig{})
	w.source = change.Source{SystemID: 7, Timeline: 1}
	w.worker()
	w.hand(2000, nil)
	w.settle()
	if reason := w.fill(w.begin("kept:1"), "v"); reason != coherence.Stored {
		t.Fatalf("fill: %v", reason)
	}
	if reason := w.fill(w.begin("product:1"), "v", "brand:x"); reason == coherence.Stored {
		t.Error("a registration was accepted although no table can judge it")
	}
	// The commit is far below what was v: a stamp of it would keep the value.
	w.commit(update("products", "1", "n"))
	w.settle()
	w.wantState("kept:1", "absent")
	w.cache("kept:1", "v")
	w.hand(2000, []change.Change{dup(w, update("products", "1", "n"))})
	w.settle()
	w.wantState("kept:1", "absent") // never taken for applied before
}

func TestNewNamesEveryMistake(t *testing.T) {
	t.Parallel()
	_, err := New(Config{})
	for _, field := range []string{"Store", "Rules", "DeadLetters", "InsertLSN"} {
		if err == nil || !strings.Contains(err.Error(), "Config."+field) {
			t.Errorf("New: %v does not name %s", err, field)
		}
	}
}

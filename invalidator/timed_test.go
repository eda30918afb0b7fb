package invalidator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
)

const saleRules = `
version: 1
namespace: %s
entries:
  product: {key: "product:{id}", keep: true}
rules:
  - {name: sale ends, table: public.sales, keys: ["product:{product_id}"], tags: ["sale:{id}"], at: ends_at}
  - {name: other, table: public.things, keys: ["product:{id}"]}
`

var salesTable = &change.Table{ID: 90, Schema: "public", Name: "sales", Identity: change.IdentityDefault, Columns: []change.Column{
	{Name: "id", Type: 25, Key: true}, {Name: "product_id", Type: 25}, {Name: "ends_at", Type: 1184},
}}

func saleRow(op change.Op, id, product, ends string) change.Change {
	r := change.Row{}
	for _, v := range []string{id, product, ends} {
		r = append(r, change.Value{Kind: change.Text, Bytes: []byte(v)})
	}
	if op == change.Delete {
		return change.Change{Op: op, Table: salesTable, Old: r}
	}
	return change.Change{Op: op, Table: salesTable, New: r}
}

// schedules remembers what was put. Its clock stands at 2030.
type schedules struct {
	mu      sync.Mutex
	fail    int
	failed  chan struct{}
	batches []ScheduleBatch
}

var clock = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

func (s *schedules) Put(_ context.Context, b ScheduleBatch) ([]bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != 0 {
		s.fail--
		select {
		case s.failed <- struct{}{}:
		default:
		}
		return nil, errors.New("the database is away")
	}
	s.batches = append(s.batches, b)
	due := make([]bool, len(b.Items))
	for i, it := range b.Items {
		due[i] = it.Message != nil && !it.At.After(clock) && !it.At.After(it.Committed)
	}
	return due, nil
}

func (s *schedules) down(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = n
}

// items renders all that was put, in order.
func (s *schedules) items() (out []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.batches {
		for _, it := range b.Items {
			what := "-"
			if it.Message != nil {
				what = it.At.Format("2006")
			}
			out = append(out, fmt.Sprintf("%s %s %d", it.Key, what, it.X.LSN))
		}
		for _, it := range b.Gone {
			out = append(out, fmt.Sprintf("all gone %d", it.X.LSN))
		}
	}
	return out
}

// reads counts how often the table was asked to be read.
func (s *schedules) reads() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range s.batches {
		n += len(b.Read)
	}
	return n
}

func scheduleWorld(t *testing.T) (*world, *schedules) {
	s := &schedules{failed: make(chan struct{}, 1)}
	return newWorld(t, worldConfig{rules: saleRules, cfg: func(c *Config) { c.Schedules = s }}), s
}

// What is to come is stored and not invalidated; what is past is invalidated in
// the same batch, with its tags.
func TestAtSchedules(t *testing.T) {
	t.Parallel()
	w, s := scheduleWorld(t)
	r := w.ready()
	w.cache("product:5", "soon")
	w.cache("product:6", "over")
	w.cache("product:7", "tagged", "sale:2")
	w.commit(saleRow(change.Insert, "1", "5", "2040-01-01 00:00:00+00"))
	first := w.lsn
	w.commit(saleRow(change.Insert, "2", "6", "2020-01-01 00:00:00+00"), saleRow(change.Delete, "3", "5", "2020-01-01 00:00:00+00"))
	second := w.lsn
	w.commit(change.Change{Op: change.Truncate, Table: salesTable})
	w.settle()
	w.wantState("product:5", "soon")
	w.wantState("product:6", "absent")
	w.wantState("product:7", "absent")
	want := []string{fmt.Sprintf(`["1"] 2040 %d`, first), fmt.Sprintf(`["2"] 2020 %d`, second), fmt.Sprintf(`["3"] - %d`, second), fmt.Sprintf("all gone %d", w.lsn)}
	if got := s.items(); !slices.Equal(got, want) {
		t.Errorf("stored %q, want %q", got, want)
	}
	r.drain()
}

// While it can not be stored, nothing is acknowledged, and a worker that dies
// then is delivered the change again.
func TestAtStoredBeforeAck(t *testing.T) {
	t.Parallel()
	w, s := scheduleWorld(t)
	r := w.ready()
	w.settle()
	s.down(-1)
	before := w.log.Durable()
	w.commit(saleRow(change.Insert, "1", "5", "2040-01-01 00:00:00+00"))
	for range 3 {
		select {
		case <-s.failed:
		case <-time.After(patience):
			t.Fatal("it was not tried again")
		}
	}
	if got := w.log.Durable(); got != before {
		t.Errorf("batch %d is acknowledged, and nothing is stored", got)
	}
	s.down(0)
	w.settle()
	if got := s.items(); len(got) != 1 {
		t.Errorf("stored %q", got)
	}
	r.drain()
}

// What the log did not tell has to be read from the table: of rules that are
// new, after a raise, a gap, and a change that could not be understood.
func TestAtReadsAfterGaps(t *testing.T) {
	t.Parallel()
	w, s := scheduleWorld(t)
	r := w.ready()
	w.settle()
	known := func() (n int) {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, b := range s.batches {
			n += len(b.Known)
		}
		return n
	}
	if known()+s.reads() == 0 {
		t.Error("a rule that comes into force is not asked for")
	}
	for _, c := range []struct {
		what string
		do   func()
		want int
	}{
		{"a change of another table", func() { w.commit(update("things", "1")) }, 0},
		{"a raise of everything", func() {
			w.hand(w.lsn+60, nil, change.Raise{Cause: "slot", Reason: change.ReasonSlotLost, Classes: []string{"*"}})
		}, 1},
		{"a raise of the table", func() {
			w.hand(w.lsn+61, nil, change.Raise{Cause: "gap", Reason: change.ReasonDDL, Tables: []string{"public.sales"}})
		}, 1},
		{"a raise of another table", func() {
			w.hand(w.lsn+62, nil, change.Raise{Cause: "gap2", Reason: change.ReasonDDL, Tables: []string{"public.things"}})
		}, 0},
		{"a time that is none", func() { w.commit(saleRow(change.Insert, "1", "5", "soon")) }, 1},
		{"a time that the log does not carry", func() {
			c := saleRow(change.Insert, "1", "5", "")
			c.New[2] = change.Value{}
			w.commit(c)
		}, 1},
	} {
		before := s.reads()
		c.do()
		w.settle()
		if got := s.reads() - before; got != c.want {
			t.Errorf("%s: %d reads, want %d", c.what, got, c.want)
		}
	}
	if n := len(w.dead.all()); n != 1 {
		t.Errorf("%d dead letters, want that of the time that is none", n)
	}
	r.drain()
}

// Where nothing can be scheduled the change is a dead letter, and its classes
// are raised: nobody is told that all is well.
func TestAtWithoutSchedules(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldConfig{rules: saleRules})
	r := w.ready()
	w.cache("product:9", "x")
	w.commit(saleRow(change.Insert, "1", "5", "2040-01-01 00:00:00+00"))
	w.settle()
	letters := w.dead.all()
	if len(letters) != 1 || !strings.Contains(letters[0].Err, "lethe migrate") {
		t.Errorf("dead letters %+v", letters)
	}
	if state, err := w.look("product:9"); err == nil && state == "x" {
		t.Error("an entry of the class is still served")
	}
	r.drain()
}

// A message with a time is stored, each by itself.
func TestAtMessage(t *testing.T) {
	t.Parallel()
	w, s := scheduleWorld(t)
	r := w.ready()
	w.cache("product:1", "x")
	message := func(content string) change.Change {
		return change.Change{Op: change.Message, Prefix: "lethe", Content: []byte(content)}
	}
	w.commit(message(`{"keys":["product:1"],"at":"2040-01-01T00:00:00Z"}`), message(`{"keys":["product:1"],"at":"2041-01-01T00:00:00Z"}`))
	w.settle()
	w.wantState("product:1", "x")
	if got := s.items(); len(got) != 2 || strings.Fields(got[0])[0] == strings.Fields(got[1])[0] {
		t.Errorf("stored %q, want two", got)
	}
	w.commit(message(`{"keys":["product:1"],"at":"2020-01-01T00:00:00Z"}`))
	w.settle()
	w.wantState("product:1", "absent")
	harness.Eventually(t, patience, harness.True("three are put", func() bool { return len(s.items()) == 3 }))
	r.drain()
}

// A time that comes while the change is on its way to the worker: whoever read
// in between has a stamp above the change, and what is invalidated at the
// change's place stays. It is stored and fired, so that a message stands above
// that stamp. What was past at the commit already needs none.
func TestAtThatCameOnTheWay(t *testing.T) {
	t.Parallel()
	w, s := scheduleWorld(t)
	r := w.ready()
	c := w.nextCommit(saleRow(change.Insert, "1", "5", "2029-06-01 00:00:00+00"))
	c[0].Commit.Time = time.Date(2029, 1, 1, 0, 0, 0, 0, time.UTC)
	late := w.lsn
	// Another partition is quicker: its worker has told a v past the change.
	v := change.Position{Era: w.source.Era, LSN: w.lsn + 48}
	if _, _, err := w.store.Broadcast(t.Context(), coherence.Message{Kind: coherence.KindEpoch, V: v}); err != nil {
		t.Fatal(err)
	}
	w.cache("product:5", "on sale") // in the spring of 2029
	w.hand(w.lsn+48, c)
	w.settle()
	w.wantState("product:5", "on sale") // what the place of the change can not reach
	w.commit(saleRow(change.Insert, "2", "6", "2020-01-01 00:00:00+00"))
	w.settle()
	s.mu.Lock()
	defer s.mu.Unlock()
	stored, past := 0, 0
	for _, b := range s.batches {
		for _, it := range b.Items {
			if it.Message != nil && it.X.LSN == late && it.Committed.Before(it.At) {
				stored++
			}
			if it.X.LSN == w.lsn && it.At.Before(it.Committed) {
				past++
			}
		}
	}
	if stored != 1 || past != 1 {
		t.Errorf("%d are known to have become due on the way, and %d to have been before; want one each: %+v", stored, past, s.batches)
	}
	r.drain()
}

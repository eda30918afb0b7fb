package cdc

import (
	"testing"
	"testing/synctest"

	"github.com/lethe-cache/lethe/cdc/source"
	"github.com/lethe-cache/lethe/change"
)

func TestGapWaitsForWhatRan(t *testing.T) {
	t.Parallel()
	g := NewGap(*runningXids(5, 9), 1000)
	if g.Observe(runningXids(5, 9)) {
		t.Error("closed while both run")
	}
	// Another that began later is none of its business.
	if g.Observe(&Snapshot{Xmin: 9, Xmax: 2000, Xip: []uint64{9, 1500}}) {
		t.Error("closed while 9 runs")
	}
	if g.Running() != 1 {
		t.Errorf("waits for %d, want 1", g.Running())
	}
	if !g.Observe(&Snapshot{Xmin: 1500, Xmax: 2000, Xip: []uint64{1500}}) {
		t.Error("not closed although both are over")
	}
	// Newer than all that is over, and older than next: it may be flushed.
	g = NewGap(*runningXids(), 1002)
	if g.Running() != 2 || g.Observe(&Snapshot{Xmin: 1001, Xmax: 1003, Xip: []uint64{1001}}) {
		t.Error("does not wait for what lies above xmax")
	}
	if !NewGap(*runningXids(), 1000).Observe(runningXids()) {
		t.Error("a gap in which nothing ran is not closed")
	}
}

func TestRaiserLifeOfARaise(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRaiser()
		done := r.ask(change.Raise{Cause: "c", Reason: change.ReasonPublication}, true)
		once := r.ask(change.Raise{Cause: "d"}, false)
		take := func() (*Gap, error) { return NewGap(*runningXids(7), 1000), nil }
		causes := func(due []dueRaise) (out []string) {
			for _, d := range due {
				out = append(out, d.raise.Cause)
			}
			return out
		}
		due, err := r.due(nil, take)
		if err != nil {
			t.Fatal(err)
		}
		equal(t, causes(due), []string{"c", "d"})
		r.appended(due, 1)
		if !r.pending() || len(r.state()) != 1 {
			t.Fatalf("state %+v, want one that is pending", r.state())
		}
		if due, _ := r.due(runningXids(7), take); len(due) != 0 {
			t.Errorf("raised %q again while 7 runs", causes(due))
		}
		// A session on another source: its xids mean nothing there.
		r.session(nil, false)
		due, _ = r.due(runningXids(), take)
		equal(t, causes(due), []string{"c+"})
		r.appended(due, 2)
		due, _ = r.due(runningXids(), take)
		equal(t, causes(due), []string{"c+/2"})
		r.appended(due, 3)
		r.durable(2)
		<-once
		select {
		case <-done:
			t.Error("done before its last batch is durable")
		default:
		}
		r.durable(3)
		<-done

		// What the tracker asked for is replaced by what it asks for next time.
		r.session([]source.Due{{Raise: change.Raise{Cause: "t1", Reason: "t"}, Again: true}}, true)
		r.session([]source.Due{{Raise: change.Raise{Cause: "t2", Reason: "t"}}}, true)
		due, _ = r.due(nil, take)
		equal(t, causes(due), []string{"t2"})
		if !r.tracked() {
			t.Error("not tracked before it is durable")
		}
		r.appended(due, 4)
		r.durable(4)
		if r.tracked() {
			t.Error("still tracked")
		}
	})
}

// What is asked for again and again while nothing is read is one raise: the
// watcher of the publication asks every second, and a process may wait for its
// slot for weeks.
func TestRaisesThatWaitAreJoined(t *testing.T) {
	t.Parallel()
	r := newRaiser()
	ask := func(table string, twice bool) <-chan struct{} {
		return r.ask(change.Raise{Cause: "c", Reason: change.ReasonPublication, Tables: []string{table}}, twice)
	}
	var last <-chan struct{}
	for range 1000 {
		last = ask("a", false)
	}
	ask("a", true)
	ask("b", false)
	if got := len(r.state()); got != 3 {
		t.Fatalf("%d raises wait, want 3", got)
	}
	gaps := 0
	take := func() (*Gap, error) { gaps++; return NewGap(Snapshot{Xmin: 5, Xmax: 6, Xip: []uint64{5}}, 6), nil }
	due, err := r.due(nil, take)
	if err != nil || len(due) != 3 || gaps != 1 {
		t.Fatalf("%d are due (%v) with %d gaps, want 3 with one", len(due), err, gaps)
	}
	// The snapshot of those is taken: what happens now is not in it.
	ask("a", true)
	r.appended(due, 7)
	if got := r.state(); len(got) != 2 || !got[0].Raised || got[1].Raised {
		t.Errorf("wait for %+v, want the second of one raise, and another one whole", got)
	}
	r.durable(7)
	select {
	case <-last:
	default:
		t.Error("the joined raise is durable, and the last who asked was not told")
	}
}

// The tracker asks for the raise of a lost slot once, where it can not store
// it. A session that ends before the second raise must not take it along.
func TestTrackedRaiseOutlivesItsSession(t *testing.T) {
	t.Parallel()
	r := newRaiser()
	lost := source.Due{Raise: change.Raise{Cause: "lost", Reason: change.ReasonSlotLost, Classes: []string{"*"}}, Again: true}
	r.session([]source.Due{lost}, true)
	running := Snapshot{Xmin: 5, Xmax: 6, Xip: []uint64{5}}
	due, err := r.due(nil, func() (*Gap, error) { return NewGap(running, 6), nil })
	if err != nil || len(due) != 1 {
		t.Fatalf("%d are due (%v), want one", len(due), err)
	}
	r.appended(due, 1)
	r.durable(1)
	r.session(nil, true) // cut and connected again
	if !r.tracked() {
		t.Fatal("the second raise is forgotten with the session")
	}
	due, err = r.due(&Snapshot{Xmin: 7, Xmax: 7}, nil)
	if err != nil || len(due) != 1 || due[0].raise.Cause != "lost/2" {
		t.Fatalf("due is %+v (%v), want the second raise", due, err)
	}
	// Asked for anew it takes the place of the old one.
	r.session([]source.Due{lost}, true)
	if got := r.state(); len(got) != 1 || got[0].Raised {
		t.Errorf("wait for %+v, want one raise, from its beginning", got)
	}
	// On another source its bound says nothing.
	r = newRaiser()
	lost.Bound = change.Position{Era: 1, LSN: 100}
	r.session([]source.Due{lost}, true)
	r.session(nil, false)
	due, err = r.due(nil, func() (*Gap, error) { return NewGap(running, 6), nil })
	if err != nil || len(due) != 1 || !due[0].raise.Bound.IsZero() {
		t.Errorf("due is %+v (%v), want the raise without the bound of the old source", due, err)
	}
}

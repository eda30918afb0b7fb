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
		r.session([]source.Due{{Raise: change.Raise{Cause: "t1"}, Again: true}}, true)
		r.session([]source.Due{{Raise: change.Raise{Cause: "t2"}}}, true)
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

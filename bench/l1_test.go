package main

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestQuickRunsLeaveL1OutUnlessAsked(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		args []string
		want bool
	}{
		{[]string{"-quick"}, false},
		{[]string{"-quick", "-only", "commit_to_l1"}, true},
		{nil, true},
	} {
		o, err := parse(c.args, t.Output())
		if err != nil {
			t.Fatal(err)
		}
		_, names, err := o.apply()
		if err != nil {
			t.Fatal(err)
		}
		if got := newMetrics(names).wants(l1Metrics...); got != c.want {
			t.Errorf("%v measures the time to L1: %v, want %v", c.args, got, c.want)
		}
	}
}

// Without a broker there is nothing to measure, and the reason is told.
func TestL1NeedsABroker(t *testing.T) {
	t.Parallel()
	none := errors.New("no broker")
	e := &env{metrics: newMetrics(l1Metrics), lethe: &letheProgram{}, kafkaErr: none}
	if err := e.measureL1(context.Background()); !errors.Is(err, none) {
		t.Errorf("measured without a broker: %v", err)
	}
}

// An entry that goes before its commit has returned is no delay, and one that
// stays ends the watch with an error.
func TestWentCountsOnce(t *testing.T) {
	t.Parallel()
	l := newLatencies(1, 2)
	l.went(1, 5)
	l.went(1, 9)
	if got := l.gone[1].Load(); got != 5 || l.left.Load() != 1 {
		t.Errorf("gone at %d with %d left, want 5 and 1", got, l.left.Load())
	}
	l.committed[1].Store(7)
	if got := l.delays(1); len(got) != 1 || got[0] != 0 {
		t.Errorf("delays = %v, want none", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if err := (&l1Cache{}).watch(ctx, l, make(chan int)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("watch of an entry that stays = %v", err)
	}
}

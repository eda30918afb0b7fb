package main

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"time"
)

func TestSpread(t *testing.T) {
	t.Parallel()
	got := spread([]float64{9, 1, 5, 3, 7})
	if got.Median != 5 || got.Low != 3 || got.High != 7 || !slices.Equal(got.Samples, []float64{9, 1, 5, 3, 7}) {
		t.Errorf("spread = %+v", got)
	}
	if got := spread(nil); got.Median != 0 {
		t.Errorf("spread of nothing = %+v", got)
	}
}

// TestRatiosAreOfOneRound: a slow round moves both halves of a pair.
func TestRatiosAreOfOneRound(t *testing.T) {
	t.Parallel()
	g := group{name: "g", workers: 1, subjects: []subject{{name: "base"}, {name: "twice", metric: "l2_hit_vs_get"}}}
	base := []sample{{nanoseconds: 10, cpu: 1, allocations: 1, reads: 1}, {nanoseconds: 1000, cpu: 1}, {nanoseconds: 20, cpu: 1}}
	twice := []sample{{nanoseconds: 20, cpu: 3, allocations: 4, reads: 2}, {nanoseconds: 2000, cpu: 3}, {nanoseconds: 40, cpu: 3}}
	got := rows(g, [][]sample{base, twice})
	if len(got) != 2 || got[0].Ratio.Median != 1 || got[1].Ratio.Low != 2 || got[1].Ratio.High != 2 || got[1].CPU.Median != 3 || got[1].AtMost != 1.15 {
		t.Errorf("rows = %+v", got)
	}
}

// TestEverySubjectHasItsTurnInEveryRound, another one first, and each operation
// is done once.
func TestEverySubjectHasItsTurnInEveryRound(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var order []string
	var last string
	note := func(name string) func(int, int) error {
		return func(int, int) error {
			mu.Lock()
			defer mu.Unlock()
			if last != name {
				order, last = append(order, name), name
			}
			for began := time.Now(); time.Since(began) < 10*time.Microsecond; { // burns, as the length of a slice is of the processor's time
			}
			return nil
		}
	}
	b := &bench{rounds: 3, slice: 2 * time.Millisecond, reads: func() (int64, error) { return 0, nil }}
	got, err := b.measure(group{name: "g", workers: 2, subjects: []subject{{name: "a", op: note("a")}, {name: "b", op: note("b")}}})
	if err != nil {
		t.Fatal(err)
	}
	// Calibration, then the rounds: ab, ba, ab.
	if want := []string{"a", "b", "a", "b", "a", "b"}; !slices.Equal(order, want) {
		t.Errorf("order = %v, want %v", order, want)
	}
	if len(got) != 2 || len(got[1].Ratio.Samples) != 3 {
		t.Errorf("rows = %+v", got)
	}
}

func TestAFailedOperationIsNoNumber(t *testing.T) {
	t.Parallel()
	broken := errors.New("broken")
	b := &bench{rounds: 1, slice: time.Millisecond, reads: func() (int64, error) { return 0, nil }}
	_, err := b.measure(group{name: "g", workers: 4, subjects: []subject{{name: "a", op: func(_, i int) error {
		if i == 7 {
			return broken
		}
		return nil
	}}}})
	if !errors.Is(err, broken) {
		t.Errorf("measure = %v, want %v", err, broken)
	}
}

package main

import (
	"slices"
	"testing"
	"time"
)

func TestLatenciesMatchCommitsWithKeys(t *testing.T) {
	t.Parallel()
	l := newLatencies(100, 3)
	set := func(i int, committed, gone time.Duration) {
		l.committed[i].Store(int64(committed))
		l.gone[i].Store(int64(gone))
	}
	set(0, 10, 500) // warm-up
	set(1, 20, 25)
	set(2, 30, 29) // gone before the application heard of its commit
	if got, want := l.delays(1), []time.Duration{5, 0}; !slices.Equal(got, want) {
		t.Errorf("delays = %v, want %v", got, want)
	}
}

func TestLatenciesDone(t *testing.T) {
	t.Parallel()
	l := newLatencies(100, 2)
	for _, name := range []string{"bench:row:99", "bench:row:102", "bench:row:", "bench:row:x", "lethe:{c:bench}:v", "other:100"} {
		l.deleted(name)
	}
	if got := l.left.Load(); got != 2 {
		t.Fatalf("%d keys left after foreign ones went, want 2", got)
	}
	l.deleted("bench:row:101")
	first := l.gone[1].Load()
	l.deleted("bench:row:101") // a repeated invalidation
	if got := l.left.Load(); got != 1 {
		t.Errorf("%d keys left after one went twice, want 1", got)
	}
	if first == 0 || l.gone[1].Load() != first {
		t.Errorf("time of the key = %d, then %d, want the first", first, l.gone[1].Load())
	}
	select {
	case <-l.done:
		t.Fatal("done with a key left")
	default:
	}
	l.deleted("bench:row:100")
	<-l.done
}

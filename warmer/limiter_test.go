package warmer

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func acquire(t *testing.T, l *Limiter, rows int, p Priority) *Permit {
	t.Helper()
	permit, err := l.Acquire(t.Context(), "k", rows, p)
	if err != nil {
		t.Fatal(err)
	}
	return permit
}

func TestLimiterRate(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name         string
		rate         float64
		rows, loads  int
		least, most_ time.Duration
	}{
		{"Small", 100, 1, 310, 2900 * time.Millisecond, 3100 * time.Millisecond},
		{"LargerThanTheBucket", 100, 50, 7, 2900 * time.Millisecond, 3100 * time.Millisecond},
		{"None", -1, 1000, 100, 0, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := NewLimiter(LimiterConfig{Rate: test.rate})
				began := time.Now()
				for range test.loads {
					acquire(t, l, test.rows, PriorityWarm).Done(test.rows, 0, false)
				}
				if took := time.Since(began); took < test.least || took > test.most_ {
					t.Errorf("%d loads of %d at %v/s took %v", test.loads, test.rows, test.rate, took)
				}
			})
		})
	}
}

// What was not asked for does not count.
func TestLimiterGivesBackWhatWasNotAskedFor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := NewLimiter(LimiterConfig{Rate: 10})
		began := time.Now()
		for range 100 {
			acquire(t, l, 1, PriorityWarm).Done(0, 0, false)
		}
		if took := time.Since(began); took != 0 {
			t.Errorf("a hundred loads of nothing took %v", took)
		}
	})
}

func TestLimiterConcurrency(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := NewLimiter(LimiterConfig{Rate: -1, Concurrency: 3})
		var mu sync.Mutex
		running, most := 0, 0
		var wait sync.WaitGroup
		for range 20 {
			wait.Go(func() {
				p := acquire(t, l, 1, PriorityWarm)
				mu.Lock()
				running++
				most = max(most, running)
				mu.Unlock()
				time.Sleep(time.Second) //nolint:forbidigo // in a bubble
				mu.Lock()
				running--
				mu.Unlock()
				p.Done(1, time.Second, false)
			})
		}
		wait.Wait()
		if most != 3 {
			t.Errorf("%d loads at a time, want 3", most)
		}
	})
}

func TestLimiterPriority(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := NewLimiter(LimiterConfig{Rate: -1, Concurrency: 1})
		first := acquire(t, l, 1, PriorityWarm)
		var order []Priority
		var wait sync.WaitGroup
		for _, p := range []Priority{PriorityWarm, PriorityRewarm} {
			for range 16 {
				wait.Go(func() {
					permit := acquire(t, l, 1, p)
					order = append(order, p) // one at a time
					permit.Done(1, time.Millisecond, false)
				})
			}
			synctest.Wait()
		}
		first.Done(1, time.Millisecond, false)
		wait.Wait()
		low := 0
		for _, p := range order[:16] {
			if p == PriorityWarm {
				low++
			}
		}
		if low != 2 {
			t.Errorf("%d of the first 16 loads are of the lower priority, want 2: %v", low, order)
		}
	})
}

func TestLimiterWaitsAfterErrors(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := NewLimiter(LimiterConfig{Rate: -1})
		began := time.Now()
		for range 10 {
			acquire(t, l, 1, PriorityRewarm).Done(1, time.Millisecond, true)
		}
		if took := time.Since(began); took < 5*time.Second {
			t.Errorf("ten errors in a row took %v: they must not come faster and faster", took)
		}
		if l.Pace() >= 1 {
			t.Errorf("pace %v after ten errors", l.Pace())
		}
	})
}

// Who gives up takes nothing along: neither a place nor the rate.
func TestLimiterCancelled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := NewLimiter(LimiterConfig{Rate: 10, Concurrency: 1})
		held := acquire(t, l, 1, PriorityWarm)
		ctx, cancel := context.WithCancelCause(t.Context())
		gone := errors.New("gone")
		done := make(chan error)
		go func() {
			_, err := l.Acquire(ctx, "k", 1, PriorityRewarm)
			done <- err
		}()
		synctest.Wait()
		cancel(gone)
		if err := <-done; !errors.Is(err, gone) {
			t.Errorf("Acquire: %v, want the cause", err)
		}
		held.Done(0, 0, false)
		began := time.Now()
		acquire(t, l, 1, PriorityWarm).Done(1, 0, false)
		if took := time.Since(began); took != 0 {
			t.Errorf("the next load waited %v", took)
		}
		// One that waits for the rate leaves no timer behind that anybody waits for.
		ctx, cancel = context.WithCancelCause(t.Context())
		go func() {
			_, err := l.Acquire(ctx, "k", 100, PriorityRewarm)
			done <- err
		}()
		synctest.Wait()
		cancel(gone)
		<-done
	})
}

package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/internal/harness"
)

// queue lets loads wait one after another, and collects what became of them.
type queue struct {
	t     *testing.T
	turns *turns
	wg    sync.WaitGroup
	mu    sync.Mutex
	out   []string
}

func newQueue(t *testing.T, running, bound int) *queue {
	q := &queue{t: t, turns: &turns{free: running, bound: bound}}
	for range running {
		if err := q.turns.acquire(t.Context(), &turn{}); err != nil {
			t.Fatal(err)
		}
	}
	return q
}

// add returns when the load waits, or has been turned away.
func (q *queue) add(ctx context.Context, name string, priority int) *turn {
	q.t.Helper()
	tn := &turn{priority: priority}
	over := make(chan struct{})
	q.wg.Go(func() {
		defer close(over)
		err := q.turns.acquire(ctx, tn)
		if err != nil {
			name += ": " + err.Error()
		}
		q.mu.Lock()
		q.out = append(q.out, name)
		q.mu.Unlock()
		if err == nil {
			q.turns.release()
		}
	})
	harness.Eventually(q.t, 10*time.Second, harness.True("it waits", func() bool {
		select {
		case <-over:
			return true
		default:
		}
		q.turns.mu.Lock()
		defer q.turns.mu.Unlock()
		return tn.waits
	}))
	return tn
}

func (q *queue) want(want ...string) {
	q.t.Helper()
	q.wg.Wait()
	if !slices.Equal(q.out, want) {
		q.t.Errorf("order: got %q, want %q", q.out, want)
	}
	if q.turns.free != 1 || len(q.turns.waiting) != 0 {
		q.t.Errorf("left: %d free, %d waiting; want 1, 0", q.turns.free, len(q.turns.waiting))
	}
}

func TestLoadsWaitInTurn(t *testing.T) {
	t.Parallel()
	q := newQueue(t, 1, 10)
	for i, priority := range []int{0, 5, -1, 5, 0, 9} {
		q.add(t.Context(), fmt.Sprint(i), priority)
	}
	q.turns.release()
	q.want("5", "1", "3", "0", "4", "2")
}

// The lowest go first, of them the newest, and they hear of it at once.
func TestFullQueueTurnsAwayTheLowest(t *testing.T) {
	t.Parallel()
	q := newQueue(t, 1, 3)
	q.add(t.Context(), "a", 0)
	q.add(t.Context(), "b", 1)
	q.add(t.Context(), "c", 0)
	q.add(t.Context(), "late", 0)   // no better than those who wait
	q.add(t.Context(), "urgent", 2) // c goes for it
	q.add(t.Context(), "late", 1)   // a goes for it
	q.add(t.Context(), "late", 1)
	harness.Eventually(t, 10*time.Second, harness.True("four are turned away", func() bool {
		q.mu.Lock()
		defer q.mu.Unlock()
		return len(q.out) == 4
	}))
	q.mu.Lock()
	away := slices.Clone(q.out)
	q.out = nil
	q.mu.Unlock()
	slices.Sort(away)
	if want := []string{"a: too many loads", "c: too many loads", "late: too many loads", "late: too many loads"}; !slices.Equal(away, want) {
		t.Errorf("turned away: %q, want %q", away, want)
	}
	q.turns.release()
	q.want("urgent", "b", "late")
}

func TestWaitingLoadIsPromoted(t *testing.T) {
	t.Parallel()
	q := newQueue(t, 1, 10)
	q.add(t.Context(), "a", 1)
	b := q.add(t.Context(), "b", 0)
	q.add(t.Context(), "c", 1)
	q.turns.promote(b, 1)
	q.turns.promote(b, -5) // nobody is put back
	q.turns.release()
	q.want("a", "b", "c") // by its age among equals
}

func TestWaitingLoadLeaves(t *testing.T) {
	t.Parallel()
	q := newQueue(t, 1, 10)
	ctx, cancel := context.WithCancel(t.Context())
	q.add(ctx, "a", 9)
	q.add(t.Context(), "b", 0)
	cancel()
	harness.Eventually(t, 10*time.Second, harness.True("it has left", func() bool {
		q.mu.Lock()
		defer q.mu.Unlock()
		return len(q.out) == 1
	}))
	if q.turns.try() {
		t.Error("there was one to spare while somebody waited")
	}
	q.turns.release()
	q.want("a: context canceled", "b")
	if !q.turns.try() || q.turns.try() {
		t.Error("want exactly one to spare")
	}
}

// A cancellation and a turn that come together lose none.
func TestTurnIsNotLost(t *testing.T) {
	t.Parallel()
	q := &turns{free: 1, bound: 100}
	var wg sync.WaitGroup
	for range 200 {
		wg.Go(func() {
			ctx, cancel := context.WithCancel(t.Context())
			go cancel()
			if err := q.acquire(ctx, &turn{}); err == nil {
				q.release()
			} else if !errors.Is(err, context.Canceled) && !errors.Is(err, ErrOverloaded) {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if q.free != 1 || len(q.waiting) != 0 {
		t.Errorf("left: %d free, %d waiting; want 1, 0", q.free, len(q.waiting))
	}
}

// The priority of the context reaches the queue, also through a load that a
// second reader joins.
func TestPriorityOfReads(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	e := Entries[int64](c, "item", MaxLoads(1))
	w.live(c)
	release := make(chan struct{})
	var mu sync.Mutex
	var order []string
	var wg sync.WaitGroup
	read := func(key string, priority int, waiting int) {
		t.Helper()
		wg.Go(func() {
			_, err := e.Get(Priority(t.Context(), priority), key, func(context.Context, *Load) (int64, error) {
				<-release
				mu.Lock()
				defer mu.Unlock()
				order = append(order, key)
				return 1, nil
			})
			if err != nil {
				t.Error(err)
			}
		})
		harness.Eventually(t, 10*time.Second, func() error {
			s := c.Stats().Classes["item"]
			if n := e.cl.turns.queued() + int(s.Coalesced); n != waiting {
				return fmt.Errorf("%d wait, want %d", n, waiting)
			}
			e.cl.turns.mu.Lock()
			defer e.cl.turns.mu.Unlock()
			if e.cl.turns.free != 0 {
				return errors.New("nobody loads yet")
			}
			return nil
		})
	}
	read("first", 0, 0)
	read("low", -1, 1)
	read("joined", -2, 2)
	read("middle", 3, 3)
	read("joined", 7, 4)
	close(release)
	wg.Wait()
	if want := []string{"first", "joined", "middle", "low"}; !slices.Equal(order, want) {
		t.Errorf("order: got %q, want %q", order, want)
	}
}

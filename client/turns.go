package client

import (
	"cmp"
	"context"
	"slices"
	"sync"
)

// turns bounds how many loads of a class run at one time, and says who is next:
// the highest priority first, among equals who came first. What waits is
// bounded too, so that under an overload an answer is either soon or at once.
type turns struct {
	mu    sync.Mutex
	free  int
	bound int // of those who wait
	// waiting is sorted: the first is served next, the last is the first to be
	// turned away. Nobody waits while one is free.
	waiting []*turn
	seq     uint64
}

// turn is a load that wants to run. Its fields are guarded by turns.mu.
type turn struct {
	priority int
	seq      uint64
	waits    bool
	ready    chan error // tells the outcome, once
}

// waitingPerLoad is how many may wait for each one that may run.
const waitingPerLoad = 8

func newTurns(loads int) *turns { return &turns{free: loads, bound: waitingPerLoad * loads} }

// acquire waits for permission to load; release gives it back. ErrOverloaded
// comes at once, also to one who waits when somebody of a higher priority needs
// the place.
func (q *turns) acquire(ctx context.Context, t *turn) error {
	q.mu.Lock()
	if q.free > 0 {
		q.free--
		q.mu.Unlock()
		return nil
	}
	if n := len(q.waiting); n >= q.bound {
		if n == 0 || q.waiting[n-1].priority >= t.priority {
			q.mu.Unlock()
			return ErrOverloaded
		}
		last := q.waiting[n-1]
		q.take(last)
		last.ready <- ErrOverloaded
	}
	q.seq++
	t.seq, t.ready = q.seq, make(chan error, 1)
	q.put(t)
	q.mu.Unlock()
	select {
	case err := <-t.ready:
		return err
	case <-ctx.Done():
	}
	q.mu.Lock()
	waited := t.waits
	if waited {
		q.take(t)
	}
	q.mu.Unlock()
	if !waited && <-t.ready == nil { // it was called in the same moment
		q.release()
	}
	return context.Cause(ctx)
}

// try takes permission only if there is one to spare.
func (q *turns) try() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.free == 0 {
		return false
	}
	q.free--
	return true
}

func (q *turns) release() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waiting) == 0 {
		q.free++
		return
	}
	next := q.waiting[0]
	q.take(next)
	next.ready <- nil
}

// promote gives a turn the priority of one who joins it, if that is higher.
func (q *turns) promote(t *turn, priority int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if priority <= t.priority {
		return
	}
	if !t.waits {
		t.priority = priority
		return
	}
	q.take(t)
	t.priority = priority
	q.put(t)
}

func (q *turns) queued() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.waiting)
}

func (q *turns) put(t *turn) {
	i, _ := slices.BinarySearchFunc(q.waiting, t, inTurn)
	q.waiting = slices.Insert(q.waiting, i, t)
	t.waits = true
}

func (q *turns) take(t *turn) {
	if i, ok := slices.BinarySearchFunc(q.waiting, t, inTurn); ok {
		q.waiting = slices.Delete(q.waiting, i, i+1)
	}
	t.waits = false
}

func inTurn(a, b *turn) int {
	return cmp.Or(cmp.Compare(b.priority, a.priority), cmp.Compare(a.seq, b.seq))
}

type priorityKey struct{}

// Priority returns a context under which loads that have to wait for their turn
// (see MaxLoads) do so with priority n: higher ones first, and the lowest are
// turned away first when too many wait. Without it n is 0. It is passed on to
// what a loader reads; a load that several reads share has the highest of
// theirs. What has its turn already is not interrupted.
func Priority(ctx context.Context, n int) context.Context {
	return context.WithValue(ctx, priorityKey{}, n)
}

func priorityOf(ctx context.Context) int {
	n, _ := ctx.Value(priorityKey{}).(int)
	return n
}

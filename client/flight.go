package client

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"
)

// flight is one load that several reads may wait for. What follows on cancel is
// guarded by class.mu, but for the result, which is by done.
type flight[T any] struct {
	force bool // load, whatever is cached
	// background: nobody waits for it. It has its turn from the beginning.
	background, turned bool
	// filled is when the value that is to be replaced was filled; what is there
	// and younger will do.
	filled int64
	turn   turn
	done   chan struct{}
	ended  <-chan struct{} // its context's
	cause  func() error
	cancel context.CancelCauseFunc

	at       since
	began    time.Duration
	waiters  int
	detached bool // goes on when nobody waits
	over     bool // not to be joined
	timedOut bool

	value T
	meta  meta
	err   error
}

// shared waits for the load of a key that is under way, or starts one.
func (e *Class[T]) shared(ctx context.Context, key string, load func(context.Context, *Load) (T, error), sp *spare[T]) (T, meta, error) {
	cl := e.cl
	cl.mu.Lock()
	f, ok := cl.flights[key].(*flight[T])
	if ok && e.joinable(f, e.c.name(cl, key)) {
		f.waiters++
		cl.mu.Unlock()
		cl.turns.promote(&f.turn, priorityOf(ctx))
		cl.counts.coalesced.Add(1)
		return e.await(ctx, key, f, sp)
	}
	f = &flight[T]{filled: -1, waiters: 1}
	e.start(ctx, key, f, load, &scope{}, load != nil)
	if load != nil { // else it ends in ErrNoLoader, which is for its own reader
		cl.flights[key] = f
	}
	cl.mu.Unlock()
	return e.await(ctx, key, f, sp)
}

// joinable reports whether a read may wait for a load that is under way; called
// under class.mu. One that began before something was invalidated is not joined:
// who asks after the invalidation was heard of must not get what was read before
// it. Whether it was heard of says nothing while the broadcast is not heard, so
// then a load is joined no longer than L1 would be read.
func (e *Class[T]) joinable(f *flight[T], name string) bool {
	c := e.c
	select {
	case <-f.ended:
		return false
	default:
	}
	if f.over || !c.live() && c.now()-f.began >= l1Life {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.marks.purge <= f.at.seq && !c.markedLocked(f.at, name, nil)
}

// alone loads for one reader, whatever is cached.
func (e *Class[T]) alone(ctx context.Context, key string, load func(context.Context, *Load) (T, error), s *scope) (T, meta, error) {
	f := &flight[T]{force: true, filled: -1, waiters: 1}
	e.start(ctx, key, f, load, &scope{bound: s.bound}, false)
	return e.await(ctx, key, f, nil)
}

// start begins a load on a goroutine of its own, which Close waits for.
func (e *Class[T]) start(ctx context.Context, key string, f *flight[T], load func(context.Context, *Load) (T, error), s *scope, listed bool) {
	c := e.c
	f.at, f.began, f.done = c.sending(), c.now(), make(chan struct{})
	f.turn.priority = priorityOf(ctx)
	// Neither the first reader's cancellation nor its deadline is the others'.
	ctx, f.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	ctx, stop := context.WithTimeoutCause(ctx, e.cl.hard, e.cl.hardCause)
	f.ended, f.cause = ctx.Done(), func() error { return context.Cause(ctx) }
	counted := c.enter()
	unhook := func() bool { return true }
	if counted {
		unhook = context.AfterFunc(c.loads, func() { f.cancel(ErrClosed) })
	}
	c.counts.flights.Add(1)
	go func() {
		defer c.counts.flights.Add(-1)
		if counted {
			defer c.fills.Done()
		}
		defer stop()
		defer unhook()
		if listed {
			defer e.unlist(key, f)
		}
		e.fly(ctx, f, key, load, s, counted)
	}()
}

// enter counts a flight that Close has to wait for.
func (c *Client) enter() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return false
	}
	c.fills.Add(1)
	return true
}

func (e *Class[T]) unlist(key string, f *flight[T]) {
	e.cl.mu.Lock()
	defer e.cl.mu.Unlock()
	e.unlistLocked(key, f)
}

func (e *Class[T]) unlistLocked(key string, f *flight[T]) {
	f.over = true
	if have, ok := e.cl.flights[key].(*flight[T]); ok && have == f {
		delete(e.cl.flights, key)
	}
}

// await waits for a load: as long as ctx lasts, as long as the load may take,
// and no longer than SoftTimeout if there is something else to return.
func (e *Class[T]) await(ctx context.Context, key string, f *flight[T], sp *spare[T]) (v T, m meta, err error) {
	return e.awaitUntil(ctx, key, f, sp, time.Now().Add(e.cl.soft))
}

// awaitUntil is await with the end of SoftTimeout, which several waits may have
// together.
func (e *Class[T]) awaitUntil(ctx context.Context, key string, f *flight[T], sp *spare[T], softEnd time.Time) (v T, m meta, err error) {
	var soft <-chan time.Time
	if e.cl.soft > 0 && !f.force && (sp != nil || e.cl.fallback != nil) {
		t := time.NewTimer(time.Until(softEnd))
		defer t.Stop()
		soft = t.C
	}
	for {
		select {
		case <-f.done:
			return f.value, f.meta, f.err
		case <-soft:
			soft = nil
			if v, m, ok := e.instead(sp); ok {
				e.detach(f)
				e.cl.counts.softTimeouts.Add(1)
				return e.result(v, m)
			}
		case <-f.ended:
			select {
			case <-f.done:
				return f.value, f.meta, f.err
			default:
			}
			e.expire(key, f)
			return v, m, f.cause()
		case <-ctx.Done():
			e.leave(key, f)
			return v, m, context.Cause(ctx)
		}
	}
}

// detach lets a load go on that a reader does not wait for any more.
func (e *Class[T]) detach(f *flight[T]) {
	e.cl.mu.Lock()
	f.detached = true
	f.waiters--
	e.cl.mu.Unlock()
}

// leave ends a load that nobody waits for.
func (e *Class[T]) leave(key string, f *flight[T]) {
	e.cl.mu.Lock()
	defer e.cl.mu.Unlock()
	if f.waiters--; f.waiters == 0 && !f.detached {
		e.unlistLocked(key, f)
		f.cancel(context.Canceled)
	}
}

// expire notes that a load took too long; those who come try another.
func (e *Class[T]) expire(key string, f *flight[T]) {
	e.cl.mu.Lock()
	defer e.cl.mu.Unlock()
	e.unlistLocked(key, f)
	if !f.timedOut && errors.Is(f.cause(), context.DeadlineExceeded) {
		f.timedOut = true
		e.cl.counts.hardTimeouts.Add(1)
	}
}

// abandon ends a background load that somebody else does already, unless a
// reader has come to wait for it: then it is a load like others.
func (e *Class[T]) abandon(key string, f *flight[T]) bool {
	e.cl.mu.Lock()
	defer e.cl.mu.Unlock()
	if f.waiters == 0 {
		e.unlistLocked(key, f)
		return true
	}
	f.background, f.turned = false, false
	e.cl.turns.release()
	return false
}

// fly is BEGIN, LOAD, REGISTER, FILL, and then L1. Readers have their value
// after LOAD.
func (e *Class[T]) fly(ctx context.Context, f *flight[T], key string, load func(context.Context, *Load) (T, error), s *scope, fill bool) {
	c, cl := e.c, e.cl
	if f.turned {
		defer func() {
			if f.turned {
				cl.turns.release()
			}
		}()
	}
	name := c.name(cl, key)
	l := &Load{c: c, class: cl.name, name: c.full(key), bound: s.bound, cacheable: true}
	p := permit{at: f.at}
	if fill {
		var v T
		var m meta
		var o outcome
		if p, v, m, o = e.lead(ctx, f, key, name); o != leads {
			f.value, f.meta, f.err = e.result(v, m)
			close(f.done)
			return
		}
	}
	if p.ticket != nil {
		l.known, l.footing = p.ticket.Known, p.footing
	}
	cl.mu.Lock()
	f.at, f.began = p.at, c.now()
	l.began = f.began
	cl.mu.Unlock()
	cl.counts.misses.Add(1)
	cost, err := e.call(ctx, f, load, l)
	if f.err = err; errors.Is(err, cl.hardCause) {
		e.expire(key, f)
	}
	negative := errors.Is(f.err, ErrNotFound)
	l.finish()
	f.meta = l.meta(negative)
	value, failed := f.value, f.err != nil && !negative
	if failed || p.ticket == nil || !l.cacheable || negative && cl.negative == 0 {
		e.unlist(key, f) // it is for those who wait, and nobody after them
	}
	close(f.done)
	e.settle(key, value, negative, failed, &p, l, cost)
}

// call runs the loader, once it is its turn. Whatever the loader does, readers
// get an answer. cost is the loader's own time.
func (e *Class[T]) call(ctx context.Context, f *flight[T], load func(context.Context, *Load) (T, error), l *Load) (cost time.Duration, err error) {
	if load == nil {
		return 0, ErrNoLoader
	}
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	if !f.turned {
		if err := e.cl.turns.acquire(ctx, &f.turn); err != nil {
			if errors.Is(err, ErrOverloaded) {
				e.cl.counts.overloaded.Add(1)
			}
			return 0, err
		}
		defer e.cl.turns.release()
	}
	began := time.Now()
	v, err := e.protected(context.WithValue(ctx, scopeKey{}, &scope{load: l, bound: l.bound}), load, l)
	cost = time.Since(began)
	key, _ := e.c.short(l.name)
	e.cl.counts.loaded(key, cost, err)
	if err == nil {
		f.value = v
	}
	if err == nil || errors.Is(err, ErrNotFound) {
		e.cl.took.note(cost)
	} else if ctx.Err() != nil {
		err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	return cost, err
}

func (e *Class[T]) protected(ctx context.Context, load func(context.Context, *Load) (T, error), l *Load) (v T, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("loader panicked: %v\n%s", p, debug.Stack())
		}
	}()
	if v, err = load(ctx, l); err == nil || errors.Is(err, ErrNotFound) {
		if bad := l.misnamed(); bad != nil {
			return v, bad
		}
	}
	return v, err
}

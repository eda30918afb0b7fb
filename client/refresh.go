package client

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/lethe-cache/lethe/coherence"
)

// renew has a value loaded again behind the back of the reader, who has one. It
// takes a place among the loads only if there is one to spare.
func (e *Class[T]) renew(ctx context.Context, key string, load func(context.Context, *Load) (T, error), filled int64) {
	cl := e.cl
	if load == nil {
		return
	}
	cl.mu.Lock()
	defer cl.mu.Unlock()
	if f, ok := cl.flights[key].(*flight[T]); ok && !f.over {
		return
	}
	if e.c.isClosed() || !cl.turns.try() {
		cl.counts.refreshesSkipped.Add(1)
		return
	}
	cl.counts.refreshes.Add(1)
	f := &flight[T]{background: true, turned: true, detached: true, filled: filled}
	e.start(ctx, key, f, load, &scope{}, true)
	cl.flights[key] = f
}

// schedule sets the times of an entry that is stored at now, which is wall by
// the clock on the wall.
func (e *l1Entry) schedule(cl *class, now time.Duration, wall time.Time) {
	local := func(unix int64) time.Duration {
		if unix == 0 {
			return math.MaxInt64
		}
		return now + time.Duration(unix-wall.UnixMicro())*time.Microsecond
	}
	e.expires = local(e.expiry)
	e.soft = min(local(e.meta.soft), e.expires)
	e.look = e.soft
	if cl.beta > 0 {
		e.look = min(e.look, cl.earliest(e.soft, e.cost))
	}
}

// dueL1 reports whether an entry of L1 is to be loaded again, once in a while.
func (e *Class[T]) dueL1(ent *l1Entry) bool {
	now, pause := e.c.now(), ent.pause.Load()
	if int64(now) < pause {
		return false
	}
	wants, isEarly := e.cl.wants(now, ent.soft, ent.cost)
	if !wants || !ent.pause.CompareAndSwap(pause, int64(now+e.cl.took.lease())) {
		return false
	}
	if isEarly {
		e.cl.counts.earlyRefreshes.Add(1)
	}
	return true
}

// dueL2 is dueL1 for an entry of Redis.
func (e *Class[T]) dueL2(h *coherence.Header, now time.Time) bool {
	soft := h.SoftExpiry
	if soft == 0 {
		soft = h.HardExpiry
	}
	if soft == 0 {
		return false
	}
	cost := time.Duration(h.LoadCost) * time.Microsecond
	wants, isEarly := e.cl.wants(0, time.UnixMicro(soft).Sub(now), cost)
	if isEarly {
		e.cl.counts.earlyRefreshes.Add(1)
	}
	return wants
}

// again is what the fast way does about an entry that is due.
func (e *Class[T]) again(ctx context.Context, key string, ent *l1Entry, load []func(context.Context, *Load) (T, error)) {
	if e.dueL1(ent) {
		e.renew(ctx, key, e.loader(key, load), ent.filled)
	}
}

func (c *Client) isClosed() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closed
}

// Refresh loads a key anew and caches the value, whatever was cached. Under
// After it first waits, up to Options.TokenWait, until the write that the token
// names is visible to every reader of the primary: the refreshed value then
// stays when the write's own invalidation comes (keep), or is loaded again
// (delete). It returns neither stale values nor the class's Default.
func (e *Class[T]) Refresh(ctx context.Context, key string, load ...func(context.Context, *Load) (T, error)) (T, error) {
	var zero T
	err := e.err
	if err == nil {
		err = e.checkKey(key)
	}
	if err != nil {
		return zero, fmt.Errorf("refresh %q: %w", key, err)
	}
	s := e.c.scopeOf(ctx)
	if s == nil {
		s = &scope{}
	}
	if !s.bound.IsZero() && s.bound != unknownToken {
		wait, cancel := context.WithTimeout(ctx, e.c.opts.TokenWait)
		_ = e.c.waitFor(wait, func() bool { // not in time: the ticket decides
			v := e.c.view.Load()
			return v != nil && v.control.V.Covers(s.bound)
		})
		cancel()
	}
	v, m, err := e.alone(ctx, key, e.loader(key, load), s)
	if s.load != nil && err == nil {
		s.load.part(e.cl, e.c.full(key), &m)
	}
	if err != nil {
		return v, fmt.Errorf("refresh %q: %w", key, err)
	}
	return v, nil
}

// loader is the one that loads a key: that of the call, or else the class's.
func (e *Class[T]) loader(key string, own []func(context.Context, *Load) (T, error)) func(context.Context, *Load) (T, error) {
	if len(own) > 0 && own[0] != nil {
		return own[0]
	}
	if l, ok := e.cl.load.(func(context.Context, string, *Load) (T, error)); ok {
		return func(ctx context.Context, load *Load) (T, error) { return l(ctx, key, load) }
	}
	if l, ok := e.cl.loadMany.(batchLoader[T]); ok {
		return l.single(key)
	}
	return nil
}

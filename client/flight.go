package client

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/lethe-cache/lethe/coherence"
)

// flight is one load that several reads may wait for. waiters and over are
// guarded by class.mu, the result by done.
type flight[T any] struct {
	at      since
	cancel  context.CancelFunc
	done    chan struct{}
	waiters int
	over    bool // abandoned by everybody

	value T
	meta  meta
	err   error
}

// shared waits for the load of a key that is under way, or starts one. A load
// that began before something was invalidated is not joined: who asks after the
// invalidation was heard of must not get what was read before it.
func (e *Class[T]) shared(ctx context.Context, key string, load func(context.Context, *Load) (T, error)) (T, meta, error) {
	cl := e.cl
	cl.mu.Lock()
	f, ok := cl.flights[key].(*flight[T])
	if ok && !f.over && e.c.joinable(f.at, e.c.name(cl, key)) {
		f.waiters++
		cl.mu.Unlock()
		cl.counts.coalesced.Add(1)
		return e.await(ctx, key, f)
	}
	f = e.start(ctx, key, load, &scope{}, false, true)
	cl.flights[key] = f
	cl.mu.Unlock()
	return e.await(ctx, key, f)
}

func (c *Client) joinable(at since, name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.marks.purge <= at.seq && !c.markedLocked(at, name, nil)
}

// alone loads for one reader, whatever is cached.
func (e *Class[T]) alone(ctx context.Context, key string, load func(context.Context, *Load) (T, error), s *scope) (T, meta, error) {
	return e.await(ctx, key, e.start(ctx, key, load, &scope{bound: s.bound}, true, false))
}

// start begins a load on a goroutine of its own, which Close waits for.
func (e *Class[T]) start(ctx context.Context, key string, load func(context.Context, *Load) (T, error), s *scope, force, listed bool) *flight[T] {
	f := &flight[T]{at: e.c.sending(), done: make(chan struct{}), waiters: 1}
	// Neither the first reader's cancellation nor its deadline is the others'.
	ctx, f.cancel = context.WithCancel(context.WithoutCancel(ctx))
	counted := e.c.enter()
	e.c.counts.flights.Add(1)
	go func() {
		defer e.c.counts.flights.Add(-1)
		if counted {
			defer e.c.fills.Done()
		}
		defer f.cancel()
		if listed {
			defer e.unlist(key, f)
		}
		e.fly(ctx, f, key, load, s, force, counted)
	}()
	return f
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
	if have, ok := e.cl.flights[key].(*flight[T]); ok && have == f {
		delete(e.cl.flights, key)
	}
}

func (e *Class[T]) await(ctx context.Context, key string, f *flight[T]) (T, meta, error) {
	select {
	case <-f.done:
		return f.value, f.meta, f.err
	case <-ctx.Done():
	}
	e.cl.mu.Lock()
	if f.waiters--; f.waiters == 0 {
		f.over = true
		f.cancel()
	}
	e.cl.mu.Unlock()
	var zero T
	return zero, meta{}, context.Cause(ctx)
}

// fly is BEGIN, LOAD, REGISTER, FILL, and then L1. Readers have their value
// after LOAD.
func (e *Class[T]) fly(ctx context.Context, f *flight[T], key string, load func(context.Context, *Load) (T, error), s *scope, force, fill bool) {
	c, cl := e.c, e.cl
	name := c.name(cl, key)
	l := &Load{c: c, name: c.full(key), bound: s.bound, cacheable: true}
	var ticket *coherence.Ticket
	if fill {
		if begun, usable, ok := e.begin(ctx, name); ok {
			l.known, l.usable = begun.Ticket.Known, usable
			ticket = &begun.Ticket
			if !begun.Mine && !force && c.judge(ctx, cl, name, &begun.Header, f.at) == hit {
				if v, m, ok := e.take(key, name, &begun.Header, begun.Payload, f.at); ok {
					f.value, f.meta, f.err = e.result(v, m)
					close(f.done)
					return
				}
			}
		}
	}
	cl.counts.misses.Add(1)
	cost, err := e.call(ctx, f, load, l)
	if err != nil {
		f.err = err
	}
	negative := errors.Is(f.err, ErrNotFound)
	l.finish()
	f.meta = l.meta(negative)
	value, failed := f.value, f.err != nil && !negative
	if failed || ticket == nil || !l.cacheable || negative && cl.negative == 0 {
		e.unlist(key, f) // it is for those who wait, and nobody after them
	}
	close(f.done)
	if failed {
		return
	}
	if ticket == nil {
		cl.counts.refuse("no_ticket")
		return
	}
	if c.hooks.loaded != nil {
		c.hooks.loaded(name)
	}
	e.fill(f.at, key, name, value, negative, ticket, l, cost)
}

// begin takes the ticket with what is known before.
func (e *Class[T]) begin(ctx context.Context, name string) (b coherence.Begun, usable, ok bool) {
	c := e.c
	v := c.view.Load()
	if v == nil || !c.live() || !v.knows(e.cl.name) {
		fresh, err := c.control(ctx, []string{e.cl.name})
		if err != nil {
			return b, false, false
		}
		v = fresh
	}
	known := v.control.Known(e.cl.name)
	if known.Source.Era == 0 {
		return b, false, false // no worker ever ran: nobody would invalidate
	}
	err := c.withStore(ctx, func(ctx context.Context, s *coherence.Store) (err error) {
		b, err = s.Begin(ctx, coherence.BeginRequest{Name: name, Known: known})
		return err
	})
	return b, v.usable, err == nil
}

// call runs the loader, once there is room for it. Whatever the loader does,
// readers get an answer. cost is the loader's own time.
func (e *Class[T]) call(ctx context.Context, f *flight[T], load func(context.Context, *Load) (T, error), l *Load) (cost time.Duration, err error) {
	if load == nil {
		return 0, ErrNoLoader
	}
	if err := e.cl.acquire(ctx); err != nil {
		return 0, err
	}
	defer e.cl.release()
	began := time.Now()
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("loader panicked: %v\n%s", p, debug.Stack())
		}
		cost = time.Since(began)
		key, _ := e.c.short(l.name)
		e.cl.counts.loaded(key, cost, err)
	}()
	v, err := load(context.WithValue(ctx, scopeKey{}, &scope{load: l, bound: l.bound}), l)
	if err == nil {
		f.value = v
	}
	return 0, err
}

// fill is REGISTER, FILL and L1's store.
func (e *Class[T]) fill(at since, key, name string, value T, negative bool, ticket *coherence.Ticket, l *Load, cost time.Duration) {
	c, cl := e.c, e.cl
	ttl := cl.life(l.ttl)
	if negative {
		if cl.negative <= 0 {
			cl.counts.refuse("negative")
			return
		}
		ttl = cl.life(cl.negative)
	}
	names, reason := l.allNames()
	if reason != "" {
		cl.counts.refuse(reason)
		return
	}
	now := time.Now()
	r := coherence.FillRequest{Ticket: *ticket, TTL: ttl, Header: coherence.Header{
		Filled: now.UnixMicro(), HardExpiry: now.Add(ttl).UnixMicro(), LoadCost: uint32(min(cost.Microseconds(), 1<<32-1)),
		ValueVersion: max(cl.version, 1), Codec: coherence.Codec(cl.codec.ID()), Names: names,
	}}
	r.Standby, r.Composite, r.Stamp = l.standby, l.composite, l.stamp()
	if negative {
		r.Header.Flags = coherence.FlagNegative
	} else {
		var err error
		if r.Payload, r.Header.Flags, err = cl.encode(value); err != nil {
			if errors.Is(err, errOversize) {
				cl.counts.refuse("oversize")
			} else {
				cl.counts.refuse("encode")
			}
			c.logger.Warn("a value is not cached", "key", key, "err", err)
			return
		}
	}
	if c.epoch.Load() != at.epoch {
		cl.counts.refuse("epoch")
		return
	}
	switch reason, err := c.registerAndFill(&r); {
	case err != nil:
		cl.counts.refuse("redis")
	case reason != coherence.Stored:
		cl.counts.refuse(reason.String())
	default:
		cl.counts.stored()
		if c.hooks.filled != nil {
			c.hooks.filled(name)
		}
		c.keep(cl, key, name, value, meta{
			stamp: r.RegisterStamp(), generation: ticket.Known.Generation, names: names,
			expiry: r.Header.HardExpiry, negative: negative, cacheable: true,
		}, len(r.Payload), at)
	}
}

// registerAndFill does the two in that order: a purge that does not find the
// member has raised the tag's header, and the registration is refused.
func (c *Client) registerAndFill(r *coherence.FillRequest) (reason coherence.Reason, err error) {
	var members []coherence.RegisterRequest
	for _, n := range r.Header.Names {
		if n.Kind != coherence.NameClass {
			members = append(members, coherence.RegisterRequest{Name: n.Name, Member: r.Ticket.Name, Stamp: r.RegisterStamp()})
		}
	}
	if len(members) > 0 {
		var reasons []coherence.Reason
		err := c.withStore(c.ctx, func(ctx context.Context, s *coherence.Store) (err error) {
			reasons, err = s.RegisterAll(ctx, members)
			return err
		})
		if err != nil {
			return 0, err
		}
		for _, reason := range reasons {
			if reason != coherence.Stored {
				return reason, nil
			}
		}
	}
	err = c.withStore(c.ctx, func(ctx context.Context, s *coherence.Store) (err error) {
		reason, err = s.Fill(ctx, *r)
		return err
	})
	return reason, err
}

// Refresh loads a key anew and caches the value, whatever was cached. Under
// After it first waits, up to Options.TokenWait, until the write that the token
// names is visible to every reader of the primary: the refreshed value then
// stays when the write's own invalidation comes (keep), or is loaded again
// (delete).
func (e *Class[T]) Refresh(ctx context.Context, key string, load ...func(context.Context, *Load) (T, error)) (T, error) {
	var own func(context.Context, *Load) (T, error)
	if len(load) > 0 {
		own = load[0]
	} else if l, ok := e.cl.load.(func(context.Context, string, *Load) (T, error)); ok {
		own = func(ctx context.Context, load *Load) (T, error) { return l(ctx, key, load) }
	}
	var zero T
	err := e.err
	if err == nil {
		err = e.checkKey(key)
	}
	if err != nil {
		return zero, fmt.Errorf("refresh %q: %w", key, err)
	}
	s := scopeOf(ctx)
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
	v, m, err := e.alone(ctx, key, own, s)
	if s.load != nil && err == nil {
		s.load.part(e.cl, e.c.full(key), &m)
	}
	if err != nil {
		return v, fmt.Errorf("refresh %q: %w", key, err)
	}
	return v, nil
}

package client

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lethe-cache/lethe/coherence"
)

// ship is one key's flight in a fleet, which is loaded together.
type ship[T any] struct {
	key, name string
	f         *flight[T]
	p         permit
	l         *Load
}

// sharedMany finds or starts the load of each key. What nobody loads yet goes
// together, MaxBatch keys at a time.
func (e *Class[T]) sharedMany(ctx context.Context, left []need[T], load batchLoader[T], s *scope, force bool) []*flight[T] {
	cl := e.cl
	flights := make([]*flight[T], len(left))
	var fleet []*ship[T]
	cl.mu.Lock()
	defer cl.mu.Unlock()
	for i := range left {
		key := left[i].key
		name := e.c.name(cl, key)
		if !force {
			if f, ok := cl.flights[key].(*flight[T]); ok && e.joinable(f, name) {
				f.waiters++
				cl.turns.promote(&f.turn, priorityOf(ctx))
				cl.counts.coalesced.Add(1)
				flights[i] = f
				continue
			}
		}
		flights[i] = &flight[T]{force: force, filled: -1, waiters: 1}
		fleet = append(fleet, &ship[T]{key: key, name: name, f: flights[i]})
		if !force {
			cl.flights[key] = flights[i]
		}
	}
	for part := range slices.Chunk(fleet, cl.maxBatch) {
		e.startFleet(ctx, part, load, s, !force)
	}
	return flights
}

// startFleet is start for the keys of a batch. Its context ends when nobody
// waits for any of them.
func (e *Class[T]) startFleet(ctx context.Context, fleet []*ship[T], load batchLoader[T], s *scope, listed bool) {
	c := e.c
	priority := priorityOf(ctx)
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	ctx, stop := context.WithTimeoutCause(ctx, e.cl.hard, e.cl.hardCause)
	var waited atomic.Int64
	waited.Store(int64(len(fleet)))
	for _, x := range fleet {
		f := x.f
		f.at, f.began, f.done = c.sending(), c.now(), make(chan struct{})
		f.turn.priority = priority
		f.ended, f.cause = ctx.Done(), func() error { return context.Cause(ctx) }
		f.cancel = func(cause error) {
			if waited.Add(-1) == 0 {
				cancel(cause)
			}
		}
	}
	counted := c.enter()
	unhook := func() bool { return true }
	if counted {
		unhook = context.AfterFunc(c.loads, func() { cancel(ErrClosed) })
	}
	c.counts.flights.Add(1)
	go func() {
		defer c.counts.flights.Add(-1)
		if counted {
			defer c.fills.Done()
		}
		defer cancel(nil)
		defer stop()
		defer unhook()
		if listed {
			defer func() {
				for _, x := range fleet {
					e.unlist(x.key, x.f)
				}
			}()
		}
		e.flyTogether(ctx, fleet, load, s, counted)
	}()
}

// flyTogether is fly for the keys of a batch.
func (e *Class[T]) flyTogether(ctx context.Context, fleet []*ship[T], load batchLoader[T], s *scope, fill bool) {
	c, cl := e.c, e.cl
	if fill {
		var apart []*ship[T]
		fleet, apart = e.leadTogether(ctx, fleet)
		var wg sync.WaitGroup
		defer wg.Wait()
		for _, x := range apart {
			wg.Go(func() { e.fly(ctx, x.f, x.key, load.single(x.key), s, true) })
		}
	}
	if len(fleet) == 0 {
		return
	}
	common := &Load{c: c, class: e.cl.name, bound: s.bound, cacheable: true}
	keys, loads := make([]string, len(fleet)), make(map[string]*Load, len(fleet))
	cl.mu.Lock()
	for i, x := range fleet {
		x.l = &Load{c: c, class: e.cl.name, name: c.full(x.key), bound: s.bound, cacheable: true}
		if t := x.p.ticket; t != nil {
			x.l.known, x.l.footing = t.Known, x.p.footing
		}
		keys[i], loads[x.key] = x.key, x.l
		if fill {
			x.f.at = x.p.at
		}
		x.f.began = c.now()
		x.l.began = x.f.began
	}
	cl.mu.Unlock()
	common.known, common.footing, common.name = fleet[0].l.known, fleet[0].l.footing, fleet[0].l.name
	cl.counts.misses.Add(uint64(len(fleet)))

	values, cost, err := e.callTogether(ctx, &fleet[0].f.turn, load, keys, &BatchLoad{common: common, loads: loads})
	common.finish()
	var done []loaded[T]
	var returns []coherence.LeaseRequest
	for _, x := range fleet {
		f := x.f
		f.value, f.err = pick(values, err, x.key)
		if bad := cmp.Or(x.l.misnamed(), common.misnamed()); bad != nil && (f.err == nil || errors.Is(f.err, ErrNotFound)) {
			f.err = bad
		}
		if errors.Is(f.err, cl.hardCause) {
			e.expire(x.key, f)
		}
		negative := errors.Is(f.err, ErrNotFound)
		failed := f.err != nil && !negative
		x.l.inherit(common)
		x.l.finish()
		f.meta = x.l.meta(negative)
		value := f.value
		if failed || x.p.ticket == nil || !x.l.cacheable || negative && cl.negative == 0 {
			e.unlist(x.key, f)
		}
		close(f.done)
		switch {
		case failed:
			returns = appendReturn(returns, &x.p, coherence.FreeLease(time.Now().Add(cl.took.lease())))
		case x.p.ticket == nil:
			cl.counts.refuse("no_ticket")
		default:
			done = append(done, loaded[T]{key: x.key, value: value, negative: negative, p: &x.p, l: x.l, cost: cost})
		}
	}
	c.returnLeases(returns)
	e.storeAll(done)
	for _, x := range fleet { // not only when those apart are through as well
		e.unlist(x.key, x.f)
	}
}

// leadTogether takes the tickets of a batch, and the leases with them. Keys that
// have a value meanwhile are done with; those that somebody else loads are to
// be waited for apart.
func (e *Class[T]) leadTogether(ctx context.Context, fleet []*ship[T]) (leading, apart []*ship[T]) {
	c, cl := e.c, e.cl
	at := c.sending()
	for _, x := range fleet {
		x.p.at = at
	}
	known, footing, err := e.known(ctx)
	if err != nil {
		return fleet, nil
	}
	reqs := make([]coherence.BeginRequest, len(fleet))
	for i, x := range fleet {
		reqs[i] = coherence.BeginRequest{Name: x.name, Plain: cl.plain, Known: known, Lease: cl.newLease()}
	}
	var begun []coherence.Begun
	err = c.following(ctx, fleet[0].name, func(ctx context.Context, s *coherence.Store) (err error) {
		begun, err = s.BeginAll(ctx, reqs)
		return err
	})
	if err != nil {
		return fleet, nil
	}
	var claims []*ship[T]
	var wanted []coherence.LeaseRequest
	for i, x := range fleet {
		b := &begun[i]
		x.p.ticket, x.p.footing = &b.Ticket, footing
		if c.cluster != nil {
			_, _ = c.route(ctx, x.name) // another master than before ends the epoch
		}
		switch {
		case b.Mine:
			x.p.lease = reqs[i].Lease
			leading = append(leading, x)
			continue
		case x.f.force:
			leading = append(leading, x)
			continue
		}
		switch v, m, is := e.present(ctx, x.key, x.name, b, at); is {
		case hit:
			x.f.value, x.f.meta, x.f.err = e.result(v, m)
			close(x.f.done)
			e.unlist(x.key, x.f)
			continue
		case unvouched, unwalked: // nor would it be worth more if somebody else loaded it
			leading = append(leading, x)
			continue
		case miss, again:
		}
		w := waiting{cl: cl, began: c.now()}
		switch w.next(c.now(), &b.Header) {
		case stepLoad:
			leading = append(leading, x)
		case stepWait:
			apart = append(apart, x)
		case stepClaim:
			claims = append(claims, x)
			wanted = append(wanted, coherence.LeaseRequest{
				Name: x.name, Plain: cl.plain, Incarnation: b.Header.Incarnation, Seen: b.Header.Lease, Next: reqs[i].Lease,
			})
		}
	}
	if len(claims) == 0 {
		return leading, apart
	}
	var won []bool
	err = c.following(ctx, wanted[0].Name, func(ctx context.Context, s *coherence.Store) (err error) {
		won, err = s.LeaseAll(ctx, wanted)
		return err
	})
	for i, x := range claims {
		switch {
		case err != nil: // the ticket stands, the lease does not matter
			leading = append(leading, x)
		case won[i]:
			x.p.lease = wanted[i].Next
			leading = append(leading, x)
		default:
			apart = append(apart, x)
		}
	}
	return leading, apart
}

// callTogether runs a batch loader, once it is its turn: it takes one.
func (e *Class[T]) callTogether(ctx context.Context, t *turn, load batchLoader[T], keys []string, b *BatchLoad) (values map[string]T, cost time.Duration, err error) {
	cl := e.cl
	if ctx.Err() != nil {
		return nil, 0, context.Cause(ctx)
	}
	if err := cl.turns.acquire(ctx, t); err != nil {
		if errors.Is(err, ErrOverloaded) {
			cl.counts.overloaded.Add(1)
		}
		return nil, 0, err
	}
	defer cl.turns.release()
	began := time.Now()
	func() {
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("loader panicked: %v\n%s", p, debug.Stack())
			}
		}()
		inner := context.WithValue(ctx, scopeKey{}, &scope{load: b.common, bound: b.common.bound})
		values, err = load(inner, slices.Clone(keys), b)
	}()
	cost = time.Since(began)
	var some *BatchError
	partly := errors.As(err, &some) && len(some.Keys) > 0
	cl.counts.loaded(printable(keys), cost, err)
	switch {
	case err == nil, partly, errors.Is(err, ErrNotFound):
		cl.took.note(cost)
	case ctx.Err() != nil:
		err = fmt.Errorf("%w: %w", context.Cause(ctx), err)
	}
	return values, cost, err
}

package client

import (
	"context"
	"errors"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
)

// known is what a ticket has to know, learned before it is taken.
func (e *Class[T]) known(ctx context.Context) (k coherence.Known, f footing, err error) {
	c := e.c
	v := c.view.Load()
	if v == nil || !c.live() || !v.knows(e.cl.name) {
		if v, err = c.control(ctx, []string{e.cl.name}); err != nil {
			return k, f, err
		}
	}
	if k = v.control.Known(e.cl.name); k.Source.Era == 0 {
		return k, f, errNoWorker
	}
	return k, v.footing, nil
}

var errNoWorker = errors.New("no worker ever ran: nobody would invalidate")

// begin takes the ticket with what is known before, and the lease if the entry
// is absent. follows is that of breaker.allow.
func (e *Class[T]) begin(ctx context.Context, name string, follows bool) (p permit, b coherence.Begun, ok bool) {
	p.at = e.c.sending()
	known, footing, err := e.known(ctx)
	if err != nil {
		return p, b, false
	}
	r := coherence.BeginRequest{Name: name, Plain: e.cl.plain, Known: known, Lease: e.cl.newLease()}
	err = e.c.onStore(ctx, name, follows, func(ctx context.Context, s *coherence.Store) (err error) {
		b, err = s.Begin(ctx, r)
		return err
	})
	if err != nil {
		return p, b, false
	}
	p.ticket, p.footing = &b.Ticket, footing
	if c := e.c; c.cluster != nil {
		_, _ = c.route(ctx, name) // another master than before ends the epoch
	}
	if b.Mine {
		p.lease = r.Lease
	}
	return p, b, true
}

// settle is what follows on a load: REGISTER, FILL and L1's store, or the
// lease's return.
func (e *Class[T]) settle(key string, value T, negative, failed bool, p *permit, l *Load, cost time.Duration) {
	switch {
	case failed:
		e.giveBack(p, coherence.FreeLease(time.Now().Add(e.cl.took.lease())))
	case p.ticket == nil:
		e.cl.counts.refuse("no_ticket")
	default:
		e.store(key, value, negative, p, l, cost)
	}
}

// loaded is a value that has a ticket, on its way into the cache.
type loaded[T any] struct {
	key      string
	value    T
	negative bool
	p        *permit
	l        *Load
	cost     time.Duration
	request  filling
}

// filling is what is sent of a value.
type filling struct {
	coherence.FillRequest
	// under are the stamps of Header.Names under which a composite is
	// registered; nil if it is the same for all.
	under []change.Position
}

// stampOf is the stamp under which the value is registered under a name.
func (f *filling) stampOf(name int) change.Position {
	if f.under == nil {
		return f.RegisterStamp()
	}
	return f.under[name]
}

// spread is the least and the greatest of them.
func (f *filling) spread() (least lowest, greatest change.Position) {
	for i := range f.Header.Names {
		if f.Header.Names[i].Kind != coherence.NameClass {
			p := f.stampOf(i)
			least.add(p)
			greatest = greatest.Max(p)
		}
	}
	return least, greatest
}

// store caches a value. The reason why it does not has been counted.
func (e *Class[T]) store(key string, value T, negative bool, p *permit, l *Load, cost time.Duration) (refused string) {
	return e.storeAll([]loaded[T]{{key: key, value: value, negative: negative, p: p, l: l, cost: cost}})[0]
}

// storeAll is store for the values of a batch: each is judged by itself, and
// what is sent is sent together.
func (e *Class[T]) storeAll(vs []loaded[T]) (refused []string) {
	c, cl := e.c, e.cl
	refused = make([]string, len(vs))
	var returns []coherence.LeaseRequest
	refuse := func(i int, reason string, next coherence.Lease) {
		refused[i] = reason
		cl.counts.refuse(reason)
		returns = appendReturn(returns, vs[i].p, next)
	}
	requests, index := make([]*filling, 0, len(vs)), make([]int, 0, len(vs))
	for i := range vs {
		v := &vs[i]
		if c.hooks.loaded != nil {
			c.hooks.loaded(v.p.ticket.Name)
		}
		var reason string
		if v.request, reason = e.fillRequest(v.key, v.value, v.negative, v.p, v.l, v.cost); reason != "" {
			refuse(i, reason, coherence.OpenLease(time.Now().Add(openFor)))
			continue
		}
		if c.epoch.Load() != v.p.at.epoch {
			refuse(i, "epoch", coherence.FreeLease(time.Time{}))
			continue
		}
		requests, index = append(requests, &v.request), append(index, i)
	}
	reasons, err := c.registerAndFill(requests)
	for n := range requests {
		i := index[n]
		switch {
		case err != nil:
			refused[i] = "redis"
			cl.counts.refuse("redis")
		case reasons[n] == coherence.RefusedIncarnation:
			refuse(i, reasons[n].String(), coherence.FreeLease(time.Time{}))
		case reasons[n] != coherence.Stored:
			refuse(i, reasons[n].String(), coherence.OpenLease(time.Now().Add(cl.took.lease())))
		default:
			v := &vs[i]
			cl.counts.stored()
			if c.hooks.filled != nil {
				c.hooks.filled(v.p.ticket.Name)
			}
			h := v.request.Header
			h.Generation, h.Stamp = v.p.ticket.Known.Generation, v.request.RegisterStamp()
			m := metaOf(&h)
			if !v.l.standby && !v.l.composite {
				m.own = v.l.began
			}
			c.keep(cl, v.key, v.p.ticket.Name, v.value, m, plainSize(&v.request.Header, v.request.Payload), v.p.at)
		}
	}
	c.returnLeases(returns)
	return refused
}

// fillRequest is what is sent of a value, or why it is not cached.
func (e *Class[T]) fillRequest(key string, value T, negative bool, p *permit, l *Load, cost time.Duration) (r filling, reason string) {
	cl := e.cl
	ttl, window := l.ttl, cl.window
	if negative {
		if cl.negative <= 0 {
			return r, "negative"
		}
		ttl, window = cl.negative, 0
	}
	if cl.plain && l.cacheable {
		if reason = l.refusePlain(); reason != "" {
			return r, reason
		}
	}
	names, reason := l.allNames()
	if reason != "" {
		return r, reason
	}
	now := time.Now()
	soft := cl.life(ttl)
	r.FillRequest = coherence.FillRequest{Ticket: *p.ticket, TTL: soft + window, Header: coherence.Header{
		Filled: now.UnixMicro(), SoftExpiry: now.Add(soft).UnixMicro(), HardExpiry: now.Add(soft + window).UnixMicro(),
		LoadCost: uint32(min(cost.Microseconds(), 1<<32-1)), ValueVersion: max(cl.version, 1),
		Codec: coherence.Codec(cl.codec.ID()), Names: names,
	}}
	r.Standby, r.Composite, r.Stamp = l.standby, l.composite, l.stamp()
	if l.composite {
		r.Own = l.ownStamp()
		// A value that can have no stamp is registered nowhere.
		if !r.RegisterStamp().IsZero() {
			for i := range names {
				r.under = append(r.under, l.stampUnder(names[i].Name))
			}
		}
	}
	if negative {
		r.Header.Flags = coherence.FlagNegative
		return r, ""
	}
	var err error
	if r.Payload, r.Header.Flags, err = cl.encode(value); err != nil {
		e.c.logger.Warn("a value is not cached", "key", key, "err", err)
		if errors.Is(err, errOversize) {
			return r, "oversize"
		}
		return r, "encode"
	}
	return r, ""
}

// registerAndFill does the two in that order: a purge that does not find the
// member has raised the tag's header, and the registration is refused. After an
// error each value may or may not be stored.
func (c *Client) registerAndFill(requests []*filling) ([]coherence.Reason, error) {
	if len(requests) == 0 {
		return nil, nil
	}
	out := make([]coherence.Reason, len(requests))
	for round := range 2 {
		if err := c.registerRound(requests, out, round); err != nil {
			return nil, err
		}
	}
	var fills []coherence.FillRequest
	var index []int
	for i, r := range requests {
		if out[i] == coherence.Stored {
			fills, index = append(fills, r.FillRequest), append(index, i)
		}
	}
	if len(fills) == 0 {
		return out, nil
	}
	err := c.following(c.ctx, fills[0].Ticket.Name, func(ctx context.Context, s *coherence.Store) error {
		reasons, err := s.FillAll(ctx, fills)
		for n, reason := range reasons {
			out[index[n]] = reason
		}
		return err
	})
	return out, err
}

// registerRound is one of two rounds of registrations: the first without the names
// of the least stamp, the second without those of the greatest. What has one
// stamp for all is done in the first.
//
// The rounds are for purges of what has all of several tags, which look for
// members under one tag and ask the others for them. Say the part that brought
// tag a misses the commit, and tag b comes from a part that has it. Registered
// side by side, a may be before the purge raises it and b after the purge has
// asked for it: neither is refused, and the purge does not find the value. In
// the second round a is refused: it begins when b is through, and before the
// purge asked for b it had raised all.
func (c *Client) registerRound(requests []*filling, out []coherence.Reason, round int) error {
	var members []coherence.RegisterRequest
	var owners []int
	for i, r := range requests {
		least, greatest := r.spread()
		even := least.least == greatest
		if out[i] != coherence.Stored || even && round == 1 {
			continue
		}
		for n := range r.Header.Names {
			stamp := r.stampOf(n)
			if r.Header.Names[n].Kind == coherence.NameClass || !even && (round == 0 && stamp == least.least || round == 1 && stamp == greatest) {
				continue
			}
			members = append(members, coherence.RegisterRequest{Name: r.Header.Names[n].Name, Member: r.Ticket.Name, Stamp: stamp})
			owners = append(owners, i)
		}
	}
	if len(members) == 0 {
		return nil
	}
	if c.hooks.registering != nil {
		c.hooks.registering(members)
	}
	var reasons []coherence.Reason
	err := c.withStore(c.ctx, func(ctx context.Context, s *coherence.Store) (err error) {
		reasons, err = s.RegisterAll(ctx, members)
		return err
	})
	if err != nil {
		return err
	}
	for n, reason := range reasons {
		if reason != coherence.Stored {
			out[owners[n]] = reason
		}
	}
	return nil
}

package client

import (
	"context"
	"errors"
	"time"

	"github.com/lethe-cache/lethe/coherence"
)

// known is what a ticket has to know, learned before it is taken.
func (e *Class[T]) known(ctx context.Context) (k coherence.Known, usable bool, err error) {
	c := e.c
	v := c.view.Load()
	if v == nil || !c.live() || !v.knows(e.cl.name) {
		if v, err = c.control(ctx, []string{e.cl.name}); err != nil {
			return k, false, err
		}
	}
	if k = v.control.Known(e.cl.name); k.Source.Era == 0 {
		return k, false, errNoWorker
	}
	return k, v.usable, nil
}

var errNoWorker = errors.New("no worker ever ran: nobody would invalidate")

// begin takes the ticket with what is known before, and the lease if the entry
// is absent.
func (e *Class[T]) begin(ctx context.Context, name string) (p permit, b coherence.Begun, ok bool) {
	p.at = e.c.sending()
	known, usable, err := e.known(ctx)
	if err != nil {
		return p, b, false
	}
	r := coherence.BeginRequest{Name: name, Known: known, Lease: e.cl.newLease()}
	err = e.c.withStore(ctx, func(ctx context.Context, s *coherence.Store) (err error) {
		b, err = s.Begin(ctx, r)
		return err
	})
	if err != nil {
		return p, b, false
	}
	p.ticket, p.usable = &b.Ticket, usable
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

// store caches a value that has a ticket. The reason why it does not has been
// counted.
func (e *Class[T]) store(key string, value T, negative bool, p *permit, l *Load, cost time.Duration) (refused string) {
	c, cl := e.c, e.cl
	refuse := func(reason string, next coherence.Lease) string {
		cl.counts.refuse(reason)
		e.giveBack(p, next)
		return reason
	}
	if c.hooks.loaded != nil {
		c.hooks.loaded(p.ticket.Name)
	}
	r, reason := e.fillRequest(key, value, negative, p, l, cost)
	if reason != "" {
		return refuse(reason, coherence.OpenLease(time.Now().Add(leaseMax)))
	}
	if c.epoch.Load() != p.at.epoch {
		return refuse("epoch", coherence.FreeLease(time.Time{}))
	}
	switch reason, err := c.registerAndFill(&r); {
	case err != nil:
		cl.counts.refuse("redis")
		return "redis"
	case reason == coherence.RefusedIncarnation:
		return refuse(reason.String(), coherence.FreeLease(time.Time{}))
	case reason != coherence.Stored:
		return refuse(reason.String(), coherence.OpenLease(time.Now().Add(cl.took.lease())))
	}
	cl.counts.stored()
	if c.hooks.filled != nil {
		c.hooks.filled(p.ticket.Name)
	}
	h := r.Header
	h.Generation, h.Stamp = p.ticket.Known.Generation, r.RegisterStamp()
	m := metaOf(&h)
	if !l.standby && !l.composite {
		m.own = l.began
	}
	c.keep(cl, key, p.ticket.Name, value, m, len(r.Payload), p.at)
	return ""
}

// fillRequest is what is sent of a value, or why it is not cached.
func (e *Class[T]) fillRequest(key string, value T, negative bool, p *permit, l *Load, cost time.Duration) (r coherence.FillRequest, reason string) {
	cl := e.cl
	ttl, window := l.ttl, cl.window
	if negative {
		if cl.negative <= 0 {
			return r, "negative"
		}
		ttl, window = cl.negative, 0
	}
	names, reason := l.allNames()
	if reason != "" {
		return r, reason
	}
	now := time.Now()
	soft := cl.life(ttl)
	r = coherence.FillRequest{Ticket: *p.ticket, TTL: soft + window, Header: coherence.Header{
		Filled: now.UnixMicro(), SoftExpiry: now.Add(soft).UnixMicro(), HardExpiry: now.Add(soft + window).UnixMicro(),
		LoadCost: uint32(min(cost.Microseconds(), 1<<32-1)), ValueVersion: max(cl.version, 1),
		Codec: coherence.Codec(cl.codec.ID()), Names: names,
	}}
	r.Standby, r.Composite, r.Stamp = l.standby, l.composite, l.stamp()
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

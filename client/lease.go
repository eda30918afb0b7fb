package client

import (
	"context"
	"crypto/rand"
	mathrand "math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/lethe-cache/lethe/coherence"
)

// The bounds of leases. They lose nothing but time when they are wrong: who may
// fill is decided by tickets.
const (
	leaseMin = 200 * time.Millisecond
	leaseMax = 10 * time.Second
	// openFor is how long everybody may load what is not to be cached: well
	// below leaseMax, beyond which a lease seems to be of a wrong clock.
	openFor = leaseMax / 2
	// leaseUnknown is the length while no load of the class was measured.
	leaseUnknown = 2 * time.Second
	// leaseTotal bounds how long a load waits for the loads of others.
	leaseTotal = 15 * time.Second
	pollMin    = 2 * time.Millisecond
	pollMax    = 50 * time.Millisecond
)

// loadTime is how long loads take: the greatest lately.
type loadTime struct{ ns atomic.Int64 }

func (l *loadTime) note(d time.Duration) {
	for {
		had := l.ns.Load()
		next := max(int64(d), had-(had-int64(d))/8)
		if l.ns.CompareAndSwap(had, next) {
			return
		}
	}
}

// lease is how long a lease lives: three times the load.
func (l *loadTime) lease() time.Duration {
	d := time.Duration(l.ns.Load())
	if d == 0 {
		return leaseUnknown
	}
	return min(max(3*min(d, leaseMax), leaseMin), leaseMax)
}

// newLease is a lease of this load's own.
func (cl *class) newLease() coherence.Lease {
	l := coherence.Lease{Until: time.Now().Add(cl.took.lease()).UnixMicro()}
	_, _ = rand.Read(l.Holder[:]) // never errs
	return l
}

// permit is the right to load, and what is known about filling.
type permit struct {
	// ticket is nil if nothing is to be filled.
	ticket *coherence.Ticket
	footing
	// lease is the one that is held; zero if the load goes without.
	lease coherence.Lease
	at    since
}

type outcome int

const (
	leads   outcome = iota // this load has to be done
	found                  // a value is there
	givenUp                // nobody waits for it, and somebody else loads
)

// lead takes the ticket of an entry, and the lease with it, or waits for what
// the holder of the lease loads.
func (e *Class[T]) lead(ctx context.Context, f *flight[T], key, name string) (p permit, v T, m meta, o outcome) {
	c, cl := e.c, e.cl
	w := waiting{cl: cl, began: c.now()}
	defer func() {
		if w.waited {
			cl.counts.leaseWaiting.Add(-1)
			cl.counts.leaseWaited(key, c.now()-w.began)
		}
	}()
	at := c.sending()
	p, b, ok := e.begin(ctx, name, !f.force && !f.background)
	for ok && !b.Mine && !f.force {
		h := &b.Header
		if h.Filled > f.filled {
			switch v, m, is := e.present(ctx, key, name, &b, at); is {
			case hit:
				return p, v, m, found
			case unvouched, unwalked:
				// Nor would it be worth more if somebody else loaded it.
				return p, v, m, leads
			case miss, again:
			}
		}
		w.background = f.background
		switch w.next(c.now(), h) {
		case stepLoad:
			return p, v, m, leads
		case stepClaim:
			mine, won, err := e.claim(ctx, name, h)
			if won {
				if w.waited {
					cl.counts.leaseTaken(key, c.now()-w.began)
				}
				return mine, v, m, leads
			}
			if err != nil || !w.sleep(ctx) {
				return p, v, m, leads
			}
		case stepWait:
			if f.background && e.abandon(key, f) {
				return p, v, m, givenUp
			}
			if !w.waited {
				w.waited = true
				cl.counts.leaseWaiting.Add(1)
			}
			if !w.sleep(ctx) {
				return p, v, m, leads // the end of its context is what it comes to
			}
		}
		at = c.sending()
		p, b, ok = e.look(ctx, name, p)
	}
	return p, v, m, leads
}

// present is what was found in place of one's own ticket: with plain entries
// that is another's, and the value is beside it.
func (e *Class[T]) present(ctx context.Context, key, name string, b *coherence.Begun, at since) (v T, m meta, is verdict) {
	if e.cl.plain {
		if at = e.c.sending(); at.view == nil || !at.view.walked(e.cl.name) {
			return v, m, unwalked // whatever there is
		}
		raw, err := e.c.get(ctx, name, e.c.now())
		if err != nil {
			return v, m, miss
		}
		return e.presentPlain(ctx, key, name, raw, at)
	}
	if is = e.c.judge(ctx, e.cl, name, &b.Header, at); is == hit {
		var ok bool
		if v, m, ok = e.take(key, name, &b.Header, b.Payload, at); !ok {
			is = miss
		}
	}
	return v, m, is
}

// claim takes a lease that is over. The one who succeeds holds a ticket that is
// as good as a new one.
func (e *Class[T]) claim(ctx context.Context, name string, h *coherence.Header) (p permit, won bool, err error) {
	p = permit{at: e.c.sending(), lease: e.cl.newLease()}
	known, footing, err := e.known(ctx)
	if err != nil {
		return p, false, err
	}
	p.footing = footing
	p.ticket = &coherence.Ticket{Name: name, Plain: e.cl.plain, Incarnation: h.Incarnation, Known: known}
	err = e.c.following(ctx, name, func(ctx context.Context, s *coherence.Store) (err error) {
		won, err = s.Lease(ctx, coherence.LeaseRequest{Name: name, Plain: e.cl.plain, Incarnation: h.Incarnation, Seen: h.Lease, Next: p.lease})
		return err
	})
	return p, won && err == nil, err
}

// look asks again for an entry that was there. An absent one, or what is none,
// is begun anew.
func (e *Class[T]) look(ctx context.Context, name string, p permit) (permit, coherence.Begun, bool) {
	if e.cl.plain {
		return e.begin(ctx, name, true) // the ticket is all that there is to look at
	}
	raw, err := e.c.get(ctx, name, e.c.now())
	if err != nil {
		return p, coherence.Begun{}, false
	}
	if raw != nil {
		if h, payload, err := coherence.Parse(raw); err == nil {
			if p.ticket != nil && p.ticket.Incarnation == h.Incarnation {
				return p, coherence.Begun{Ticket: *p.ticket, Header: h, Payload: payload}, true
			}
		}
	}
	return e.begin(ctx, name, true)
}

// giveBack ends a lease that is held, for those who wait for it.
func (e *Class[T]) giveBack(p *permit, next coherence.Lease) {
	e.c.returnLeases(appendReturn(nil, p, next))
}

// appendReturn appends what gives a lease back, if one is held.
func appendReturn(to []coherence.LeaseRequest, p *permit, next coherence.Lease) []coherence.LeaseRequest {
	if p.lease == (coherence.Lease{}) {
		return to
	}
	return append(to, coherence.LeaseRequest{Name: p.ticket.Name, Plain: p.ticket.Plain, Seen: p.lease, Next: next})
}

func (c *Client) returnLeases(rs []coherence.LeaseRequest) {
	if len(rs) == 0 {
		return
	}
	_ = c.following(c.ctx, rs[0].Name, func(ctx context.Context, s *coherence.Store) error {
		_, err := s.LeaseAll(ctx, rs)
		return err
	})
}

type step int

const (
	stepLoad  step = iota // without a lease
	stepClaim             // the lease is over
	stepWait              // somebody else loads
)

// waiting decides what to do about the lease of another. Times are those of
// Client.now. A clock enters in one place, where it is compared with a lease's
// end for the first time; wrong by any amount it makes a load wait for leaseMax,
// or makes one load too many.
type waiting struct {
	cl         *class
	began      time.Duration
	background bool
	seen       coherence.Lease
	until      time.Duration
	polls      int
	waited     bool
}

func (w *waiting) next(now time.Duration, h *coherence.Header) step {
	l := h.Lease
	switch {
	case now-w.began >= min(leaseTotal, w.cl.hard/2):
		return stepLoad
	case l == coherence.Lease{}:
		if h.State == coherence.StateEmpty {
			return stepLoad // somebody's who knows nothing of leases
		}
		return stepClaim
	case l.IsOpen():
		if left(l, time.Now()) > 0 {
			return stepLoad
		}
		return stepClaim
	case w.background:
		if left(l, time.Now()) > 0 {
			return stepWait
		}
		return stepClaim
	case l.IsFree():
		return stepClaim
	case l != w.seen:
		w.seen, w.polls = l, 0
		w.until = now + min(max(time.Until(time.UnixMicro(l.Until)), leaseMin), leaseMax)
	}
	if now < w.until {
		return stepWait
	}
	return stepClaim
}

// left is how long a lease has to go by this machine's clock; one that would go
// longer than any can is over.
func left(l coherence.Lease, now time.Time) time.Duration {
	d := time.UnixMicro(l.Until).Sub(now)
	if d > leaseMax {
		return 0
	}
	return d
}

// sleep waits before the entry is looked at again, longer each time, and at
// different times in different processes. false if ctx ended.
func (w *waiting) sleep(ctx context.Context) bool {
	d := min(pollMin<<min(w.polls, 10), pollMax)
	w.polls++
	t := time.NewTimer(d/2 + mathrand.N(d))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

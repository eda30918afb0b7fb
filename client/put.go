package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lethe-cache/lethe/coherence"
)

// Moment is what a Client knew at one time: how far every reader of the primary
// sees, and the generations of the classes. See Client.Moment.
type Moment struct {
	c    *Client
	view *view
	at   since
}

// Moment is to be taken before a value for Put is read from the database. It
// asks nobody and blocks nowhere. It serves any number of Puts, of any class;
// the older it is, the more likely it is that they are refused.
func (c *Client) Moment() Moment {
	m := Moment{c: c, at: c.sending()}
	m.view = c.view.Load()
	return m
}

// PutOption says more about the value of a Put.
type PutOption func(*Load)

// PutTags names what the value depends on, as Load.Tag does.
func PutTags(tags ...string) PutOption { return func(l *Load) { l.Tag(tags...) } }

// PutDependsOn names the keys that the value was made from, as Load.DependsOn
// does.
func PutDependsOn(keys ...string) PutOption { return func(l *Load) { l.DependsOn(keys...) } }

// PutTTL replaces the class's TTL, as Load.TTL does.
func PutTTL(d time.Duration) PutOption { return func(l *Load) { l.TTL(d) } }

// Put stores a value that the application has read by itself, from the primary,
// after it had taken the Moment:
//
//	at := c.Moment()
//	rows := ...                     // a listing, say, with whole products in it
//	products.Put(ctx, at, "product:42", rows[0])
//
// stored is false if that is not sure to be right any more, or if Redis does
// not answer; Stats counts why. That is no error: a mistake of the caller is.
// It takes two round trips, and one more with tags or keys.
//
// What nobody can check, and the caller answers for: the value was read from
// the primary, after the Moment, outside of a transaction that writes (it may
// be rolled back) and outside of one that had its snapshot before the Moment.
// After a write of one's own use Update. Plain classes have no Put.
//
// Why it is exact although the ticket is younger than the value: every commit
// below the v of the Moment was visible on the primary when the value was read,
// so v is a stamp, and the value is treated as one from a standby that had
// replayed v. A commit X that it misses is not covered by v. Its invalidation
// raises the table, then unlinks. Either the table was raised before the fill,
// and refuses it; or the unlinking comes after the fill. The same holds for
// tags, with the table of the tag at the registration. What is known only by a
// generation (a lost slot, TRUNCATE) came after the Moment too, and the value
// is stored under the generation that was known then; one of the Put's own
// BEGIN would not do, as v may pass a commit that was lost with the slot before
// that is visible. (PROTOCOL: LOAD from a standby, with v for R and "visible"
// for "replayed".)
func (e *Class[T]) Put(ctx context.Context, at Moment, key string, v T, opts ...PutOption) (stored bool, err error) {
	switch {
	case e.err != nil:
		err = e.err
	case e.cl.plain:
		err = errPlainPut
	case at.c == nil:
		err = errors.New("the Moment is empty: take it with Client.Moment before the value is read")
	case at.c != e.c:
		err = errors.New("the Moment is another Client's")
	default:
		err = e.checkKey(key)
	}
	if err != nil {
		return false, fmt.Errorf("put %q: %w", key, err)
	}
	reason := e.put(ctx, at, key, v, opts)
	return reason == "", nil
}

// put returns why the value was not stored.
func (e *Class[T]) put(ctx context.Context, at Moment, key string, v T, opts []PutOption) (reason string) {
	c, cl := e.c, e.cl
	counted := func(reason string) string { cl.counts.refuse(reason); return reason }
	if !c.enter() {
		return counted("closed")
	}
	defer c.fills.Done()
	if at.view == nil || at.view.control.Source.Era == 0 || !at.view.knows(cl.name) {
		return counted("no_ticket")
	}
	known := at.view.control.Known(cl.name)
	name := c.name(cl, key)
	r := coherence.BeginRequest{Name: name, Known: known, Lease: cl.newLease()}
	var begun coherence.Begun
	err := c.onStore(ctx, name, false, func(ctx context.Context, s *coherence.Store) (err error) {
		begun, err = s.Begin(ctx, r)
		return err
	})
	if err != nil {
		return counted("no_ticket")
	}
	p := permit{ticket: &begun.Ticket, footing: at.view.footing, at: at.at}
	if begun.Mine {
		p.lease = r.Lease
	}
	l := &Load{
		c: c, name: c.full(key), known: known, footing: at.view.footing, cacheable: true,
		standby: true, own: lowest{least: known.V, some: true},
	}
	for _, o := range opts {
		o(l)
	}
	l.finish()
	if now := c.view.Load(); now == nil || now.control.Known(cl.name).Generation != known.Generation {
		e.giveBack(&p, coherence.FreeLease(time.Time{}))
		return counted(coherence.RefusedGeneration.String()) // nobody would read it
	}
	return e.store(key, v, false, &p, l, 0)
}

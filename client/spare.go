package client

import (
	"context"
	"errors"
	"math"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
)

// spare is a value that was invalidated and that the class allows to serve for
// a while: better than nothing, and never more than that.
type spare[T any] struct {
	value T
	meta  meta
	since time.Duration // of its first invalidation, by Client.now
}

// serve is a read without a bound: the chain of the package's documentation.
func (e *Class[T]) serve(ctx context.Context, key string, own []func(context.Context, *Load) (T, error), began time.Duration) (v T, m meta, err error) {
	a := e.ask(ctx, key, change.Position{}, began)
	if a.ok {
		if a.due {
			e.renew(ctx, key, e.loader(key, own), a.meta.filled)
		}
		return e.result(a.value, a.meta)
	}
	load := e.loader(key, own)
	if v, m, ok := e.serveStale(ctx, key, &a, load); ok {
		return e.result(v, m)
	}
	v, m, err = e.shared(ctx, key, load, a.spare)
	return e.rescue(ctx, a.spare, v, m, err)
}

// serveStale is for a read that would have to wait: a stale value, if it may be
// served at once. Another one that may be served later goes into a.spare.
func (e *Class[T]) serveStale(ctx context.Context, key string, a *answer[T], load func(context.Context, *Load) (T, error)) (v T, m meta, ok bool) {
	atOnce := a.spare != nil || e.cl.soft == 0
	if a.spare == nil {
		a.spare = e.buried(key)
	}
	if atOnce && a.spare != nil && load != nil {
		if v, m, ok = e.stale(a.spare); ok && !a.leased {
			e.renew(ctx, key, load, -1)
		}
	}
	return v, m, ok
}

// rescue is what is returned in place of an error, if there is anything.
func (e *Class[T]) rescue(ctx context.Context, sp *spare[T], v T, m meta, err error) (T, meta, error) {
	if err == nil || errors.Is(err, ErrNotFound) || errors.Is(err, ErrNoLoader) || ctx.Err() != nil {
		return v, m, err
	}
	if v, m, ok := e.instead(sp); ok {
		return e.result(v, m)
	}
	return v, m, err
}

// instead is a stale value within its cap, or else the class's default.
func (e *Class[T]) instead(sp *spare[T]) (v T, m meta, ok bool) {
	if sp != nil {
		if v, m, ok = e.stale(sp); ok {
			return v, m, true
		}
	}
	if v, ok = e.cl.fallback.(T); ok {
		return v, meta{layer: LayerDefault}, true
	}
	return v, meta{}, false
}

// stale returns a stale value, unless it is too old by now. What is made of it
// must not be cached: nothing would invalidate that.
func (e *Class[T]) stale(sp *spare[T]) (v T, m meta, ok bool) {
	age := e.c.now() - sp.since
	if age >= e.cl.staleCap || sp.meta.expiry != 0 && time.Now().UnixMicro() >= sp.meta.expiry {
		return v, m, false
	}
	m = sp.meta
	m.cacheable, m.layer, m.age = false, LayerStale, max(age, 0)
	return sp.value, m, true
}

// staleEntry is what an invalidation with action stale left in Redis; nil if
// that can not be read or is too old. A staleSince that lies ahead is taken for
// now: the two clocks differ.
func (e *Class[T]) staleEntry(h *coherence.Header, payload []byte) *spare[T] {
	sp := &spare[T]{meta: metaOf(h), since: e.c.now() - max(0, time.Since(time.UnixMicro(h.StaleSince)))}
	if h.StaleSince == 0 || e.c.now()-sp.since >= e.cl.staleCap {
		return nil
	}
	if !sp.meta.negative {
		if err := e.cl.decode(h, payload, &sp.value); err != nil {
			e.cl.counts.undecodable.Add(1)
			return nil
		}
	}
	return sp
}

// overtaken is what Redis answered to a question, where an invalidation was heard
// of since it was asked: stale since then, or for longer.
func (e *Class[T]) overtaken(h *coherence.Header, payload []byte, asked time.Duration) *spare[T] {
	if e.cl.staleCap == 0 || h.State != coherence.StateValue && h.State != coherence.StateStale {
		return nil
	}
	// What was heard of may have been a raise of its class.
	if v := e.c.view.Load(); v == nil || !v.knowsAll(e.cl.name, h.Names) || !v.current(e.cl.name, h.Generation, h.Names) {
		return nil
	}
	if h.State == coherence.StateStale {
		return e.staleEntry(h, payload)
	}
	sp := &spare[T]{meta: metaOf(h), since: asked}
	if !sp.meta.negative {
		if err := e.cl.decode(h, payload, &sp.value); err != nil {
			e.cl.counts.undecodable.Add(1)
			return nil
		}
	}
	return sp
}

// agedEntry is what Redis holds of a value for which nobody vouches any more. One
// that an invalidation left says itself since when it is stale, but who wrote that
// may have been behind: it counts no later than from when the master was known to
// be good. Where that is unknown, nobody knows since when another may be wrong.
func (e *Class[T]) agedEntry(h *coherence.Header, payload []byte, m *master) *spare[T] {
	if h.State == coherence.StateStale {
		sp := e.staleEntry(h, payload)
		if good := m.knownGood(); sp != nil && good != 0 {
			sp.since = min(sp.since, good)
		}
		return sp
	}
	sp := &spare[T]{meta: metaOf(h), since: m.knownGood()}
	if sp.since == 0 || h.State != coherence.StateValue || e.c.now()-sp.since >= e.cl.staleCap {
		return nil
	}
	if !sp.meta.negative {
		if err := e.cl.decode(h, payload, &sp.value); err != nil {
			e.cl.counts.undecodable.Add(1)
			return nil
		}
	}
	return sp
}

// buried is what L1 has of a value that it must not serve as such any more.
func (e *Class[T]) buried(key string) *spare[T] {
	c, cl := e.c, e.cl
	if cl.staleCap == 0 || cl.l1 == nil {
		return nil
	}
	k := l1Key{key: key, version: cl.l1Version}
	ent := c.l1.find(k)
	if ent == nil || ent.dropped() || !ent.spare {
		if ent = c.l1.find(k.burial()); ent == nil {
			return nil
		}
	} else {
		// Nobody knows of an invalidation, but it might have been missed. One
		// that can still be used is not here, but for one that came just now.
		since := c.lastHeard()
		if cl.maxStale > 0 {
			since = min(since, max(ent.master.knownGood(), ent.own))
		}
		ent = c.interred(ent, since)
	}
	v, ok := ent.value.(T)
	if !ok && !ent.negative || ent.generation != cl.generation.Load() || c.now()-ent.buried >= cl.staleCap {
		return nil
	}
	return &spare[T]{value: v, meta: ent.meta, since: ent.buried}
}

// lastHeard is the moment up to which everything that was broadcast was heard.
func (c *Client) lastHeard() time.Duration {
	return time.Duration(c.lastLive.Load()) - l1Life
}

// burial is the key under which L1 keeps what it must not serve any more.
func (k l1Key) burial() l1Key { return l1Key{key: k.key, version: k.version | 1<<31} }

// interred is an entry as it is kept after it was dropped.
func (c *Client) interred(e *l1Entry, since time.Duration) *l1Entry {
	k := e.l1Key().burial()
	dead := &l1Entry{
		key: e.key, version: k.version, value: e.value, meta: e.meta, cl: e.cl, room: e.room, weight: e.weight,
		expires: e.expires, spare: true, buried: min(since, c.now()),
	}
	dead.valid.Store(math.MaxUint32)
	dead.names = nil // it is found by its key only
	return dead
}

// dropEntry forgets an entry that was invalidated; called under Client.mu. What
// is heard of late, by a replay, may have been invalidated as soon as this
// Client was deaf.
func (c *Client) dropEntry(e *l1Entry) {
	c.l1.drop(e)
	if e.spare {
		since := c.now()
		if !c.live() {
			since = c.lastHeard()
		}
		c.l1.store(c.interred(e, since))
	}
}

// clearLocked gives back the memory of entries that are void by their epoch; under Client.mu. Those
// that may be served stale count from the last moment at which they were known
// to be valid.
func (c *Client) clearLocked() {
	var keep []*l1Entry
	if c.spares.Load() {
		heard := c.lastHeard()
		for _, e := range c.l1.entries() {
			switch {
			case !e.spare || e.dropped():
			case e.version>>31 != 0:
				keep = append(keep, c.interred(e, e.buried))
			default:
				keep = append(keep, c.interred(e, heard))
			}
		}
	}
	c.l1.clear()
	for _, e := range keep {
		c.l1.store(e)
	}
}

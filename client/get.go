package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
)

// scope is what a context carries for reads below it.
type scope struct {
	load  *Load           // the load that reads, nil outside of one
	bound change.Position // of Client.After; zero without
	token string          // of After: a Client makes a bound of it
	outer *scope          // where After was called, for its token
}

type scopeKey struct{}

func scopeOf(ctx context.Context) *scope {
	s, _ := ctx.Value(scopeKey{}).(*scope)
	return s
}

// Get returns the value of a key (without the namespace): from L1, from Redis,
// or from a loader, that of the call or else the class's. Reads of one key that
// miss at the same time share one load; each waits as long as its own ctx says,
// and the load's context ends when nobody waits any more.
//
// Redis being slow or away is no error: the loader runs. The errors are the
// loader's (wrapped), ErrNotFound, ErrOverloaded, ErrNotLive, ErrNoLoader, that
// of ctx, one that matches context.DeadlineExceeded when the load exceeded
// HardTimeout, and that of the class's options. See StaleFor and Default for
// what is returned instead.
func (e *Class[T]) Get(ctx context.Context, key string, load ...func(context.Context, *Load) (T, error)) (T, error) {
	s := e.c.scopeOf(ctx)
	if s == nil && e.err == nil {
		if ent, u := e.local(key); ent != nil && u != unheard {
			if u == due {
				e.again(ctx, key, ent, load)
			}
			if v, ok := ent.value.(T); ok {
				e.hitL1(key, nil)
				return v, nil
			}
			if ent.negative {
				e.hitL1(key, ErrNotFound)
				var zero T
				return zero, ErrNotFound
			}
		}
	}
	began := e.c.now()
	e.c.heated(e.cl, key)
	v, m, err := e.read(ctx, key, s, load, began)
	e.cl.counts.read(key, &m, err, e.c.now()-began)
	if s != nil && s.load != nil {
		if err == nil || errors.Is(err, ErrNotFound) {
			s.load.part(e.cl, e.c.full(key), &m)
		} else {
			s.load.refuse("part") // whatever the loader makes of it
		}
	}
	if err != nil {
		return v, fmt.Errorf("get %q: %w", key, err)
	}
	return v, nil
}

// use says how an entry of L1 may be used.
type use uint8

const (
	fresh   use = iota
	due         // it may be time to load it again
	unheard     // only because the class prefers that to nothing
)

// local finds an entry of L1 that may be used.
func (e *Class[T]) local(key string) (*l1Entry, use) { return e.c.local(e.cl, key) }

func (c *Client) local(cl *class, key string) (e *l1Entry, u use) {
	l := cl.l1
	if l == nil {
		return nil, fresh
	}
	if e = l.find(l1Key{key: key, version: cl.l1Version}); e == nil {
		return nil, fresh
	}
	// After the look at the table: if this process was stopped in between, the
	// clock tells.
	now := c.clock.soon()
	if e.valid.Load() != cl.valid.Load() {
		return nil, fresh
	}
	if now >= e.look {
		if now >= e.expires {
			return nil, fresh
		}
		u = due
	}
	if int64(now) >= cl.trusted.Load() && int64(now) < c.liveUntil.Load() && c.tooOld(cl, e.master, e.own) {
		return nil, fresh
	}
	if int64(now) >= c.liveUntil.Load() {
		if cl.staleFor == 0 || int64(now) >= c.lastLive.Load()+int64(cl.staleFor) {
			return nil, fresh
		}
		u = unheard
	}
	e.note(now)
	return e, u
}

// hitL1 counts a hit on the fast way. One in l1Sample is looked up once more,
// for its time: the clock costs as much as the hit.
func (e *Class[T]) hitL1(key string, err error) {
	n := &e.cl.counts
	if k := n.l1Hits.Add(1); oneIn(heatBits, k) || k%l1Sample == 0 || n.observer != nil {
		e.seeL1(key, err, k)
	}
}

func (e *Class[T]) seeL1(key string, err error, k uint64) {
	n, took := &e.cl.counts, time.Duration(0)
	if oneIn(heatBits, k) {
		e.c.heat.add(e.cl.name, key, e.c.hash(key), 1<<heatBits, e.c.clock.soon())
	}
	if k%l1Sample == 0 {
		began := time.Now()
		_, _ = e.local(key)
		took = time.Since(began)
		n.readTime[LayerL1].add(boundsL1, took)
	}
	if n.observer != nil {
		n.observer.ObserveRead(ReadEvent{Class: n.class, Key: key, Layer: LayerL1, Result: ResultHit, Duration: took, Err: err})
	}
}

// read is Get without L1's fast way and what is counted. began is the time, by
// Client.now.
func (e *Class[T]) read(ctx context.Context, key string, s *scope, own []func(context.Context, *Load) (T, error), began time.Duration) (v T, m meta, err error) {
	if e.err != nil {
		return v, m, e.err
	}
	if err := e.checkKey(key); err != nil {
		return v, m, err
	}
	if e.cl.failing && !e.c.live() {
		return v, m, ErrNotLive
	}
	var bound change.Position
	if s != nil {
		bound = s.bound
	}
	if bound.IsZero() {
		return e.serve(ctx, key, own, began)
	}
	// Read your writes: w is compared before anything is asked.
	a := e.ask(ctx, key, bound, e.c.now())
	if a.held && e.c.awaitW(ctx, bound) {
		a = e.ask(ctx, key, bound, e.c.now())
	}
	if a.ok {
		return e.result(a.value, a.meta)
	}
	v, m, err = e.alone(ctx, key, e.loader(key, own), s)
	return e.rescue(ctx, nil, v, m, err)
}

// result turns the knowledge that there is nothing into its error.
func (e *Class[T]) result(v T, m meta) (T, meta, error) {
	if m.negative {
		return v, m, ErrNotFound
	}
	return v, m, nil
}

// reached reports whether everything up to a token's commit was invalidated.
func (c *Client) reached(bound change.Position) bool {
	v := c.view.Load()
	return v != nil && v.control.W.Covers(bound)
}

// awaitW waits until that is so, for as long as a read under a token may.
func (c *Client) awaitW(ctx context.Context, bound change.Position) bool {
	if bound == unknownToken {
		return false
	}
	if c.hooks.awaiting != nil {
		c.hooks.awaiting()
	}
	ctx, cancel := context.WithTimeout(ctx, c.opts.TokenWait)
	defer cancel()
	return c.waitFor(ctx, func() bool { return c.reached(bound) }) == nil
}

// answer is what L1 and L2 have of a key.
type answer[T any] struct {
	value T
	meta  meta
	ok    bool
	// due: the value is to be loaded again behind the reader's back.
	due bool
	// spare is a stale value of Redis, which may be served at once.
	spare *spare[T]
	// leased: somebody loads it already.
	leased bool
	// held: Redis has a value that could be served if w had come to the bound. If
	// it has none there is nothing to wait for: what is loaded from now on holds
	// the write that the bound stands for, which was committed before.
	held bool
	// asked is when Redis was, by Client.now.
	asked time.Duration
}

// ask reads L1 and L2. With a bound it serves only what is sure to contain it:
// because w had passed it before the question was sent, or by the stamp. now is
// Client.now, or was a moment ago.
func (e *Class[T]) ask(ctx context.Context, key string, bound change.Position, now time.Duration) (a answer[T]) {
	enough := bound.IsZero() || e.c.reached(bound)
	if e.askL1(&a, key, enough, bound) {
		return a
	}
	name := e.c.name(e.cl, key)
	for try := range readTries {
		if try > 0 {
			now = e.c.now()
		}
		at := e.c.sending()
		a.asked = now
		raw, err := e.c.get(ctx, name, now)
		if e.c.hooks.answered != nil {
			e.c.hooks.answered(name)
		}
		if err != nil || !e.askL2(ctx, &a, key, name, raw, at, enough, bound) {
			return a
		}
	}
	return a
}

// askL1 is ask's first half. enough says that w has reached the bound already.
func (e *Class[T]) askL1(a *answer[T], key string, enough bool, bound change.Position) bool {
	ent, u := e.local(key)
	if ent == nil || !enough && !ent.stamp.Covers(bound) {
		return false
	}
	a.meta = ent.meta
	a.meta.cacheable, a.meta.layer = ent.cacheable && u != unheard, LayerL1
	switch u {
	case unheard:
		a.meta.layer, a.meta.age = LayerStale, e.c.now()-time.Duration(e.c.lastLive.Load())
	case due:
		a.due = e.dueL1(ent)
	case fresh:
	}
	a.value, a.ok = ent.value.(T)
	a.ok = a.ok || a.meta.negative
	return a.ok
}

// askL2 is ask's second half, given what Redis answered to what was sent at a
// moment. true says that it is to be asked again.
func (e *Class[T]) askL2(ctx context.Context, a *answer[T], key, name string, raw []byte, at since, enough bool, bound change.Position) (retry bool) {
	a.spare, a.held = nil, false
	if raw == nil {
		return false
	}
	if e.cl.plain {
		return e.askPlain(ctx, a, key, name, raw, at, enough)
	}
	h, payload, err := coherence.Parse(raw)
	if err != nil || h.State == coherence.StateEmpty {
		return false
	}
	if h.State == coherence.StateStale && e.cl.staleCap == 0 {
		return false
	}
	// After the answer: if this process was stopped in between, the clock tells.
	now := time.Now()
	switch e.c.trust(ctx, e.cl, name, &h, at, now) {
	case again:
		// Under a storm of invalidations every answer is overtaken by one. It
		// may still be served stale: what is held against it came after it.
		a.leased, a.spare = left(h.Lease, now) > 0, e.overtaken(&h, payload, a.asked)
		return true
	case hit:
		if !enough && !h.Stamp.Covers(bound) {
			a.held = h.State == coherence.StateValue
			return false
		}
		a.leased = left(h.Lease, now) > 0
		if h.State == coherence.StateStale {
			a.spare = e.staleEntry(&h, payload)
			return false
		}
		a.value, a.meta, a.ok = e.take(key, name, &h, payload, at)
		a.due = a.ok && !a.leased && e.dueL2(&h, now)
	case unvouched:
		e.cl.counts.untrusted.Add(1)
		if e.cl.staleCap > 0 {
			a.spare = e.agedEntry(&h, payload, e.c.masterOf(name))
		}
	case miss, unwalked:
	}
	return false
}

// readTries bounds how often an answer is asked for again because a message
// overtook it; after that the entry counts as a miss.
const readTries = 3

// take decodes a hit and keeps it in L1.
func (e *Class[T]) take(key, name string, h *coherence.Header, payload []byte, at since) (v T, m meta, ok bool) {
	m = metaOf(h)
	m.layer = LayerL2
	if !m.negative {
		if err := e.cl.decode(h, payload, &v); err != nil {
			e.cl.counts.undecodable.Add(1)
			var zero T
			return zero, m, false
		}
	}
	e.c.keep(e.cl, key, name, v, m, plainSize(h, payload), at)
	return v, m, true
}

// metaOf is what a header says of its value.
func metaOf(h *coherence.Header) meta {
	return meta{
		stamp: h.Stamp, generation: h.Generation, names: h.Names, expiry: h.HardExpiry, soft: h.SoftExpiry, filled: h.Filled,
		cost: time.Duration(h.LoadCost) * time.Microsecond, negative: h.Flags&coherence.FlagNegative != 0, cacheable: true,
	}
}

type verdict int

const (
	miss verdict = iota
	hit
	again
	// unvouched: nothing is against it, but it may be older than MaxStale.
	unvouched
	// unwalked: it is plain, and may be from before a raise.
	unwalked
)

// judge says whether an answer of Redis may be served.
func (c *Client) judge(ctx context.Context, cl *class, name string, h *coherence.Header, at since) verdict {
	if h.State != coherence.StateValue {
		return miss
	}
	return c.trust(ctx, cl, name, h, at, time.Now())
}

// trust is judge for stale values too, of which it says that nothing but their
// own invalidation is against them. clock is what the clock said after the answer.
func (c *Client) trust(ctx context.Context, cl *class, name string, h *coherence.Header, at since, clock time.Time) verdict {
	if h.HardExpiry != 0 && clock.UnixMicro() >= h.HardExpiry {
		return miss
	}
	now := c.clock.of(clock)
	if v := c.view.Load(); int64(now) < c.liveUntil.Load() && v != nil && v.knowsAll(cl.name, h.Names) {
		switch {
		case !v.current(cl.name, h.Generation, h.Names):
			return miss
		case v.purged(h.Stamp, h.Names, name):
			return miss
		case c.marked(at, v, name, h.Names):
			return again
		}
		return c.fresh(cl, name, now)
	}
	// Nobody told what was invalidated meanwhile, so it is asked, after the
	// answer.
	classes := []string{cl.name}
	for i := range h.Names {
		if h.Names[i].Kind == coherence.NameClass {
			classes = append(classes, h.Names[i].Name)
		}
	}
	v, err := c.control(ctx, classes)
	if err != nil || !v.current(cl.name, h.Generation, h.Names) || v.purged(h.Stamp, h.Names, name) {
		return miss
	}
	return c.fresh(cl, name, c.now())
}

// fresh is a hit, unless it may be too old.
func (c *Client) fresh(cl *class, name string, now time.Duration) verdict {
	if cl.maxStale > 0 && c.tooOldAt(now, cl, c.masterOf(name), 0) {
		return unvouched
	}
	return hit
}

// controlKey is for the control data that was read for all keys of a batch,
// after the answers for all of them.
type controlKey struct{}

// control reads the control data for one read.
func (c *Client) control(ctx context.Context, classes []string) (*view, error) {
	if v, ok := ctx.Value(controlKey{}).(*view); ok && !slices.ContainsFunc(classes, func(n string) bool { return !v.knows(n) }) {
		return v, nil
	}
	var v view
	err := c.onStore(ctx, c.layout.Control("source"), true, func(ctx context.Context, s *coherence.Store) error {
		ctl, err := s.Control(ctx, classes...)
		if err == nil {
			v = view{control: *ctl, footing: footing{usable: ctl.Supported(c.layout)}}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if old := c.view.Load(); old != nil {
		v.stillNamed(old.named)
		v.notBehind(old)
	}
	return &v, nil
}

func (v *view) knowsAll(class string, names []coherence.Name) bool {
	if !v.knows(class) {
		return false
	}
	for i := range names {
		if names[i].Kind == coherence.NameClass && !v.knows(names[i].Name) {
			return false
		}
	}
	return true
}

// current reports whether a value is of the generations that are known: its
// own, and those of the values it was made from.
func (v *view) current(class string, generation uint64, names []coherence.Name) bool {
	if v.control.Source.Era == 0 {
		return false
	}
	if g, ok := v.generation(class); !ok || g != generation {
		return false
	}
	for i := range names {
		if n := &names[i]; n.Kind == coherence.NameClass {
			if g, ok := v.generation(n.Name); !ok || g != n.Generation {
				return false
			}
		}
	}
	return true
}

// keep stores into L1 what was asked for at a moment, unless anything that
// concerns it was handled since: the look and the store are one step.
func (c *Client) keep(cl *class, key, name string, value any, m meta, size int, at since) {
	if cl.l1 == nil {
		return
	}
	now := c.now()
	if !c.admits(cl, key, size, now) {
		return
	}
	e := &l1Entry{
		key: key, version: cl.l1Version, value: value, meta: m, cl: cl,
		weight: weigh(size+len(key), m.names), master: c.masterOf(name), spare: cl.staleCap > 0,
	}
	if m.negative {
		e.value = nil
	}
	e.schedule(cl, now, time.Now())
	defer cl.counts.evicted() // outside of the lock
	c.mu.Lock()
	defer c.mu.Unlock()
	v := c.view.Load()
	switch e.room = cl.room; {
	case c.closed || !c.caughtUp || int64(now) >= c.liveUntil.Load():
	case !e.room.fits(e):
	case !v.knowsAll(cl.name, m.names) || !v.current(cl.name, m.generation, m.names):
	case v.purged(m.stamp, m.names, name):
	case c.markedLocked(at, name, m.names):
	default:
		e.valid.Store(cl.valid.Load())
		c.l1.store(e)
		if e.spare {
			c.l1.forget(e.l1Key().burial())
		}
	}
}

package client

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
)

// scope is what a context carries for reads below it.
type scope struct {
	load  *Load           // the load that reads, nil outside of one
	bound change.Position // of After; zero without
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
// of ctx, and that of the class's options.
func (e *Class[T]) Get(ctx context.Context, key string, load ...func(context.Context, *Load) (T, error)) (T, error) {
	s := scopeOf(ctx)
	if s == nil && e.err == nil {
		if ent, stale := e.local(key); ent != nil && !stale {
			if ent.negative {
				e.hitL1(key, ErrNotFound)
				var zero T
				return zero, ErrNotFound
			}
			if v, ok := ent.value.(T); ok {
				e.hitL1(key, nil)
				return v, nil
			}
		}
	}
	var own func(context.Context, *Load) (T, error)
	if len(load) > 0 {
		own = load[0]
	}
	began := e.c.now()
	v, m, err := e.read(ctx, key, s, own)
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

// local finds an entry of L1 that may be used. stale says that it may be used
// only because the class prefers that to nothing.
func (e *Class[T]) local(key string) (ent *l1Entry, stale bool) {
	c, cl := e.c, e.cl
	if c.l1 == nil {
		return nil, false
	}
	now := c.now()
	stale = int64(now) >= c.liveUntil.Load()
	if stale && (cl.staleFor == 0 || int64(now) >= c.lastLive.Load()+int64(cl.staleFor)) {
		return nil, false
	}
	ent = c.l1.memory.get(l1Key{key: key, version: cl.l1Version()})
	if ent == nil || ent.dead.Load() || ent.epoch != c.epoch.Load() || now >= ent.expires || ent.generation != cl.generation.Load() {
		return nil, false
	}
	return ent, stale
}

// hitL1 counts a hit on the fast way. One in l1Sample is looked up once more,
// for its time: the clock costs as much as the hit.
func (e *Class[T]) hitL1(key string, err error) {
	n := &e.cl.counts
	sampled := n.l1Hits.Add(1)%l1Sample == 0
	if sampled || n.observer != nil {
		e.seeL1(key, err, sampled)
	}
}

func (e *Class[T]) seeL1(key string, err error, sampled bool) {
	n, took := &e.cl.counts, time.Duration(0)
	if sampled {
		began := time.Now()
		_, _ = e.local(key)
		took = time.Since(began)
		n.readTime[LayerL1].add(boundsL1, took)
	}
	if n.observer != nil {
		n.observer.ObserveRead(ReadEvent{Class: n.class, Key: key, Layer: LayerL1, Result: ResultHit, Duration: took, Err: err})
	}
}

// l1Version is the version in keys of L1: 0 and 1 are the plain name.
func (cl *class) l1Version() uint32 {
	if cl.version <= 1 {
		return 0
	}
	return cl.version
}

func (e *Class[T]) read(ctx context.Context, key string, s *scope, load func(context.Context, *Load) (T, error)) (v T, m meta, err error) {
	if e.err != nil {
		return v, m, e.err
	}
	if err := e.checkKey(key); err != nil {
		return v, m, err
	}
	if e.cl.failing && !e.c.live() {
		return v, m, ErrNotLive
	}
	if load == nil {
		if own, ok := e.cl.load.(func(context.Context, string, *Load) (T, error)); ok {
			load = func(ctx context.Context, l *Load) (T, error) { return own(ctx, key, l) }
		}
	}
	var bound change.Position
	if s != nil {
		bound = s.bound
	}
	if bound.IsZero() {
		if v, m, ok := e.cached(ctx, key, change.Position{}); ok {
			return e.result(v, m)
		}
		return e.shared(ctx, key, load)
	}
	// Read your writes: w is compared before anything is asked.
	if v, m, ok := e.cached(ctx, key, bound); ok {
		return e.result(v, m)
	}
	if bound != unknownToken {
		wait, cancel := context.WithTimeout(ctx, e.c.opts.TokenWait)
		err := e.c.waitFor(wait, func() bool { return e.c.reached(bound) })
		cancel()
		if err == nil {
			if v, m, ok := e.cached(ctx, key, bound); ok {
				return e.result(v, m)
			}
		}
	}
	return e.alone(ctx, key, load, s)
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

// cached reads L1 and L2. With a bound it serves only what is sure to contain
// it: because w had passed it before the question was sent, or by the stamp.
func (e *Class[T]) cached(ctx context.Context, key string, bound change.Position) (v T, m meta, ok bool) {
	enough := bound.IsZero() || e.c.reached(bound)
	if ent, stale := e.local(key); ent != nil && (enough || ent.stamp.Covers(bound)) {
		m = ent.meta
		m.cacheable, m.layer = m.cacheable && !stale, LayerL1
		if stale {
			m.layer, m.age = LayerStale, e.c.now()-time.Duration(e.c.lastLive.Load())
		}
		if m.negative {
			return v, m, true
		}
		if v, ok := ent.value.(T); ok {
			return v, m, true
		}
	}
	name := e.c.name(e.cl, key)
	for range readTries {
		at := e.c.sending()
		raw, err := e.c.get(ctx, name)
		if err != nil || raw == nil {
			return v, m, false
		}
		h, payload, err := coherence.Parse(raw)
		if err != nil || h.State != coherence.StateValue {
			return v, m, false
		}
		switch e.c.judge(ctx, e.cl, name, &h, at) {
		case hit:
			if !enough && !h.Stamp.Covers(bound) {
				return v, m, false
			}
			return e.take(key, name, &h, payload, at)
		case miss:
			return v, m, false
		}
	}
	return v, m, false
}

// readTries bounds how often an answer is asked for again because a message
// overtook it; after that the entry counts as a miss.
const readTries = 3

// take decodes a hit and keeps it in L1.
func (e *Class[T]) take(key, name string, h *coherence.Header, payload []byte, at since) (v T, m meta, ok bool) {
	m = meta{
		stamp: h.Stamp, generation: h.Generation, names: h.Names, expiry: h.HardExpiry,
		cacheable: true, negative: h.Flags&coherence.FlagNegative != 0, layer: LayerL2,
	}
	if !m.negative {
		if err := e.cl.decode(h, payload, &v); err != nil {
			e.cl.counts.undecodable.Add(1)
			var zero T
			return zero, m, false
		}
	}
	e.c.keep(e.cl, key, name, v, m, len(payload), at)
	return v, m, true
}

type verdict int

const (
	miss verdict = iota
	hit
	again
)

// judge says whether an answer of Redis may be served.
func (c *Client) judge(ctx context.Context, cl *class, name string, h *coherence.Header, at since) verdict {
	if h.State != coherence.StateValue || h.HardExpiry != 0 && time.Now().UnixMicro() >= h.HardExpiry {
		return miss
	}
	if v := c.view.Load(); c.live() && v != nil && v.knowsAll(cl.name, h.Names) {
		switch {
		case !v.current(cl.name, h.Generation, h.Names):
			return miss
		case v.purged(h.Stamp, h.Names, name):
			return miss
		case c.marked(at, name, h.Names):
			return again
		}
		return hit
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
	return hit
}

// control reads the control data for one read.
func (c *Client) control(ctx context.Context, classes []string) (*view, error) {
	var v view
	err := c.withStore(ctx, func(ctx context.Context, s *coherence.Store) error {
		ctl, err := s.Control(ctx, classes...)
		if err == nil {
			v = view{control: *ctl, usable: ctl.Supported(c.layout)}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	if old := c.view.Load(); old != nil {
		v.named = old.named
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
	if c.l1 == nil {
		return
	}
	now := c.now()
	e := &l1Entry{
		key: l1Key{key: key, version: cl.l1Version()}, value: value, meta: m,
		weight: weigh(size+len(key), m.names), epoch: at.epoch, expires: math.MaxInt64,
	}
	if m.expiry != 0 {
		e.expires = now + time.Duration(m.expiry-time.Now().UnixMicro())*time.Microsecond
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	v := c.view.Load()
	switch {
	case c.closed || !c.caughtUp || int64(now) >= c.liveUntil.Load():
	case !v.knowsAll(cl.name, m.names) || !v.current(cl.name, m.generation, m.names):
	case v.purged(m.stamp, m.names, name):
	case c.markedLocked(at, name, m.names):
	default:
		c.l1.store(e)
	}
}

package client

import (
	"context"
	"errors"
	"time"

	"github.com/lethe-cache/lethe/change"
)

// Plain makes the entries of a class raw values, as `mode: plain` in rules.yaml
// does: what the codec makes of T (JSON by default) and nothing else, so that
// any program reads them with a bare GET, and fills them as docs/protocol.md
// says. They are filled as exactly as others are; what they do not have is room
// for anything that is known of a value besides the value:
//
//   - They are not compressed, and what another codec or type wrote is a miss
//     only if it can not be decoded.
//   - Nothing is cached that says that there is nothing, nor what was read from
//     a standby or made of other entries (Get within the loader, DependsOn),
//     nor is what a loader makes of them cached in other classes.
//     NegativeTTL, StaleFor, StaleWhileRevalidate, EarlyRefresh and Put are errors.
//   - Tags work, and a purge reaches the values one by one: what it has not come
//     to yet may be served, but not to a read under the token of the write that
//     purged. After says so too of values that Redis has: only where everything
//     up to the token was invalidated before it was asked.
//   - After a raise of the class (TRUNCATE, a lost slot) what Redis has is not
//     served until the workers have walked all of it; each process loads for
//     itself meanwhile, once for each key that L1 keeps.
//   - How old a value is that Redis had can not be told: L1 keeps it for a tenth
//     of TTL, so that it may be served for that much longer than TTL.
func Plain() Option {
	return func(c *class) error { c.plain = true; return nil }
}

// plainL1Share: what Redis had of a plain value is kept in L1 for TTL divided by
// this.
const plainL1Share = 10

// errPlainPut: a value that was read before its BEGIN needs a stamp to be
// checked against the table, and the raise of its class a generation in it.
var errPlainPut = errors.New("plain entries have no Put: load the value with Get or Refresh")

// checkPlain refuses the options that need a header.
func (cl *class) checkPlain() error {
	if !cl.plain {
		return nil
	}
	for _, o := range []struct {
		name string
		set  bool
	}{
		{"NegativeTTL", cl.negative > 0},
		{"StaleFor", cl.staleCap > 0},
		{"StaleWhileRevalidate", cl.window > 0},
		{"EarlyRefresh", cl.beta > 0},
	} {
		if o.set {
			return errors.New("Plain with " + o.name + ": a raw value does not say that it is one of nothing, when it was filled or invalidated, or what it cost")
		}
	}
	return nil
}

// refusePlain says why a value can not be stored without a header. From a
// standby: it may miss what a raise is about, of which the table knows nothing,
// and a BEGIN after the walk that knew the record of before it would store that
// for good; an exact entry then has a generation that nobody reads. The same
// with parts: a raise of a part's class is known by the generations in the
// header only.
func (l *Load) refusePlain() (reason string) {
	switch {
	case l.standby:
		return "plain_standby"
	case len(l.keys) > 0: // of parts that were read, or that DependsOn names
		return "plain_composite"
	}
	return ""
}

// walked reports whether no plain value of a class can be left from before its
// last raise: w waits for the end of the walk, and everything up to the raise
// lies below the record's bound.
func (v *view) walked(class string) bool {
	bound := v.control.Classes[class].Bound.Max(v.control.Classes[namespaceClass].Bound)
	return bound.IsZero() || v.control.W.Covers(bound)
}

// trustPlain says whether a raw value may be served that Redis answered to what
// was sent at a moment. The value says nothing, so what was known before it was
// asked for has to be enough: that the last raise was walked, and no other came.
func (c *Client) trustPlain(ctx context.Context, cl *class, name string, at since) verdict {
	if at.view == nil {
		return unwalked
	}
	g, known := at.view.generation(cl.name)
	if !known || !at.view.walked(cl.name) {
		return unwalked
	}
	v, heard := c.view.Load(), c.live()
	if !heard {
		var err error
		if v, err = c.control(ctx, []string{cl.name}); err != nil {
			return miss
		}
	}
	switch {
	case !v.current(cl.name, g, nil):
		return unwalked
	case v.purged(change.Position{}, nil, name):
		return miss
	case heard && c.marked(at, v, name, nil):
		return again
	}
	return c.fresh(cl, name, c.now())
}

// presentPlain is what became of a plain entry that was asked for at a moment.
func (e *Class[T]) presentPlain(ctx context.Context, key, name string, raw []byte, at since) (v T, m meta, is verdict) {
	if raw == nil {
		return v, m, miss
	}
	if is = e.c.trustPlain(ctx, e.cl, name, at); is != hit {
		return v, m, is
	}
	if err := e.cl.decodePlain(raw, &v); err != nil {
		e.cl.counts.undecodable.Add(1)
		var none T
		return none, m, miss
	}
	m.generation, _ = at.view.generation(e.cl.name)
	m.expiry = time.Now().Add(e.cl.life(0) / plainL1Share).UnixMicro()
	m.cacheable, m.layer = true, LayerL2
	e.c.keep(e.cl, key, name, v, m, len(raw), at)
	return v, m, hit
}

// askPlain is askL2 for plain entries.
func (e *Class[T]) askPlain(ctx context.Context, a *answer[T], key, name string, raw []byte, at since, enough bool) (retry bool) {
	if !enough {
		a.held = true
		return false // nothing in the value shows what it contains
	}
	v, m, is := e.presentPlain(ctx, key, name, raw, at)
	switch is {
	case again:
		return true
	case hit:
		a.value, a.meta, a.ok = v, m, true
	case unvouched:
		e.cl.counts.untrusted.Add(1)
	case miss, unwalked:
	}
	return false
}

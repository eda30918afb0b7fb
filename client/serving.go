package client

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"time"
)

// HardTimeoutDefault is how long a load may take at most.
const HardTimeoutDefault = 30 * time.Second

// serving is how a class answers when it has no fresh value.
type serving struct {
	soft, hard time.Duration
	staleCap   time.Duration // StaleFor
	window     time.Duration // StaleWhileRevalidate
	beta       float64       // EarlyRefresh
	fallback   any           // Default, a T; nil without
	// hardCause ends the context of a load that exceeds hard.
	hardCause error
	// random is uniform in (0, 1].
	random func() float64
}

func newServing() serving {
	return serving{hard: HardTimeoutDefault, random: func() float64 { return 1 - rand.Float64() }}
}

// SoftTimeout is how long a read that has something else to return waits for a
// load: then it returns a stale value (see StaleFor), or the class's Default,
// and the load goes on and fills the cache. Without it a read that has a stale
// value does not wait at all, and one that has the Default waits for the load.
func SoftTimeout(d time.Duration) Option {
	return positive("SoftTimeout", d, func(c *class) { c.soft = d })
}

// HardTimeout bounds a load, with what it has to wait for before: another's
// lease, its turn (default 30 s). Then its context ends, with a cause that
// matches context.DeadlineExceeded, and those who wait for it get a stale value
// (see StaleFor), the class's Default, or that cause, even if the loader does
// not heed its context. A loader that does not keeps its place among MaxLoads.
func HardTimeout(d time.Duration) Option {
	return positive("HardTimeout", d, func(c *class) { c.hard = d })
}

// StaleFor allows to serve a value for up to d after it was invalidated, to
// reads that would have to wait for a load (see SoftTimeout) or whose load
// failed. There is such a value if a rule's action is stale, and in L1.
// Counted is from the first invalidation of the value, by the clock of Redis
// and this machine's; from the last moment at which it is known to have been
// valid where the invalidation itself was not heard. Values that have expired,
// or whose class was raised, are not served. Neither is what is served stale
// cached again, nor what a loader makes of it. Default: 0, never.
func StaleFor(d time.Duration) Option {
	return positive("StaleFor", d, func(c *class) { c.staleCap = d })
}

// StaleWhileRevalidate serves a value for up to d more after its TTL, the first
// time while it is loaded again in the background: by one process, once. It is
// about age only: what was invalidated is not served. A value's greatest age is
// TTL plus d.
func StaleWhileRevalidate(d time.Duration) Option {
	return positive("StaleWhileRevalidate", d, func(c *class) { c.window = d })
}

// EarlyRefresh loads a value again in the background before its TTL is over, so
// that it need not be waited for: each read does with a probability that grows
// as the end comes near, the earlier the longer the load took. 1 is a good beta;
// greater ones refresh earlier. Default: off.
//
// It is XFetch (Vattani, Chierichetti, Lowenstein: Optimal Probabilistic Cache
// Stampede Prevention, VLDB 2015): a read at the time now, with rand uniform in
// (0, 1], refreshes if now - cost * beta * ln(rand) >= expiry.
func EarlyRefresh(beta float64) Option {
	return func(c *class) error {
		if !(beta > 0) || math.IsInf(beta, 1) {
			return fmt.Errorf("EarlyRefresh is %v: want a positive number", beta)
		}
		c.beta = beta
		return nil
	}
}

// Default is what Get returns, without an error, when the load failed, was
// turned away or took too long, and no stale value may be served. It stands in
// for neither ErrNotFound nor the end of the reader's own context, nor for
// mistakes (ErrNoLoader, a key that can not be). T is that of Entries. It is
// not cached, nor is what a loader makes of it.
func Default[T any](v T) Option {
	return func(c *class) error { c.fallback = v; return nil }
}

func positive(name string, d time.Duration, set func(*class)) Option {
	return func(c *class) error {
		if d <= 0 {
			return fmt.Errorf("%s is %v: want a positive duration", name, d)
		}
		set(c)
		return nil
	}
}

// check is what can be said of the settings together.
func (s *serving) check() error {
	s.hardCause = fmt.Errorf("the load took longer than HardTimeout (%v): %w", s.hard, context.DeadlineExceeded)
	switch {
	case s.soft >= s.hard:
		return fmt.Errorf("SoftTimeout is %v: want less than HardTimeout (%v)", s.soft, s.hard)
	case s.soft > 0 && s.staleCap == 0 && s.fallback == nil:
		return errors.New("SoftTimeout without StaleFor or Default: there is nothing to return then")
	}
	return nil
}

// earlyReach bounds -ln(rand) for a rand with the 53 bits of a float64, so that
// before expiry - cost*beta*earlyReach nothing need be drawn.
const earlyReach = 37

// early is the formula of EarlyRefresh.
func early(now, expiry, cost time.Duration, beta, random float64) bool {
	return float64(now)-float64(cost)*beta*math.Log(random) >= float64(expiry)
}

// earliest is when a read may be early.
func (s *serving) earliest(expiry, cost time.Duration) time.Duration {
	reach := float64(cost) * s.beta * earlyReach
	if reach >= float64(expiry)-math.MinInt64/2 {
		return math.MinInt64 / 2
	}
	return expiry - time.Duration(reach)
}

// wants reports whether a read at now should have a value loaded again, and if
// so whether before its time.
func (s *serving) wants(now, soft, cost time.Duration) (wants, isEarly bool) {
	if now >= soft {
		return true, false
	}
	if s.beta == 0 || now < s.earliest(soft, cost) {
		return false, false
	}
	wants = early(now, soft, cost, s.beta, s.random())
	return wants, wants
}

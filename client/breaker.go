package client

import (
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

var (
	errBreaker = errors.New("redis did not answer and is given time")
	errNoRedis = errors.New("redis has not answered yet")
)

// The bounds of the breaker.
const (
	breakerFailures = 5
	breakerWaitMin  = 200 * time.Millisecond
	breakerWaitMax  = time.Second
)

// breaker spares readers the timeout of a Redis node that does not answer: after
// a few failures in a row only one request at a time asks, at growing distances.
// In Cluster each node has one, so that a dead node's keys do not make the others
// wait, nor the others' answers let each of its keys try. Times are those of
// Client.now.
type breaker struct {
	mu sync.Mutex
	// failures is read without mu, and written under it. While it is 0,
	// wait is too, and nobody probes.
	failures atomic.Int32
	wait     time.Duration
	until    time.Duration
	probing  bool
}

// well reports that the last question had an answer. Then allow permits what
// follows, and done with another answer changes nothing: readers of one node
// need no lock, and no look at the clock.
func (b *breaker) well() bool { return b.failures.Load() == 0 }

// allow reports whether Redis may be asked. Each true is followed by done or
// release. What only follows on another question is not worth a timeout of its
// own: it is refused as soon as the last question had no answer, so that a read
// waits for one timeout and no more.
func (b *breaker) allow(now time.Duration, follows bool) bool {
	if b.well() {
		return true
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	failures := b.failures.Load()
	if failures == 0 {
		return true
	}
	if follows {
		return false
	}
	if failures < breakerFailures {
		return true
	}
	if b.probing || now < b.until {
		return false
	}
	b.probing = true
	return true
}

// done takes the outcome and reports whether the breaker opened.
func (b *breaker) done(now time.Duration, failed bool) (opened bool) {
	if !failed && b.well() {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.probing = false
	if !failed {
		b.wait = 0
		b.failures.Store(0)
		return false
	}
	if b.failures.Add(1) < breakerFailures {
		return false
	}
	opened = b.wait == 0
	b.wait = min(max(2*b.wait, breakerWaitMin), breakerWaitMax)
	b.until = now + b.wait
	return opened
}

// heal forgets failures: Redis answers again.
func (b *breaker) heal() {
	b.mu.Lock()
	b.wait, b.probing = 0, false
	b.failures.Store(0)
	b.mu.Unlock()
}

func (b *breaker) release() {
	b.mu.Lock()
	b.probing = false
	b.mu.Unlock()
}

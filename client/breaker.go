package client

import (
	"errors"
	"sync"
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
	breakerWaitMax  = 5 * time.Second
)

// breaker spares readers the timeout of a Redis that does not answer: after a
// few failures in a row only one request at a time asks, at growing distances.
// Times are those of Client.now.
type breaker struct {
	mu       sync.Mutex
	failures int
	wait     time.Duration
	until    time.Duration
	probing  bool
}

// allow reports whether Redis may be asked. Each true is followed by done or
// release.
func (b *breaker) allow(now time.Duration) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.failures < breakerFailures {
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
	b.mu.Lock()
	defer b.mu.Unlock()
	b.probing = false
	if !failed {
		b.failures, b.wait = 0, 0
		return false
	}
	if b.failures++; b.failures < breakerFailures {
		return false
	}
	opened = b.wait == 0
	b.wait = min(max(2*b.wait, breakerWaitMin), breakerWaitMax)
	b.until = now + b.wait
	return opened
}

func (b *breaker) release() {
	b.mu.Lock()
	b.probing = false
	b.mu.Unlock()
}

package warmer

import (
	"context"
	"math/bits"
	"sync"
	"time"
)

// RateDefault is how many entries a Limiter lets load in a second.
const RateDefault = 5000

// Priority says who loads first when not everybody can.
type Priority int

// The priorities of loads. The lower one gets one load in eight of those that
// could be the higher one's, so that it ends some day.
const (
	// PriorityWarm: nobody waits for it yet.
	PriorityWarm Priority = iota
	// PriorityRewarm: readers miss what was there a moment ago.
	PriorityRewarm

	priorities
)

const lowEvery = 8

// LimiterConfig are the settings of a Limiter.
type LimiterConfig struct {
	// Rate bounds the entries that are loaded in a second, over all classes:
	// RateDefault if it is 0, without a bound if it is negative. In any time t
	// no more than Rate*t entries are, and those of one load more and of a
	// tenth of a second.
	Rate float64
	// Concurrency bounds the loads that run at a time (ConcurrencyDefault).
	Concurrency int
}

// Limiter bounds what loads ask of the database: of all that share it, at a
// rate, so many at a time, and less while the database is slower than it is wont
// to be or fails; see pace. Who must load first does; of equals the first to
// ask. It is safe for concurrent use.
type Limiter struct {
	rate, burst float64

	mu struct {
		sync.Mutex
		pace    *pace
		tokens  float64
		filled  time.Time // when tokens was right
		running int
		rest    time.Time // nothing begins before
		waiting [priorities][]*waiter
		grants  int
		timer   *time.Timer
	}
}

type waiter struct {
	rows  int
	ready chan struct{}
}

// NewLimiter makes a Limiter.
func NewLimiter(cfg LimiterConfig) *Limiter {
	if cfg.Concurrency <= 0 {
		cfg.Concurrency = ConcurrencyDefault
	}
	if cfg.Rate == 0 {
		cfg.Rate = RateDefault
	}
	l := &Limiter{rate: cfg.Rate, burst: max(1, cfg.Rate/10)}
	l.mu.pace = newPace(cfg.Concurrency)
	l.mu.tokens, l.mu.filled = l.burst, time.Now()
	return l
}

// Permit is the right to one load. It must be given back with Done.
type Permit struct {
	l    *Limiter
	kind string
	rows int
}

// Acquire waits until that many entries may be loaded in one load, or until ctx
// ends. Loads of one kind, a class, are compared with each other.
func (l *Limiter) Acquire(ctx context.Context, kind string, rows int, p Priority) (*Permit, error) {
	w := &waiter{rows: rows, ready: make(chan struct{})}
	p = min(max(p, 0), priorities-1)
	l.mu.Lock()
	l.mu.waiting[p] = append(l.mu.waiting[p], w)
	l.pump()
	l.mu.Unlock()
	select {
	case <-w.ready:
		return &Permit{l: l, kind: kind, rows: rows}, nil
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, o := range l.mu.waiting[p] {
		if o == w {
			l.mu.waiting[p] = append(l.mu.waiting[p][:i], l.mu.waiting[p][i+1:]...)
			l.pump()
			return nil, context.Cause(ctx)
		}
	}
	l.mu.running-- // it came in the same moment, and goes unused
	l.mu.tokens += float64(rows)
	l.pump()
	return nil, context.Cause(ctx)
}

// Done gives the permit back: so many entries were asked for after all, which
// took so long and failed or not. A load that did not take place counts for
// nothing.
func (p *Permit) Done(rows int, took time.Duration, failed bool) {
	l := p.l
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.running--
	l.mu.tokens += float64(p.rows - min(rows, p.rows))
	if rows > 0 {
		// Loads of much are compared with loads of much.
		kind := string(append([]byte(p.kind), byte(bits.Len(uint(rows)))))
		if pause := l.mu.pace.done(kind, now.Add(-took), took, failed); pause > 0 {
			if rest := now.Add(pause); rest.After(l.mu.rest) {
				l.mu.rest = rest
			}
		}
	}
	l.pump()
}

// Pace is how many loads may run at a time now; below one, the share of time in
// which there is one at all.
func (l *Limiter) Pace() float64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.pace.at
}

// pump lets begin whatever may; called under the lock. What has to wait for a
// time sets the timer, what has to wait for a load is woken by its Done.
func (l *Limiter) pump() {
	if l.mu.timer != nil {
		l.mu.timer.Stop()
		l.mu.timer = nil
	}
	for l.mu.running < l.mu.pace.width() {
		queue := l.next()
		if queue == nil {
			return
		}
		w := (*queue)[0]
		if wait := l.wait(w.rows); wait > 0 {
			l.mu.timer = time.AfterFunc(wait, func() {
				l.mu.Lock()
				defer l.mu.Unlock()
				l.pump()
			})
			return
		}
		*queue = (*queue)[1:]
		l.mu.tokens -= float64(w.rows)
		l.mu.running++
		l.mu.grants++
		close(w.ready)
	}
}

// next is the queue whose first is next, nil if nobody waits.
func (l *Limiter) next() *[]*waiter {
	low, high := &l.mu.waiting[PriorityWarm], &l.mu.waiting[PriorityRewarm]
	switch {
	case len(*high) > 0 && (len(*low) == 0 || l.mu.grants%lowEvery != lowEvery-1):
		return high
	case len(*low) > 0:
		return low
	}
	return nil
}

// wait is how long a load of so many has to wait; the bucket is filled up to now.
// A load of more than the bucket holds begins when it is full, and leaves a debt.
func (l *Limiter) wait(rows int) time.Duration {
	now := time.Now()
	rest := l.mu.rest.Sub(now)
	if l.rate < 0 {
		return rest
	}
	if d := now.Sub(l.mu.filled); d > 0 {
		l.mu.tokens = min(l.mu.tokens+d.Seconds()*l.rate, l.burst)
		l.mu.filled = now
	}
	if missing := min(float64(rows), l.burst) - l.mu.tokens; missing > 0 {
		rest = max(rest, time.Duration(missing/l.rate*float64(time.Second))+time.Nanosecond)
	}
	return rest
}

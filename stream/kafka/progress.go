package kafka

import (
	"context"
	"sync/atomic"
)

// Appended is the number of the last batch that was appended, 0 before the
// first.
func (w *Writer) Appended() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mu.last
}

// Follow has CaughtUp mean: up to where the partitions end now. It does not
// block.
func (c *Consumer) Follow() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.follow++
	if c.mu.followed != nil {
		close(c.mu.followed)
		c.mu.followed = nil
	}
}

// CaughtUp reports whether this worker has partitions, and has applied each of
// them up to where it ended when it was assigned, or when Follow was last
// called. It may be called at any time.
func (c *Consumer) CaughtUp() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for p := range c.mu.owned {
		if g := p.goal.Load(); g == nil || g.follow != c.mu.follow || p.applied(g) < g.end {
			return false
		}
	}
	return len(c.mu.owned) > 0
}

// own and disown keep the list of partitions.
func (c *Consumer) own(p *partition) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.owned == nil {
		c.mu.owned = make(map[*partition]struct{})
	}
	c.mu.owned[p] = struct{}{}
}

func (c *Consumer) disown(p *partition) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.mu.owned, p)
}

// following returns the number of the last Follow and a channel that the next
// one closes.
func (c *Consumer) following() (uint64, <-chan struct{}) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.mu.followed == nil {
		c.mu.followed = make(chan struct{})
	}
	return c.mu.follow, c.mu.followed
}

// goal is where a partition ended at one time; start is where its reading
// began.
type goal struct {
	follow     uint64
	start, end int64
}

// hole is a run of offsets that hold no record.
type hole struct{ from, to int64 }

// tracker is what CaughtUp wants to know of a partition.
type tracker struct {
	goal atomic.Pointer[goal]
	hole atomic.Pointer[hole] // the last
}

// applied is the offset up to which everything was applied.
func (p *partition) applied(g *goal) int64 {
	at := max(g.start, p.acked.Load())
	if h := p.hole.Load(); h != nil && at >= h.from {
		at = max(at, h.to)
	}
	return at
}

// goalLoop reads where the partition ends, once and after each Follow.
func (p *partition) goalLoop(ctx context.Context, offset int64) {
	var wait backoff
	for ctx.Err() == nil {
		follow, next := p.c.following()
		first, last, err := p.bounds(ctx)
		if err != nil {
			_ = wait.sleep(ctx) // it is asked again
			continue
		}
		wait.reset()
		start := offset
		if start < first || start > last { // none, or the log is another one
			start = first
		}
		p.goal.Store(&goal{follow: follow, start: start, end: last})
		select {
		case <-next:
		case <-ctx.Done():
		}
	}
}

package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"
)

// cell is one run: a variant under a number of concurrent sessions.
type cell struct {
	network  *network
	cache    cache
	sessions int
	// writes and deaths are parts of 1: of the actions, and of the writers who
	// end between COMMIT and what they would have done after it.
	writes, deaths float64
	// loaded, if set, runs in a reader that has read the database and has not
	// filled the cache yet.
	loaded func()
	// committing, if set, runs in a writer right before its COMMIT.
	committing func() error

	known  []knowledge // by member
	reads  atomic.Int64
	misses atomic.Int64
	wrong  atomic.Int64
	wrote  atomic.Int64
	worst  atomic.Int64 // nanoseconds
}

// knowledge is what is known of one member's writes: which have ended, and when.
// A read that begins after the end of a write has to show it.
type knowledge struct {
	mu    sync.Mutex
	last  int64               // the greatest version whose write has ended
	ended map[int64]time.Time // by version
}

func newCell(n *network, c cache, sessions int) *cell {
	r := &cell{network: n, cache: c, sessions: sessions, known: make([]knowledge, n.members)}
	for i := range r.known {
		r.known[i].ended = map[int64]time.Time{}
	}
	return r
}

// end notes that the writes of a change have ended.
func (c *cell) end(ch *change) {
	now := time.Now()
	for i, m := range ch.members {
		k := &c.known[m]
		k.mu.Lock()
		k.last = max(k.last, ch.versions[i])
		k.ended[ch.versions[i]] = now
		k.mu.Unlock()
	}
}

// late is how long a version had been out of date at a moment.
func (k *knowledge) late(version int64, now time.Time) (d time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for v := version + 1; v <= k.last; v++ {
		if at, ok := k.ended[v]; ok {
			d = max(d, now.Sub(at))
		}
	}
	return d
}

// read is one read, and the verdict on it: wrong, if it lacks a write that had
// ended when it began. What ends while it is under way may be in it or not.
func (c *cell) read(ctx context.Context, k kind, member int64) (wrong bool, err error) {
	known := &c.known[member]
	known.mu.Lock()
	floor := known.last
	known.mu.Unlock()
	began := time.Now()
	missed := false
	p, err := c.cache.read(ctx, k, member, func(ctx context.Context) (page, error) {
		missed = true
		p, err := c.network.page(ctx, k, member)
		if err == nil && c.loaded != nil {
			c.loaded()
		}
		return p, err
	})
	if err != nil {
		return false, fmt.Errorf("read %s: %w", k.key(member), err)
	}
	if p.Member != member {
		return false, fmt.Errorf("read %s: got that of member %d", k.key(member), p.Member)
	}
	c.reads.Add(1)
	if missed {
		c.misses.Add(1)
	}
	if p.Version >= floor {
		return false, nil
	}
	c.wrong.Add(1)
	for late := int64(known.late(p.Version, began)); ; {
		if was := c.worst.Load(); late <= was || c.worst.CompareAndSwap(was, late) {
			return true, nil
		}
	}
}

// write is one write. One that dies has no end: no read is held to it.
func (c *cell) write(ctx context.Context, a, b int64, dies bool) error {
	ch, err := c.network.write(ctx, a, b,
		func(conn *pgxpool.Conn, ch *change) error {
			if err := c.cache.before(ctx, conn, ch); err != nil || c.committing == nil {
				return err
			}
			return c.committing()
		},
		func(conn *pgxpool.Conn, ch *change) error {
			if dies {
				return nil
			}
			return c.cache.after(ctx, conn, ch)
		})
	if err != nil {
		return fmt.Errorf("write %d, %d: %w", a, b, err)
	}
	c.wrote.Add(1)
	if !dies {
		c.end(ch)
	}
	return nil
}

// warm reads every page once, so that all variants begin full.
func (c *cell) warm(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	const workers = 8
	for first := range workers {
		g.Go(func() error {
			for m := first; m < c.network.members; m += workers {
				for _, k := range kinds {
					if _, err := c.cache.read(ctx, k, int64(m), func(ctx context.Context) (page, error) {
						return c.network.page(ctx, k, int64(m))
					}); err != nil {
						return err
					}
				}
			}
			return nil
		})
	}
	return g.Wait()
}

// run keeps every session busy until done says so; the action that is under way
// then is finished.
func (c *cell) run(ctx context.Context, done func() bool) error {
	g, ctx := errgroup.WithContext(ctx)
	for range c.sessions {
		g.Go(func() error {
			r := newRand()
			for !done() && ctx.Err() == nil {
				if err := c.act(ctx, r); err != nil {
					return err
				}
			}
			return ctx.Err()
		})
	}
	return g.Wait()
}

// act is one action of a session.
func (c *cell) act(ctx context.Context, r *rand.Rand) error {
	a := c.network.draw(r)
	if r.Float64() >= c.writes {
		_, err := c.read(ctx, kinds[r.IntN(len(kinds))], a)
		return err
	}
	b := c.network.draw(r)
	for b == a {
		b = c.network.draw(r)
	}
	return c.write(ctx, a, b, r.Float64() < c.deaths)
}

// left counts the cached pages that differ from the database when everything is
// quiet. What is on its way is given patience.
func (c *cell) left(ctx context.Context, patience time.Duration) (left, kept int, err error) {
	truth, err := c.network.versions(ctx)
	if err != nil {
		return 0, 0, err
	}
	for began := time.Now(); ; {
		left, kept = 0, 0
		for m := range c.network.members {
			for _, k := range kinds {
				pages, err := c.cache.kept(ctx, k, int64(m))
				if err != nil {
					return 0, 0, err
				}
				wrong := false
				for _, p := range pages {
					wrong = wrong || p.Version != truth[m]
				}
				if len(pages) > 0 {
					kept++
				}
				if wrong {
					left++
				}
			}
		}
		if left == 0 || time.Since(began) > patience || ctx.Err() != nil {
			return left, kept, ctx.Err()
		}
	}
}

package client

import (
	"maps"
	"sync"
	"sync/atomic"
)

// Stats are counters since Open, and the state now.
type Stats struct {
	State State
	// Epochs counts how often L1 was forgotten as a whole, Gaps the messages
	// that did not follow on the one before, Replays the looks at the stream.
	Epochs, Gaps, Replays uint64
	// RedisErrors counts the steps of reads that Redis did not answer.
	RedisErrors uint64
	// Flights are the loads under way, each until its fill is over too: that is
	// behind the back of who asked.
	Flights int
	// Broadcasts is the number of the last broadcast that was handled, and
	// Watermark the position below which every commit's invalidations are, as
	// this Client has heard. Both are zero before the first look at Redis.
	Broadcasts uint64
	Watermark  string
	// L1Entries and L1Bytes are what L1 holds, about.
	L1Entries int
	L1Bytes   uint64
	Classes   map[string]ClassStats
}

// ClassStats are the counters of one class.
type ClassStats struct {
	// L1Hits and L2Hits were served from the cache, Misses were not.
	L1Hits, L2Hits, Misses uint64
	// Loads ran a loader, LoadErrors of them failed, Coalesced reads shared the
	// load of another. Overloaded were turned away.
	Loads, LoadErrors, Coalesced, Overloaded uint64
	// Undecodable entries were taken for misses.
	Undecodable uint64
	// Fills were accepted; Refused and those not tried are counted by reason.
	Fills   uint64
	Refused map[string]uint64
}

type counts struct {
	epochs, gaps, replays, redisErrors atomic.Uint64
	flights                            atomic.Int64
}

type classCounts struct {
	l1Hits, l2Hits, misses, loads, loadErrors, coalesced, overloaded, undecodable, fills atomic.Uint64

	mu      sync.Mutex
	refused map[string]uint64
}

func (c *classCounts) refuse(reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.refused == nil {
		c.refused = map[string]uint64{}
	}
	c.refused[reason]++
}

// Stats returns the counters.
func (c *Client) Stats() Stats {
	s := Stats{
		State: c.State(), Epochs: c.counts.epochs.Load(), Gaps: c.counts.gaps.Load(), Replays: c.counts.replays.Load(),
		RedisErrors: c.counts.redisErrors.Load(), Flights: int(c.counts.flights.Load()), Classes: map[string]ClassStats{},
	}
	if v := c.view.Load(); v != nil {
		s.Broadcasts, s.Watermark = v.control.Number, v.control.W.String()
	}
	if c.l1 != nil {
		s.L1Entries, s.L1Bytes = c.l1.memory.size()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, same := range c.classes {
		var t ClassStats
		t.Refused = map[string]uint64{}
		for _, cl := range same {
			n := &cl.counts
			t.L1Hits += n.l1Hits.Load()
			t.L2Hits += n.l2Hits.Load()
			t.Misses += n.misses.Load()
			t.Loads += n.loads.Load()
			t.LoadErrors += n.loadErrors.Load()
			t.Coalesced += n.coalesced.Load()
			t.Overloaded += n.overloaded.Load()
			t.Undecodable += n.undecodable.Load()
			t.Fills += n.fills.Load()
			n.mu.Lock()
			refused := maps.Clone(n.refused)
			n.mu.Unlock()
			for reason, k := range refused {
				t.Refused[reason] += k
			}
		}
		s.Classes[name] = t
	}
	return s
}

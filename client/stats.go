package client

import (
	"time"

	"github.com/redis/go-redis/v9"
)

// Stats are counters since Open, and the state now. Counters are read one after
// another, so what happens meanwhile may be in one and not in another.
type Stats struct {
	State State
	// StateChanges counts how often State was another than before.
	StateChanges uint64
	// Epochs counts how often L1 was forgotten as a whole, Gaps the messages
	// that did not follow on the one before, Replays the looks at the stream.
	Epochs, Gaps, Replays uint64
	// RedisErrors counts the steps that Redis did not do, RedisErrorKinds the
	// same by kind: timeout, network, pool (no connection was free), server (an
	// error reply), node_lost (another server answers), replica.
	RedisErrors     uint64
	RedisErrorKinds map[string]uint64
	// RedisSkipped counts the steps for which Redis was not asked, because it
	// had not answered before and is given time.
	RedisSkipped uint64
	// LogsLeftOut counts the log records that were held back as repetitions.
	LogsLeftOut uint64
	// Pool is that of the connections that read and fill.
	Pool PoolStats
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
	// MasterAge says for each Redis master, by address, how old what it holds may
	// be: everything that was committed longer ago has been invalidated there.
	// Classes with a lesser MaxStale pass it by. -1: unknown.
	MasterAge map[string]time.Duration
	Classes   map[string]ClassStats
}

// PoolStats are those of go-redis: of the nodes together, with a cluster.
type PoolStats struct {
	// Hits found a connection that was free, Misses had to make one, Timeouts
	// got none in time. Stale connections were thrown away.
	Hits, Misses, Timeouts, Stale uint64
	// Total and Idle connections there are now.
	Total, Idle uint64
}

// ClassStats are the counters of one class.
type ClassStats struct {
	// Each read counts once, by where its answer came from: L1Hits, L2Hits,
	// Loaded (by a loader, its own or one that it joined), Stale, Defaults, or
	// Failed; ReadErrors are the last by kind: loader, overloaded, not_live,
	// no_loader, key, canceled, timeout.
	L1Hits, L2Hits, Loaded, Stale, Defaults, Failed uint64
	ReadErrors                                      map[string]uint64
	// ReadTime is how long reads took, by layer. Of the hits in L1 one in 1024
	// is timed.
	ReadTime map[Layer]Histogram
	// StaleAge is how old what was served as Stale was: since when it was
	// invalidated, or not known to be current.
	StaleAge Histogram

	// Misses counts the keys for which a load was due, whoever waited for it.
	Misses uint64
	// Loads ran a loader, LoadErrors of them failed (ErrNotFound is no failure),
	// Coalesced reads shared the load of another. Overloaded were turned away.
	Loads, LoadErrors, Coalesced, Overloaded uint64
	// LoadCost is how long loaders ran.
	LoadCost Histogram
	// SoftTimeouts counts the reads that returned something else after
	// SoftTimeout, HardTimeouts the loads that exceeded HardTimeout.
	SoftTimeouts, HardTimeouts uint64
	// Refreshes are loads in the background for a value that was served,
	// EarlyRefreshes those of them that EarlyRefresh asked for; RefreshesSkipped
	// were due and found no room among MaxLoads.
	Refreshes, EarlyRefreshes, RefreshesSkipped uint64
	// LeaseWaits counts the reads that waited for the load of another process,
	// LeaseTakeovers those that loaded in its place; LeaseWaiting wait now.
	LeaseWaits, LeaseTakeovers uint64
	LeaseWaiting               int

	// Undecodable entries were taken for misses.
	Undecodable uint64
	// Untrusted entries of Redis were passed by because nobody vouched for them:
	// they may have been older than MaxStale.
	Untrusted uint64
	// Fills were accepted; Refused and those not tried are counted by reason.
	Fills   uint64
	Refused map[string]uint64

	// L1Entries and L1Bytes are what L1 holds of the class, L1Evictions what it
	// put out to make room.
	L1Entries            int
	L1Bytes, L1Evictions uint64
}

// Stats returns the counters. It waits for no server.
func (c *Client) Stats() Stats {
	s := Stats{
		State: c.State(), StateChanges: c.counts.stateChanges.Load(), Epochs: c.counts.epochs.Load(), Gaps: c.counts.gaps.Load(), Replays: c.counts.replays.Load(),
		RedisErrors: c.counts.redisErrors.Load(), RedisErrorKinds: c.counts.kinds.snapshot(), RedisSkipped: c.counts.skipped.Load(), LogsLeftOut: c.log.state.total(),
		Pool: poolStats(c.data.PoolStats()), Flights: int(c.counts.flights.Load()), Classes: map[string]ClassStats{},
	}
	s.MasterAge = c.masterAges()
	if v := c.view.Load(); v != nil {
		s.Broadcasts, s.Watermark = v.control.Number, v.control.W.String()
	}
	if c.l1 != nil {
		s.L1Entries, s.L1Bytes = c.l1.size()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for name, same := range c.classes {
		t := ClassStats{ReadErrors: map[string]uint64{}, ReadTime: map[Layer]Histogram{}, Refused: map[string]uint64{}}
		for _, cl := range same {
			cl.counts.addTo(&t)
			if c.l1 != nil {
				h := c.l1.heldBy(cl)
				t.L1Entries += h.entries
				t.L1Bytes += h.bytes
			}
		}
		s.Classes[name] = t
	}
	return s
}

func poolStats(p *redis.PoolStats) PoolStats {
	return PoolStats{
		Hits: uint64(p.Hits), Misses: uint64(p.Misses), Timeouts: uint64(p.Timeouts), Stale: uint64(p.StaleConns),
		Total: uint64(p.TotalConns), Idle: uint64(p.IdleConns),
	}
}

// addTo adds what was counted for one call of Entries to what its class has.
func (n *classCounts) addTo(t *ClassStats) {
	t.L1Hits += n.l1Hits.Load()
	t.L2Hits += n.reads[LayerL2].Load()
	t.Loaded += n.reads[LayerLoad].Load()
	t.Stale += n.reads[LayerStale].Load()
	t.Defaults += n.reads[LayerDefault].Load()
	t.Failed += n.reads[LayerNone].Load()
	for l := range layerCount {
		bounds := boundsRead
		if l == LayerL1 {
			bounds = boundsL1
		}
		if h := t.ReadTime[l].plus(n.readTime[l].snapshot(bounds)); h.Count > 0 {
			t.ReadTime[l] = h
		}
	}
	t.StaleAge = t.StaleAge.plus(n.stale.snapshot(boundsAge))
	t.Misses += n.misses.Load()
	t.Loads += n.loads.Load()
	t.LoadErrors += n.loadErrors.Load()
	t.Coalesced += n.coalesced.Load()
	t.Overloaded += n.overloaded.Load()
	t.LoadCost = t.LoadCost.plus(n.cost.snapshot(boundsRead))
	t.SoftTimeouts += n.softTimeouts.Load()
	t.HardTimeouts += n.hardTimeouts.Load()
	t.Refreshes += n.refreshes.Load()
	t.EarlyRefreshes += n.earlyRefreshes.Load()
	t.RefreshesSkipped += n.refreshesSkipped.Load()
	t.LeaseWaits += n.leaseWaits.Load()
	t.LeaseWaiting += int(n.leaseWaiting.Load())
	t.LeaseTakeovers += n.leaseTakeovers.Load()
	t.Untrusted += n.untrusted.Load()
	t.Undecodable += n.undecodable.Load()
	t.Fills += n.fills.Load()
	t.L1Evictions += n.evictions.Load()
	addAll(t.Refused, n.refused.snapshot())
	addAll(t.ReadErrors, n.failing.snapshot())
}

func addAll(to, from map[string]uint64) {
	for k, v := range from {
		to[k] += v
	}
}

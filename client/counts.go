package client

import (
	"context"
	"errors"
	"maps"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/coherence"
)

// counts are the events of a Client; each is counted and then told to the
// Observer. None of it is called under Client.mu, but for what says so.
type counts struct {
	observer Observer // may be nil

	epochs, gaps, replays, stateChanges, redisErrors, skipped atomic.Uint64
	flights                                                   atomic.Int64

	kinds tally
	state atomic.Int32 // the last that was told; the receiver's
}

// tally counts by a word out of a small set.
type tally struct {
	mu sync.Mutex
	n  map[string]uint64
}

func (t *tally) add(word string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n == nil {
		t.n = map[string]uint64{}
	}
	t.n[word]++
}

// snapshot is a copy, never nil.
func (t *tally) snapshot() map[string]uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.n == nil {
		return map[string]uint64{}
	}
	return maps.Clone(t.n)
}

// epochLocked counts under Client.mu; epoch tells, outside of it.
func (n *counts) epochLocked() { n.epochs.Add(1) }

func (n *counts) epoch(why string) {
	if n.observer != nil {
		n.observer.ObserveEvent(Event{Kind: EventEpoch, Why: why})
	}
}

func (n *counts) gap() {
	n.gaps.Add(1)
	if n.observer != nil {
		n.observer.ObserveEvent(Event{Kind: EventGap})
	}
}

func (n *counts) replay() {
	n.replays.Add(1)
	if n.observer != nil {
		n.observer.ObserveEvent(Event{Kind: EventReplay})
	}
}

// now takes the state as the receiver sees it. Only the receiver calls it, so
// that changes are told in their order.
func (n *counts) now(s State) {
	was := State(n.state.Swap(int32(s)))
	if was == s {
		return
	}
	n.stateChanges.Add(1)
	if n.observer != nil {
		n.observer.ObserveEvent(Event{Kind: EventState, From: was, To: s})
	}
}

// redis counts a step that Redis did not do.
func (n *counts) redis(err error) {
	n.redisErrors.Add(1)
	kind := redisErrorKind(err)
	n.kinds.add(kind)
	if n.observer != nil {
		n.observer.ObserveError(ErrorEvent{Kind: kind, Err: err})
	}
}

func redisErrorKind(err error) string {
	var (
		lost    *coherence.NodeLostError
		timeout net.Error
	)
	switch {
	case errors.As(err, &lost):
		return "node_lost"
	case errors.Is(err, errReplica):
		return "replica"
	case errors.Is(err, redis.ErrPoolTimeout):
		return "pool"
	case answered(err):
		return "server"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "timeout"
	}
	return "network"
}

// classCounts are the events of a class. l1Hits is added to by every hit and
// has no other way to cost.
type classCounts struct {
	class    string
	observer Observer // may be nil

	l1Hits                                                                          striped
	misses, loads, loadErrors, coalesced, overloaded, undecodable, untrusted, fills atomic.Uint64
	leaseWaits, leaseTakeovers, evictions, unseenEvictions                          atomic.Uint64
	softTimeouts, hardTimeouts, refreshes, earlyRefreshes, refreshesSkipped         atomic.Uint64

	leaseWaiting atomic.Int64

	reads            [layerCount]atomic.Uint64 // but for LayerL1
	readTime         [layerCount]histogram     // LayerL1: those that were timed
	cost, stale      histogram
	refused, failing tally
}

// read counts a read that was not the fast one.
func (n *classCounts) read(key string, m *meta, err error, took time.Duration) {
	layer := m.layer
	if err != nil && !errors.Is(err, ErrNotFound) {
		layer = LayerNone
		n.failing.add(readErrorKind(err))
	} else if layer == LayerNone {
		layer = LayerLoad
	}
	if layer == LayerL1 {
		n.l1Hits.Add(1)
	} else {
		n.reads[layer].Add(1)
		n.readTime[layer].add(boundsRead, took)
	}
	if layer == LayerStale {
		n.stale.add(boundsAge, m.age)
	}
	if n.observer != nil {
		n.observer.ObserveRead(ReadEvent{
			Class: n.class, Key: key, Layer: layer, Result: layer.Result(), Duration: took, Age: m.age, Err: err,
		})
	}
}

// l1Sample is how many hits of L1 there are to one that is timed.
const l1Sample = 1024

// readErrorKind says in a word why a read failed.
func readErrorKind(err error) string {
	switch {
	case errors.Is(err, ErrOverloaded):
		return "overloaded"
	case errors.Is(err, ErrNotLive):
		return "not_live"
	case errors.Is(err, ErrNoLoader):
		return "no_loader"
	case errors.Is(err, ErrKey):
		return "key"
	case errors.Is(err, context.Canceled):
		return "canceled"
	case errors.Is(err, context.DeadlineExceeded):
		return "timeout"
	}
	return "loader"
}

// loaded counts a run of a loader.
func (n *classCounts) loaded(key string, cost time.Duration, err error) {
	n.loads.Add(1)
	n.cost.add(boundsRead, cost)
	if err != nil && !errors.Is(err, ErrNotFound) {
		n.loadErrors.Add(1)
	}
	if n.observer != nil {
		n.observer.ObserveLoad(LoadEvent{Class: n.class, Key: key, Cost: cost, Err: err})
	}
}

// stored and refuse count what became of a loaded value.
func (n *classCounts) stored() {
	n.fills.Add(1)
	if n.observer != nil {
		n.observer.ObserveFill(FillEvent{Class: n.class})
	}
}

func (n *classCounts) refuse(reason string) {
	n.refused.add(reason)
	if n.observer != nil {
		n.observer.ObserveFill(FillEvent{Class: n.class, Reason: reason})
	}
}

// leaseWaited and leaseTaken count reads that met the lease of another process.
func (n *classCounts) leaseWaited(key string, waited time.Duration) {
	n.leaseWaits.Add(1)
	if n.observer != nil {
		n.observer.ObserveLease(LeaseEvent{Class: n.class, Key: key, Waited: waited})
	}
}

func (n *classCounts) leaseTaken(key string, waited time.Duration) {
	n.leaseTakeovers.Add(1)
	if n.observer != nil {
		n.observer.ObserveLease(LeaseEvent{Class: n.class, Key: key, TakenOver: true, Waited: waited})
	}
}

// evictedLocked counts under Client.mu what L1 put out; evicted tells, outside
// of it.
func (n *classCounts) evictedLocked() {
	n.evictions.Add(1)
	if n.observer != nil {
		n.unseenEvictions.Add(1)
	}
}

func (n *classCounts) evicted() {
	if n.observer == nil {
		return
	}
	if k := n.unseenEvictions.Swap(0); k > 0 {
		n.observer.ObserveEviction(EvictionEvent{Class: n.class, Entries: k})
	}
}

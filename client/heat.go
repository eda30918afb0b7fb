package client

import (
	"cmp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	heatRows  = 4
	heatWidth = 4       // counters of a row in one line
	heatLines = 1 << 12 // lines of the processor's cache
	heatKeys  = 128     // how many hot keys are known by name
	// heatBits: one hit in 2^heatBits of L1 is counted, for all of them.
	heatBits = 6
	// heatCold: a key is not hot that is read less often than this in a minute.
	heatCold = 60
)

// heat counts how often each key was read in the last minute, about, in memory
// that does not grow: a count-min sketch (Cormode and Muthukrishnan, An improved
// data stream summary, 2005) for this minute and one for the minute before, of
// which as much counts as is not over yet. Beside it stand the names of the keys
// that have the greatest counts. What is counted is too high where many keys
// share their places, never too low but for the sampling of hits in L1.
//
// The counters of a key, one of each row, share a line of the processor's cache,
// which its hash chooses (a blocked sketch, as the frequencies of Caffeine are):
// every read counts, and four lines from all over the memory would cost it more
// than all else that it does here.
//
// Counting takes no lock. The names do, and are left as they are if it is taken.
type heat struct {
	now, before atomic.Pointer[sketch]
	least       atomic.Uint64 // the count from which on a key may enter top

	mu  sync.Mutex
	top map[uint64]*hotKey // by hash
}

type sketch struct {
	lines  [heatLines][heatRows][heatWidth]atomic.Uint32 // first, so that lines are lines
	minute int64
}

type hotKey struct {
	class, key string
	count      uint64
}

func newHeat() *heat {
	h := &heat{top: map[uint64]*hotKey{}}
	h.now.Store(&sketch{})
	h.before.Store(&sketch{minute: -1})
	return h
}

// turn makes sure that the sketch is that of the minute.
func (h *heat) turn(now time.Duration) {
	minute := int64(now / time.Minute)
	if h.now.Load().minute >= minute || !h.mu.TryLock() {
		return
	}
	defer h.mu.Unlock()
	last := h.now.Load()
	if last.minute >= minute {
		return
	}
	if last.minute < minute-1 {
		last = &sketch{minute: minute - 1} // nothing was read meanwhile
	}
	h.before.Store(last)
	h.now.Store(&sketch{minute: minute})
	h.countLocked(now)
}

// count is how often a key was read in the last minute.
func (h *heat) count(hash uint64, now time.Duration) uint64 {
	h.turn(now)
	return h.with(h.now.Load().min(hash), hash, now)
}

// with is a count of this minute with what counts of the minute before.
func (h *heat) with(count uint32, hash uint64, now time.Duration) uint64 {
	left := 1 - float64(now%time.Minute)/float64(time.Minute)
	return uint64(count) + uint64(left*float64(h.before.Load().min(hash)))
}

// counter is that of a key in a row.
func (s *sketch) counter(hash uint64, row int) *atomic.Uint32 {
	return &s.lines[hash%heatLines][row][hash>>(12+2*row)%heatWidth]
}

func (s *sketch) min(hash uint64) uint32 {
	least := s.counter(hash, 0).Load()
	for i := 1; i < heatRows; i++ {
		least = min(least, s.counter(hash, i).Load())
	}
	return least
}

// add counts n reads of a key and returns how many there are.
func (s *sketch) add(hash uint64, n uint32) uint32 {
	least := s.counter(hash, 0).Add(n)
	for i := 1; i < heatRows; i++ {
		least = min(least, s.counter(hash, i).Add(n))
	}
	return least
}

// add counts n reads of a key.
func (h *heat) add(class, key string, hash uint64, n uint32, now time.Duration) {
	h.turn(now)
	count := h.with(h.now.Load().add(hash, n), hash, now)
	if count < heatCold || count < h.least.Load() || !h.mu.TryLock() {
		return
	}
	defer h.mu.Unlock()
	if k := h.top[hash]; k != nil {
		k.count = count
		return
	}
	if len(h.top) == heatKeys {
		h.countLocked(now)
		coldest, at := uint64(1<<64-1), uint64(0)
		for hash, k := range h.top {
			if k.count < coldest {
				coldest, at = k.count, hash
			}
		}
		// A little more than the coldest, or keys that are equal would pass the
		// place on to each other all the time.
		if h.least.Store(coldest + coldest/8 + 1); count < h.least.Load() {
			return
		}
		delete(h.top, at)
	}
	h.top[hash] = &hotKey{class: class, key: strings.Clone(key), count: count}
}

// countLocked brings the counts of the hot keys up to date and forgets those
// that have become cold.
func (h *heat) countLocked(now time.Duration) {
	left := 1 - float64(now%time.Minute)/float64(time.Minute)
	for hash, k := range h.top {
		k.count = uint64(h.now.Load().min(hash)) + uint64(left*float64(h.before.Load().min(hash)))
		if k.count < heatCold {
			delete(h.top, hash)
		}
	}
	if len(h.top) < heatKeys {
		h.least.Store(0)
	}
}

// hot reports whether a key is one of the hottest.
func (h *heat) hot(hash uint64) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, ok := h.top[hash]
	return ok
}

// HotKey is a key that is read often.
type HotKey struct {
	Class, Key string
	// PerMinute is how many reads of it there were in the last minute, in this
	// process, about: hits in L1 are counted by samples of one in 64.
	PerMinute uint64
}

// HotKeys returns the keys that were read most often in the last minute, the
// hottest first: n at most, 128 at most, and none that was read less often than
// 60 times. Keys are without the namespace. It does not ask Redis.
func (c *Client) HotKeys(n int) []HotKey {
	h, now := c.heat, c.now()
	h.turn(now)
	h.mu.Lock()
	h.countLocked(now)
	keys := make([]HotKey, 0, len(h.top))
	for _, k := range h.top {
		keys = append(keys, HotKey{Class: k.class, Key: k.key, PerMinute: k.count})
	}
	h.mu.Unlock()
	slices.SortFunc(keys, func(a, b HotKey) int {
		return cmp.Or(cmp.Compare(b.PerMinute, a.PerMinute), cmp.Compare(a.Key, b.Key))
	})
	return keys[:max(0, min(n, len(keys)))]
}

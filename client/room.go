package client

import (
	"fmt"
	"math"
	"sync"
	"sync/atomic"

	"github.com/maypok86/otter/v2"
)

// memory decides what is kept within a number of bytes, and nothing else: how
// entries are found, and when one may be used, is l1's. It tells of every entry
// that leaves it.
type memory interface {
	add(*l1Entry)
	// touch says that an entry was read. It does not allocate.
	touch(*l1Entry)
	// remove takes out what is under the key of an entry.
	remove(*l1Entry)
	// clear forgets everything at once and tells nobody.
	clear()
	bound(bytes uint64)
	// weight is what it holds, in bytes.
	weight() uint64
}

// room is the part of L1 that one class has for itself, or the one that the
// classes without a share have together.
type room struct {
	memory
	limit uint64
	share float64
}

// fits reports whether an entry is worth a try: what is larger than the room
// would empty it for nothing.
func (r *room) fits(e *l1Entry) bool { return uint64(e.weight) <= r.limit }

// rooms divide the bytes of L1.
type rooms struct {
	bytes int64
	gone  func(*l1Entry)
	mu    sync.Mutex // may be held while a room tells of what leaves it
	rest  *room
	own   map[string]*room
}

func (r *rooms) init(bytes int64, gone func(*l1Entry)) {
	r.bytes, r.gone, r.own = bytes, gone, map[string]*room{}
	r.rest = r.room(1)
}

func (r *rooms) room(share float64) *room {
	limit := uint64(float64(r.bytes) * share)
	return &room{memory: newOtter(limit, r.gone), limit: limit, share: share}
}

// of is the room of a class, with the share that was asked for, 0 for none.
func (r *rooms) of(class string, share float64) (*room, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	have, ok := r.own[class]
	switch {
	case ok && (share == 0 || share == have.share):
		return have, nil
	case ok:
		return nil, fmt.Errorf("L1Share is %v: the class has %v already", share, have.share)
	case share == 0:
		return r.rest, nil
	}
	sum := share
	for _, o := range r.own {
		sum += o.share
	}
	if sum > 1+1e-9 { // 0.1 and 0.2 are not 0.3
		return nil, fmt.Errorf("L1Share is %v: with those of other classes that makes %.4g, want 1 at most", share, sum)
	}
	own := r.room(share)
	r.own[class] = own
	r.rest.limit -= min(own.limit, r.rest.limit)
	r.rest.bound(r.rest.limit)
	return own, nil
}

func (r *rooms) each(f func(*room)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(r.rest)
	for _, o := range r.own {
		f(o)
	}
}

func (r *rooms) clear() { r.each(func(o *room) { o.clear() }) }

func (r *rooms) weight() (sum uint64) {
	r.each(func(o *room) { sum += o.memory.weight() })
	return sum
}

// otterMemory is memory on otter. Its reads and its protection of loads are not
// used: what it holds changes under Client.mu only, together with the look at
// what was invalidated meanwhile, but for what it puts out by itself.
type otterMemory struct {
	// cache is replaced when it is cleared: to take out entries one by one
	// would take as long as there are entries.
	cache atomic.Pointer[otter.Cache[l1Key, *l1Entry]]
	limit atomic.Uint64
	gone  func(*l1Entry)
}

func newOtter(limit uint64, gone func(*l1Entry)) *otterMemory {
	o := &otterMemory{gone: gone}
	o.limit.Store(max(limit, 1))
	o.clear()
	return o
}

// clear starts with an empty cache. The one before has no goroutine that would
// have to be stopped, since nothing in it expires.
func (o *otterMemory) clear() {
	o.cache.Store(otter.Must(&otter.Options[l1Key, *l1Entry]{
		MaximumWeight: o.limit.Load(),
		Weigher:       func(_ l1Key, e *l1Entry) uint32 { return e.weight },
		OnDeletion: func(d otter.DeletionEvent[l1Key, *l1Entry]) {
			if d.WasEvicted() && d.Value.cl != nil {
				d.Value.cl.counts.evictedLocked()
			}
			o.gone(d.Value)
		},
		// On the caller's goroutine: gone takes a leaf lock only, the limit
		// holds when add returns, and no goroutine is left to wait for.
		Executor: func(f func()) { f() },
	}))
}

func (o *otterMemory) add(e *l1Entry)    { o.cache.Load().Set(e.l1Key(), e) }
func (o *otterMemory) touch(e *l1Entry)  { o.cache.Load().GetIfPresent(e.l1Key()) }
func (o *otterMemory) remove(e *l1Entry) { o.cache.Load().Invalidate(e.l1Key()) }
func (o *otterMemory) weight() uint64    { return o.cache.Load().WeightedSize() }

func (o *otterMemory) bound(bytes uint64) {
	o.limit.Store(max(bytes, 1))
	o.cache.Load().SetMaximum(o.limit.Load())
}

// L1Share gives a class a part of Options.L1Bytes for itself: more than 0 and
// at most 1. The class keeps no more than that in L1, and no other class takes
// it away, also while it is not used. The classes without a share have together
// what is left; if that is nothing, they are not kept in L1.
//
// The shares of all classes of a Client may add up to 1; what would make more
// is an error of the class. All Entries of one name have one share, and the
// first that names it decides.
func L1Share(fraction float64) Option {
	return func(c *class) error {
		if !(fraction > 0 && fraction <= 1) || math.IsNaN(fraction) {
			return fmt.Errorf("L1Share is %v: want more than 0 and at most 1", fraction)
		}
		c.share = fraction
		return nil
	}
}

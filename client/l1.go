package client

import (
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
)

// memory is what L1 asks of a cache in the process: bounded by weight, and
// nothing else. When an entry may be used is decided by l1, not by it.
type memory interface {
	// get returns an entry, or nil. It does not allocate.
	get(l1Key) *l1Entry
	// peek is get without a trace in the order of eviction.
	peek(l1Key) *l1Entry
	set(l1Key, *l1Entry)
	remove(l1Key)
	clear()
	// each calls f for every entry, until it returns false.
	each(f func(*l1Entry) bool)
	// size is the number of entries and their weight in bytes.
	size() (entries int, bytes uint64)
	close()
}

// l1Key is an entry's key as the application writes it, and its class's
// version: the two together need not be joined, so that a hit allocates nothing.
type l1Key struct {
	key     string
	version uint32
}

// l1Entry is a decoded value and what decides whether it may be used.
type l1Entry struct {
	key l1Key
	// value is a T, shared by everybody who reads it.
	value any
	meta
	weight uint32
	epoch  uint64
	// look is when a hit has to look closer: the least of expires, soft and the
	// first moment at which an early refresh may be due. Times are those of
	// Client.now.
	look, expires, soft time.Duration
	// pause is until when nobody refreshes it again.
	pause atomic.Int64
	// spare: it may be served stale after it was dropped, which was at buried.
	spare  bool
	buried time.Duration
	// dead is set before the entry is removed: a reader that found it in the
	// moment before does not use it.
	dead atomic.Bool
}

// meta is what is known of a value besides the value.
type meta struct {
	stamp      change.Position
	generation uint64
	names      []coherence.Name
	expiry     int64 // hard, Unix microseconds; 0 is never
	soft       int64 // as expiry: from then on it wants to be loaded again
	filled     int64 // as expiry
	cost       time.Duration
	negative   bool // there is nothing
	// cacheable is false if somebody said that it must not become a part of
	// what is cached.
	cacheable bool
	// layer and age are of one answer: where it came from, and how long it has
	// been old if that is LayerStale.
	layer Layer
	age   time.Duration
}

// entryOverhead is about what an entry costs besides its payload and names.
const entryOverhead = 256

// l1 finds entries by key and by the names they depend on.
type l1 struct {
	memory memory
	mu     sync.Mutex // leaf: nothing is called under it
	index  map[string]map[*l1Entry]struct{}
}

func newL1(bytes int64) *l1 {
	l := &l1{index: map[string]map[*l1Entry]struct{}{}}
	l.memory = newOtter(bytes, l.unlink)
	return l
}

// indexNames calls f for each name under which an entry is to be found.
func (e *l1Entry) indexNames(f func(string)) {
	for i := range e.names {
		if n := &e.names[i]; n.Kind == coherence.NameClass {
			f(classIndex(n.Name))
		} else {
			f(n.Name)
		}
	}
}

// classIndex can not be the name of an entry or a tag: those have no NUL.
func classIndex(class string) string { return "\x00" + class }

// store puts an entry in; called under Client.mu.
func (l *l1) store(e *l1Entry) {
	if len(e.names) > 0 {
		l.mu.Lock()
		e.indexNames(func(name string) {
			set := l.index[name]
			if set == nil {
				set = make(map[*l1Entry]struct{}, 1)
				l.index[name] = set
			}
			set[e] = struct{}{}
		})
		l.mu.Unlock()
	}
	l.memory.set(e.key, e)
}

// unlink takes an entry that is gone out of the index.
func (l *l1) unlink(e *l1Entry) {
	if len(e.names) == 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	e.indexNames(func(name string) {
		set := l.index[name]
		delete(set, e)
		if len(set) == 0 {
			delete(l.index, name)
		}
	})
}

// drop forgets an entry; called under Client.mu, so that no other has taken
// its place in between.
func (l *l1) drop(e *l1Entry) {
	e.dead.Store(true)
	if l.memory.peek(e.key) == e {
		l.memory.remove(e.key)
	}
	l.unlink(e)
}

// dependents are the entries that have a name.
func (l *l1) dependents(name string) []*l1Entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	set := l.index[name]
	if len(set) == 0 {
		return nil
	}
	out := make([]*l1Entry, 0, len(set))
	for e := range set {
		out = append(out, e)
	}
	return out
}

// clear gives the memory back; what was stored is void already by its epoch.
func (l *l1) clear() {
	l.memory.clear()
	l.mu.Lock()
	clear(l.index)
	l.mu.Unlock()
}

// otterMemory is memory on otter. Its own protection of loads is not used: an
// entry is set and removed under Client.mu only, together with the look at
// what was invalidated meanwhile, and values carry their epoch because
// InvalidateAll does not reach one that is just being set.
type otterMemory struct {
	cache *otter.Cache[l1Key, *l1Entry]
}

func newOtter(bytes int64, gone func(*l1Entry)) *otterMemory {
	return &otterMemory{cache: otter.Must(&otter.Options[l1Key, *l1Entry]{
		MaximumWeight: uint64(bytes),
		Weigher:       func(_ l1Key, e *l1Entry) uint32 { return e.weight },
		OnDeletion:    func(d otter.DeletionEvent[l1Key, *l1Entry]) { gone(d.Value) },
		// On the caller's goroutine: gone takes a leaf lock only, and no
		// goroutine is left to wait for.
		Executor: func(f func()) { f() },
	})}
}

func (o *otterMemory) get(k l1Key) *l1Entry {
	e, _ := o.cache.GetIfPresent(k)
	return e
}

func (o *otterMemory) peek(k l1Key) *l1Entry {
	e, ok := o.cache.GetEntryQuietly(k)
	if !ok {
		return nil
	}
	return e.Value
}

func (o *otterMemory) set(k l1Key, e *l1Entry) { o.cache.Set(k, e) }
func (o *otterMemory) remove(k l1Key)          { o.cache.Invalidate(k) }
func (o *otterMemory) clear()                  { o.cache.InvalidateAll() }
func (o *otterMemory) close()                  { o.cache.StopAllGoroutines() }

func (o *otterMemory) each(f func(*l1Entry) bool) {
	for e := range o.cache.Values() {
		if !f(e) {
			return
		}
	}
}

func (o *otterMemory) size() (int, uint64) {
	return o.cache.EstimatedSize(), o.cache.WeightedSize()
}

func weigh(payload int, names []coherence.Name) uint32 {
	w := payload + entryOverhead
	for i := range names {
		w += len(names[i].Name) + 2*entryOverhead/4
	}
	return uint32(min(w, math.MaxUint32))
}

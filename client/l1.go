package client

import (
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
)

// l1Key is an entry's key as the application writes it, and its class's
// version.
type l1Key struct {
	key     string
	version uint32
}

// l1Entry is a decoded value and what decides whether it may be used. A hit
// reads the first 64 bytes and nothing else.
type l1Entry struct {
	// next is the next entry of the same bucket of the table.
	next atomic.Pointer[l1Entry]
	hash uint64 // of the key and the version
	key  string
	// value is a T, shared by everybody who reads it; nil if there is nothing.
	value any
	// look is the time, by Client.now, from which on the entry must not be
	// served without a closer look: the least of expires, soft and the first
	// moment at which an early refresh may be due.
	look time.Duration
	// valid is class.valid as it was, and 0 from before the entry is removed: a
	// reader that found it in the moment before does not use it.
	valid atomic.Uint32
	// told is the last of noteEvery in which the room was told of a read.
	told atomic.Uint32

	meta
	cl              *class // nil in tests
	room            *room
	weight, version uint32
	// master is the one that holds it in Redis.
	master *master
	// expires ends its use, soft its use without a load behind it; by
	// Client.now.
	expires, soft time.Duration
	// pause is until when nobody refreshes it again.
	pause atomic.Int64
	// spare: it may be served stale after it was dropped, which was at buried.
	spare  bool
	buried time.Duration
	_      [16]byte // to a whole number of cache lines
}

// dropped reports whether an entry was told to be old.
func (e *l1Entry) dropped() bool { return e.valid.Load() == 0 }

// meta is what is known of a value besides the value.
type meta struct {
	stamp      change.Position
	generation uint64
	names      []coherence.Name
	expiry     int64 // hard, Unix microseconds; 0 is never
	soft       int64 // as expiry: from then on it wants to be loaded again
	filled     int64 // as expiry
	cost       time.Duration
	// own is when this process began to load it from the primary, by Client.now;
	// 0 if it came from Redis, from a standby, or was made of other entries.
	own      time.Duration
	negative bool // there is nothing
	// cacheable is false if somebody said that it must not become a part of
	// what is cached.
	cacheable bool
	// layer and age are of one answer: where it came from, and how long it has
	// been old if that is LayerStale.
	layer Layer
	age   time.Duration
}

// l1 is the cache in the process. The table finds entries, index finds those
// that have a name, and rooms decide which of them have to go. What is in the
// table is in its room as well, or is just on its way in or out; a room tells
// of each entry that leaves it.
type l1 struct {
	table *table
	rooms rooms
	mu    sync.Mutex // leaf: nothing is called under it
	index map[string]map[*l1Entry]struct{}
	held  map[*class]holding // guarded by mu
}

func newL1(bytes int64, table *table) *l1 {
	l := &l1{table: table, index: map[string]map[*l1Entry]struct{}{}, held: map[*class]holding{}}
	l.rooms.init(bytes, l.unlink)
	return l
}

// find returns the entry of a key, which may be void, or nil.
func (l *l1) find(k l1Key) *l1Entry { return l.table.find(k.key, l.table.hash(k)) }

func (e *l1Entry) l1Key() l1Key { return l1Key{key: e.key, version: e.version} }

// noteEvery is how often a room is told that an entry is read. It keeps what is
// read often by a measure that knows 15 degrees, so more would be of no use,
// and a reader of something hot need not write to what other readers read.
const (
	noteBits  = 26
	noteEvery = 1 << noteBits * time.Nanosecond // about 67 ms
)

// note tells a room that an entry is read.
func (e *l1Entry) note(now time.Duration) {
	if tick := uint32(uint64(now) >> noteBits); e.told.Load() != tick {
		e.tell(tick)
	}
}

func (e *l1Entry) tell(tick uint32) {
	e.told.Store(tick)
	e.room.touch(e)
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

// store puts an entry in; called under Client.mu. It is in the table before it
// is in its room, so that a room which at once decides against it finds it.
func (l *l1) store(e *l1Entry) {
	e.hash = l.table.hash(e.l1Key())
	l.mu.Lock()
	e.indexNames(func(name string) {
		set := l.index[name]
		if set == nil {
			set = make(map[*l1Entry]struct{}, 1)
			l.index[name] = set
		}
		set[e] = struct{}{}
	})
	old := l.table.link(e)
	l.hold(e)
	if old != nil {
		l.release(old)
		l.unindex(old)
	}
	l.mu.Unlock()
	if old != nil && old.room != e.room {
		old.room.remove(old)
	}
	e.room.add(e)
}

// holding is what the table has of one class.
type holding struct {
	entries int
	bytes   uint64
}

// hold and release count an entry that is in the table, or is no more; called
// under l.mu.
func (l *l1) hold(e *l1Entry) {
	h := l.held[e.cl]
	l.held[e.cl] = holding{h.entries + 1, h.bytes + uint64(e.weight)}
}

func (l *l1) release(e *l1Entry) {
	h := l.held[e.cl]
	l.held[e.cl] = holding{h.entries - 1, h.bytes - uint64(e.weight)}
}

func (l *l1) heldBy(cl *class) holding {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.held[cl]
}

// unlink takes an entry out of the table and the index.
func (l *l1) unlink(e *l1Entry) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.table.unlink(e) {
		l.release(e)
		l.unindex(e)
	}
}

func (l *l1) unindex(e *l1Entry) {
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
	e.valid.Store(0)
	if l.table.find(e.key, e.hash) == e {
		l.unlink(e)
		e.room.remove(e)
	}
}

// forget drops what is under a key; called under Client.mu.
func (l *l1) forget(k l1Key) {
	if e := l.find(k); e != nil {
		l.drop(e)
	}
}

// entries are all that there are, void ones too.
func (l *l1) entries() []*l1Entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.table.entries()
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

// clear gives the memory back, all at once; what was stored is void already by
// its class. Called under Client.mu: a store in between would be in one half.
func (l *l1) clear() {
	l.mu.Lock()
	l.table.clear()
	l.index, l.held = map[string]map[*l1Entry]struct{}{}, map[*class]holding{}
	l.mu.Unlock()
	l.rooms.clear()
}

// size is the number of entries and their weight in bytes.
func (l *l1) size() (entries int, bytes uint64) {
	l.mu.Lock()
	entries = l.table.len()
	l.mu.Unlock()
	return entries, l.rooms.weight()
}

// entryOverhead is about what an entry costs besides its payload and names.
const entryOverhead = 256

func weigh(payload int, names []coherence.Name) uint32 {
	w := payload + entryOverhead
	for i := range names {
		w += len(names[i].Name) + 2*entryOverhead/4
	}
	return uint32(min(w, math.MaxUint32))
}

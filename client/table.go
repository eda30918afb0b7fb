package client

import (
	"hash/maphash"
	"sync/atomic"
)

// shards is how many parts a table has, each of which grows by itself, so that
// no writer has to move more than a small part of the entries.
const shards = 64

// table finds entries by their key. Reading takes no lock: each bucket is a
// chain of entries that is changed by single atomic stores. Who follows a chain
// while it is changed may see an entry that has just left it, and may, while a
// shard grows, not see one that is there: that is a miss, and no harm. An entry
// that has left a table does not come back to one.
//
// Writers hold l1.mu.
type table struct {
	seed   maphash.Seed
	shards [shards]shard
}

type shard struct {
	buckets atomic.Pointer[[]atomic.Pointer[l1Entry]] // never nil, a power of two
	n       int                                       // entries; the writers'
}

func newTable(seed maphash.Seed) *table {
	t := &table{seed: seed}
	t.clear()
	return t
}

// hash is of a key and a version: of one key, no two versions have the same.
func (t *table) hash(k l1Key) uint64 {
	return maphash.String(t.seed, k.key) ^ uint64(k.version)*golden
}

// find returns the entry of a key and a hash, or nil. It does not allocate.
func (t *table) find(key string, hash uint64) *l1Entry {
	e := bucket(*t.shards[hash>>58].buckets.Load(), hash).Load()
	for ; e != nil; e = e.next.Load() {
		if e.hash == hash && e.key == key {
			return e
		}
	}
	return nil
}

func bucket(b []atomic.Pointer[l1Entry], hash uint64) *atomic.Pointer[l1Entry] {
	return &b[hash&uint64(len(b)-1)]
}

// link puts an entry in and returns the one whose place it took, if any. A
// reader finds one of the two at every moment.
func (t *table) link(e *l1Entry) (old *l1Entry) {
	s := &t.shards[e.hash>>58]
	at := bucket(*s.buckets.Load(), e.hash)
	for o := at.Load(); o != nil; o = at.Load() {
		if o.hash == e.hash && o.key == e.key {
			e.next.Store(o.next.Load())
			at.Store(e)
			return o
		}
		at = &o.next
	}
	at.Store(e)
	if s.n++; 2*s.n > len(*s.buckets.Load()) {
		s.grow()
	}
	return nil
}

// unlink takes an entry out; false if it is not, or no longer, in. Its own
// pointer stays: a reader who is at it goes on from there.
func (t *table) unlink(e *l1Entry) bool {
	s := &t.shards[e.hash>>58]
	at := bucket(*s.buckets.Load(), e.hash)
	for o := at.Load(); o != nil; o = at.Load() {
		if o == e {
			at.Store(e.next.Load())
			s.n--
			return true
		}
		at = &o.next
	}
	return false
}

func (s *shard) grow() {
	old := *s.buckets.Load()
	next := make([]atomic.Pointer[l1Entry], 2*len(old))
	for i := range old {
		for e := old[i].Load(); e != nil; {
			after := e.next.Load()
			at := bucket(next, e.hash)
			e.next.Store(at.Load())
			at.Store(e)
			e = after
		}
	}
	s.buckets.Store(&next)
}

func (t *table) len() (n int) {
	for i := range t.shards {
		n += t.shards[i].n
	}
	return n
}

func (t *table) entries() (all []*l1Entry) {
	for i := range t.shards {
		b := *t.shards[i].buckets.Load()
		for j := range b {
			for e := b[j].Load(); e != nil; e = e.next.Load() {
				all = append(all, e)
			}
		}
	}
	return all
}

// clear forgets all entries at once, whatever their number.
func (t *table) clear() {
	for i := range t.shards {
		t.shards[i].buckets.Store(new(make([]atomic.Pointer[l1Entry], 2)))
		t.shards[i].n = 0
	}
}

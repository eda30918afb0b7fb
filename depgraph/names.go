package depgraph

import (
	"hash/maphash"

	"github.com/lethe-cache/lethe/rules"
)

// names is the set of names that one walk has come to: a table of open
// addressing over the list of targets itself, so that a name costs no memory of
// its own and no allocation.
type names struct {
	slots []int32 // index into the list plus one; 0 is free
	n     int
	seed  maphash.Seed
}

const (
	namesMin = 64
	// namesKept bounds the memory that one huge walk leaves behind.
	namesKept = 1 << 14
)

func newNames() names { return names{slots: make([]int32, namesMin), seed: maphash.MakeSeed()} }

func (s *names) reset() {
	if len(s.slots) > namesKept {
		s.slots = make([]int32, namesMin)
	} else if s.n > 0 {
		clear(s.slots)
	}
	s.n = 0
}

func (s *names) hash(kind rules.Kind, name []byte) uint64 {
	return maphash.Bytes(s.seed, name) + uint64(kind)*0x9e3779b97f4a7c15
}

// has reports whether a key or tag of that name is in the set.
func (s *names) has(list []rules.Target, kind rules.Kind, name []byte) bool {
	mask := uint64(len(s.slots) - 1)
	for at := s.hash(kind, name) & mask; s.slots[at] != 0; at = (at + 1) & mask {
		if t := &list[s.slots[at]-1]; t.Kind == kind && string(t.Name) == string(name) {
			return true
		}
	}
	return false
}

// put adds the target at an index of the list, which is not in the set.
func (s *names) put(list []rules.Target, i int) {
	if 2*(s.n+1) > len(s.slots) {
		old := s.slots
		s.slots = make([]int32, 2*len(old))
		for _, v := range old {
			if v != 0 {
				s.place(list, v)
			}
		}
	}
	s.place(list, int32(i+1))
	s.n++
}

func (s *names) place(list []rules.Target, v int32) {
	t := &list[v-1]
	mask := uint64(len(s.slots) - 1)
	at := s.hash(t.Kind, t.Name) & mask
	for s.slots[at] != 0 {
		at = (at + 1) & mask
	}
	s.slots[at] = v
}

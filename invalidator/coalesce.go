package invalidator

import (
	"hash/maphash"
	"unsafe"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
)

// coalescer makes one invalidation of all those of one key in a batch: the
// greatest X, and the strongest action (delete > keep > stale). Its memory is
// reused from batch to batch, and a key costs no allocation: the index is a
// table of open addressing over the list itself.
//
// Names are the caller's bytes, seen as strings. They must not change until
// reset.
type coalescer struct {
	list  []coherence.Invalidation
	slots []uint32 // index into list plus one; 0 is free
	seed  maphash.Seed
}

const coalescerSlots = 64

func newCoalescer() *coalescer {
	return &coalescer{slots: make([]uint32, coalescerSlots), seed: maphash.MakeSeed()}
}

// coalescerKept bounds the memory that one huge batch leaves behind.
const coalescerKept = 1 << 16

func (c *coalescer) reset() {
	if cap(c.list) > coalescerKept {
		c.list, c.slots = nil, make([]uint32, coalescerSlots)
		return
	}
	clear(c.list) // names must not keep a batch's buffer alive
	c.list = c.list[:0]
	clear(c.slots)
}

// add merges an invalidation of name into the batch and reports whether it is
// the first of its key.
func (c *coalescer) add(name []byte, x change.Position, action coherence.Action, plain bool, group int, tell bool) bool {
	if 2*(len(c.list)+1) > len(c.slots) {
		c.grow()
	}
	s := unsafe.String(unsafe.SliceData(name), len(name))
	mask := uint64(len(c.slots) - 1)
	at := maphash.String(c.seed, s) & mask
	for ; c.slots[at] != 0; at = (at + 1) & mask {
		have := &c.list[c.slots[at]-1]
		if have.Name != s {
			continue
		}
		have.X = have.X.Max(x)
		have.Action = max(have.Action, action)
		have.Plain = have.Plain || plain
		have.Tell = have.Tell || tell
		return false
	}
	c.list = append(c.list, coherence.Invalidation{Name: s, X: x, Action: action, Plain: plain, Group: group, Tell: tell})
	c.slots[at] = uint32(len(c.list))
	return true
}

func (c *coalescer) grow() {
	c.slots = make([]uint32, 2*len(c.slots))
	mask := uint64(len(c.slots) - 1)
	for i := range c.list {
		at := maphash.String(c.seed, c.list[i].Name) & mask
		for c.slots[at] != 0 {
			at = (at + 1) & mask
		}
		c.slots[at] = uint32(i + 1)
	}
}

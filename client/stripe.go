package client

import (
	"sync/atomic"
	"unsafe"
)

// stripes is how many parts a striped counter has.
const stripes = 32

// golden is 2^64 divided by the golden ratio. Multiples of it are spread evenly
// over the numbers (Knuth, The Art of Computer Programming 3, 6.4).
const golden = 0x9e3779b97f4a7c15

// striped is a counter for what happens on every core at once: one number that
// all of them write to would pass from core to core and cost more than a hit.
// No count is lost.
type striped struct {
	parts [stripes]struct {
		n atomic.Uint64
		_ [56]byte // a cache line for each
	}
}

// Add adds to one of the parts and returns what that part is now.
func (s *striped) Add(n uint64) uint64 { return s.parts[stripe()].n.Add(n) }

// Load is the sum.
func (s *striped) Load() (sum uint64) {
	for i := range s.parts {
		sum += s.parts[i].n.Load()
	}
	return sum
}

// stripe is a number that goroutines which run at one time seldom share: where
// the stack of the caller lies. It is only compared, never followed. A random
// number would do as well and costs as much as the counting.
func stripe() uint64 {
	var here byte
	return uint64(uintptr(unsafe.Pointer(&here))) >> 11 * golden >> 59
}

// oneIn reports for one number in 2^bits whether it is the one. Which of the
// numbers 1, 2, 3 ... are taken has no period (their multiples of the golden
// ratio are evenly spread, Weyl 1916), so that a reader who goes round a set of
// keys is not seen at the same key each time.
func oneIn(bits uint, n uint64) bool { return n*golden>>(64-bits) == 0 }

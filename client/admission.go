package client

import (
	"fmt"
	"hash/maphash"
	"time"
)

// Admission is what of a class is kept in L1: see L1All, L1Off and L1Hot.
type Admission struct {
	off, hot  bool
	maxBytes  int
	perMinute int
}

// L1All keeps what is read, as long as there is room. It is the default.
func L1All() Admission { return Admission{} }

// L1Off keeps nothing: each hit is one GET.
func L1Off() Admission { return Admission{off: true} }

// L1Hot keeps values below maxBytes, by the length of their encoding, whose key
// was read at least perMinute times in the last minute; and whatever their size,
// up to the share of the class, those of the hot keys of the Client (see
// Client.HotKeys) that were read as often. Both numbers must be positive. Reads
// are counted in this process and about: where many keys are read, a key may
// count for more than it is, and hits in L1 are counted by samples of one in 64.
func L1Hot(maxBytes, perMinute int) Admission {
	return Admission{hot: true, maxBytes: maxBytes, perMinute: perMinute}
}

// L1Admission says what of a class is kept in L1 (default L1All).
func L1Admission(a Admission) Option {
	return func(c *class) error {
		if a.hot && (a.maxBytes <= 0 || a.perMinute <= 0) {
			return fmt.Errorf("L1Hot(%d, %d): want positive numbers", a.maxBytes, a.perMinute)
		}
		c.admission = a
		return nil
	}
}

func (c *Client) hash(key string) uint64 { return maphash.String(c.seed, key) }

// admits reports whether L1 is to have a value of a size.
func (c *Client) admits(cl *class, key string, size int, now time.Duration) bool {
	a := cl.admission
	if !a.hot {
		return true
	}
	hash := c.hash(key)
	return c.heat.count(hash, now) >= uint64(a.perMinute) && (size < a.maxBytes || c.heat.hot(hash))
}

// heated counts a read that L1 did not answer.
func (c *Client) heated(cl *class, key string) {
	c.heat.add(cl.name, key, c.hash(key), 1, c.clock.soon())
}

package warmer

import (
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"sync"
	"time"
)

// What action auto decides by.
const (
	// autoMemory is how many past observations weigh about as much as none:
	// each weighs 1/autoMemory less than the one after it.
	autoMemory = 64
	// autoLeast is how many observations a decision needs, and the next one
	// after it.
	autoLeast = 16
	// A reader's load costs the database as much as one of ours, and the reader
	// its time.
	autoReader = 2
	// A choice changes when the other is better by this factor, not before.
	autoMargin = 1.25
	// One entry in autoShare is left to readers while a class is rewarmed: they
	// tell whether anybody reads.
	autoShare = 16
	// autoSamples bounds the entries that are remembered as left to readers, of
	// all classes.
	autoSamples = 8192
)

// odds chooses between deleting and rewarming the entries of a class.
//
// Let an entry be invalidated, and look at the time until it is invalidated
// again. The invalidation itself costs the same either way and is left out.
//
//   - Deleted, it costs one miss, cm, if anybody reads it within that time, and
//     nothing if nobody does: whoever reads it first loads it, the others of that
//     moment wait for him (leases), and the later ones find it. With p for the
//     chance that somebody reads it: p * cm.
//   - Rewarmed, it costs a load by us, cu, whether somebody reads it or not.
//
// So rewarming is the cheaper if
//
//	cu < p * cm
//
// p is measured where it can be seen: of an entry that was left to readers,
// whether it is there at its next invalidation. (One that expired meanwhile was
// read and counts as not: p is then too small, on the side of deleting.) cu is
// the time of a load of many divided by their number, cm the time of a load of
// one, twice: it keeps the database busy, and a reader waiting. What has not been
// measured yet is taken to be the same for both; that a load of many could be
// dearer for each than one alone, as it may seem under load, is not believed.
//
// The question, to update or to invalidate by what each costs and by how many
// writes there are between reads, is that of "Revisiting Cache Freshness for
// Emerging Real-Time Applications" (Mao, Iyer, Shenker, Stoica, HotNets '24). The
// rule is the one above, and not meant to be theirs term by term.
//
// It is pure: no clock, no randomness. Not safe for concurrent use.
type odds struct {
	read, seen float64 // decayed counts: entries that were read again, of those looked at
	since      int     // observations since the choice changed
	one, each  float64 // seconds of a load of one, and for each of a load of many
	rewarm     bool
}

// sample takes whether an entry that was left to readers had been read again.
func (o *odds) sample(read bool) {
	const keep = 1 - 1.0/autoMemory
	o.read, o.seen = o.read*keep, o.seen*keep+1
	if read {
		o.read++
	}
	o.since++
	o.choose()
}

// cost takes how long a load of so many entries took.
func (o *odds) cost(rows int, took time.Duration) {
	if rows <= 0 || took <= 0 {
		return
	}
	smooth := func(have *float64, v float64) {
		if *have == 0 {
			*have = v
		}
		*have += (v - *have) / 8
	}
	smooth(&o.each, took.Seconds()/float64(rows))
	if rows == 1 {
		smooth(&o.one, took.Seconds())
	}
}

// chance is p.
func (o *odds) chance() float64 {
	if o.seen == 0 {
		return 0
	}
	return o.read / o.seen
}

// price is cu / cm for one reader's miss.
func (o *odds) price() float64 {
	if o.one == 0 || o.each == 0 {
		return 1.0 / autoReader
	}
	return min(o.each/o.one, 1) / autoReader
}

func (o *odds) choose() {
	if o.since < autoLeast {
		return
	}
	if next := better(o.chance(), o.price(), o.rewarm); next != o.rewarm {
		o.rewarm, o.since = next, 0
	}
}

// better says whether to rewarm, by the chance p and the price cu / cm: what is
// done now stays unless the other costs less by autoMargin.
func better(chance, price float64, rewarm bool) bool {
	if rewarm {
		return chance*autoMargin >= price
	}
	return chance > price*autoMargin
}

// String says what was chosen and why.
func (o *odds) String() string {
	choice := "delete"
	if o.rewarm {
		choice = "rewarm"
	}
	return fmt.Sprintf("%s: %.0f %% of the entries are read between two invalidations, filling one again costs %.0f %% of a reader's miss",
		choice, 100*o.chance(), 100*o.price())
}

// chooser keeps the odds of all classes, and the entries that were left to
// readers.
type chooser struct {
	mu      sync.Mutex
	seed    maphash.Seed
	classes map[string]*odds
	left    map[uint64]struct{}
	order   []uint64 // a ring of what is in left, and of what was
	next    int
	random  func(n int) int
}

func newChooser() *chooser {
	return &chooser{
		seed: maphash.MakeSeed(), classes: map[string]*odds{}, left: map[uint64]struct{}{}, random: rand.IntN,
	}
}

func (c *chooser) of(class string) *odds {
	o := c.classes[class]
	if o == nil {
		o = &odds{}
		c.classes[class] = o
	}
	return o
}

func (c *chooser) chosen(class string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.classes[class]
	return o != nil && o.rewarm
}

func (c *chooser) cost(class string, rows int, took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if o := c.classes[class]; o != nil {
		o.cost(rows, took)
	}
}

// invalidated takes the invalidation of an entry that was there or not, and
// reports whether to fill it again. changed is the reason of a choice that has
// just changed.
func (c *chooser) invalidated(class, name string, there bool) (rewarm bool, changed string) {
	h := maphash.String(c.seed, name)
	c.mu.Lock()
	defer c.mu.Unlock()
	o := c.of(class)
	before := o.rewarm
	if _, ok := c.left[h]; ok {
		delete(c.left, h)
		o.sample(there)
	}
	if o.rewarm != before {
		changed = o.String()
	}
	if o.rewarm && c.random(autoShare) != 0 {
		return true, changed
	}
	c.remember(h)
	return false, changed
}

// measured shows what is known of each class.
func (c *chooser) measured(m *Metrics) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for class, o := range c.classes {
		chosen := 0.0
		if o.rewarm {
			chosen = 1
		}
		m.auto.WithLabelValues(class).Set(chosen)
		m.read.WithLabelValues(class).Set(o.chance())
		m.cost.WithLabelValues(class).Set(o.price())
	}
}

// remember notes an entry that is left to readers; the oldest goes for it.
func (c *chooser) remember(h uint64) {
	if len(c.order) < autoSamples {
		c.order = append(c.order, h)
	} else {
		delete(c.left, c.order[c.next])
		c.order[c.next] = h
		c.next = (c.next + 1) % autoSamples
	}
	c.left[h] = struct{}{}
}

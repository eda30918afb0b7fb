package client

import (
	"fmt"
	"hash/maphash"
	"math"
	"testing"

	"github.com/lethe-cache/lethe/coherence"
)

func TestL1HitAllocatesNothing(t *testing.T) {
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	e := w.items(c)
	ctx := t.Context()
	w.get(ctx, e, "item:1")
	w.loads.Store(0)
	if n := testing.AllocsPerRun(1000, func() {
		if v, err := e.Get(ctx, "item:1"); v != 1 || err != nil {
			t.Errorf("got %d, %v", v, err)
		}
	}); n != 0 && !raceEnabled {
		t.Errorf("a hit allocates %v times", n)
	}
	w.wantLoads(0)
}

// testL1 is L1 without a Client.
func testL1(bytes int64) *l1 { return newL1(bytes, newTable(maphash.MakeSeed())) }

// testEntry is an entry of the room of the classes without a share.
func testEntry(l *l1, key string, weight uint32, tags ...string) *l1Entry {
	e := &l1Entry{key: key, value: int64(1), weight: weight, look: math.MaxInt64, room: l.rooms.rest}
	e.valid.Store(1)
	for _, t := range tags {
		e.names = append(e.names, coherence.Name{Kind: coherence.NameTag, Name: t})
	}
	return e
}

func TestL1IsBounded(t *testing.T) {
	t.Parallel()
	const limit = 100 * entryOverhead
	l := testL1(limit)
	for i := range 1000 {
		l.store(testEntry(l, fmt.Sprint(i), entryOverhead, "tag", fmt.Sprint(i)))
	}
	n, bytes := l.size()
	if n > 100 || bytes > limit {
		t.Errorf("L1 holds %d entries, %d bytes: the limit is %d bytes", n, bytes, limit)
	}
	// What was evicted is not held by the index.
	if got := len(l.dependents("tag")); got > n {
		t.Errorf("the index holds %d entries, L1 %d", got, n)
	}
	if got := len(l.index); got > n+1 {
		t.Errorf("the index has %d names for %d entries", got, n)
	}
	l.clear()
	if len(l.index) != 0 {
		t.Error("a cleared L1 has an index")
	}
}

func TestMarks(t *testing.T) {
	t.Parallel()
	var m marks
	began := m.seq.Load()
	m.add([]string{"a"}, false)
	if !m.hit(began, "a") || m.hit(began, "b") || m.hit(m.seq.Load(), "a") {
		t.Error("a message marks its names, from then on")
	}
	names := make([]string, marksMax-1)
	for i := range names {
		names[i] = fmt.Sprint("n", i)
	}
	m.add(names, false) // as much as fits
	m.add([]string{"c"}, true)
	if m.forgotten(began) || !m.hit(began, "a") || m.purge != m.seq.Load() {
		t.Error("the first half was forgotten too early")
	}
	m.add(names, false)
	m.add([]string{"d"}, false)
	if m.forgotten(began+2) || !m.forgotten(began) {
		t.Error("what began before the oldest name must count as marked, what began later must not")
	}
	m.add(append(names, "x", "y"), false) // too many to keep
	if !m.forgotten(m.seq.Load()-1) || m.forgotten(m.seq.Load()) {
		t.Error("a huge message must mark everything before it, and nothing after it")
	}
}

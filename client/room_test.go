package client

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/maypok86/otter/v2"
)

// inRoom is an entry of a class's room.
func inRoom(l *l1, r *room, key string, weight uint32, tags ...string) *l1Entry {
	e := testEntry(l, key, weight, tags...)
	e.room = r
	return e
}

func TestL1Shares(t *testing.T) {
	t.Parallel()
	const limit = 1000
	l := testL1(limit)
	room := func(class string, share float64) *room {
		t.Helper()
		r, err := l.rooms.of(class, share)
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	rest := room("c", 0)
	for i := range 100 {
		l.store(inRoom(l, rest, fmt.Sprint("c", i), 10))
	}
	a, b := room("a", 0.5), room("b", 0.3)
	if got := rest.memory.weight(); got > 200 {
		t.Errorf("0.2 is left, and the classes without a share hold %d of %d", got, limit)
	}
	for i := range 200 {
		l.store(inRoom(l, a, fmt.Sprint("a", i), 10))
		l.store(inRoom(l, b, fmt.Sprint("b", i), 10))
		l.store(inRoom(l, rest, fmt.Sprint("c", i), 10))
		if x, y, z := a.memory.weight(), b.memory.weight(), rest.memory.weight(); x > 500 || y > 300 || z > 200 {
			t.Fatalf("the rooms hold %d, %d and %d: want 500, 300 and 200 at most", x, y, z)
		}
		if _, bytes := l.size(); bytes > limit {
			t.Fatalf("L1 holds %d bytes, the limit is %d", bytes, limit)
		}
	}
	if got := room("a", 0); got != a {
		t.Error("Entries without a share of a class that has one")
	}
	if room("a", 0.5) != a {
		t.Error("the same share again")
	}
	if _, err := l.rooms.of("a", 0.4); err == nil {
		t.Error("another share of the same class is taken")
	}
	if _, err := l.rooms.of("d", 0.21); err == nil {
		t.Error("shares of more than 1 are taken")
	}
	// All is given away: nothing is left for who has no share.
	room("d", 0.2)
	if rest.fits(inRoom(l, rest, "x", 1)) || rest.memory.weight() != 0 {
		t.Errorf("the classes without a share hold %d bytes of nothing", rest.memory.weight())
	}
	for _, bad := range []float64{0, -1, 1.01} {
		if L1Share(bad)(&class{}) == nil {
			t.Errorf("L1Share(%v) is taken", bad)
		}
	}
}

// What is read often stays as well as in otter, although otter is told of a
// part of the reads only: those of one entry once in noteEvery.
func TestL1KeepsWhatIsRead(t *testing.T) {
	t.Parallel()
	const room, keys, reads = 1000, 20_000, 300_000
	l := testL1(room)
	peer := otter.Must(&otter.Options[string, *l1Entry]{
		MaximumWeight: room, Weigher: func(string, *l1Entry) uint32 { return 1 }, Executor: func(f func()) { f() },
	})
	random := rand.New(rand.NewPCG(1, 2))
	zipf := rand.NewZipf(random, 1.1, 10, keys)
	var ours, theirs int
	for i := range reads {
		key := fmt.Sprint(zipf.Uint64())
		if e := l.find(l1Key{key: key}); e != nil {
			e.note(time.Duration(i) * 10 * time.Microsecond) // 6,700 reads in noteEvery
			ours++
		} else {
			l.store(testEntry(l, key, 1))
		}
		if _, ok := peer.GetIfPresent(key); ok {
			theirs++
		} else {
			peer.Set(key, &l1Entry{})
		}
	}
	t.Logf("hits in %d reads: %d, otter alone %d", reads, ours, theirs)
	if ours < theirs*95/100 {
		t.Errorf("hits in %d reads: got %d, otter alone has %d", reads, ours, theirs)
	}
}

// Many writers and readers: what is in the table is in a room, and the index
// holds nothing else. Readers never get another key's entry.
func TestL1TableUnderChurn(t *testing.T) {
	t.Parallel()
	const keys, limit = 500, 200
	l := testL1(limit)
	var mu sync.Mutex // Client.mu
	var wg, readers sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		readers.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				k := l1Key{key: fmt.Sprint("k", i%keys), version: uint32(i % 3)}
				if e := l.find(k); e != nil {
					if e.l1Key() != k {
						t.Errorf("%v is found under %v", e.l1Key(), k)
						return
					}
					e.room.touch(e)
				}
			}
		})
	}
	for range 3 {
		wg.Go(func() {
			for i := range 10_000 {
				k := l1Key{key: fmt.Sprint("k", rand.IntN(keys)), version: uint32(rand.IntN(3))}
				mu.Lock()
				switch {
				case i%2000 == 1999:
					l.clear()
				case i%3 == 0:
					l.forget(k)
				default:
					e := inRoom(l, l.rooms.rest, k.key, 1, "tag", k.key)
					e.version = k.version
					l.store(e)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	close(stop)
	readers.Wait()
	n, bytes := l.size()
	all := l.entries()
	if n != len(all) || uint64(n) != bytes || n > limit {
		t.Errorf("the table counts %d entries and has %d, the room has %d of %d", n, len(all), bytes, limit)
	}
	for _, e := range all {
		if l.find(e.l1Key()) != e {
			t.Errorf("%v is not found", e.l1Key())
		}
	}
	if got := len(l.dependents("tag")); got != n {
		t.Errorf("the index has %d entries, the table %d", got, n)
	}
	for _, e := range all {
		l.forget(e.l1Key())
	}
	if n, bytes := l.size(); n != 0 || bytes != 0 || len(l.index) != 0 {
		t.Errorf("all was dropped, and there are %d entries, %d bytes, %d names", n, bytes, len(l.index))
	}
}

// An entry that was dropped is not served by who has found it before.
func TestL1DroppedIsVoid(t *testing.T) {
	t.Parallel()
	l := testL1(1000)
	e := testEntry(l, "k", 1)
	l.store(e)
	found := l.find(l1Key{key: "k"})
	l.drop(e)
	if found != e || !found.dropped() || l.find(l1Key{key: "k"}) != nil || l.rooms.weight() != 0 {
		t.Error("a dropped entry is in use")
	}
}

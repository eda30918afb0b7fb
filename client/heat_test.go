package client

import (
	"context"
	"fmt"
	"hash/maphash"
	"strings"
	"testing"
	"time"
)

func TestHeatCountsOneMinute(t *testing.T) {
	t.Parallel()
	h, seed := newHeat(), maphash.MakeSeed()
	hash := func(key string) uint64 { return maphash.String(seed, key) }
	read := func(key string, n uint32, now time.Duration) { h.add("c", key, hash(key), n, now) }
	const start = 100 * time.Minute // whole, so that all of it is in one sketch
	read("a", 600, start)
	read("b", 60, start)
	read("cold", heatCold-1, start)
	if got := h.count(hash("a"), start); got != 600 {
		t.Errorf("a was read 600 times, got %d", got)
	}
	if !h.hot(hash("a")) || !h.hot(hash("b")) || h.hot(hash("cold")) {
		t.Error("hot is what was read 60 times in a minute")
	}
	if got := h.count(hash("a"), start+90*time.Second); got != 300 {
		t.Errorf("half of the minute is over: got %d, want 300", got)
	}
	if h.hot(hash("b")) {
		t.Error("b is hot with 30 reads in the last minute")
	}
	if got := h.count(hash("a"), start+5*time.Minute); got != 0 {
		t.Errorf("nothing was read for minutes: got %d", got)
	}
}

func TestHeatKnowsTheHottest(t *testing.T) {
	t.Parallel()
	c := &Client{seed: maphash.MakeSeed(), heat: newHeat()}
	c.clock.start()
	cl := &class{name: "item"}
	// A few that are hot in a crowd that is larger than what is known by name.
	for range 100 {
		for i := range 3 {
			for range 10 * (i + 1) {
				c.heated(cl, fmt.Sprint("hot", i))
			}
		}
		for i := range 10 * heatKeys {
			c.heated(cl, fmt.Sprint("warm", i))
		}
	}
	got := c.HotKeys(3)
	for i, want := range []string{"hot2", "hot1", "hot0"} {
		if len(got) != 3 || got[i].Key != want || got[i].Class != "item" {
			t.Fatalf("the hottest: got %v, want hot2, hot1, hot0", got)
		}
	}
	if n := len(c.HotKeys(10 * heatKeys)); n > heatKeys {
		t.Errorf("%d keys are known by name, want %d at most", n, heatKeys)
	}
	if got := c.HotKeys(-1); len(got) != 0 {
		t.Errorf("HotKeys(-1): got %v", got)
	}
}

// Hits in L1 count as well, by samples.
func TestHotKeysCountHits(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	e := w.items(c)
	w.get(t.Context(), e, "item:1")
	for range 5000 {
		if _, err := e.Get(t.Context(), "item:1"); err != nil {
			t.Fatal(err)
		}
	}
	got := c.HotKeys(1)
	// At a turn of the minute a part is forgotten, and never all of it.
	if len(got) != 1 || got[0].Key != "item:1" || got[0].PerMinute > 7000 {
		t.Errorf("got %v, want item:1 with about 5000", got)
	}
}

func TestL1Admission(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	big := strings.Repeat("x", 4096) // Redis has it compressed
	load := LoadWith(func(_ context.Context, key string, _ *Load) (string, error) {
		if strings.Contains(key, "big") {
			return big, nil
		}
		return "small", nil
	})
	off := Entries[string](c, "off", load, L1Admission(L1Off()))
	hot := Entries[string](c, "hot", load, L1Admission(L1Hot(1024, 10)))
	all := Entries[string](c, "all", load)
	w.live(c)
	read := func(e *Class[string], key string, n int) {
		t.Helper()
		for range n {
			if _, err := e.Get(t.Context(), key); err != nil {
				t.Fatal(err)
			}
			c.fills.Wait()
		}
	}
	in := func(e *Class[string], key string) bool { ent, _ := e.local(key); return ent != nil }
	read(all, "all:1", 1)
	read(off, "off:1", 100)
	read(hot, "hot:1", 9)
	read(hot, "hot:big", 30)
	if !in(all, "all:1") || in(off, "off:1") || in(hot, "hot:1") || in(hot, "hot:big") {
		t.Fatalf("in L1: all %v, off %v, read 9 times %v, big %v", in(all, "all:1"), in(off, "off:1"), in(hot, "hot:1"), in(hot, "hot:big"))
	}
	read(hot, "hot:1", 20)
	read(hot, "hot:big", 100)
	if !in(hot, "hot:1") || !in(hot, "hot:big") {
		t.Errorf("in L1: read 29 times %v, a hot key's big value %v", in(hot, "hot:1"), in(hot, "hot:big"))
	}
	for _, a := range []Admission{L1Hot(0, 1), L1Hot(1, 0), L1Hot(0, 0)} {
		if bad := Entries[string](c, "bad", L1Admission(a)); bad.err == nil {
			t.Errorf("%+v is taken", a)
		}
	}
}

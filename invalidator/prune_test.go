package invalidator

import (
	"testing"
	"time"

	"github.com/lethe-cache/lethe/coherence"
)

// The time between two looks follows what was found, within its bounds.
func TestNextLook(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		every time.Duration
		ratio float64
		want  time.Duration
	}{
		{time.Minute, 0, 2 * time.Minute},
		{time.Minute, pruneTarget, time.Minute},
		{time.Minute, 2 * pruneTarget, 30 * time.Second},
		{time.Minute, 1, 15 * time.Second},
		{pruneLeast, 1, pruneLeast},
		{pruneMost, 0, pruneMost},
	} {
		if got := nextLook(c.every, c.ratio, pruneMost); got != c.want {
			t.Errorf("%v after %.2f garbage: %v, want %v", c.every, c.ratio, got, c.want)
		}
	}
}

// A round removes the dead of small and of large indexes, leaves the living,
// and says what there was; an index in which a sample finds next to nothing is
// not enumerated.
func TestPrunerRound(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldConfig{cfg: func(c *Config) { c.PruneRate = 1 << 30 }})
	r := w.ready()
	control, err := w.store.Control(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	v := control.V
	register := func(tag string, from, to int, alive func(int) bool) {
		var reqs []coherence.RegisterRequest
		for i := from; i < to; i++ {
			name := w.name("product:" + itoa(i))
			reqs = append(reqs, coherence.RegisterRequest{Name: w.name(tag), Member: name, Stamp: v})
			if alive(i) {
				if err := w.rdb.Set(t.Context(), name, "v", 0).Err(); err != nil {
					t.Fatal(err)
				}
			}
		}
		reasons, err := w.store.RegisterAll(t.Context(), reqs)
		if err != nil || reasons[0] != coherence.Stored {
			t.Fatalf("register: %v %v", reasons[0], err)
		}
	}
	all := func(int) bool { return true }
	register("category:small", 0, 40, func(i int) bool { return i%2 == 0 })
	register("category:dead", 100, 110, func(int) bool { return false })
	register("category:large", 1000, 3000, func(i int) bool { return i < 2000 })
	register("category:clean", 10000, 12000, all)

	p := r.newPruner()
	done, err := p.all(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if done.Names != 4 || done.Members != 4050 || done.Removed != 20+10+1000 || done.Garbage != done.Removed || !done.Complete {
		t.Errorf("first round %+v, want 4 names, 4050 members, 1030 dead and removed", done)
	}
	if least, most := int64(50*3020), int64(400*4050); done.Bytes < least || done.Bytes > most {
		t.Errorf("%d bytes for 4050 members", done.Bytes)
	}
	done, err = p.all(t.Context())
	if err != nil || done.Names != 3 || done.Members != 20+1000+2000 || done.Garbage != 0 {
		t.Errorf("second round %+v (%v), want 3 names, 3020 members, no garbage", done, err)
	}
	for _, tag := range []string{"category:dead"} {
		if n := w.rdb.Exists(t.Context(), w.store.Layout().TagHeader(w.name(tag))).Val(); n != 0 {
			t.Errorf("the header of %s outlived its members", tag)
		}
	}
}

// Where much was found is looked at again before the next round.
func TestPrunerComesBackWhereMuchWasFound(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldConfig{cfg: func(c *Config) { c.PruneRate = 1 << 30 }})
	p := w.ready().newPruner()
	now := time.Unix(0, 0)
	p.every = pruneMost
	p.heat(indexLook{"{a}", 1000, 400}, now)
	p.heat(indexLook{"{b}", 1000, 4}, now)
	if len(p.hot) != 1 || !p.hot["{a}"].next.Equal(now.Add(pruneMost/4)) {
		t.Fatalf("hot %v, want {a} in a quarter of %v", p.hot, pruneMost)
	}
	p.next = now.Add(pruneMost)
	if got := p.until(now); got != pruneMost/4 {
		t.Errorf("the next is due in %v, want %v", got, pruneMost/4)
	}
	// It is gone when its time comes.
	if err := p.again(t.Context(), now.Add(pruneMost/4)); err != nil || len(p.hot) != 0 {
		t.Errorf("hot %v (%v), want nothing", p.hot, err)
	}
}

// The rate holds it back: a bound from below, which no slow machine breaks.
func TestPrunerKeepsItsRate(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldConfig{cfg: func(c *Config) { c.PruneRate = 2000 }})
	r := w.ready()
	w.many("category:5", 400)
	p := r.newPruner()
	started := time.Now()
	if err := p.look(t.Context(), []coherence.Index{coherence.Index("{" + w.name("category:5") + "}")}); err != nil {
		t.Fatal(err)
	}
	if p.round.Members != 400 {
		t.Fatalf("%d members looked at", p.round.Members)
	}
	if took, least := time.Since(started), 200*time.Millisecond; took < least {
		t.Errorf("400 members at 2000 a second took %v, want at least %v", took, least)
	}
}

// What fails is tried again, but not at once, although an index is due.
func TestPrunerWaitsAfterAnError(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldConfig{cfg: func(c *Config) { c.PruneRate = 1 << 30 }})
	p := w.ready().newPruner()
	now := time.Now()
	p.next = now.Add(time.Hour)
	p.hot["{gone}"] = hotIndex{seen: now, next: now}
	_ = w.store.Close()
	wait, err := p.turn(t.Context(), now)
	if err == nil {
		t.Fatal("a closed store prunes")
	}
	if wait = p.patient(wait, err); wait < pruneLeast {
		t.Errorf("it comes again after %v", wait)
	}
}

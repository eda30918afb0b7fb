package client

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/internal/harness"
)

// Workers begin to answer pulses while this Client runs. The default bound, which
// did not count until then, waits for the watermark to cover the first answer, and
// not for ever: reads would go to the database for as long as that takes.
func TestFirstAnswerIsWaitedFor(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.keepPace()
	p.answering.Store(false)
	w.get(t.Context(), w.items(w.open(Options{}, hooks{})), "item:1")
	w.wantLoads(1)
	byDefault := func() *Client {
		c := w.open(Options{MaxStale: MaxStaleDefault, L1Bytes: -1}, hooks{})
		c.vouching.strict = false // as if it was not asked for
		return c
	}
	c := byDefault()
	v := &c.vouching
	e := w.items(c)
	strict := w.items(c, MaxStale(time.Hour))
	harness.Eventually(t, 10*time.Second, harness.True("a look that finds no answer", v.looked.Load))
	w.get(t.Context(), e, "item:1")
	w.wantLoads(0)

	p.insert.Store(1000) // what is answered lies beyond the watermark
	p.answering.Store(true)
	harness.Eventually(t, 20*time.Second, harness.True("an answer is found", func() bool {
		v.wake()
		return v.dated.Load()
	}))
	if until := v.patient.Load(); until == 0 {
		t.Fatal("the first answer is not waited for")
	}
	v.patient.Store(int64(c.now() + time.Hour)) // whatever the machine's speed
	w.get(t.Context(), e, "item:1")
	w.wantLoads(0)
	w.want("untrusted", c.Stats().Classes["item"].Untrusted, uint64(0))
	w.get(t.Context(), strict, "item:1")
	w.wantLoads(1) // a bound that was asked for waits for nothing
	v.patient.Store(int64(c.now()))
	w.get(t.Context(), e, "item:1")
	w.wantLoads(1)
	// The answer was there before this one came: the worker may be dead since.
	late := byDefault()
	w.want("patience of a later client", late.vouching.patient.Load(), int64(0))
	w.get(t.Context(), w.items(late), "item:1")
	w.wantLoads(1)

	p.done.Store(2000)
	harness.Eventually(t, 20*time.Second, harness.True("the master is vouched for", func() bool {
		v.wake()
		return c.allVouched(MaxStaleDefault)
	}))
	w.get(t.Context(), e, "item:1")
	w.wantLoads(0)
}

// What was known of a master counts at once, also while a first answer is waited
// for: the patience is for those of which nothing is known.
func TestPatienceIsForTheUnknown(t *testing.T) {
	t.Parallel()
	c := &Client{}
	c.clock.start()
	cl := &class{maxStale: time.Hour}
	v := &c.vouching
	v.dated.Store(true)
	unknown, old := &master{}, &master{}
	old.since.Store(int64(c.now() - 2*time.Hour))
	for _, s := range []struct {
		what    string
		patient time.Duration
		m       *master
		want    bool
	}{
		{"unknown, no patience", 0, unknown, true},
		{"unknown, patience", c.now() + time.Hour, unknown, false},
		{"unknown, patience that is over", c.now(), unknown, true},
		{"old, patience", c.now() + time.Hour, old, true},
	} {
		v.patient.Store(int64(s.patient))
		if got := c.tooOld(cl, s.m, 0); got != s.want {
			t.Errorf("%s: too old is %v, want %v", s.what, got, s.want)
		}
	}
}

// A value that an invalidation left in Redis says itself since when it is stale.
// That nobody vouches for the master is nothing against it; of one that is not
// marked nobody knows since when it may be wrong.
func TestStaleEntryOfUnvouchedMaster(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	fill := w.items(w.open(Options{}, hooks{}))
	for _, key := range []string{"item:1", "item:2"} {
		w.get(t.Context(), fill, key)
	}
	w.stale("item:1", 110)
	c := w.open(Options{L1Bytes: -1}, hooks{})
	broken := errors.New("broken")
	e := Entries[int64](c, "item", MaxStale(staleBound), StaleFor(time.Hour),
		LoadWith(func(context.Context, string, *Load) (int64, error) { return 0, broken }))
	w.live(c)
	m := c.vouching.only
	harness.Eventually(t, 10*time.Second, harness.True("a look", func() bool {
		c.vouching.mu.Lock()
		defer c.vouching.mu.Unlock()
		return m.run != ""
	}))
	if v, err := e.Get(t.Context(), "item:1"); v != 1 || err != nil {
		t.Errorf("marked as stale: %d, %v; want the old value", v, err)
	}
	w.want("stale reads", c.Stats().Classes["item"].Stale, uint64(1))
	if v, err := e.Get(t.Context(), "item:2"); !errors.Is(err, broken) {
		t.Errorf("not marked: %d, %v", v, err)
	}
	// The worker was behind for longer than StaleFor when it marked the value.
	m.since.Store(int64(c.now() - 2*time.Hour))
	if v, err := e.Get(t.Context(), "item:1"); !errors.Is(err, broken) {
		t.Errorf("marked late: %d, %v", v, err)
	}
	c.fills.Wait()
}

// After the first answer it is looked at once more at once, not after the long
// pause between looks that found none.
func TestFirstAnswerIsLookedAtAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.keepPace()
	p.answering.Store(false)
	c := w.open(Options{}, hooks{})
	w.deafen(c) // nobody else looks
	v := &c.vouching
	look := func() (again bool) {
		c.look(t.Context(), MaxStaleDefault)
		select {
		case <-v.kick:
			return true
		default:
			return false
		}
	}
	look()
	w.want("after a look that found no answer", look(), false)
	p.answering.Store(true)
	harness.Eventually(t, 20*time.Second, func() error {
		again := look()
		if !v.dated.Load() {
			return errors.New("no answer yet")
		}
		w.want("after the first answer", again, true)
		return nil
	})
	w.want("after the second", look(), false)
}

package invalidator

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
)

// A step that takes long makes the next one small and leaves Redis alone; what
// every step takes, because the server is far away, does not.
func TestSweepPace(t *testing.T) {
	t.Parallel()
	p := sweepPace{size: 700, most: 1000}
	for _, c := range []struct {
		took, pause time.Duration
		size        int
	}{
		{20 * time.Millisecond, 0, 876}, // the way there
		{22 * time.Millisecond, 0, 1000},
		{24 * time.Millisecond, 0, 1000},
		{26 * time.Millisecond, sweepPauseMost, 500},
		{time.Second, sweepPauseMost, 250},
		{time.Second, sweepPauseMost, sweepLeast},
		{time.Second, sweepPauseMost, sweepLeast},
		{2 * time.Millisecond, 0, sweepLeast + sweepLeast/4 + 1},
		{8 * time.Millisecond, 8 * time.Millisecond, sweepLeast},
	} {
		if pause := p.after(c.took); pause != c.pause || p.size != c.size {
			t.Errorf("after a step of %v: size %d, pause %v, want %d and %v", c.took, p.size, pause, c.size, c.pause)
		}
	}
	for range 100 {
		p.after(time.Millisecond)
	}
	if p.size != 1000 {
		t.Errorf("size %d after many fast steps, want the most", p.size)
	}
}

// many registers n members under a tag, with something under their keys.
func (w *world) many(tag string, n int) {
	w.t.Helper()
	ctx := w.t.Context()
	control, err := w.store.Control(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	for from := 0; from < n; from += 5000 {
		var regs []coherence.RegisterRequest
		pipe := w.rdb.Pipeline()
		for i := from; i < min(n, from+5000); i++ {
			name := w.name("product:" + itoa(i))
			regs = append(regs, coherence.RegisterRequest{Name: w.name(tag), Member: name, Stamp: control.V})
			pipe.Set(ctx, name, "v", 0)
		}
		reasons, err := w.store.RegisterAll(ctx, regs)
		if err != nil || reasons[0] != coherence.Stored {
			w.t.Fatalf("register: %v, %v", reasons, err)
		}
		if _, err := pipe.Exec(ctx); err != nil {
			w.t.Fatal(err)
		}
	}
}

// left counts which of the first n products are there.
func (w *world) left(n int) (left int) {
	w.t.Helper()
	for from := 0; from < n; from += 5000 {
		var keys []string
		for i := from; i < min(n, from+5000); i++ {
			keys = append(keys, w.name("product:"+itoa(i)))
		}
		found, err := w.rdb.Exists(w.t.Context(), keys...).Result()
		if err != nil {
			w.t.Fatal(err)
		}
		left += int(found)
	}
	return left
}

// A worker dies in the middle of a sweep of 100,000 members, and another goes
// on: all are gone, and what the first one has swept is not swept again but for
// what the pruner that follows it had not come to.
func TestSweepGoesOnAfterDeath(t *testing.T) {
	t.Parallel()
	const n = 100_000
	w := newWorld(t, worldConfig{})
	w.ready().drain()
	w.newLog()
	w.many("category:5", n)
	c := &crashing{step: "members", died: make(chan struct{})}
	c.left.Store(60)
	w.cfg.Metrics = NewMetrics(nil)
	first := w.worker(func(k *Worker) { c.worker, k.hook = k, c.hook })
	w.commit(update("categories", "5"))
	<-c.died
	first.kill()
	before := int(testutil.ToFloat64(w.cfg.Metrics.swept))
	left := w.left(n)
	members, err := w.store.MemberCount(t.Context(), w.name("category:5"))
	if err != nil {
		t.Fatal(err)
	}
	control, err := w.store.Control(t.Context())
	if err != nil || len(control.Purges) != 1 {
		t.Fatalf("open purges %+v (%v), want one", control.Purges, err)
	}
	w.worker()
	harness.Eventually(t, 2*time.Minute, harness.True("the purge is acknowledged", func() bool { return w.log.Durable() >= w.seq }))
	after := int(testutil.ToFloat64(w.cfg.Metrics.swept)) - before
	t.Logf("the first swept %d and left %d entries and %d members, the second swept %d: %d (%.1f %% of the first's) were repeated",
		before, left, members, after, before+after-n, 100*float64(before+after-n)/float64(before))
	if got := w.left(n); got != 0 {
		t.Errorf("%d entries are left after the purge", got)
	}
	if left == 0 || left == n {
		t.Errorf("the first left %d entries: it was not killed in the middle", left)
	}
	if after < left {
		t.Errorf("the second swept %d, and %d were left", after, left)
	}
	// The first had swept at least what it had not left. That all of it is
	// repeated would say that nobody followed.
	if before+after-n >= before {
		t.Errorf("all of the %d that the first had swept were swept again", before)
	}
	for name, g := range map[string]float64{
		"open": testutil.ToFloat64(w.cfg.Metrics.openPurges), "remaining": testutil.ToFloat64(w.cfg.Metrics.sweepLeft),
	} {
		if g != 0 {
			t.Errorf("gauge %s is %v after the sweeps", name, g)
		}
	}
	if n, err := w.store.MemberCount(t.Context(), w.name("category:5")); err != nil || n > followPages*SweepBatchDefault {
		t.Errorf("%d members are left in the index (%v)", n, err)
	}
}

// Who waits is told how far a sweep is.
func TestSweepTellsItsProgress(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldConfig{cfg: func(c *Config) { c.SweepBatch = 10 }})
	var told []coherence.Sweep
	steps := 0
	r := w.ready(func(k *Worker) {
		k.hook = func(step string) {
			if step != "members" {
				return
			}
			if steps++; steps%20 == 3 {
				<-time.After(sweepTellEvery) // the end of this step is late
			}
			if s, err := k.store.Sweeps(t.Context()); err == nil {
				told = append(told, s...)
			}
		}
	})
	w.many("category:5", 1000)
	w.commit(update("categories", "5"))
	w.settle()
	r.drain()
	last, err := w.store.Sweeps(t.Context())
	if err != nil || len(last) != 1 || last[0].Done != last[0].Total || last[0].Total < 1000 {
		t.Fatalf("told %+v (%v), want one that is over", last, err)
	}
	if last[0].Purge.X != w.x() || len(last[0].Purge.Tags) != 1 || last[0].Purge.Tags[0] != w.name("category:5") {
		t.Errorf("told of %+v", last[0].Purge)
	}
	before := 0
	for _, s := range told {
		if s.Done < before || s.Done > s.Total {
			t.Errorf("told %d of %d after %d", s.Done, s.Total, before)
		}
		before = s.Done
	}
	if len(told) == 0 || told[0].Done >= 1000 {
		t.Errorf("told %+v, want something on the way", told)
	}
}

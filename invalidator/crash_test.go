package invalidator

import (
	"math/rand/v2"
	"os"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/lethe-cache/lethe/change"
)

// seedOf is the seed of a random test: LETHE_TEST_SEED, or a random one, which
// is logged so that the run can be repeated.
func seedOf(t testing.TB) uint64 {
	seed := rand.Uint64()
	if s := os.Getenv("LETHE_TEST_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		seed = n
	}
	t.Logf("LETHE_TEST_SEED=%d", seed)
	return seed
}

// crashing kills its worker at the n-th step.
type crashing struct {
	worker *Worker
	left   atomic.Int64
	at     atomic.Value // the step it died at
	died   chan struct{}
}

func (c *crashing) hook(step string) {
	if c.left.Add(-1) == 0 {
		c.at.Store(step)
		c.worker.Hurry()
		close(c.died)
	}
}

// A worker is killed between every two steps, and another goes on: whatever
// was touched is forgotten at the end, whatever was not is still there.
func TestWorkerDiesBetweenAnyTwoSteps(t *testing.T) {
	t.Parallel()
	seen := map[string]int{}
	for n := int64(1); ; n++ {
		step, died := crashAt(t, n)
		if !died {
			if n == 1 {
				t.Fatal("no step was seen")
			}
			t.Logf("%d steps: %v", n-1, seen)
			break
		}
		seen[step]++
	}
	for _, step := range []string{"planned", "raise", "bury", "keys", "broadcast", "named", "open", "members", "close", "walk", "walked", "watermark", "ack"} {
		if seen[step] == 0 {
			t.Errorf("no worker died at step %q", step)
		}
	}
}

// crashAt lets a worker die at its n-th step; died is false if it had finished.
func crashAt(t *testing.T, n int64) (step string, died bool) {
	w := newWorld(t, worldConfig{cfg: func(c *Config) { c.SweepBatch = 2 }})
	w.ready().drain()
	w.newLog()
	for i := range 6 {
		w.cache("product:"+itoa(i), "v", "category:"+itoa(i/3))
		w.cache("raw:"+itoa(i), "v")
		w.cache("kept:"+itoa(i), "v")
	}
	if err := w.store.AddNamed(t.Context(), "kept"); err != nil {
		t.Fatal(err)
	}
	w.cache("product:page", "v", "kept:5")
	w.cache("raw:7", "v")

	c := &crashing{died: make(chan struct{})}
	c.left.Store(n)
	w.commit(update("products", "0", "n"))
	w.commit(update("categories", "1"))
	w.commit(update("deals", "0", "nobody"), update("loose", "1"))
	w.commit(update("products", "5", "n"), change.Change{Op: change.Message, Prefix: "lethe", Content: []byte("{")})
	w.hand(w.lsn+60, nil, change.Raise{Cause: "c", Reason: change.ReasonManual, Classes: []string{"raw"}})
	first := w.worker(func(k *Worker) {
		c.worker = k
		k.hook = c.hook
	})
	finished := make(chan struct{})
	stop := make(chan struct{})
	go func() {
		defer close(finished)
		for w.log.Durable() < w.seq {
			select {
			case <-w.log.Advanced():
			case <-stop:
				return
			}
		}
	}()
	select {
	case <-c.died:
		died = true
		step, _ = c.at.Load().(string)
	case <-finished:
	}
	close(stop)
	<-finished
	first.kill()
	w.worker()
	w.hand(w.lsn+70, nil)
	w.settle()
	for _, local := range []string{"raw:0", "raw:5", "raw:7", "kept:0", "kept:5"} {
		if got := w.state(local); got == "v" {
			t.Errorf("killed at step %d (%s): %s is stale", n, step, local)
		}
	}
	for i := range 6 { // the bad message raised everything
		if got := w.state("product:" + itoa(i)); got == "v" {
			t.Errorf("killed at step %d (%s): product:%d is stale", n, step, i)
		}
	}
	if got := w.state("product:page"); got == "v" {
		t.Errorf("killed at step %d (%s): product:page is stale", n, step)
	}
	if control, err := w.store.Control(t.Context()); err != nil || len(control.Purges) > 0 && !died {
		t.Errorf("killed at step %d (%s): open purges %v, %v", n, step, control.Purges, err)
	}
	return step, died
}

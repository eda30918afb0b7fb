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

// crashing kills its worker at the n-th time that it comes to a step.
type crashing struct {
	worker *Worker
	step   string
	left   atomic.Int64
	died   chan struct{}
}

func (c *crashing) hook(step string) {
	if step == c.step && c.left.Add(-1) == 0 {
		c.worker.Hurry()
		close(c.died)
	}
}

// A worker is killed between every two steps, and another goes on: whatever
// was touched is forgotten at the end.
func TestWorkerDiesBetweenAnyTwoSteps(t *testing.T) {
	t.Parallel()
	for _, step := range []string{"planned", "raise", "bury", "keys", "broadcast", "named", "open", "members", "close", "walk", "walked", "watermark", "ack"} {
		t.Run(step, func(t *testing.T) {
			t.Parallel()
			n := int64(1)
			for crashAt(t, step, n) {
				n++
			}
			if n == 1 {
				t.Error("the worker never came to this step")
			}
		})
	}
}

// crashAt lets a worker die when it comes to a step for the n-th time; died is
// false if it finished without.
func crashAt(t *testing.T, step string, n int64) (died bool) {
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

	c := &crashing{step: step, died: make(chan struct{})}
	c.left.Store(n)
	w.commit(update("products", "0", "n"))
	w.commit(update("categories", "1"))
	w.commit(update("deals", "0", "nobody"), update("loose", "1"))
	last := []change.Change{update("products", "5", "n")}
	if step == "bury" { // it raises everything, which would hide the rest
		last = append(last, change.Change{Op: change.Message, Prefix: "lethe", Content: []byte("{")})
	}
	w.commit(last...)
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
	case <-finished:
	}
	close(stop)
	<-finished
	first.kill()
	w.worker()
	w.hand(w.lsn+70, nil)
	w.settle()
	for _, local := range []string{"raw:0", "raw:3", "raw:5", "raw:7", "kept:0", "kept:5", "product:0", "product:3", "product:4", "product:5", "product:page"} {
		if got := w.state(local); got == "v" {
			t.Errorf("killed at step %d of %s: %s is stale", n, step, local)
		}
	}
	for _, local := range []string{"kept:1", "product:1", "product:2"} {
		if got := w.state(local); got != "v" && step != "bury" {
			t.Errorf("killed at step %d of %s: %s is %q, although nothing touched it", n, step, local, got)
		}
	}
	if control, err := w.store.Control(t.Context()); err != nil || len(control.Purges) > 0 && !died {
		t.Errorf("killed at step %d of %s: open purges %v, %v", n, step, control.Purges, err)
	}
	return died
}

package invalidator

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

// losing is a world with a Redis of its own that tells of every redo.
func losing(t *testing.T, rules string, checkEvery time.Duration) (*world, chan string) {
	t.Helper()
	lost := make(chan string, 1024)
	w := newWorld(t, worldConfig{url: harness.NewRedis(t, servers.RedisConfig{}).URL(), rules: rules, cfg: func(c *Config) {
		c.CheckEvery = checkEvery
		c.Observer.NodeLost = func(_, cause string, raised []string) {
			what := cause + ":"
			for _, r := range raised {
				what += " " + r
			}
			lost <- what
		}
	}})
	return w, lost
}

func wantLost(t *testing.T, lost chan string, want string) {
	t.Helper()
	select {
	case got := <-lost:
		if got != want {
			t.Errorf("redo %q, want %q", got, want)
		}
	case <-time.After(patience):
		t.Fatal("the loss was not noticed")
	}
}

// forgetWatermark puts the watermark where it stood at an earlier time, or
// takes it away.
func (w *world) forgetWatermark(to change.LSN) {
	w.t.Helper()
	key, field := w.store.Layout().Watermark(0), itoa(watermarkField(0, 1))
	old, err := w.rdb.HGet(w.t.Context(), key, field).Result()
	if err != nil {
		w.t.Fatal(err)
	}
	if to == 0 {
		err = w.rdb.HDel(w.t.Context(), key, field).Err()
	} else {
		p := change.Position{Era: w.source.Era, LSN: to}
		err = w.rdb.HSet(w.t.Context(), key, field, p.String()+old[20:]).Err()
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// The next write of a watermark must not hide that the master has lost it.
func TestLossIsNoticedUnderLoad(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, want string
		lose       func(*world)
	}{
		{"WentBack", "watermark: product", func(w *world) { w.forgetWatermark(1250) }},
		{"Gone", "watermark: *", func(w *world) { w.forgetWatermark(0) }},
		{"Flushed", "watermark: *", func(w *world) {
			if err := w.rdb.FlushAll(w.t.Context()).Err(); err != nil {
				w.t.Fatal(err)
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w, lost := losing(t, lossRules, time.Hour) // nobody looks: only what is written tells
			w.ready()
			for i := range 3 {
				w.commit(update("products", itoa(10+i), "n"))
				w.settle()
			}
			for len(lost) > 0 {
				<-lost
			}
			c.lose(w)
			w.commit(update("products", "20", "n"))
			wantLost(t, lost, c.want)
			w.commit(update("products", "21", "n"))
			w.settle()
			if len(lost) > 0 {
				t.Errorf("redone again: %s", <-lost)
			}
			if got, want := w.watermark(), (change.Position{Era: 1, LSN: w.lsn + 50}); got != want {
				t.Errorf("watermark %v, want %v", got, want)
			}
			if src, err := w.store.Source(t.Context()); err != nil || src != testSource {
				t.Errorf("source %+v, %v", src, err)
			}
		})
	}
}

// A loss is redone once, however long the walk takes behind which the
// watermark is written again.
func TestLossIsRedoneOnce(t *testing.T) {
	t.Parallel()
	w, lost := losing(t, lossRules, time.Millisecond)
	walk := newBlocker("walk")
	t.Cleanup(func() { walk.free() })
	var armed atomic.Bool
	looked := make(chan struct{}, 1024)
	w.ready(func(k *Worker) {
		k.hook = func(step string) {
			if armed.Load() {
				walk.hook(step)
			}
			if step == "checked" {
				select {
				case looked <- struct{}{}:
				default:
				}
			}
		}
	})
	w.settle()
	for len(lost) > 0 {
		<-lost
	}
	armed.Store(true)
	w.forgetWatermark(0)
	wantLost(t, lost, "watermark: *")
	walk.wait(t)
	for len(looked) > 0 {
		<-looked
	}
	for range 10 {
		select {
		case <-looked:
		case again := <-lost:
			t.Fatalf("redone again while the walk ran: %s", again)
		case <-time.After(patience):
			t.Fatal("the masters are not looked at")
		}
	}
	walk.free()
	w.commit(update("products", "1", "n"))
	w.settle()
}

// free lets go of whoever waits, once or again.
func (b *blocker) free() {
	select {
	case <-b.let:
	default:
		close(b.let)
	}
}

// Another process has taken over a later era before this one has seen it in
// its own partition: a redo must not wait for the record that it holds up.
func TestRedoUnderALaterEra(t *testing.T) {
	t.Parallel()
	w, lost := losing(t, lossRules, 5*time.Millisecond)
	w.ready()
	for len(lost) > 0 {
		<-lost
	}
	later := change.Source{Era: 2, SystemID: 7, Timeline: 2}
	if _, err := w.store.SetSource(t.Context(), later); err != nil {
		t.Fatal(err)
	}
	w.forgetWatermark(0)
	wantLost(t, lost, "watermark: *")
	w.commit(update("products", "1", "n")) // of the old era, and no harm
	w.settle()
	if src, err := w.store.Source(t.Context()); err != nil || src != later {
		t.Errorf("source %+v, %v; want %+v", src, err, later)
	}
}

// Composites are registered under keys as others are under tags, and no rule
// tells of which class they are.
func TestLossRaisesWhatNamesKeys(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, want string
		prepare    func(*world)
	}{
		{"None", "watermark: product", func(*world) {}},
		{"Named", "watermark: *", func(w *world) {
			if err := w.store.AddNamed(w.t.Context(), "product"); err != nil {
				w.t.Fatal(err)
			}
		}},
		// A purge is not remembered member by member.
		{"Purged", "watermark: *", func(w *world) {
			m := change.Change{Op: change.Message, Prefix: "lethe", Content: []byte(`{"tags": ["category:3"]}`)}
			w.commit(m)
			w.settle()
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w, lost := losing(t, lossRules, time.Hour)
			w.ready()
			w.commit(update("products", "10", "n"))
			w.settle()
			to := w.lsn + 50
			w.commit(update("products", "11", "n"))
			w.settle()
			c.prepare(w)
			for len(lost) > 0 {
				<-lost
			}
			w.forgetWatermark(to)
			w.commit(update("products", "20", "n"))
			wantLost(t, lost, c.want)
			w.settle()
		})
	}
}

// A watermark that is on its way when a redo begins must not pass the walk
// that the redo makes due: after a crash nobody would walk again.
func TestHeldWatermarkWaits(t *testing.T) {
	t.Parallel()
	w, lost := losing(t, lossRules, time.Hour)
	mark := newBlocker("watermark")
	walk := newBlocker("walk")
	var armed atomic.Bool
	r := w.ready(func(k *Worker) {
		k.hook = func(step string) {
			if armed.Load() {
				mark.hook(step)
				walk.hook(step)
			}
		}
	})
	for len(lost) > 0 {
		<-lost
	}
	held := w.watermark()
	armed.Store(true)
	w.hand(w.lsn+55, nil)
	mark.wait(t) // the batch is settled, its watermark is about to be written
	lanes := r.eachLane()
	w.forgetWatermark(0)
	r.wentBack(lanes[0], held, &coherence.NodeLostError{Node: "any", Cause: causeWatermark})
	if done, err := r.redo(t.Context()); !done || err != nil {
		t.Fatalf("redo %v, %v", done, err)
	}
	wantLost(t, lost, "watermark: *")
	walk.wait(t)
	close(mark.let)
	w.hand(w.lsn+60, nil)
	w.waitV(w.lsn + 60)                    // the lane goes on
	w.commit(update("products", "1", "n")) // nor does one that goes with a broadcast
	w.waitV(w.lsn + 50)
	if got := w.watermark(); !got.IsZero() {
		t.Errorf("watermark is %v before the walk was over", got)
	}
	close(walk.let)
	w.settle()
	if got, want := w.watermark(), (change.Position{Era: 1, LSN: w.lsn + 50}); got != want {
		t.Errorf("watermark %v, want %v", got, want)
	}
}

// Records that are gone from control, while everything else says that nothing
// was lost, are written again.
func TestControlGoneIsRestored(t *testing.T) {
	t.Parallel()
	w, _ := losing(t, lossRules, 5*time.Millisecond)
	r := w.ready()
	w.hand(w.lsn+60, nil, change.Raise{Cause: "c", Reason: change.ReasonManual, Classes: []string{"kept"}})
	w.settle()
	before, err := w.store.Control(t.Context(), "kept")
	if err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, patience, harness.True("control remembered", func() bool {
		r.nodes.mu.Lock()
		defer r.nodes.mu.Unlock()
		return r.nodes.control != nil && r.nodes.control.Classes["kept"] == before.Classes["kept"]
	}))
	layout := w.store.Layout()
	for _, gone := range [][]string{{"class:kept"}, {"source", "v"}, {"source", "class:kept", "v", "last"}} {
		for _, part := range gone {
			if err := w.rdb.Del(t.Context(), layout.Control(part)).Err(); err != nil {
				t.Fatal(err)
			}
		}
		harness.Eventually(t, patience, harness.True("restored", func() bool {
			after, err := w.store.Control(t.Context(), "kept")
			return err == nil && after.Source == testSource && after.Classes["kept"].Generation >= before.Classes["kept"].Generation
		}))
	}
	w.waitMessage(0, coherence.KindEpoch)
}

package client

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
)

// Guards that matter only where others do not help, each by itself.

// Readers are ahead of the sweep in L1 as well: a hit there does not look at
// the open purges, so the purge's message has to drop it.
func TestPurgeDropsL1(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	e := w.items(c)
	w.get(t.Context(), e, "item:1")
	if !inL1(e, "item:1") {
		t.Fatal("the entry is not in L1")
	}
	w.must(w.worker.OpenPurge(w.ctx(), w.purge(95, "all"), w.v))
	w.live(c)
	if !inL1(e, "item:1") {
		t.Error("an entry whose stamp covers the purge was dropped")
	}
	w.must(w.worker.OpenPurge(w.ctx(), w.purge(110, "all"), w.v))
	w.live(c)
	if inL1(e, "item:1") {
		t.Error("the entry is still in L1 while the purge is open")
	}
}

// While a purge is open nothing enters L1 that may be from before it, as far as
// its stamp tells. (The look at the answer, the marks and the registration stand
// before this; it is the last.)
func TestOpenPurgeKeepsOutOfL1(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	e := w.items(c)
	w.must(w.worker.OpenPurge(w.ctx(), w.purge(110, "all"), w.v))
	w.live(c)
	g, _ := c.view.Load().generation("item")
	for _, stamp := range []uint64{110, 111} { // 110 does not cover 110
		c.keep(e.cl, "item:1", w.name("item:1"), int64(1), meta{
			stamp: at(stamp), generation: g, names: []coherence.Name{{Kind: coherence.NameTag, Name: w.name("all")}},
		}, 1, c.sending())
		w.want(fmt.Sprint("in L1 with stamp ", stamp), inL1(e, "item:1"), stamp > 110)
	}
}

// The answer of a GET is from before a purge that is over when it is used,
// without a message that says so: the watermark has passed it.
func TestPurgeMarksGet(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.open(Options{}, hooks{}), w.open(Options{}, hooks{})
	w.get(t.Context(), w.items(a), "item:1")
	e := w.items(b)
	got := w.during(t.Context(), holdGet(b), e, "item:1", func() {
		w.row.Add(1)
		w.must(w.worker.OpenPurge(w.ctx(), w.purge(110, "all"), w.v))
		w.unlink("item:1", 110)
		w.beat(130, 120)
		w.heard(b, 120)
	})
	w.want("read", got, int64(2))
	w.want("read after it", w.get(t.Context(), e, "item:1"), int64(2))
}

// A raise makes what L1 has of the class void, of the whole namespace too.
func TestRaiseVoidsL1(t *testing.T) {
	t.Parallel()
	for i, class := range []string{"item", "*"} {
		w := newWorld(t)
		c := w.open(Options{}, hooks{})
		e := w.items(c)
		w.get(t.Context(), e, "item:1")
		w.row.Add(1)
		_, err := w.worker.Raise(w.ctx(), coherence.RaiseRequest{
			Cause: fmt.Sprint("test", i), Reason: change.ReasonManual, Classes: []string{class}, X: at(110),
		})
		w.must(err)
		w.live(c)
		w.want("read after a raise of "+class, w.get(t.Context(), e, "item:1"), int64(2))
	}
}

// Without a source record nobody invalidates: what is there is no hit.
func TestNoSourceNoHit(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	a, b := w.open(Options{}, hooks{}), w.open(Options{}, hooks{})
	w.get(t.Context(), w.items(a), "item:1")
	e := w.items(b)
	w.deafen(b)
	rdb := redis.NewClient(&redis.Options{Addr: w.addr})
	defer rdb.Close()
	w.must(rdb.Del(t.Context(), w.worker.Layout().Control("source")).Err())
	w.row.Add(1)
	w.want("read", w.get(t.Context(), e, "item:1"), int64(2))
}

// Nothing enters L1 while the broadcast is not heard.
func TestNotLiveKeepsOutOfL1(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	e := w.items(c, StaleWhileNotLive(1<<40))
	w.get(t.Context(), e, "item:1")
	w.deafen(c)
	w.get(t.Context(), e, "item:2")
	if !inL1(e, "item:1") || inL1(e, "item:2") {
		t.Errorf("from before: %v, from while blind: %v, want only the first in L1", inL1(e, "item:1"), inL1(e, "item:2"))
	}
}

// A reader that found an entry in the moment before it is dropped does not use
// it.
func TestDroppedEntryIsVoid(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	e := w.items(c)
	w.get(t.Context(), e, "item:1")
	found, _ := e.local("item:1")
	w.write("item:1", 110)
	w.live(c)
	if !found.dropped() || found.valid.Load() == e.cl.valid.Load() {
		t.Error("an entry that was dropped is still valid to those who found it before")
	}
}

// Of questions older than what marks remember it counts that they are marked.
func TestMarksForget(t *testing.T) {
	t.Parallel()
	var m marks
	names := func(from, n int) []string {
		s := make([]string, n)
		for i := range s {
			s[i] = fmt.Sprint(from + i)
		}
		return s
	}
	marked := func(since uint64, name string) bool { return m.forgotten(since) || m.hit(since, name) }
	m.add(names(0, 1), false)                // 1
	m.add(names(1, marksMax-1), false)       // 2
	m.add(names(marksMax, marksMax), false)  // 3: a new half
	m.add(names(2*marksMax, marksMax), true) // 4: another, 1 and 2 are forgotten
	for _, c := range []struct {
		since uint64
		name  string
		want  bool
	}{
		{0, "0", true}, {1, "0", true}, {1, "1", true}, {2, "0", false}, {2, fmt.Sprint(marksMax), true}, {3, fmt.Sprint(marksMax), false},
		{3, fmt.Sprint(2 * marksMax), true}, {4, fmt.Sprint(2 * marksMax), false},
	} {
		if got := marked(c.since, c.name); got != c.want {
			t.Errorf("name %s since %d: marked %v, want %v", c.name, c.since, got, c.want)
		}
	}
	m.add(names(0, marksMax+1), false) // 5: too many to remember
	m.everything()                     // 6
	if !marked(4, "unheard of") || !marked(5, "unheard of") || marked(6, "unheard of") {
		t.Error("a message about everything marks what was asked before it, and only that")
	}
	m.add(names(7, 1), false)
	if !marked(6, "7") || marked(6, "8") {
		t.Error("after everything was marked, names are told apart again")
	}
}

// Control was lost and counts anew, and the next number fits: the ids do not.
func TestChainByIDs(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var lose atomic.Bool
	c := w.open(Options{}, swallow(func(m *coherence.Message) bool { return lose.Load() && m.Kind == coherence.KindKeys }))
	e := w.items(c)
	w.live(c)
	w.get(t.Context(), e, "item:1")
	rdb := redis.NewClient(&redis.Options{Addr: w.addr})
	defer rdb.Close()
	l := w.worker.Layout()
	known := c.view.Load().control.Number
	lose.Store(true)
	w.must(rdb.Del(t.Context(), l.Control("last"), l.Control("stream")).Err())
	for range known {
		w.invalidate("item:1", 110) // again the first ones, and lost
	}
	w.must(w.worker.OpenPurge(w.ctx(), w.purge(111, "nobody's"), w.v)) // the next
	w.live(c)
	if inL1(e, "item:1") {
		t.Error("what the lost message named is still in L1")
	}
}

// Redis came back with an older record: what was raised stays void.
func TestGenerationNeverGoesBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	e := w.items(c)
	w.get(t.Context(), e, "item:1")
	w.row.Add(1)
	_, err := w.worker.Raise(w.ctx(), coherence.RaiseRequest{Cause: "test", Reason: change.ReasonManual, Classes: []string{"item"}, X: at(110)})
	w.must(err)
	w.live(c)
	rdb := redis.NewClient(&redis.Options{Addr: w.addr})
	defer rdb.Close()
	w.must(rdb.Del(t.Context(), w.worker.Layout().Control("class:item")).Err()) // there was none before
	epochs := c.Stats().Epochs
	_, _, err = w.worker.Broadcast(w.ctx(), coherence.Message{Kind: coherence.KindEpoch})
	w.must(err)
	w.live(c)
	if c.Stats().Epochs == epochs {
		t.Fatal("the record was not read again")
	}
	w.want("read", w.get(t.Context(), e, "item:1"), int64(2))
}

// The library has replaced the connection by itself: what was sent meanwhile is
// lost, and the session begins anew.
func TestReplacedConnectionEndsSession(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var log bytes.Buffer
	var replaced atomic.Bool
	c := w.open(Options{Logger: slog.New(slog.NewTextHandler(&log, nil))}, hooks{received: func(r *received) bool {
		if r.body != "" && replaced.CompareAndSwap(true, false) {
			r.body, r.sub = "", true
		}
		return true
	}})
	e := w.items(c)
	w.get(t.Context(), e, "item:1")
	replaced.Store(true)
	w.invalidate("item:1", 110) // is not heard
	w.live(c)
	if inL1(e, "item:1") {
		t.Error("what the lost message named is still in L1")
	}
	w.must(c.Close()) // the log is complete
	if !strings.Contains(log.String(), errReconnected.Error()) {
		t.Errorf("the session went on over another connection:\n%s", &log)
	}
}

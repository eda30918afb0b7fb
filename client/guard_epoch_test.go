package client

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
)

// A Client that hears nothing asks control for each read. Control has lost the
// record of a raise that the Client had heard of: the values of before it are
// as void as they were.
func TestBlindGenerationNeverGoesBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	e := w.items(c)
	w.get(t.Context(), e, "item:1")
	w.row.Add(1)
	_, err := w.worker.Raise(w.ctx(), coherence.RaiseRequest{Cause: "test", Reason: change.ReasonManual, Classes: []string{"item"}, X: at(110)})
	w.must(err)
	w.live(c)
	w.deafen(c)
	rdb := redis.NewClient(&redis.Options{Addr: w.addr})
	defer rdb.Close()
	w.must(rdb.Del(t.Context(), w.worker.Layout().Control("class:item")).Err())
	w.want("read", w.get(t.Context(), e, "item:1"), int64(2))
}

// What a record says of fills from standbys does not go back either.
func TestBoundNeverGoesBack(t *testing.T) {
	t.Parallel()
	old := &view{control: coherence.ControlState{Classes: map[string]coherence.ClassRecord{
		"item": {Generation: 7, Bound: at(110)}, "gone": {Generation: 3},
	}}}
	next := &view{control: coherence.ControlState{Classes: map[string]coherence.ClassRecord{"item": {Generation: 5, Bound: at(90)}, "new": {Generation: 4}}}}
	next.notBehind(old)
	if got := next.control.Classes["item"]; got.Generation != 7 || got.Bound != at(110) {
		t.Errorf("got %+v, want what was known", got)
	}
	if next.knows("gone") {
		t.Error("a record counts as read that was not")
	}
}

// Positions of an era that the source record does not name say nothing.
func TestPositionsOfAnotherEra(t *testing.T) {
	t.Parallel()
	v := &view{control: coherence.ControlState{Source: testSource, V: at(100), W: at(90)}}
	later := change.Position{Era: testEra + 1, LSN: 5}
	v.advance(later, later)
	if v.control.V != at(100) || v.control.W != at(90) {
		t.Errorf("got v %v, w %v", v.control.V, v.control.W)
	}
	v.advance(at(101), at(91))
	if v.control.V != at(101) || v.control.W != at(91) {
		t.Errorf("got v %v, w %v", v.control.V, v.control.W)
	}
}

// Nobody would invalidate what is cached before a worker ever ran.
func TestNoSourceNoFill(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	rdb := redis.NewClient(&redis.Options{Addr: w.addr})
	defer rdb.Close()
	w.must(rdb.Del(t.Context(), w.worker.Layout().Control("source")).Err())
	c := w.open(Options{}, hooks{})
	e := w.items(c)
	w.get(t.Context(), e, "item:1")
	if _, ok := w.header("item:1"); ok {
		t.Error("a value is in Redis")
	}
	if inL1(e, "item:1") {
		t.Error("a value is in L1")
	}
}

// Another source is an epoch, whether its message is heard or replayed. No
// heartbeat tells it here.
func TestSourceMessageIsEpoch(t *testing.T) {
	t.Parallel()
	for how, h := range map[string]hooks{
		"heard":    {},
		"replayed": swallow(func(m *coherence.Message) bool { return m.Kind == coherence.KindSource }),
	} {
		w := newWorld(t)
		c := w.open(Options{}, h)
		e := w.items(c)
		w.get(t.Context(), e, "item:1")
		_, err := w.worker.SetSource(t.Context(), change.Source{Era: testEra + 1, SystemID: 7, Timeline: 2})
		w.must(err)
		harness.Eventually(t, 10*time.Second, func() error {
			if got := c.view.Load().control.Source.Era; got != testEra+1 {
				return fmt.Errorf("%s: the client knows era %d", how, got)
			}
			return nil
		})
		if inL1(e, "item:1") {
			t.Errorf("%s: an entry of the source of before is served", how)
		}
	}
}

// holdControl is a hook that holds back the answer to one reading of control.
type holdControl struct {
	gate
	list string
}

func (h *holdControl) hold(cmds ...redis.Cmder) {
	for _, cmd := range cmds {
		reads := slices.ContainsFunc(cmd.Args(), func(a any) bool { key, ok := a.(*string); return ok && *key == h.list })
		if reads && h.armed.CompareAndSwap(true, false) {
			close(h.answered)
			<-h.release
		}
	}
}

func (h *holdControl) ProcessHook(next redis.ProcessHook) redis.ProcessHook {
	return func(ctx context.Context, cmd redis.Cmder) error {
		err := next(ctx, cmd)
		h.hold(cmd)
		return err
	}
}

func (h *holdControl) ProcessPipelineHook(next redis.ProcessPipelineHook) redis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []redis.Cmder) error {
		err := next(ctx, cmds)
		h.hold(cmds...)
		return err
	}
}

// An epoch that begins while the control data is read is not the one that was
// read: what was lost may be what has been read.
func TestEpochDuringControlRead(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	w.items(c)
	w.deafen(c)
	h := &holdControl{gate: gate{answered: make(chan struct{}), release: make(chan struct{})}, list: w.worker.Layout().Control("purges")}
	c.data.(*redis.Client).AddHook(h)
	h.armed.Store(true)
	done := make(chan struct{})
	go func() {
		defer close(done)
		ok, err := c.load(w.ctx())
		if ok || err != nil {
			t.Errorf("load: got %v, %v, want false: another epoch began", ok, err)
		}
	}()
	select {
	case <-h.answered:
	case <-time.After(time.Minute):
		t.Fatal("control was not read")
	}
	c.bump("test")
	close(h.release)
	<-done
	if c.caughtUp {
		t.Error("the client has caught up with the epoch of before")
	}
}

// The life of L1 begins when a PING is sent: what is broadcast between that and
// the answer's handling may have not been handled.
func TestLifeCountsFromSending(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{received: func(r *received) bool {
		if r.pong != "" {
			r.pong = "1" // sent when the Client was opened
		}
		return true
	}})
	// Heartbeats go on, so that it does not look by itself.
	for n := uint64(101); c.State() == Live; n++ {
		if c.now() > 20*time.Second {
			t.Fatal("the client is live by answers to old questions")
		}
		w.beat(n, 90)
	}
}

// The newest message has the number of the last one known, or follows on it,
// but it is of another chain.
func TestReplayKnowsLastID(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	for n := range 3 {
		w.invalidate("item:1", uint64(110+n))
	}
	w.live(c)
	items, err := c.xrev(t.Context(), 2)
	w.must(err)
	newest := c.view.Load().control
	m, err := coherence.ParseMessage([]byte(items[0].Values["m"].(string)))
	w.must(err)
	for _, s := range []struct {
		number      uint64
		id          string
		missed      int
		reached, ok bool
	}{
		{newest.Number, newest.ID, 0, true, true},
		{newest.Number, noID, 0, false, false},
		{newest.Number - 1, m.Previous, 1, true, true},
		{newest.Number - 1, noID, 1, false, false},
	} {
		missed, reached, ok := missedSince(items, s.number, s.id)
		if len(missed) != s.missed || reached != s.reached || ok != s.ok {
			t.Errorf("behind %d %s: got %d missed, %v, %v, want %+v", s.number, s.id, len(missed), reached, ok, s)
		}
	}
}

// Nobody tells a Client that hears nothing whether a load began before a write:
// it is joined no longer than L1 would be read.
func TestBlindLoadIsNotJoinedForLong(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	e := w.items(c)
	w.deafen(c)
	begun, release := make(chan struct{}), make(chan struct{})
	first := make(chan int64)
	go func() {
		v, _ := e.Get(w.ctx(), "item:1", func(context.Context, *Load) (int64, error) {
			close(begun)
			<-release
			return 1, nil
		})
		first <- v
	}()
	<-begun
	e.cl.mu.Lock()
	f := e.cl.flights["item:1"].(*flight[int64])
	f.began = c.now() - l1Life
	e.cl.mu.Unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	got, err := e.Get(ctx, "item:1", func(context.Context, *Load) (int64, error) { return 2, nil })
	if got != 2 || err != nil {
		t.Errorf("got %d, %v, want what was loaded now", got, err)
	}
	close(release)
	w.want("the first", <-first, int64(1))
}

package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/internal/harness"
)

// syncBuffer is a buffer that several goroutines may use.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// witness writes down what an Observer is told, without what depends on time.
type witness struct {
	NopObserver
	mu     sync.Mutex
	events []string
	reads  []ReadEvent
}

func (o *witness) add(format string, args ...any) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.events = append(o.events, fmt.Sprintf(format, args...))
}

func (o *witness) ObserveRead(e ReadEvent) {
	o.mu.Lock()
	o.reads = append(o.reads, e)
	o.mu.Unlock()
	o.add("read %s %s %v %v %v", e.Class, e.Key, e.Layer, e.Result, errors.Unwrap(e.Err) == nil && e.Err == nil)
}
func (o *witness) ObserveLoad(e LoadEvent) { o.add("load %s %s %v", e.Class, e.Key, e.Err) }
func (o *witness) ObserveFill(e FillEvent) { o.add("fill %s %q", e.Class, e.Reason) }
func (o *witness) ObserveError(e ErrorEvent) {
	o.add("error %s", e.Kind)
}
func (o *witness) ObserveEviction(e EvictionEvent) { o.add("eviction %s", e.Class) }
func (o *witness) ObserveEvent(e Event) {
	switch e.Kind {
	case EventState:
		o.add("state %v -> %v", e.From, e.To)
	case EventEpoch:
		o.add("epoch %s", e.Why)
	case EventGap:
		o.add("gap")
	case EventReplay:
		o.add("replay")
	}
}

// take is what was told since the last time, but for replays: without workers
// that send heartbeats, a Client looks at the stream by itself.
func (o *witness) take() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	e := slices.DeleteFunc(o.events, func(e string) bool { return e == "replay" })
	o.events = nil
	return e
}

func (o *witness) want(t *testing.T, what string, want ...string) {
	t.Helper()
	if got := o.take(); !slices.Equal(got, want) {
		t.Errorf("%s:\n got %q\nwant %q", what, got, want)
	}
}

// wantAll is want where readers and fills go on side by side.
func (o *witness) wantAll(t *testing.T, what string, want ...string) {
	t.Helper()
	got := o.take()
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%s:\n got %q\nwant %q", what, got, want)
	}
}

// settled waits until the receiver has told that the Client is live: readers
// may know before.
func (o *witness) settled(t *testing.T) {
	t.Helper()
	harness.Eventually(t, 10*time.Second, harness.True("told that it is live", func() bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		states := slices.DeleteFunc(slices.Clone(o.events), func(e string) bool { return !strings.HasPrefix(e, "state ") })
		return len(states) > 0 && states[len(states)-1] == "state catching up -> live"
	}))
}

// TestObserver: each event is told once.
func TestObserver(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	o := &witness{}
	c := w.open(Options{Observer: o}, hooks{})
	e := w.items(c)
	o.settled(t)
	got := o.take()
	if n := len(got); n < 2 || got[0] != "state blind -> catching up" || !slices.Contains(got, "state catching up -> live") {
		t.Errorf("at the start: got %q", got)
	}

	w.get(t.Context(), e, "item:1")
	o.wantAll(t, "a miss", "load item item:1 <nil>", "read item item:1 load miss true", `fill item ""`)
	w.get(t.Context(), e, "item:1")
	o.want(t, "a hit in L1", "read item item:1 l1 hit true")
	c.l1.clear()
	w.get(t.Context(), e, "item:1")
	o.want(t, "a hit in L2", "read item item:1 l2 hit true")

	broken := errors.New("broken")
	if _, err := e.Get(t.Context(), "item:2", func(context.Context, *Load) (int64, error) { return 0, broken }); !errors.Is(err, broken) {
		t.Fatalf("Get: %v", err)
	}
	c.fills.Wait()
	o.wantAll(t, "an error", "load item item:2 broken", "read item item:2 none error false")
	if _, err := e.Get(t.Context(), "item:3", func(context.Context, *Load) (int64, error) { return 0, ErrNotFound }); !errors.Is(err, ErrNotFound) {
		t.Fatalf("Get: %v", err)
	}
	c.fills.Wait()
	o.wantAll(t, "nothing there", "load item item:3 not found", "read item item:3 load miss false", `fill item "negative"`)

	c.bump("a test")
	harness.Eventually(t, 10*time.Second, harness.True("live again", func() bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		return len(o.events) >= 3
	}))
	o.want(t, "an epoch", "epoch a test", "state live -> catching up", "state catching up -> live")
	for _, r := range o.reads {
		if (r.Duration == 0) != (r.Layer == LayerL1) {
			t.Errorf("the read %+v: want a duration for every layer but l1", r)
		}
	}
}

// TestObserverOfGaps: a gap, and the replay that closes it.
func TestObserverOfGaps(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	o := &witness{}
	var lose sync.Mutex
	losing := false
	c := w.open(Options{Observer: o}, hooks{received: func(r *received) bool {
		lose.Lock()
		defer lose.Unlock()
		was := losing && r.body != ""
		losing = losing && !was
		return !was
	}})
	w.items(c)
	o.settled(t)
	o.take()
	lose.Lock()
	losing = true
	lose.Unlock()
	w.invalidate("item:1", 200)
	w.invalidate("item:2", 210)
	w.live(c)
	harness.Eventually(t, 10*time.Second, harness.True("a replay", func() bool {
		o.mu.Lock()
		defer o.mu.Unlock()
		gap := slices.Index(o.events, "gap")
		return gap >= 0 && slices.Contains(o.events[gap:], "replay")
	}))
	o.want(t, "but for replays", "gap")
}

// TestL1HitsAreSampled: of so many hits of L1 one is timed, and each is counted
// once.
func TestL1HitsAreSampled(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	e := w.items(c)
	w.get(t.Context(), e, "item:1")
	for range 4 * l1Sample {
		if _, err := e.Get(t.Context(), "item:1"); err != nil {
			t.Fatal(err)
		}
	}
	s := c.Stats().Classes["item"]
	w.want("hits", s.L1Hits, uint64(4*l1Sample))
	// Each part of the counter counts for itself, and where the stack lies, which
	// chooses the part, may change.
	if n := s.ReadTime[LayerL1].Count; n < 1 || n > 4 {
		t.Errorf("timed: got %d, want about 4", n)
	}
	w.want("loaded", s.Loaded, uint64(1))
	if h := s.ReadTime[LayerLoad]; h.Count != 1 || h.Sum <= 0 || h.Counts[len(h.Counts)-1] > 1 {
		t.Errorf("time of loads: %+v", h)
	}
}

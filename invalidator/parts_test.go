package invalidator

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
)

func at(lsn uint64) change.Position { return change.Position{Era: 1, LSN: change.LSN(lsn)} }

func TestCoalescer(t *testing.T) {
	t.Parallel()
	c := newCoalescer()
	for round := range 3 {
		for i := range 500 {
			if !c.add(fmt.Appendf(nil, "key:%d", i), at(10), coherence.ActionStale, false, 1, false) {
				t.Fatalf("round %d: key:%d is not the first", round, i)
			}
		}
		for _, step := range []struct {
			x      uint64
			action coherence.Action
			plain  bool
			want   coherence.Invalidation
		}{
			{5, coherence.ActionKeep, false, coherence.Invalidation{X: at(10), Action: coherence.ActionKeep}},
			{20, coherence.ActionStale, false, coherence.Invalidation{X: at(20), Action: coherence.ActionKeep}},
			{15, coherence.ActionDelete, true, coherence.Invalidation{X: at(20), Action: coherence.ActionDelete, Plain: true}},
		} {
			if c.add([]byte("key:77"), at(step.x), step.action, step.plain, 2, false) {
				t.Fatal("a duplicate counts as the first")
			}
			step.want.Name, step.want.Group = "key:77", 1
			if got := c.list[77]; got != step.want {
				t.Errorf("after %+v: %+v, want %+v", step, got, step.want)
			}
		}
		if len(c.list) != 500 {
			t.Errorf("%d keys, want 500", len(c.list))
		}
		c.reset()
	}
}

func TestCoalescerAllocatesNothing(t *testing.T) {
	c := newCoalescer()
	names := make([][]byte, 300)
	for i := range names {
		names[i] = fmt.Appendf(nil, "key:%d", i)
	}
	fill := func() {
		for _, n := range names {
			c.add(n, at(1), coherence.ActionDelete, false, 0, false)
		}
		c.reset()
	}
	fill()
	if got := testing.AllocsPerRun(20, fill); got != 0 {
		t.Errorf("%v allocations for a batch", got)
	}
}

func TestHistory(t *testing.T) {
	t.Parallel()
	now := time.Now()
	put := func(h *history, after time.Duration, v uint64, names ...string) {
		var keys []coherence.Invalidation
		for _, n := range names {
			keys = append(keys, coherence.Invalidation{Name: n, X: at(v - 1), Action: coherence.ActionKeep, Group: 9})
		}
		h.put(now.Add(after), at(v), keys, nil)
	}
	since := func(h *history, w uint64) string {
		keys, raised, ok := h.since(at(w))
		var names []string
		for _, k := range keys {
			if k.Action != coherence.ActionKeep || k.X.IsZero() || k.Group != 0 {
				t.Errorf("remembered %+v", k)
			}
			names = append(names, k.Name)
		}
		return fmt.Sprint(names, raised, ok)
	}
	t.Run("SinceTheWatermark", func(t *testing.T) {
		h := newHistory(time.Minute, 1<<20, at(5))
		put(h, 0, 10, "a", "b")
		put(h, 1, 20, "c")
		put(h, 2, 20, "d") // the same v: the watermark may be the first one's
		put(h, 3, 30, "e")
		h.put(now, at(30), nil, []string{"class"})
		for w, want := range map[uint64]string{
			5: "[] [] false", 4: "[] [] false", 6: "[a b c d e] [class] true", 10: "[a b c d e] [class] true", 11: "[c d e] [class] true",
			20: "[c d e] [class] true", 21: "[e] [class] true", 31: "[] [] true",
		} {
			if got := since(h, w); got != want {
				t.Errorf("since %d: %s, want %s", w, got, want)
			}
		}
	})
	t.Run("BelowTheOneBefore", func(t *testing.T) {
		// Dead letters alone, or the repeats of a reader that started again:
		// a watermark that stood before does not promise them.
		h := newHistory(time.Minute, 1<<20, at(5))
		put(h, 0, 20, "a")
		h.put(now, change.Position{}, nil, []string{"*"})
		put(h, 0, 10, "b")
		if got, want := since(h, 20), "[a b] [*] true"; got != want {
			t.Errorf("since 20: %s, want %s", got, want)
		}
	})
	t.Run("ForgetsByTime", func(t *testing.T) {
		h := newHistory(10*time.Second, 1<<20, at(0))
		for i := range uint64(100) {
			put(h, time.Duration(i)*time.Second, 10+i, fmt.Sprint("k", i))
		}
		if got := since(h, 98); got != "[] [] false" {
			t.Errorf("since what is forgotten: %s", got)
		}
		if got, want := since(h, 99), "[k89 k90 k91 k92 k93 k94 k95 k96 k97 k98 k99] [] true"; got != want {
			t.Errorf("since 99: %s, want %s", got, want)
		}
	})
	t.Run("ForgetsByMemory", func(t *testing.T) {
		h := newHistory(time.Hour, 10*(appliedKeySize+3), at(0))
		for i := range uint64(90) {
			put(h, 0, 10+i, fmt.Sprintf("k%02d", i))
		}
		if keys, _, ok := h.since(at(90)); !ok || len(keys) != 10 {
			t.Errorf("%d remembered, %v", len(keys), ok)
		}
		if _, _, ok := h.since(at(89)); ok {
			t.Error("what was forgotten counts as remembered")
		}
		put(h, 0, 200, slices.Repeat([]string{"huge"}, 100)...)
		if _, _, ok := h.since(at(200)); ok {
			t.Error("a batch larger than the memory counts as remembered")
		}
		put(h, 0, 300, "k")
		if got := since(h, 300); got != "[k] [] true" {
			t.Errorf("after a huge batch: %s", got)
		}
	})
}

func TestControlIsRememberedAtItsHighest(t *testing.T) {
	t.Parallel()
	var n nodes
	record := func(g, bound uint64) *coherence.ControlState {
		return &coherence.ControlState{Named: []string{fmt.Sprint(g)}, Classes: map[string]coherence.ClassRecord{"a": {Generation: g, Bound: at(bound)}}}
	}
	n.remember(record(5, 50))
	n.remember(record(3, 60)) // a node that went back
	n.remember(&coherence.ControlState{Classes: map[string]coherence.ClassRecord{}})
	if got, want := n.control.Classes["a"], (coherence.ClassRecord{Generation: 5, Bound: at(60)}); got != want {
		t.Errorf("remembered %+v, want %+v", got, want)
	}
	if got, want := fmt.Sprint(n.control.Named), "[3 5]"; got != want {
		t.Errorf("named %s, want %s", got, want)
	}
}

func TestLedger(t *testing.T) {
	t.Parallel()
	l := newLedger()
	settled := func(want string) {
		t.Helper()
		m, ok := l.settled()
		if got := fmt.Sprint(m.offset, m.v.LSN, ok); got != want {
			t.Errorf("settled %s, want %s", got, want)
		}
	}
	none := fmt.Sprint(int64(0), change.LSN(0), false)
	settled(none)
	l.begin(1, at(10), false, 0)
	slow := l.begin(2, at(20), false, 2)
	l.begin(3, at(15), false, 0) // a reader that began again
	settled(fmt.Sprint(1, change.LSN(10), true))
	l.done(slow)
	settled(none)
	l.done(slow)
	l.hold()
	settled(none)
	l.release()
	settled(fmt.Sprint(3, change.LSN(20), true))
	// What follows a batch that waits waits with it.
	slow = l.begin(4, at(30), true, 1)
	l.follow(5, at(40))
	l.follow(6, at(35))
	if n := l.unsettled(); n != 1 {
		t.Errorf("%d unsettled, want them to be one", n)
	}
	settled(none)
	l.done(slow)
	if m, _ := l.settled(); m.offset != 6 || m.v != at(40) || m.marked {
		t.Errorf("settled %+v, want all that followed, not marked", m)
	}
	if n := l.unsettled(); n != 0 {
		t.Errorf("%d unsettled", n)
	}
}

package warmer

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
)

func (b *bundle) hot(t testing.TB) *HotKeys {
	t.Helper()
	h, err := NewHotKeys(HotConfig{Warmer: b.Warmer, Every: 10 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// What clients name is filled, and known as hot; what is no name of the class,
// or has no row, is not.
func TestHotKeysAreWarmed(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.record(t)
	var reads []coherence.HotRead
	for i, n := range b.names("product:1", "product:2", "product:77", "user:1", "product:1:2") {
		reads = append(reads, coherence.HotRead{Name: n, Reads: float64(100 - i)})
	}
	if err := b.store.AddHot(t.Context(), "product", append(reads, coherence.HotRead{Name: "other:product:1", Reads: 500})); err != nil {
		t.Fatal(err)
	}
	h := b.hot(t)
	if h.Hot("product", b.set.FullName("product:1")) {
		t.Error("something is hot before anything was looked at")
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- h.Run(ctx) }()
	harness.Eventually(t, 30*time.Second, func() error {
		for _, n := range b.names("product:1", "product:2") {
			raw, err := b.rdb.Get(t.Context(), n).Bytes()
			if err != nil {
				return err
			}
			if head, _, err := coherence.Parse(raw); err != nil || head.State != coherence.StateValue {
				return fmt.Errorf("%s: %v, %v", n, head.State, err)
			}
		}
		return nil
	})
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Run: %v", err)
	}
	for name, want := range map[string]bool{"product:1": true, "product:77": true, "product:3": false, "user:1": false} {
		if got := h.Hot("product", b.set.FullName(name)); got != want {
			t.Errorf("Hot(%s) = %v", name, got)
		}
	}
	if n := b.rdb.Exists(t.Context(), b.set.FullName("user:1")).Val(); n != 0 {
		t.Error("a name of no class was filled")
	}
}

// A key that rises comes before one that has been read more for long, and one
// that falls after it.
func TestHotKeysAreRankedByGrowth(t *testing.T) {
	t.Parallel()
	class := parse(t, strings.ReplaceAll(fillRules, "NS", "shop")).Class("product")
	got := ranked(class, []coherence.HotKey{
		{Name: "shop:product:steady", PerMinute: 100, Before: 100},
		{Name: "shop:product:falls", PerMinute: 90, Before: 300},
		{Name: "shop:product:rises", PerMinute: 60, Before: 6},
		{Name: "shop:product:cold", PerMinute: 5, Before: 4},
	})
	if want := "[shop:product:rises shop:product:steady shop:product:falls shop:product:cold]"; fmt.Sprint(got) != want {
		t.Errorf("ranked %v, want %s", got, want)
	}
}

// Refresh-ahead: a hot value is loaded anew in the last part of its life, and
// not before; what it prefetches comes along.
func TestFillAhead(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.record(t)
	b.fillOK(t, "product", Options{}, Result{Stored: 1}, "product:1")
	b.fillOK(t, "product", Options{IfAbsent: true, Ahead: 0.1}, Result{Present: 1}, "product:1")
	b.fillOK(t, "product", Options{IfAbsent: true, Ahead: 1}, Result{Stored: 1}, "product:1")
	h := coherence.Header{Filled: time.Now().Add(-95 * time.Second).UnixMicro(), HardExpiry: time.Now().Add(5 * time.Second).UnixMicro()}
	for ahead, want := range map[float64]bool{0: false, 0.01: false, 0.5: true} {
		if got := (&Options{Ahead: ahead}).expires(&h); got != want {
			t.Errorf("with 5 %% of its life left, ahead %v: %v", ahead, got)
		}
	}
	if (&Options{Ahead: 1}).expires(&coherence.Header{Filled: 1}) {
		t.Error("a value without expiry expires")
	}
}

var _ Hot = (*HotKeys)(nil)

package warmer

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
)

// Behind a seed or a purge the table vouches for no tag until v has passed it,
// which takes a heartbeat: a run waits for that, as a start that was ready
// without would be ready with nothing warmed.
func TestWarmupWaitsForV(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.record(t)
	control, err := b.store.Control(t.Context(), "product")
	if err != nil {
		t.Fatal(err)
	}
	x := control.V
	if err := b.store.OpenPurge(t.Context(), coherence.Purge{X: x, Tags: b.names("category:1")}, x); err != nil {
		t.Fatal(err)
	}
	if err := b.store.ClosePurge(t.Context(), coherence.Purge{X: x, Tags: b.names("category:1")}, x); err != nil {
		t.Fatal(err)
	}
	u := b.warmups(t)
	type outcome struct {
		p   Progress
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		p, err := u.Run(t.Context(), b.warm(t, `entry: product, sql: "SELECT id FROM products"`), RunOptions{})
		done <- outcome{p, err}
	}()
	// Category 0 is stored at once, category 1 waits.
	harness.Eventually(t, time.Minute, func() error { return b.has(t, "product:2") })
	v := change.Position{Era: x.Era, LSN: x.LSN + 1000}
	if _, _, err := b.store.Broadcast(context.Background(), coherence.Message{Kind: coherence.KindHeartbeat, V: v}); err != nil {
		t.Fatal(err)
	}
	got := <-done
	if r := got.p.Result; got.err != nil || r.Stored != 10 || r.refused() != 0 || got.p.Rows != 10 {
		t.Errorf("run: %+v, %v, want 10 stored and none refused", got.p, got.err)
	}
	if err := b.has(t, "product:1"); err != nil {
		t.Error(err)
	}
}

// What stays refused costs a run no more than its patience.
func TestFillIsNotPatientForEver(t *testing.T) {
	t.Parallel()
	b := newBundle(t)
	b.record(t)
	control, err := b.store.Control(t.Context(), "product")
	if err != nil {
		t.Fatal(err)
	}
	if err := b.store.OpenPurge(t.Context(), coherence.Purge{X: control.V, Tags: b.names("category:1")}, control.V); err != nil {
		t.Fatal(err)
	}
	left := 3 * again
	r, err := b.fillPatiently(t.Context(), "product", b.names("product:1", "product:2"), &left)
	if err != nil || r.Stored != 1 || r.Refused["table"] != 1 || left > 0 {
		t.Errorf("fillPatiently = %+v, %v, left %s, want one stored, one refused, and nothing left", r, err, left)
	}
}

// has errs unless an entry holds a value.
func (b *bundle) has(t *testing.T, local string) error {
	t.Helper()
	raw, err := b.rdb.Get(t.Context(), b.set.FullName(local)).Bytes()
	if err != nil {
		return fmt.Errorf("%s: %w", local, err)
	}
	if _, payload, err := coherence.Parse(raw); err != nil || len(payload) == 0 {
		return fmt.Errorf("%s holds no value: %q, %w", local, raw, err)
	}
	return nil
}

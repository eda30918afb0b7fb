package invalidator

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
)

func (w *world) prove() *coherence.Proof {
	w.t.Helper()
	p, err := w.store.Prove(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	return p
}

// An answer that was asked for after pulse since, and that the master covers or
// does not.
func (w *world) answered(since uint64, covered bool) {
	w.t.Helper()
	harness.Eventually(w.t, patience, func() error {
		p := w.prove()
		if p.Of <= since || p.Masters[0].W.Covers(p.Answer) != covered {
			return fmt.Errorf("got %+v, want an answer after %d, covered %v", p, since, covered)
		}
		return nil
	})
}

// While the log is followed, the watermark covers what the primary answers,
// also where nothing is written; when a batch hangs it does not.
func TestPulsesDateTheWatermark(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldConfig{})
	stuck := newBlocker("keys")
	w.worker(func(r *Worker) { r.hook = stuck.hook })
	w.insert.Store(5000)
	w.hand(5000, nil)
	w.answered(0, true)
	w.answered(w.prove().Pulse, true) // idle
	// A commit that is not applied.
	w.lsn = 5000
	changes := w.nextCommit(update("products", "1", "n"))
	w.hand(change.LSN(w.insert.Load()), changes)
	stuck.wait(t)
	w.answered(w.prove().Pulse, false)
	close(stuck.let)
	w.answered(w.prove().Pulse, true)
}

// The heartbeat goes on while the primary does not answer, without an answer.
func TestPulseWithoutPrimary(t *testing.T) {
	t.Parallel()
	var down atomic.Bool
	var asked atomic.Int64
	w := newWorld(t, worldConfig{cfg: func(c *Config) {
		answer := c.InsertLSN
		c.InsertLSN = func(ctx context.Context) (change.LSN, error) {
			if down.Load() {
				asked.Add(1)
				<-ctx.Done()
				return 0, errors.New("the primary is down")
			}
			return answer(ctx)
		}
	}})
	w.worker()
	w.hand(5000, nil)
	w.insert.Store(5000)
	w.answered(0, true)
	down.Store(true)
	harness.Eventually(t, patience, harness.True("a question hangs", func() bool { return asked.Load() > 0 }))
	of := w.prove().Of
	w.hand(6000, nil)
	w.waitV(6000) // by a heartbeat
	if got := w.prove().Of; got != of {
		t.Errorf("pulse %d was answered after %d without a primary", got, of)
	}
}

// No true position is to be had: nothing may wait for one.
func TestPulseUndated(t *testing.T) {
	t.Parallel()
	var unknown atomic.Bool
	w := newWorld(t, worldConfig{cfg: func(c *Config) {
		answer := c.InsertLSN
		c.InsertLSN = func(ctx context.Context) (change.LSN, error) {
			if unknown.Load() {
				return ^change.LSN(0), nil
			}
			return answer(ctx)
		}
	}})
	w.worker()
	w.hand(5000, nil)
	w.answered(0, true)
	unknown.Store(true)
	harness.Eventually(t, patience, harness.True("the answer is withdrawn", func() bool { return !w.prove().Dated }))
}

func TestPulseOfSilentLog(t *testing.T) {
	t.Parallel()
	p := newPulses(nil)
	now := time.Now()
	v := change.Position{Era: 1}
	if got := p.next(now, v); got != (coherence.Pulse{}) {
		t.Errorf("before there is a v: %+v", got)
	}
	if got := p.next(now.Add(undatedAfter), v); !got.Undated || got.Token != "" {
		t.Errorf("of a log without v: %+v", got)
	}
	v.LSN = 1
	if got := p.next(now.Add(undatedAfter), v); got.Undated || got.Token == "" {
		t.Errorf("of a log with v: %+v", got)
	}
}

// The bound lies below every position that v can have once everything that was
// finished is handed on, and not below the start of any commit that was.
func TestPulseBound(t *testing.T) {
	t.Parallel()
	const segment = 16 << 20
	for _, c := range []struct{ insert, v, lastCommit change.LSN }{
		{5000, 5000, 4960},                               // in a page
		{3*8192 + 24, 3 * 8192, 3*8192 - 40},             // behind a page's header
		{2*segment + 40, 2 * segment, 2*segment - 40},    // behind a segment's
		{5<<20 + 40, 5<<20 + 40, 5<<20 - 24},             // the end of a commit that began in the page before
		{5<<20 + 64, 5<<20 + 64, 5<<20 + 24},             // the first commit of a page
		{7*8192 + 40, 7*8192 + 40, 7*8192 - 24},          // the same, of another page
		{2*segment + 88, 2*segment + 88, 2*segment + 48}, // the first commit of a segment
	} {
		got := pulseBound(change.Position{Era: 1, LSN: c.insert})
		if !(change.Position{Era: 1, LSN: c.v}).Covers(got) {
			t.Errorf("insert %d: v %d does not cover bound %d", c.insert, c.v, got.LSN)
		}
		if got.LSN < c.lastCommit {
			t.Errorf("insert %d: a commit at %d is above bound %d", c.insert, c.lastCommit, got.LSN)
		}
	}
}

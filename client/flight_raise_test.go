package client

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
)

// Who asks after a raise was heard of does not get what was read before it.
func TestRaiseIsNotJoined(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := w.open(Options{}, hooks{})
	e := w.items(c)
	loading, release := make(chan struct{}), make(chan struct{})
	first := make(chan int64)
	go func() {
		v, err := e.Get(t.Context(), "item:1", func(context.Context, *Load) (int64, error) {
			close(loading)
			<-release
			return 1, nil
		})
		if err != nil {
			t.Error(err)
		}
		first <- v
	}()
	<-loading
	w.row.Add(1)
	_, err := w.worker.Raise(w.ctx(), coherence.RaiseRequest{Cause: "test", Reason: change.ReasonManual, Classes: []string{"item"}, X: at(110)})
	w.must(err)
	w.live(c)
	second := make(chan error)
	go func() {
		v, err := e.Get(t.Context(), "item:1", func(context.Context, *Load) (int64, error) { return w.row.Load(), nil })
		if err == nil && v != 2 {
			t.Errorf("read after the raise: got %d, want 2", v)
		}
		second <- err
	}()
	harness.Eventually(t, 10*time.Second, func() error {
		if st := c.Stats().Classes["item"]; st.Coalesced == 0 && st.LeaseWaiting == 0 {
			return errors.New("the second does not wait yet")
		}
		return nil
	})
	close(release)
	w.want("of the first", <-first, int64(1))
	w.must(<-second)
	c.fills.Wait()
}

package client

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/internal/harness"
)

// What a test of an application waits for: that nothing is under way, and that
// a broadcast was handled.
func TestStatsFlightsAndBroadcasts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	hold, filled := make(chan struct{}), make(chan struct{})
	c := w.open(Options{}, hooks{filled: func(string) { close(filled); <-hold }})
	items := w.items(c)
	w.want("flights before", c.Stats().Flights, 0)
	loading, goOn := make(chan struct{}), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		_, err := items.Get(w.ctx(), "item:1", func(context.Context, *Load) (int64, error) {
			close(loading)
			<-goOn
			return 1, nil
		})
		w.want("error", err, error(nil))
	})
	<-loading
	w.want("flights during the load", c.Stats().Flights, 1)
	close(goOn)
	wg.Wait()
	<-filled
	w.want("flights during the fill", c.Stats().Flights, 1)
	close(hold)
	harness.Eventually(t, 10*time.Second, harness.True("no flight is left", func() bool { return c.Stats().Flights == 0 }))

	before := c.Stats().Broadcasts
	w.invalidate("item:1", 200)
	w.beat(300, 250)
	w.heard(c, 250)
	w.want("broadcasts", c.Stats().Broadcasts, before+1)
	w.want("watermark", c.Stats().Watermark, at(250).String())
}

package client

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/lethe-cache/lethe/coherence"
)

const (
	// HotIntervalDefault is how often a Client reports its hot keys.
	HotIntervalDefault = 10 * time.Second
	// hotReported is how many of them a report names, of all classes.
	hotReported   = 64
	hotReportTime = 2 * time.Second
)

// reportHot tells Redis now and then which keys are read most, so that Lethe
// can fill them before they are missed. It costs one short script for each class
// that has any; nobody waits for it, and what fails is left out: the next report
// says the same.
func (c *Client) reportHot(ctx context.Context, every time.Duration) {
	timer := time.NewTimer(every/2 + rand.N(every))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		if err := c.reportHotOnce(ctx, every); err != nil && !errors.Is(err, context.Canceled) {
			c.logger.Info("can not report hot keys", "err", err)
		}
		timer.Reset(every - every/10 + rand.N(every/5+1))
	}
}

// reportHotOnce reports what was read in a time as long as every, by the rate of
// the last minute.
func (c *Client) reportHotOnce(ctx context.Context, every time.Duration) error {
	store := c.store.Load()
	if store == nil {
		return nil
	}
	classes := map[string][]coherence.HotRead{}
	for _, k := range c.HotKeys(hotReported) {
		classes[k.Class] = append(classes[k.Class], coherence.HotRead{
			Name: c.full(k.Key), Reads: float64(k.PerMinute) * every.Minutes(),
		})
	}
	ctx, cancel := context.WithTimeout(ctx, hotReportTime)
	defer cancel()
	for class, reads := range classes {
		if err := store.AddHot(ctx, class, reads); err != nil {
			return err
		}
	}
	return nil
}

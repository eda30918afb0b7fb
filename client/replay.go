package client

import (
	"context"
	"slices"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/coherence"
)

// The bounds of a replay, in messages.
const (
	replayFirst = 64
	replayMax   = 8192
)

// replay reads what was missed from the stream. false if the stream does not
// reach back to what is known, or is another one: only an epoch helps then.
func (c *Client) replay(ctx context.Context) (bool, error) {
	c.counts.replay()
	c.mu.Lock()
	epoch := c.epoch.Load()
	c.mu.Unlock()
	for count := int64(replayFirst); ; count *= 8 {
		known := c.view.Load().control
		sent := c.now()
		items, err := c.xrev(ctx, count)
		if err != nil {
			return false, err
		}
		missed, reached, ok := missedSince(items, known.Number, known.ID)
		if !ok {
			return false, nil
		}
		if !reached {
			if int64(len(items)) < count || count > replayMax {
				return false, nil
			}
			continue
		}
		for i := range missed {
			if k := missed[i].Kind; k == coherence.KindSource || k == coherence.KindEpoch {
				return false, nil
			}
			if err := c.apply(ctx, &missed[i]); err != nil {
				return false, err
			}
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.epoch.Load() != epoch {
			return true, nil // the reload is due already
		}
		c.caughtUpLocked(sent)
		return true, nil
	}
}

// xrev reads the newest messages, the newest first, from the master.
func (c *Client) xrev(ctx context.Context, count int64) ([]redis.XMessage, error) {
	return c.data.XRevRangeN(ctx, c.layout.Control("stream"), "+", "-", count).Result()
}

// missedSince finds the messages behind a known one. reached is false if they begin
// later than the one behind it; ok if what is there can not be its sequel.
func missedSince(items []redis.XMessage, number uint64, id string) (missed []coherence.Message, reached, ok bool) {
	for _, item := range items {
		body, _ := item.Values["m"].(string)
		m, err := coherence.ParseMessage([]byte(body))
		if err != nil {
			return nil, false, false
		}
		if len(missed) == 0 && m.Number < number {
			return nil, false, false // control begins anew
		}
		if m.Number == number {
			if m.ID != id {
				return nil, false, false
			}
			slices.Reverse(missed)
			return missed, true, true
		}
		if n := len(missed); n > 0 && (missed[n-1].Number != m.Number+1 || missed[n-1].Previous != m.ID) {
			return nil, false, false
		}
		missed = append(missed, m)
		if m.Number == number+1 {
			slices.Reverse(missed)
			return missed, m.Previous == id, m.Previous == id
		}
	}
	// All of it was read: right only if there has never been a message.
	return nil, len(items) == 0 && number == 0, true
}

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
)

// invalidateBatch is how many keys go in one call, on both sides.
const invalidateBatch = 1000

// measureInvalidate compares Store.Invalidate with UNLINK of the same keys. The
// keys are there in both cases, and what is sent is made before the clock runs.
func (e *env) measureInvalidate(ctx context.Context) error {
	const metric = "invalidate_vs_unlink"
	if !e.metrics.wants(metric) {
		return nil
	}
	store, err := coherence.Dial(ctx, e.redis.URL(), coherence.Options{Namespace: "bench"})
	if err != nil {
		return fmt.Errorf("open the store: %w", err)
	}
	defer store.Close()
	source := change.Source{Era: 1, SystemID: 1, Timeline: 1}
	keys, invalidations := invalidationBatches(e.sizes.Keys, source.Era)
	sides := [2]func() (float64, error){
		func() (float64, error) {
			// The reset took the control data with it.
			if _, err := store.SetSource(ctx, source); err != nil {
				return 0, err
			}
			start := time.Now()
			for _, batch := range invalidations {
				result, err := store.Invalidate(ctx, batch)
				if err != nil {
					return 0, err
				}
				if result.Deleted != len(batch) {
					return 0, fmt.Errorf("invalidated %d of %d keys", result.Deleted, len(batch))
				}
			}
			return perSecond(e.sizes.Keys, time.Since(start)), nil
		},
		func() (float64, error) {
			start := time.Now()
			for _, batch := range keys {
				n, err := e.cache.rdb.Unlink(ctx, batch...).Result()
				if err != nil {
					return 0, err
				}
				if int(n) != len(batch) {
					return 0, fmt.Errorf("unlinked %d of %d keys", n, len(batch))
				}
			}
			return perSecond(e.sizes.Keys, time.Since(start)), nil
		},
	}
	stopProfile, err := e.profile("invalidate")
	if err != nil {
		return err
	}
	defer stopProfile()
	var pairs []Pair
	for start, round := time.Now(), 0; e.more(round, e.sizes.Rounds, start, 0.04); round++ {
		pair, err := e.alternate(ctx, round, func(side int) (float64, error) {
			if err := e.cache.reset(ctx, 1, int64(e.sizes.Keys)+1); err != nil {
				return 0, err
			}
			return sides[side]()
		})
		if err != nil {
			e.metrics.pairs(metric, noWorkload, pairs)
			return err
		}
		pairs = append(pairs, pair)
	}
	e.metrics.pairs(metric, noWorkload, pairs)
	return nil
}

// invalidationBatches are the same keys for both sides: n of them, in batches.
// As in workload A, a commit invalidates a hundred.
func invalidationBatches(n int, era uint16) (keys [][]string, invalidations [][]coherence.Invalidation) {
	for id := 1; id <= n; {
		var k []string
		var inv []coherence.Invalidation
		for ; id <= n && len(k) < invalidateBatch; id++ {
			name := key(int64(id))
			k = append(k, name)
			inv = append(inv, coherence.Invalidation{
				Name: name, Action: coherence.ActionDelete,
				X: change.Position{Era: era, LSN: change.LSN(1_000_000 + id/100*4096)},
			})
		}
		keys, invalidations = append(keys, k), append(invalidations, inv)
	}
	return keys, invalidations
}

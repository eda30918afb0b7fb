package main

import (
	"math"
	"slices"
	"time"
)

// Summary is a series of measurements of one thing. A mean would let one
// disturbed round move it, so the middle and the extremes stand for the series.
type Summary struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
	// Samples are in the order in which they were taken.
	Samples []float64 `json:"samples"`
}

// summarize returns the summary of samples, or nil if there are none.
func summarize(samples []float64) *Summary {
	if len(samples) == 0 {
		return nil
	}
	sorted := slices.Sorted(slices.Values(samples))
	middle := sorted[len(sorted)/2]
	if len(sorted)%2 == 0 {
		middle = (sorted[len(sorted)/2-1] + middle) / 2
	}
	return &Summary{Median: middle, Min: sorted[0], Max: sorted[len(sorted)-1], Samples: slices.Clone(samples)}
}

// Pair is one round: subject and baseline measured one right after the other,
// so that both met the same machine.
type Pair struct {
	Subject, Baseline float64
}

// ratios divides pair by pair. The median of these ratios is not the ratio of
// the medians: a slow minute of the machine moves both halves of a pair, and
// leaves their ratio where it was. Pairs with a baseline of zero have no ratio
// and are left out.
func ratios(pairs []Pair) []float64 {
	out := make([]float64, 0, len(pairs))
	for _, p := range pairs {
		if p.Baseline != 0 {
			out = append(out, p.Subject/p.Baseline)
		}
	}
	return out
}

// split returns the two halves of pairs.
func split(pairs []Pair) (subjects, baselines []float64) {
	for _, p := range pairs {
		subjects = append(subjects, p.Subject)
		baselines = append(baselines, p.Baseline)
	}
	return subjects, baselines
}

// percentile returns the smallest value that at least p percent of values do
// not exceed (nearest rank), 0 if there are none. It sorts values.
func percentile(values []time.Duration, p float64) time.Duration {
	if len(values) == 0 {
		return 0
	}
	slices.Sort(values)
	rank := int(math.Ceil(p / 100 * float64(len(values))))
	return values[min(max(rank, 1), len(values))-1]
}

// milliseconds is d as the metrics ending in _ms give it.
func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// perSecond is a rate; 0 if no time passed.
func perSecond(n int, d time.Duration) float64 {
	if d <= 0 {
		return 0
	}
	return float64(n) / d.Seconds()
}

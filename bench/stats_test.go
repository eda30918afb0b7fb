package main

import (
	"slices"
	"testing"
	"time"
)

func TestSummarize(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name             string
		samples          []float64
		median, min, max float64
	}{
		{"one", []float64{7}, 7, 7, 7},
		{"odd, unsorted", []float64{9, 1, 5}, 5, 1, 9},
		{"even: between the two in the middle", []float64{4, 1, 10, 2}, 3, 1, 10},
		{"an outlier moves the extreme, not the median", []float64{10, 11, 12, 13, 1000}, 12, 10, 1000},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			before := slices.Clone(c.samples)
			got := summarize(c.samples)
			if got.Median != c.median || got.Min != c.min || got.Max != c.max {
				t.Errorf("summarize(%v) = %v/%v/%v, want %v/%v/%v", c.samples, got.Median, got.Min, got.Max, c.median, c.min, c.max)
			}
			if !slices.Equal(c.samples, before) || !slices.Equal(got.Samples, before) {
				t.Errorf("samples = %v and %v, want the order they were taken in, %v", c.samples, got.Samples, before)
			}
		})
	}
	if got := summarize(nil); got != nil {
		t.Errorf("summarize(nil) = %v, want nil: nothing measured is not zero", got)
	}
}

func TestRatiosArePairwise(t *testing.T) {
	t.Parallel()
	// The machine was half as fast in the second round. Each pair says 0.5;
	// the halves mixed would say anything between 0.25 and 1.
	pairs := []Pair{{50, 100}, {25, 50}, {45, 90}}
	if got := summarize(ratios(pairs)); got.Median != 0.5 || got.Min != 0.5 || got.Max != 0.5 {
		t.Errorf("ratios(%v) = %v, want 0.5 in every round", pairs, got)
	}
	if got := ratios([]Pair{{1, 0}, {3, 2}}); !slices.Equal(got, []float64{1.5}) {
		t.Errorf("ratios with a baseline of zero = %v, want it left out", got)
	}
	subjects, baselines := split(pairs)
	if !slices.Equal(subjects, []float64{50, 25, 45}) || !slices.Equal(baselines, []float64{100, 50, 90}) {
		t.Errorf("split(%v) = %v, %v", pairs, subjects, baselines)
	}
}

func TestPercentile(t *testing.T) {
	t.Parallel()
	hundred := make([]time.Duration, 100)
	for i := range hundred {
		hundred[i] = time.Duration(100 - i) // 100 down to 1
	}
	for _, c := range []struct {
		values []time.Duration
		p      float64
		want   time.Duration
	}{
		{nil, 50, 0},
		{[]time.Duration{3}, 1, 3},
		{[]time.Duration{3}, 99, 3},
		{[]time.Duration{4, 1}, 50, 1},
		{slices.Clone(hundred), 50, 50},
		{slices.Clone(hundred), 99, 99},
		{slices.Clone(hundred), 99.5, 100},
		{slices.Clone(hundred), 100, 100},
		{slices.Clone(hundred), 0, 1},
	} {
		if got := percentile(c.values, c.p); got != c.want {
			t.Errorf("percentile of %d values, %v = %d, want %d", len(c.values), c.p, got, c.want)
		}
	}
}

func TestRatesAndUnits(t *testing.T) {
	t.Parallel()
	if got := perSecond(500, 250*time.Millisecond); got != 2000 {
		t.Errorf("perSecond(500, 250ms) = %v, want 2000", got)
	}
	if got := perSecond(500, 0); got != 0 {
		t.Errorf("perSecond(500, 0) = %v, want 0", got)
	}
	if got := milliseconds(1500 * time.Microsecond); got != 1.5 {
		t.Errorf("milliseconds(1500us) = %v, want 1.5", got)
	}
}

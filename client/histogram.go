package client

import (
	"slices"
	"sync/atomic"
	"time"
)

// The bounds of histograms. Each ends where something is wrong anyway.
var (
	// A hit in L1 is some hundred nanoseconds.
	boundsL1 = []time.Duration{
		100, 250, 500, time.Microsecond, 2500, 5 * time.Microsecond, 10 * time.Microsecond, 50 * time.Microsecond, 250 * time.Microsecond, time.Millisecond,
	}
	boundsRead = []time.Duration{
		100 * time.Microsecond, 250 * time.Microsecond, 500 * time.Microsecond, time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond,
		10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond,
		time.Second, 2500 * time.Millisecond, 5 * time.Second, 10 * time.Second,
	}
	boundsAge = []time.Duration{
		time.Second, 5 * time.Second, 15 * time.Second, time.Minute, 5 * time.Minute, 15 * time.Minute, time.Hour, 6 * time.Hour, 24 * time.Hour,
	}
)

// Histogram is how durations are distributed.
type Histogram struct {
	Count uint64
	Sum   time.Duration
	// Bounds are the upper ends of the buckets, ascending; Counts[i] is how many
	// durations were not longer than Bounds[i].
	Bounds []time.Duration
	Counts []uint64
}

// plus is the two together; their bounds are the same, if h has some.
func (h Histogram) plus(o Histogram) Histogram {
	if len(h.Counts) == 0 {
		return o
	}
	h.Count += o.Count
	h.Sum += o.Sum
	h.Counts = slices.Clone(h.Counts)
	for i := range o.Counts {
		h.Counts[i] += o.Counts[i]
	}
	return h
}

// histogram collects a Histogram. Its zero value does not know its bounds:
// whoever adds and whoever reads say them, always the same.
type histogram struct {
	buckets [17]atomic.Uint64 // the last holds what is beyond every bound
	sum     atomic.Int64
}

func (h *histogram) add(bounds []time.Duration, d time.Duration) {
	i, _ := slices.BinarySearch(bounds, d)
	if i == len(bounds) {
		i = len(h.buckets) - 1
	}
	h.buckets[i].Add(1)
	h.sum.Add(int64(d))
}

// snapshot counts from the buckets, so that what it says agrees with itself
// while others add.
func (h *histogram) snapshot(bounds []time.Duration) Histogram {
	s := Histogram{Sum: time.Duration(h.sum.Load()), Bounds: slices.Clone(bounds), Counts: make([]uint64, len(bounds))}
	for i := range bounds {
		s.Count += h.buckets[i].Load()
		s.Counts[i] = s.Count
	}
	s.Count += h.buckets[len(h.buckets)-1].Load()
	return s
}

package main

import (
	"fmt"
	"math"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"
)

// subject is one way to do what a group measures.
type subject struct {
	// name is for people, metric the ratio's name in the JSON, "" for those that
	// only stand beside.
	name, metric string
	// op does it once; i counts the calls of one slice, worker those who call
	// at the same time.
	op func(worker, i int) error
}

// group is subjects that do the same; the first is what others are compared
// with.
type group struct {
	name     string
	workers  int
	subjects []subject
}

// Row is one line of the table.
type Row struct {
	Group   string `json:"group"`
	Subject string `json:"subject"`
	Metric  string `json:"metric,omitempty"`
	// Nanoseconds that one operation takes; with several workers, that pass
	// between two of them.
	Nanoseconds Spread `json:"nanoseconds"`
	// Ratio to the group's first subject, round by round.
	Ratio Spread `json:"ratio"`
	// CPU is the same ratio of the processor's time that this process used:
	// whatever else runs on the machine hardly shows in it.
	CPU Spread `json:"cpu_ratio"`
	// Allocations and Reads, those of Redis from its sockets, of an operation.
	Allocations float64 `json:"allocations"`
	Reads       float64 `json:"redis_reads"`
	// AtMost is the target of the design; 0 is none.
	AtMost float64 `json:"at_most,omitempty"`
}

// Spread is a median and the quartiles around it.
type Spread struct {
	Median  float64   `json:"median"`
	Low     float64   `json:"low"`
	High    float64   `json:"high"`
	Samples []float64 `json:"samples"`
}

func spread(samples []float64) Spread {
	sorted := slices.Sorted(slices.Values(samples))
	at := func(part float64) float64 {
		if len(sorted) == 0 {
			return 0
		}
		return sorted[min(len(sorted)-1, int(part*float64(len(sorted))))]
	}
	return Spread{Median: at(0.5), Low: at(0.25), High: at(0.75), Samples: samples}
}

// sample is one slice of a subject.
type sample struct{ nanoseconds, cpu, allocations, reads float64 }

// bench measures groups. reads returns how often Redis has read a socket, so far.
type bench struct {
	rounds int
	slice  time.Duration
	reads  func() (int64, error)
}

// measure takes a slice of each subject in turn, another one first in every
// round, so that a slow moment of the machine is not one subject's alone.
func (b *bench) measure(g group) ([]Row, error) {
	counts := make([]int, len(g.subjects))
	for i, s := range g.subjects {
		var err error
		if counts[i], err = b.calibrate(s, g.workers); err != nil {
			return nil, fmt.Errorf("%s, %s: %w", g.name, s.name, err)
		}
	}
	samples := make([][]sample, len(g.subjects))
	for round := range b.rounds {
		for i := range g.subjects {
			i = (i + round) % len(g.subjects)
			one, err := b.take(g.subjects[i], g.workers, counts[i])
			if err != nil {
				return nil, fmt.Errorf("%s, %s: %w", g.name, g.subjects[i].name, err)
			}
			samples[i] = append(samples[i], one)
		}
	}
	return rows(g, samples), nil
}

// rows compares each subject with the first, in the same round.
func rows(g group, samples [][]sample) []Row {
	var out []Row
	for i, s := range g.subjects {
		var ns, ratios, cpu, allocations, reads []float64
		for round, one := range samples[i] {
			ns = append(ns, one.nanoseconds)
			ratios = append(ratios, one.nanoseconds/samples[0][round].nanoseconds)
			cpu = append(cpu, one.cpu/samples[0][round].cpu)
			allocations = append(allocations, one.allocations)
			reads = append(reads, one.reads)
		}
		out = append(out, Row{
			Group: g.name, Subject: s.name, Metric: s.metric, Nanoseconds: spread(ns), Ratio: spread(ratios), CPU: spread(cpu),
			Allocations: spread(allocations).Median, Reads: spread(reads).Median, AtMost: targets[s.metric],
		})
	}
	return out
}

// calibrate finds how many operations fill a slice, by the processor's time: by
// the clock a busy machine would make them few, and few are slow, because what
// they read is in no cache of the processor yet.
func (b *bench) calibrate(s subject, workers int) (int, error) {
	for n := 64; ; n *= 4 {
		one, err := b.take(s, workers, n)
		if err != nil {
			return 0, err
		}
		if took := one.cpu * float64(n); took > float64(b.slice)/8 {
			return max(workers, int(math.Ceil(float64(n)*float64(b.slice)/took))), nil
		}
	}
}

// take does n operations, divided among the workers.
func (b *bench) take(s subject, workers, n int) (sample, error) {
	runtime.GC() // what others left is not this subject's
	for i := range n / 8 {
		if err := s.op(0, i); err != nil {
			return sample{}, err
		}
	}
	before, err := b.reads()
	if err != nil {
		return sample{}, err
	}
	var was, is runtime.MemStats
	errs := make([]error, workers)
	runtime.ReadMemStats(&was)
	began, busy := time.Now(), cpuTime()
	if workers == 1 {
		errs[0] = s.loop(0, 0, n)
	} else {
		var wg sync.WaitGroup
		for w := range workers {
			wg.Go(func() { errs[w] = s.loop(w, w*n/workers, (w+1)*n/workers) })
		}
		wg.Wait()
	}
	took, used := time.Since(began), cpuTime()-busy
	runtime.ReadMemStats(&is)
	after, err := b.reads()
	for _, e := range errs {
		if err == nil {
			err = e
		}
	}
	return sample{
		nanoseconds: float64(took) / float64(n),
		cpu:         float64(used) / float64(n),
		allocations: float64(is.Mallocs-was.Mallocs) / float64(n),
		reads:       float64(after-before-1) / float64(n), // one was the question
	}, err
}

// cpuTime is what this process has used of the processor, in its own code and in
// the kernel.
func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u) // fails for a wrong argument only
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func (s *subject) loop(worker, from, to int) error {
	for i := from; i < to; i++ {
		if err := s.op(worker, i); err != nil {
			return err
		}
	}
	return nil
}

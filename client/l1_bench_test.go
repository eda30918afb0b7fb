package client

import (
	"context"
	"fmt"
	"hash/maphash"
	"math"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/maypok86/otter/v2"
)

// benchClass is a class that is live without a server, and its keys, which are
// in L1 and weigh 1 each.
func benchClass(n int, limit uint64) (*Class[*benchValue], []string) {
	c := &Client{l1: testL1(int64(limit))}
	c.clock.start()
	c.seed, c.heat = maphash.MakeSeed(), newHeat()
	c.liveUntil.Store(math.MaxInt64)
	for c.clock.usable && c.clock.window.Load() == 0 {
		c.clock.soon() // the first moments of a Client are not what is measured
	}
	cl := &class{name: "product", l1: c.l1, room: c.l1.rooms.rest}
	cl.valid.Store(1)
	cl.trusted.Store(math.MaxInt64)
	keys := make([]string, n)
	for i := range keys {
		keys[i] = fmt.Sprint("product:", i)
		e := testEntry(c.l1, keys[i], 1)
		e.value = &benchValue{id: int64(i)}
		c.l1.store(e)
	}
	return &Class[*benchValue]{c: c, cl: cl}, keys
}

type benchValue struct {
	id int64
}

// BenchmarkL1Hit is a hit of Get beside a hit of otter alone with the same keys
// and values: in turns, so that both see the same machine, and by the median of
// the turns' ratios.
// otter begins to note reads when it is half full; before that it reads only.
func BenchmarkL1Hit(b *testing.B) {
	for _, goroutines := range []int{1, 16} {
		for _, n := range []int{1, 100, 10_000} {
			for _, limit := range []uint64{uint64(max(n, 10)), 1 << 30} {
				b.Run(fmt.Sprintf("goroutines=%d/keys=%d/full=%v", goroutines, n, limit == uint64(n)), func(b *testing.B) { benchL1Hit(b, goroutines, n, limit) })
			}
		}
	}
}

func benchL1Hit(b *testing.B, goroutines, n int, limit uint64) {
	e, keys := benchClass(n, limit)
	peer := otter.Must(&otter.Options[string, *benchValue]{
		MaximumWeight: limit, Weigher: func(string, *benchValue) uint32 { return 1 },
	})
	for i, k := range keys {
		peer.Set(k, &benchValue{id: int64(i)})
	}
	ctx := context.Background()
	ours := func(from, reads int) {
		for i := range reads {
			if v, err := e.Get(ctx, keys[(from+i)%n]); err != nil || v == nil {
				b.Error("not a hit")
			}
		}
	}
	theirs := func(from, reads int) {
		for i := range reads {
			if v, ok := peer.GetIfPresent(keys[(from+i)%n]); !ok || v == nil {
				b.Error("not a hit")
			}
		}
	}
	const turn = 20_000 // reads of each goroutine
	var ratios, mine, other []float64
	b.ReportAllocs()
	for b.Loop() {
		x, y := timed(ours, goroutines, turn, n), timed(theirs, goroutines, turn, n)
		ratios, mine, other = append(ratios, x/y), append(mine, x), append(other, y)
	}
	b.ReportMetric(median(ratios), "ratio")
	b.ReportMetric(median(mine), "ns/hit")
	b.ReportMetric(median(other), "ns/otter")
	b.ReportMetric(0, "ns/op")
}

// timed is the time of one read in ns, for all goroutines together.
func timed(f func(from, reads int), goroutines, reads, n int) float64 {
	began := time.Now()
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() { f(g*n/goroutines, reads) })
	}
	wg.Wait()
	return float64(time.Since(began)) / float64(goroutines*reads)
}

func median(x []float64) float64 {
	slices.Sort(x)
	return x[len(x)/2]
}

package coherence

import (
	"fmt"
	"strconv"
	"testing"
	"time"
)

// BenchmarkInvalidateVsUnlink reports what an invalidation costs against the
// inexact consumer's variadic UNLINK of the same keys: ratio is keys/s of
// Invalidate by keys/s of go-redis's Unlink, both with the values there.
func BenchmarkInvalidateVsUnlink(b *testing.B) {
	for _, size := range []int{1, 100, 255, 1000, 4000} {
		b.Run(fmt.Sprintf("batch=%d", size), func(b *testing.B) {
			s := seeded(open(b, onRedis, Options{}))
			keys := make([]string, size)
			batch := make([]Invalidation, size)
			fill := func(round int) {
				p := s.rdb.Pipeline()
				for i := range keys {
					keys[i] = s.name("product:%d", round*size+i)
					batch[i] = Invalidation{Name: keys[i], X: at(uint64(1000 + round)), Action: ActionDelete}
					p.Set(s.ctx(), keys[i], "a value of some forty bytes, as they go", time.Hour)
				}
				if _, err := p.Exec(s.ctx()); err != nil {
					b.Fatal(err)
				}
			}
			var unlink, invalidate time.Duration
			round := 0
			b.ReportAllocs()
			for b.Loop() {
				round++
				b.StopTimer()
				fill(2 * round)
				start := time.Now()
				if n, err := s.rdb.Unlink(s.ctx(), keys...).Result(); err != nil || int(n) != size {
					b.Fatalf("unlinked %d: %v", n, err)
				}
				unlink += time.Since(start)
				fill(2*round + 1)
				b.StartTimer()
				start = time.Now()
				if got, err := s.Invalidate(s.ctx(), batch); err != nil || got.Deleted != size {
					b.Fatalf("invalidated %+v: %v", got, err)
				}
				invalidate += time.Since(start)
			}
			n := float64(size) * float64(round)
			b.ReportMetric(n/invalidate.Seconds(), "keys/s")
			b.ReportMetric(n/unlink.Seconds(), "unlinked_keys/s")
			b.ReportMetric(unlink.Seconds()/invalidate.Seconds(), "ratio")
		})
	}
}

func BenchmarkParse(b *testing.B) {
	h := vectors[3].header
	raw, err := h.Append(nil, make([]byte, 1000))
	must(b, err)
	b.ReportAllocs()
	for b.Loop() {
		if _, _, err := Parse(raw); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCell(b *testing.B) {
	l := NewLayout("shop", false)
	name := "shop:product:" + strconv.Itoa(123456)
	b.ReportAllocs()
	for b.Loop() {
		l.Cell(name)
	}
}

package main

import (
	"context"
	"errors"
	"testing"
	"time"
)

func TestWorkloadsAreDisjoint(t *testing.T) {
	t.Parallel()
	for _, s := range []sizes{quickSizes, fullSizes} {
		list, rows := workloads(s)
		if len(list) != 2 || list[0].name != "A" || list[1].name != "B" {
			t.Fatalf("%s: workloads = %v, want A and B", s.Mode, list)
		}
		next := int64(1)
		for _, w := range list {
			from, to := w.ids()
			if from != next {
				t.Errorf("%s %s begins at row %d, want %d: rows shared with another workload, or unused", s.Mode, w.name, from, next)
			}
			first, last := w.sentinels()
			if last != to || last-first != sentinelRows || first != from+int64(w.transactions*w.rows) {
				t.Errorf("%s %s: sentinels %d..%d in rows %d..%d", s.Mode, w.name, first, last, from, to)
			}
			next = to
		}
		if int64(rows) != next {
			t.Errorf("%s: table of %d rows, want %d, the last one for the trailer", s.Mode, rows, next)
		}
	}
}

func TestSizesNameOneMemoryMetric(t *testing.T) {
	t.Parallel()
	for _, s := range []sizes{quickSizes, fullSizes} {
		m, memory := newMetrics(s.measured()), 0
		for _, name := range []string{"rss_mb_1m_rows", "rss_mb_10m_rows"} {
			if m.wants(name) {
				memory++
			}
		}
		if memory != 1 || !m.wants(s.MemoryMetric) {
			t.Errorf("%s measures %d memory metrics, want %s alone", s.Mode, memory, s.MemoryMetric)
		}
		if got, want := len(newMetrics(s.known()).list), len(definitions)-1; got != want {
			t.Errorf("%s knows %d metrics, want all but the other memory metric, %d", s.Mode, got, want)
		}
	}
}

func TestPoll(t *testing.T) {
	t.Parallel()
	calls := 0
	if err := poll(context.Background(), time.Minute, time.Nanosecond, "count", func() (bool, error) { calls++; return calls == 3, nil }); err != nil || calls != 3 {
		t.Errorf("poll = %v after %d calls, want done after 3", err, calls)
	}
	cause := errors.New("gone")
	if err := poll(context.Background(), time.Minute, time.Nanosecond, "look", func() (bool, error) { return false, cause }); !errors.Is(err, cause) {
		t.Errorf("poll = %v, want the error of the condition at once", err)
	}
	if err := poll(context.Background(), time.Nanosecond, time.Hour, "wait", func() (bool, error) { return false, nil }); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("poll = %v, want the deadline", err)
	}
}

func TestCPUModel(t *testing.T) {
	t.Parallel()
	if got := cpuModel("processor\t: 0\nmodel name\t: Fast CPU @ 3 GHz\nmodel name\t: other\n"); got != "Fast CPU @ 3 GHz" {
		t.Errorf("cpuModel = %q", got)
	}
	if got := cpuModel("Features : fp\n"); got != "" {
		t.Errorf("cpuModel without a name = %q", got)
	}
}

func TestWorkloadRest(t *testing.T) {
	t.Parallel()
	w := &workload{transactions: 2, rows: 500} // 1000 rows and the sentinels
	for ahead, want := range map[float64]int{0: 1000 + sentinelRows, 0.25: (1000 + sentinelRows) * 3 / 4, 1: 0} {
		if got := w.rest(ahead); got != want {
			t.Errorf("rest(%v) = %d rows, want %d", ahead, got, want)
		}
	}
}

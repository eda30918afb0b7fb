package main

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// report collects purges by size.
type report struct {
	servers string
	started time.Time
	sizes   []int
	purges  map[int][]purged
}

func newReport(servers string) *report {
	return &report{servers: servers, started: time.Now().UTC(), purges: map[int][]purged{}}
}

func (r *report) add(size int, p purged) {
	if r.purges[size] == nil {
		r.sizes = append(r.sizes, size)
	}
	r.purges[size] = append(r.purges[size], p)
}

// quantile of durations; 0 of none.
func quantile(of []time.Duration, q float64) time.Duration {
	if len(of) == 0 {
		return 0
	}
	of = slices.Clone(of)
	slices.Sort(of)
	return of[min(len(of)-1, int(q*float64(len(of))))]
}

func pick(of []purged, f func(*purged) time.Duration) []time.Duration {
	out := make([]time.Duration, len(of))
	for i := range of {
		out[i] = f(&of[i])
	}
	return out
}

func ms(d time.Duration) string {
	v := float64(d) / float64(time.Millisecond)
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f ms", v)
	case v >= 10:
		return fmt.Sprintf("%.1f ms", v)
	}
	return fmt.Sprintf("%.2f ms", v)
}

// spread is the median and the middle half.
func spread(of []time.Duration) string {
	return fmt.Sprintf("%s (%s to %s)", ms(quantile(of, .5)), ms(quantile(of, .25)), ms(quantile(of, .75)))
}

// leastSamples is of how many samples a p99 is a number.
const leastSamples = 100

func p99(of []time.Duration) string {
	if len(of) < leastSamples {
		return "too short"
	}
	return ms(quantile(of, .99))
}

// load says what else the machine had to do: a number beside one that this
// program alone makes, about 2, explains a spread. "" where there is none.
func load() string {
	text, err := os.ReadFile("/proc/loadavg")
	fields := strings.Fields(string(text))
	if err != nil || len(fields) < 2 {
		return ""
	}
	return ", load average " + fields[1] + " at the end"
}

// table renders it in Markdown.
func (r *report) table() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %d cores for all of it%s, %s.\n\n", r.servers, runtime.NumCPU(), load(), r.started.Format("2006-01-02"))
	b.WriteString("| members | purges | refused by a reader with L1 | by one without | ratio to the first row | sweep | members/s | bytes a member | p99 of another client: quiet, in the sweep |\n")
	b.WriteString("|---|---|---|---|---|---|---|---|---|\n")
	l1 := func(p *purged) time.Duration { return p.l1 }
	l2 := func(p *purged) time.Duration { return p.l2 }
	var base [2]float64
	for i, size := range r.sizes {
		of := r.purges[size]
		a, c, sweeps := pick(of, l1), pick(of, l2), pick(of, func(p *purged) time.Duration { return p.sweep })
		medians := [2]float64{float64(quantile(a, .5)), float64(quantile(c, .5))}
		if i == 0 {
			base = medians
		}
		var quiet, busy []time.Duration
		for j := range of {
			quiet, busy = append(quiet, of[j].quiet...), append(busy, of[j].busy...)
		}
		rate := "-"
		if size >= 1000 {
			rate = fmt.Sprintf("%.0f", float64(size)/quantile(sweeps, .5).Seconds())
		}
		fmt.Fprintf(&b, "| %d | %d | %s | %s | %.2f, %.2f | %s | %s | %.0f | %s, %s |\n", size, len(of), spread(a), spread(c),
			medians[0]/base[0], medians[1]/base[1], spread(sweeps), rate, float64(of[len(of)-1].bytes)/float64(size), p99(quiet), p99(busy))
	}
	return b.String()
}

// The marks in the file between which the table stands.
const (
	beginMark = "<!-- make bench-tags writes from here -->"
	endMark   = "<!-- to here -->"
)

// replaceTable puts the text between the marks of a file.
func replaceTable(path, text string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read the file of the table: %w", err)
	}
	before, rest, ok := strings.Cut(string(data), beginMark)
	_, after, ok2 := strings.Cut(rest, endMark)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no place for the table: want a line %s and a line %s behind it", path, beginMark, endMark)
	}
	data = []byte(before + beginMark + "\n" + text + endMark + after)
	if err := os.WriteFile(path, data, 0o644); err != nil {
		return fmt.Errorf("write the table: %w", err)
	}
	return nil
}

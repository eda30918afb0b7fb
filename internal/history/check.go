package history

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"
)

// The ages that are allowed.
const (
	// Life is L1's.
	Life = 1500 * time.Millisecond
	// Silence is how long a client may take to notice that a message is missing
	// from a connection that lives.
	Silence = 1300 * time.Millisecond
)

// History is what a run has recorded.
type History struct {
	Ops []Op
	// W are watermarks in Redis, Replayed positions of the standby; in the
	// order of their times.
	W, Replayed []Mark
	// Dropping is when messages were dropped or reordered, Lost when Redis had
	// an older state of its data and the workers had not redone what it lost.
	Dropping, Lost []Interval
	// Strict are the rows that every loader reads from the primary.
	Strict func(row int) bool
}

// version is one state of a row.
type version struct {
	known      bool
	absent     bool
	start, end int64
	// invalidated is when the watermark was seen beyond it, replayed when the
	// standby was; both at the latest.
	invalidated, replayed int64
}

// Check returns what is wrong, a readable text for each fault.
func (h *History) Check() []string {
	rows := map[int][]Op{}
	for _, o := range h.Ops {
		rows[o.Row] = append(rows[o.Row], o)
	}
	var faults []string
	keys := make([]int, 0, len(rows))
	for row := range rows {
		keys = append(keys, row)
	}
	slices.Sort(keys)
	for _, row := range keys {
		ops := rows[row]
		slices.SortFunc(ops, func(a, b Op) int { return cmp.Compare(a.Start, b.Start) })
		versions, fault := h.versions(ops)
		if fault != "" {
			faults = append(faults, fault)
			continue
		}
		for i := range ops {
			if fault := h.judge(&ops[i], versions); fault != "" {
				faults = append(faults, fault+around(ops, &ops[i]))
			}
		}
		if fault := h.linearizable(row, ops); fault != "" {
			faults = append(faults, fault)
		}
	}
	return faults
}

// versions are the states of a row by number; 0 is what it was before.
func (h *History) versions(ops []Op) ([]version, string) {
	never := int64(math.MaxInt64)
	versions := []version{{known: true, start: math.MinInt64, end: math.MinInt64, invalidated: math.MinInt64, replayed: math.MinInt64}}
	for i := range ops {
		o := &ops[i]
		if !o.Write {
			continue
		}
		for int64(len(versions)) <= o.N {
			versions = append(versions, version{start: never, end: never, invalidated: never, replayed: never})
		}
		v := &versions[o.N]
		if v.known {
			return nil, fmt.Sprintf("row %d was given version %d twice", o.Row, o.N)
		}
		*v = version{
			known: true, absent: o.Absent, start: o.Start, end: o.End,
			invalidated: passed(h.W, o.LSN), replayed: passed(h.Replayed, o.LSN),
		}
	}
	for n := len(versions) - 1; n >= 0; n-- {
		v := &versions[n]
		if !v.known {
			return nil, fmt.Sprintf("row %d: nobody says that he wrote version %d", ops[0].Row, n)
		}
		if n+1 < len(versions) { // commits of one row are in the order of its versions
			next := versions[n+1]
			v.invalidated, v.replayed = min(v.invalidated, next.invalidated), min(v.replayed, next.replayed)
		}
	}
	return versions, ""
}

// passed is when a position was first seen to have passed lsn.
func passed(marks []Mark, lsn uint64) int64 {
	for _, m := range marks {
		if m.LSN > lsn {
			return m.At
		}
	}
	return math.MaxInt64
}

// judge says what is wrong with a read, "" if nothing is.
func (h *History) judge(o *Op, versions []version) string {
	if o.Write || o.meets(h.Lost, 0) {
		return ""
	}
	allowed := int64(Life)
	if o.meets(h.Dropping, Life+Silence) {
		allowed += int64(Silence)
	}
	least, most := 0, 0
	for n := range versions {
		v := &versions[n]
		if v.start <= o.End {
			most = n
		}
		due := v.invalidated <= o.Start-allowed && (!o.uncached() || v.replayed <= o.Load.Start)
		if due || o.After && v.end <= o.Start {
			least = n
		}
	}
	for n := least; n <= most; n++ {
		if v := &versions[n]; v.absent == o.Absent && (o.Absent || int64(n) == o.N) {
			return ""
		}
	}
	got := fmt.Sprintf("version %d", o.N)
	if o.Absent {
		got = "nothing"
	}
	what := "a read"
	if o.After {
		what = "a read under a token"
	}
	return fmt.Sprintf("row %d: %s by client %d (%s) found %s, want one of the versions %d to %d", o.Row, what, o.Client, o.Kind, got, least, most)
}

// around is what happened to the row near an operation.
func around(ops []Op, o *Op) string {
	const writes, reads = 4, 12
	zero := ops[0].Start
	var shown []*Op
	for i := range ops {
		if ops[i].Write && ops[i].Start <= o.End {
			shown = append(shown, &ops[i])
		}
	}
	shown = shown[max(0, len(shown)-writes):]
	from := o.Start - int64(3*time.Second)
	var near []*Op
	for i := range ops {
		if p := &ops[i]; !p.Write && p != o && p.Start >= from && p.Start <= o.End && (p.Client == o.Client || p.N == o.N) {
			near = append(near, p)
		}
	}
	shown = append(shown, near[max(0, len(near)-reads):]...)
	shown = append(shown, o)
	slices.SortStableFunc(shown, func(a, b *Op) int { return cmp.Compare(a.Start, b.Start) })
	var b strings.Builder
	for _, p := range shown {
		mark := "   "
		if p == o {
			mark = ">> "
		}
		b.WriteString("\n  " + mark + p.line(zero))
	}
	return b.String()
}

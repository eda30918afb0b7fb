package history

import (
	"fmt"
	"math"
	"strings"
	"time"
)

// Op is one read or write of one row, as the process that did it saw it.
type Op struct {
	// Client did it; Kind is how: write, get, after, list, page, ...
	Client int    `json:"c"`
	Kind   string `json:"k"`
	Row    int    `json:"r"`
	// Start is before the first step and End after the last one, by Now.
	Start int64 `json:"s"`
	End   int64 `json:"e"`
	// N is the version that was written or read. A read that found nothing has
	// Absent, and does not know which version it saw; a write that deleted the
	// row has both.
	N      int64 `json:"n"`
	Absent bool  `json:"a,omitempty"`
	Write  bool  `json:"w,omitempty"`
	// LSN of a write is a position that its commit record starts below.
	LSN uint64 `json:"l,omitempty"`
	// After says that the read had a token which was asked for after Start.
	After bool `json:"t,omitempty"`
	// Load made the value, Outer the value that this one is a part of.
	Load  *Load `json:"d,omitempty"`
	Outer *Load `json:"o,omitempty"`
}

// Load is one run of a loader. It travels in the value.
type Load struct {
	Client  int   `json:"c"`
	Start   int64 `json:"s"`
	End     int64 `json:"e"`
	Standby bool  `json:"b,omitempty"`
}

// during reports whether a client got a value from the load itself, which was
// under way at a moment, and not from a cache.
func (l *Load) during(client int, at int64) bool {
	return l != nil && l.Client == client && l.End >= at
}

// uncached reports whether the row was read from a standby for this very read.
func (o *Op) uncached() bool {
	if o.Load == nil || !o.Load.Standby {
		return false
	}
	if o.Outer == nil {
		return o.Load.during(o.Client, o.Start)
	}
	return o.Outer.during(o.Client, o.Start) && o.Load.during(o.Client, o.Outer.Start)
}

// line is the operation for people; times are from zero on.
func (o *Op) line(zero int64) string {
	var b strings.Builder
	at := func(t int64) string { return fmt.Sprintf("%9.4f", time.Duration(t-zero).Seconds()) }
	fmt.Fprintf(&b, "%s -%s  client %d  %-6s row %d", at(o.Start), at(o.End), o.Client, o.Kind, o.Row)
	switch {
	case o.Write && o.Absent:
		fmt.Fprintf(&b, "  deletes as %d, below %X", o.N, o.LSN)
	case o.Write:
		fmt.Fprintf(&b, "  writes %d, below %X", o.N, o.LSN)
	case o.Absent:
		b.WriteString("  = absent")
	default:
		fmt.Fprintf(&b, "  = %d", o.N)
	}
	if o.Load != nil {
		from := "primary"
		if o.Load.Standby {
			from = "standby"
		}
		fmt.Fprintf(&b, "  loaded by %d from %s at %s -%s", o.Load.Client, from, at(o.Load.Start), at(o.Load.End))
	}
	return b.String()
}

// Mark is a position that was seen at a moment: not later than it was reached.
type Mark struct {
	At  int64
	LSN uint64
}

// Interval is a time during which something was the case.
type Interval struct{ From, To int64 }

// meets reports whether an operation was under way in one of them, or began
// not longer than that after it.
func (o *Op) meets(all []Interval, longer time.Duration) bool {
	for _, i := range all {
		if o.End >= i.From && (i.To == math.MaxInt64 || o.Start <= i.To+int64(longer)) {
			return true
		}
	}
	return false
}

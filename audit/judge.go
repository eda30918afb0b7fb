package audit

import (
	"bytes"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/rules"
)

// served is an entry that a reader would be served.
type served struct {
	suspect
	now      []byte // the whole entry as it is now
	payload  []byte
	stamp    change.Position
	negative bool
	opaque   bool // it can not be compared
}

// open looks at what is under a key; ok is false if no reader would be served
// it, which is counted the first time.
func (a *auditor) open(class *rules.Class, generation uint64, name string, v Value, first bool) (e served, ok bool) {
	count := func(n *int) {
		if first {
			*n++
		}
	}
	if v.Missing {
		return e, false
	}
	if v.Foreign {
		if class.Mode == rules.Exact && first {
			a.undecodable(class, name, nil)
		} else {
			count(&a.report.Incomparable) // a plain key may be of any type
		}
		return e, false
	}
	h, payload, err := coherence.Parse(v.Bytes)
	if class.Mode == rules.Plain {
		if err == nil && h.State == coherence.StateEmpty {
			count(&a.report.Empty) // the ticket of an entry with a hash tag
			return e, false
		}
		return served{now: v.Bytes, payload: v.Bytes}, true
	}
	switch {
	case err != nil:
		if first {
			a.undecodable(class, name, v.Bytes)
		}
	case h.State == coherence.StateEmpty:
		count(&a.report.Empty)
	case h.Generation < generation:
		count(&a.report.Dead)
	case h.State == coherence.StateStale:
		count(&a.report.Marked)
	case h.HardExpiry != 0 && h.HardExpiry <= time.Now().UnixMicro():
		count(&a.report.Expired)
	default:
		return served{
			now: v.Bytes, payload: payload, stamp: h.Stamp,
			negative: h.Flags&coherence.FlagNegative != 0,
			opaque:   h.Codec != coherence.CodecJSON || h.Flags&coherence.FlagCompressed != 0,
		}, true
	}
	return e, false
}

func (a *auditor) undecodable(class *rules.Class, name string, raw []byte) {
	a.report.Undecodable++
	a.find(Finding{Class: class.Name, Name: name, Kind: KindUndecodable, Cached: raw})
}

func (a *auditor) find(f Finding) {
	if len(a.report.Findings) < a.Findings {
		a.report.Findings = append(a.report.Findings, f)
	}
}

// judge compares an entry with its row. differs is true if it is to be looked
// at again; an entry that was looked at often enough is counted as stale.
func (a *auditor) judge(class *rules.Class, e *served, truth []byte, first bool) (s suspect, differs bool) {
	if first {
		a.report.Checked++
	}
	equal, comparable := true, true
	switch {
	case e.negative:
		equal = truth == nil
	case truth == nil:
		equal = false
	case e.opaque:
		comparable = false
	default:
		equal, comparable = equalRows(e.payload, truth)
	}
	switch {
	case !comparable:
		a.report.Incomparable++
		return suspect{}, false
	case equal:
		return suspect{}, false
	}
	s = suspect{name: e.name, raw: e.now, looks: 1}
	if bytes.Equal(e.raw, e.now) {
		s.looks = e.looks + 1
	}
	// The first look only raises the suspicion; the second comes after
	// everything that could explain it was applied.
	enough := 2
	if class.Mode == rules.Plain {
		enough = looksPlain
	}
	if s.looks < enough {
		return s, true
	}
	a.report.Stale++
	f := Finding{Class: class.Name, Name: e.name, Kind: KindStale, Cached: e.payload, Truth: truth, Stamp: e.stamp}
	if truth == nil {
		a.report.Missing++
		f.Kind = KindGone
	}
	a.find(f)
	return suspect{}, false
}

package cdc

import (
	"slices"
	"sync"
	"time"

	"github.com/lethe-cache/lethe/cdc/source"
	"github.com/lethe-cache/lethe/change"
)

// raiser keeps the raises that were asked for until they are durable. It
// outlives sessions. Safe for concurrent use.
type raiser struct {
	mu   sync.Mutex
	list []*raiseRequest
	kick chan struct{} // capacity one
}

type raiseStage byte

const (
	raiseAsked   raiseStage = iota // nothing was appended yet
	raisePending                   // once; the second waits for its gap
	raiseDone                      // all were appended, the last in batch seq
)

type raiseRequest struct {
	raise change.Raise
	// tracked: the source tracker asks for it anew in every session.
	tracked bool
	twice   bool
	// taken: it is being appended, with a gap that may have been taken already.
	taken bool
	stage raiseStage
	since time.Time
	gap   *Gap
	seq   uint64
	done  chan struct{}
}

// dueRaise is one raise to be appended now.
type dueRaise struct {
	raise change.Raise
	req   *raiseRequest
	gap   *Gap // set with the first of two
}

func newRaiser() *raiser { return &raiser{kick: make(chan struct{}, 1)} }

// ask queues a raise; the channel is closed once it (both of it) is durable. One
// of the same that nobody has begun to append stands for it: it will come later
// than now, and while nothing is read there may be a new one every second.
func (r *raiser) ask(raise change.Raise, twice bool) <-chan struct{} {
	req := &raiseRequest{raise: raise, twice: twice, since: time.Now(), done: make(chan struct{})}
	r.mu.Lock()
	for _, old := range r.list {
		if !old.tracked && !old.taken && old.stage == raiseAsked && old.twice == twice && alike(&old.raise, &raise) {
			r.mu.Unlock()
			return old.done
		}
	}
	r.list = append(r.list, req)
	r.mu.Unlock()
	r.wake()
	return req.done
}

// alike reports whether two raises ask for the same, but for their cause.
func alike(a, b *change.Raise) bool {
	return a.Reason == b.Reason && a.X == b.X && a.Bound == b.Bound && slices.Equal(a.Classes, b.Classes) && slices.Equal(a.Tables, b.Tables)
}

func (r *raiser) wake() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// session adds what the source tracker asks for now. What it asked for in the
// last session for the same reason is replaced by that; what it does not ask for
// again stays: it may have no way to store it. On another source everything that
// is half done begins again: its xids meant something else.
func (r *raiser) session(due []source.Due, sameSource bool) {
	r.mu.Lock()
	r.list = slices.DeleteFunc(r.list, func(req *raiseRequest) bool {
		return req.tracked && slices.ContainsFunc(due, func(d source.Due) bool { return d.Reason == req.raise.Reason })
	})
	if !sameSource {
		for _, req := range r.list {
			req.raise.Bound = change.Position{} // of its own source
			if req.stage == raisePending {
				req.stage, req.gap = raiseAsked, nil
				if req.raise.Cause != "" {
					req.raise.Cause += "+" // a cause is applied once
				}
			}
		}
	}
	for _, d := range due {
		r.list = append(r.list, &raiseRequest{
			raise: d.Raise, twice: d.Again, tracked: true, since: time.Now(), done: make(chan struct{}),
		})
	}
	r.mu.Unlock()
	r.wake()
}

// tracked reports whether something that the source tracker asked for is not
// durable yet.
func (r *raiser) tracked() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.ContainsFunc(r.list, func(req *raiseRequest) bool { return req.tracked })
}

// pending reports whether a second raise waits for its gap.
func (r *raiser) pending() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, req := range r.list {
		if req.stage == raisePending {
			return true
		}
	}
	return false
}

// due returns what is to be appended: raises that are new and, given a
// snapshot, second raises whose gap it closes. For the first of two it takes a
// gap, which is surely later than the event.
func (r *raiser) due(snap *Snapshot, take func() (*Gap, error)) ([]dueRaise, error) {
	var due []dueRaise
	for _, req := range r.asked() {
		d := dueRaise{raise: req.raise, req: req}
		if req.twice {
			var err error
			if d.gap, err = take(); err != nil { // not under the lock: it takes a round trip
				return nil, err
			}
		}
		due = append(due, d)
	}
	if snap == nil {
		return due, nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, req := range r.list {
		if req.stage == raisePending && req.gap.Observe(snap) {
			second := req.raise
			second.Bound = change.Position{} // of its own time
			if second.Cause != "" {
				second.Cause += "/2"
			}
			due = append(due, dueRaise{raise: second, req: req})
		}
	}
	return due, nil
}

func (r *raiser) asked() (asked []*raiseRequest) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, req := range r.list {
		if req.stage == raiseAsked {
			req.taken = true
			asked = append(asked, req)
		}
	}
	return asked
}

// appended notes that what due returned stands in batch seq.
func (r *raiser) appended(due []dueRaise, seq uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, d := range due {
		if d.gap != nil {
			d.req.gap, d.req.stage = d.gap, raisePending
		} else {
			d.req.stage, d.req.seq = raiseDone, seq
		}
	}
}

// durable drops what is safe behind the Writer.
func (r *raiser) durable(seq uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	keep := r.list[:0]
	for _, req := range r.list {
		if req.stage == raiseDone && req.seq <= seq {
			close(req.done)
		} else {
			keep = append(keep, req)
		}
	}
	clear(r.list[len(keep):])
	r.list = keep
}

// PendingRaise describes a raise that is not complete.
type PendingRaise struct {
	Reason string
	// Since is when it was asked for.
	Since time.Time
	// Raised says that the first of two was appended; Running is how many
	// transactions the second waits for.
	Raised  bool
	Running int
}

// state lists what has not been appended in full.
func (r *raiser) state() []PendingRaise {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []PendingRaise
	for _, req := range r.list {
		if req.stage == raiseDone {
			continue
		}
		p := PendingRaise{Reason: req.raise.Reason, Since: req.since, Raised: req.stage == raisePending}
		if req.gap != nil {
			p.Running = req.gap.Running()
		}
		out = append(out, p)
	}
	return out
}

package invalidator

import (
	"context"
	"sync"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
)

const (
	// pulseEvery is the least distance of two questions to the primary.
	pulseEvery = 200 * time.Millisecond
	// answerPatience bounds a question.
	answerPatience = 5 * time.Second
	// undatedAfter is how long a log may carry no v until it is taken for one
	// that never does.
	undatedAfter = 10 * time.Second
)

// pulses make the heartbeat tell how old w is: see coherence.Pulse. The primary
// is asked beside the heartbeats, which must not wait for a database. All
// methods are called by the goroutine of the maintainer.
type pulses struct {
	ask func(context.Context) (change.Position, error)
	// answers holds the answer to the pulse that was sent last; it is read
	// before the next is sent, so there is at most one question at a time.
	answers chan coherence.Pulse
	asking  bool
	due     time.Time
	// silent is since when the log carries no v.
	silent time.Time
	wait   sync.WaitGroup
}

func newPulses(ask func(context.Context) (change.Position, error)) *pulses {
	return &pulses{ask: ask, answers: make(chan coherence.Pulse, 1)}
}

// next is what the next heartbeat carries: the answer that has come, and a new
// pulse if it is time for one.
func (p *pulses) next(now time.Time, v change.Position) coherence.Pulse {
	var out coherence.Pulse
	select {
	case a := <-p.answers:
		p.asking = false
		out.Answer, out.Of, out.Undated = a.Answer, a.Of, a.Undated
	default:
	}
	if v.LSN == 0 {
		// Nothing covers an answer before there is a v. A log of another
		// reader, or of one without an era, never has one.
		if p.silent.IsZero() {
			p.silent = now
		}
		return coherence.Pulse{Undated: now.Sub(p.silent) >= undatedAfter}
	}
	p.silent = time.Time{}
	if !p.asking && !now.Before(p.due) {
		out.Token = coherence.NewPulse().Token
		p.due = now.Add(pulseEvery)
	}
	return out
}

// sent asks the primary, now that the reply to a pulse has come: what is read
// from here on is later than everything that did not see it.
func (p *pulses) sent(ctx context.Context, w *Worker, token string) {
	p.asking = true
	p.wait.Go(func() {
		ctx, cancel := context.WithTimeout(ctx, answerPatience)
		defer cancel()
		answer := coherence.Pulse{Of: token}
		switch at, err := p.ask(ctx); {
		case err != nil:
			// Without an answer clients believe less and less, which is right.
			w.log.DebugContext(ctx, "a pulse was not answered", "error", err)
		case at.LSN == ^change.LSN(0):
			answer.Undated = true // no true position is to be had
		default:
			answer.Answer = pulseBound(at)
		}
		p.answers <- answer // has room: one question at a time
	})
}

// segmentMin is the least size of a segment of the write-ahead log; a segment
// begins at a multiple of it, with a header of 40 bytes.
const (
	segmentMin    = 1 << 20
	segmentHeader = 40
)

// pulseBound is change.Bound, but for the position right behind the header of a
// segment, where an idle database may stand for ever (archive_timeout closes a
// segment and nothing is written into the next). v then stays at the segment's
// beginning, which Bound is not below. No commit ends there but one that began
// in the page before, at least 24 of its 40 bytes earlier, so 24 below the
// beginning is a bound too.
func pulseBound(at change.Position) change.Position {
	if at.LSN%segmentMin == segmentHeader && at.LSN > segmentMin {
		return change.Position{Era: at.Era, LSN: at.LSN - segmentHeader - 24}
	}
	return change.Position{Era: at.Era, LSN: change.Bound(at.LSN)}
}

package invalidator

import (
	"fmt"

	"github.com/lethe-cache/lethe/change"
)

// Unready says why the worker is not ready, for /readyz; empty when it is.
// It knows what has reached it: a raise that the reader has not written yet is
// the reader's to report.
func (w *Worker) Unready() []string {
	var why []string
	lanes := w.eachLane()
	if len(lanes) == 0 {
		why = append(why, "no partition is worked on")
	}
	for _, l := range lanes {
		switch {
		case l.past.Load() == nil:
			why = append(why, fmt.Sprintf("partition %d has not started", l.p.ID()))
		case l.noted.begun.Load() && !l.noted.stands.Load():
			// Until then nothing is filled by rules. With its first batch it
			// is noted; after a reload it takes as long again, which is no
			// reason to send nobody here.
			why = append(why, fmt.Sprintf("partition %d has not told by which rules it is worked on", l.p.ID()))
		}
	}
	switch {
	case w.sources.load().Era == 0:
		why = append(why, "no source is recorded in redis yet")
	case w.sources.unseeded():
		why = append(why, "redis is not seeded")
	default:
		// Until then the tables refuse every registration, and fills of what
		// has tags with it. A log that carries no v, another reader's, never
		// gets there: what has tags is not cached with it.
		if base, v := w.sources.base.load(), w.sources.v.load(); !base.IsZero() && v.LSN > 0 && !v.Covers(base) {
			why = append(why, fmt.Sprintf("redis was seeded at %s, and v is %s: what has tags is not cached yet", base, v))
		}
	}
	if n := w.walking(); n > 0 {
		why = append(why, fmt.Sprintf("%d walks of plain classes run", n))
	}
	for _, l := range w.store.Lost() {
		why = append(why, fmt.Sprintf("redis node %s may have lost writes (%s) and is not redone", l.Node, l.Cause))
	}
	return why
}

// Visible is the greatest visibility position that has reached the worker in
// the present era; its LSN is 0 while there was none.
func (w *Worker) Visible() change.Position { return w.sources.v.load() }

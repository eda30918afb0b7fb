package invalidator

import (
	"context"
	"sync"
	"time"

	"github.com/lethe-cache/lethe/coherence"
)

const (
	// sweepSlow is how much longer than its fastest step a step of a sweep may
	// take before the next one is made smaller; sweepLeast is the smallest: it
	// takes Redis well under a millisecond, so that less would help nobody. A
	// step may also be slow because the worker itself is short of time, and a
	// sweep must end there too.
	sweepSlow  = 5 * time.Millisecond
	sweepLeast = 200
	// sweepFirst is the size of the first step.
	sweepFirst = 250
	// sweepPauseMost bounds the pause after a slow step.
	sweepPauseMost = 10 * time.Millisecond

	// sweepLogEvery and sweepTellEvery are how often a sweep logs how far it
	// is, and writes it to Redis for those who wait.
	sweepLogEvery  = 5 * time.Second
	sweepTellEvery = 200 * time.Millisecond

	// followPages is how many pages the pruner may be behind the sweep that it
	// follows, followWait how long a sweep waits for it, once.
	followPages = 8
	followWait  = 100 * time.Millisecond
)

// sweepPace chooses how many members a sweep takes at once, so that Redis
// answers others in between: what a step takes is what they wait for. The fastest
// step stands for the way there and back, which nobody else waits for.
type sweepPace struct {
	size, most int
	least      time.Duration
}

// after says how long a step took and returns for how long Redis is to be left
// alone.
func (p *sweepPace) after(took time.Duration) time.Duration {
	if p.least == 0 || took < p.least {
		p.least = took
	}
	if took-p.least <= sweepSlow {
		p.size = min(p.most, p.size+p.size/4+1)
		return 0
	}
	p.size = max(min(sweepLeast, p.most), p.size/2)
	return min(took, sweepPauseMost)
}

// progress is how far a sweep is.
type progress struct {
	w     *Worker
	purge coherence.Purge
	// done may exceed total: members come while it runs, and some twice.
	total, done, counted   int
	began, logged, written time.Time
	told                   bool
}

func (w *Worker) newProgress(p coherence.Purge, total int) *progress {
	now := time.Now()
	w.metrics.openPurges.Inc()
	w.metrics.sweepLeft.Add(float64(total))
	return &progress{w: w, purge: p, total: total, began: now, logged: now, written: now}
}

// add counts members that were swept.
func (p *progress) add(ctx context.Context, n int) {
	p.done += n
	p.count(min(p.done, p.total))
	now := time.Now()
	if now.Sub(p.written) >= sweepTellEvery {
		p.written = now
		p.tell(ctx)
	}
	if now.Sub(p.logged) >= sweepLogEvery {
		p.logged = now
		p.log(ctx, "sweeping")
	}
}

// count moves the gauge of what is left.
func (p *progress) count(to int) {
	p.w.metrics.sweepLeft.Sub(float64(to - p.counted))
	p.counted = to
}

// tell writes it where lethe invalidate --wait looks. Nothing depends on it.
func (p *progress) tell(ctx context.Context) {
	p.told = true
	if err := p.w.store.TellSweep(ctx, coherence.Sweep{Purge: p.purge, Done: p.done, Total: max(p.total, p.done)}); err != nil {
		p.w.log.DebugContext(ctx, "progress of a sweep not written", "error", err)
	}
}

func (p *progress) log(ctx context.Context, what string) {
	seconds := time.Since(p.began).Seconds()
	p.w.log.InfoContext(ctx, what, "tags", p.purge.Tags, "x", p.purge.X, "done", p.done, "total", p.total,
		"members_per_second", int(float64(p.done)/seconds))
}

// end is called when the sweep is over, well or not.
func (p *progress) end(ctx context.Context, err error) {
	p.count(p.total)
	p.w.metrics.openPurges.Dec()
	if err == nil && p.logged != p.began {
		p.log(ctx, "swept")
	}
	if err == nil && p.told {
		p.tell(ctx)
	}
}

// follower prunes behind a sweep: members whose entries it has unlinked are
// gone, most of them, so that a sweep that begins again after a crash finds only
// what was left of it. It is an ordinary pruner, by the rule of
// coherence.PrunePages, and nothing waits for it.
type follower struct {
	s      *sweeper
	pages  chan coherence.Page
	behind bool
	wait   sync.WaitGroup
}

func (s *sweeper) follow(ctx context.Context) *follower {
	f := &follower{s: s, pages: make(chan coherence.Page, followPages)}
	f.wait.Go(func() {
		failed := false
		for page := range f.pages {
			if failed || ctx.Err() != nil {
				continue
			}
			s.w.hook("prune")
			_, removed, err := s.w.store.PrunePages(ctx, page)
			s.w.metrics.pruned.Add(float64(removed))
			failed = err != nil // the pruner comes some time
		}
	})
	return f
}

// page hands a swept page over, or leaves it to the pruner.
func (f *follower) page(page coherence.Page) {
	select {
	case f.pages <- page:
		return
	default:
	}
	if f.behind {
		return
	}
	t := time.NewTimer(followWait)
	defer t.Stop()
	select {
	case f.pages <- page:
	case <-t.C:
		f.behind = true
	}
}

// end waits until it has followed.
func (f *follower) end() {
	close(f.pages)
	f.wait.Wait()
}

package warmer

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/lethe-cache/lethe/rules"
)

// Bounds of the schedule.
const (
	// warmJitter bounds how long after its instant a run begins, so that not
	// everything that is due on the hour asks at once.
	warmJitter = 10 * time.Second
	// warmLook is how often the rules are looked at for schedules that are new.
	warmLook  = time.Second
	readyLook = 20 * time.Millisecond
)

func upTo(d time.Duration) time.Duration {
	if d <= 0 {
		return 0
	}
	return rand.N(d)
}

// Serve runs what is to be run at the start, then the schedules, until ctx
// ends. It never fails: what goes wrong is counted, logged and told by Running
// and Starting.
func (u *Warmups) Serve(ctx context.Context) error {
	u.start(ctx)
	due := map[string]time.Time{} // the next instant of each, by ID
	for ctx.Err() == nil {
		var first *rules.Warm
		var at, now = time.Time{}, time.Now()
		listed := map[string]bool{}
		for _, w := range byPriority(u.cfg.Warmer.cfg.Rules().Set().Warm) {
			id := w.ID()
			if !w.Scheduled() || listed[id] {
				continue
			}
			listed[id] = true
			next, ok := due[id]
			if !ok {
				next, ok = w.Next(now)
				due[id] = next
			}
			if ok && !next.After(now) && first == nil {
				first, at = w, next
			}
		}
		for id := range due {
			if !listed[id] { // the rules say nothing of it any more
				delete(due, id)
			}
		}
		if first == nil {
			_ = sleep(ctx, u.untilNext(due, now))
			continue
		}
		u.tick(ctx, first, at)
		if next, ok := first.Next(time.Now()); ok {
			due[first.ID()] = next
		} else {
			delete(due, first.ID())
		}
	}
	return ctx.Err()
}

func (u *Warmups) untilNext(due map[string]time.Time, now time.Time) time.Duration {
	wait := warmLook
	for _, at := range due {
		wait = min(wait, max(at.Sub(now), time.Millisecond))
	}
	return wait
}

// tick is one instant of a schedule. Instants that pass while the run lasts
// are left out, and counted: runs of one warm-up do not pile up.
func (u *Warmups) tick(ctx context.Context, w *rules.Warm, at time.Time) {
	interval := warmJitter
	if after, ok := w.Next(at); ok {
		interval = after.Sub(at)
	}
	if sleep(ctx, u.jitter(min(interval/10, warmJitter))) != nil {
		return
	}
	_, _ = u.Run(ctx, w, RunOptions{due: at})
	now := time.Now()
	for missed, ok := w.Next(at); ok && !missed.After(now); missed, ok = w.Next(missed) {
		u.cfg.Metrics.runs.WithLabelValues(w.Entry, "skipped").Inc()
	}
}

// start runs what is to be run at the start, one after the other. Each may take
// as long as its deadline: one that fails is tried again until then, unless
// another try would be of no use or a reload has taken it out of the rules.
func (u *Warmups) start(ctx context.Context) {
	defer func() {
		u.mu.Lock()
		u.started = true
		u.mu.Unlock()
	}()
	var list []*rules.Warm
	for _, w := range byPriority(u.cfg.Warmer.cfg.Rules().Set().Warm) {
		u.mu.Lock()
		if _, twice := u.atStart[w.ID()]; w.OnStart && !twice {
			list = append(list, w)
			u.order = append(u.order, w.ID())
			u.atStart[w.ID()] = Progress{Entry: w.Entry, ID: w.ID(), State: "waiting", Of: -1, Error: "waits for its turn"}
		}
		u.mu.Unlock()
	}
	for u.cfg.Ready != nil && len(list) > 0 && !u.cfg.Ready() {
		if sleep(ctx, readyLook) != nil {
			return
		}
	}
	for _, w := range list {
		p := u.startOne(ctx, w)
		u.mu.Lock()
		u.atStart[p.ID] = p
		u.mu.Unlock()
		if ctx.Err() != nil {
			return
		}
	}
}

func (u *Warmups) startOne(ctx context.Context, w *rules.Warm) Progress {
	end := time.Now().Add(w.Deadline)
	for wait := warmBackoff; ; wait = min(wait*2, 5*time.Second) {
		again := *w
		again.Deadline = max(time.Until(end), time.Millisecond)
		p, err := u.Run(ctx, &again, RunOptions{Wait: true})
		if err == nil || ctx.Err() != nil || errors.Is(err, ErrDeadline) || incurable(err) || time.Until(end) <= wait || !u.listed(w.ID()) {
			return p
		}
		u.mu.Lock()
		u.atStart[p.ID] = Progress{Entry: w.Entry, ID: p.ID, State: "waiting", Of: -1, Error: "tries again: " + p.Error}
		u.mu.Unlock()
		if sleep(ctx, wait) != nil {
			return p
		}
	}
}

// listed reports whether the rules in force have the warm-up.
func (u *Warmups) listed(id string) bool {
	return slices.ContainsFunc(u.cfg.Warmer.cfg.Rules().Set().Warm, func(w *rules.Warm) bool { return w.ID() == id })
}

// Starting says what of the start is not over yet, and how what is over ended.
// over is true once nobody has to wait for it any more.
func (u *Warmups) Starting() (list []Progress, over bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	for _, id := range u.order {
		p := u.atStart[id]
		if p.State == "waiting" && u.running != nil && u.running.ID == id {
			p = u.running.copy()
			p.Took = time.Since(p.began)
		}
		list = append(list, p)
	}
	return list, u.started
}

package invalidator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
)

// raise applies the raises of the batch and returns the walks that they make
// due.
func (l *lane) raise(ctx context.Context, classes []string) ([]*walk, error) {
	if len(l.batch.raises) == 0 {
		return nil, nil
	}
	// Before they are applied, see history. The keys of the batch follow with
	// their own entry.
	l.past.Load().put(time.Now(), l.batch.v, nil, classes)
	var due []*walk
	for i := range l.batch.raises {
		l.w.hook("raise")
		k, err := l.w.raise(ctx, l.batch.raises[i], l.rules)
		if err != nil {
			return nil, err
		}
		if k != nil {
			due = append(due, k)
		}
	}
	return due, nil
}

// raise applies one raise and starts the walk for the plain classes in it, if
// there are any. It may be called again for the same cause: the generations
// move once, the walk is the same one.
func (w *Worker) raise(ctx context.Context, r coherence.RaiseRequest, rules *Rules) (*walk, error) {
	err := w.retry(ctx, "raise", func(ctx context.Context) error { return w.raiseOnce(ctx, &r) })
	if err != nil {
		return nil, err
	}
	return w.walkAfter(ctx, r.Cause, r.Classes, rules)
}

func (w *Worker) raiseOnce(ctx context.Context, r *coherence.RaiseRequest) error {
	if r.Bound.IsZero() && !w.unstamped() {
		p, err := w.insertPosition(ctx)
		switch {
		case err == nil:
			r.Bound = change.Position{Era: p.Era, LSN: change.Bound(p.LSN)}
		case !r.X.IsZero():
			// A standby whose stamp covers X contains the commit, which is
			// all that this raise is about.
			r.Bound = r.X
		default:
			return err
		}
	}
	applied, err := w.store.Raise(ctx, *r)
	if err != nil {
		return err
	}
	if len(applied) == 0 {
		return nil
	}
	for _, class := range applied {
		w.metrics.raises.WithLabelValues(class, r.Reason).Inc()
	}
	w.log.InfoContext(ctx, "classes raised", "classes", applied, "reason", r.Reason, "cause", r.Cause, "bound", r.Bound)
	if w.cfg.Observer.Raised != nil {
		w.cfg.Observer.Raised(Raised{Cause: r.Cause, Reason: r.Reason, Classes: applied})
	}
	return nil
}

// walk is the removal of every value of some plain classes. They have no
// generation in the value, so a raise reaches them by SCAN (PROTOCOL, "Plain
// classes").
type walk struct {
	// over says that it has ended, well or not; then are called if it ended
	// well. Both belong to walks.mu.
	over, well bool
	// run is the one that it ends with.
	run  *run
	then []func()
}

// walks keeps one walk for each cause: a raise stands in every partition's
// queue, and each of them waits for its walk.
type walks struct {
	mu       sync.Mutex
	running  map[string]*walk
	finished []string
}

// walksKept is how many causes are remembered as walked. A forgotten one is
// walked again, which costs and does no harm.
const walksKept = 256

// walkAfter returns the walk that the raise of classes makes due: nil if none
// is, or if it was finished. It is started in the run, not in the lane that
// came first: others wait for it too.
func (w *Worker) walkAfter(ctx context.Context, cause string, classes []string, rules *Rules) (*walk, error) {
	patterns, plain := plainPatterns(classes, rules)
	if len(patterns) == 0 {
		return nil, nil
	}
	id := cause + "\x00" + strings.Join(classes, "\x00")
	w.mu.Lock()
	r := w.run
	w.mu.Unlock()
	if r == nil {
		return nil, errors.New("walk plain classes: no partition is worked on")
	}
	w.walks.mu.Lock()
	defer w.walks.mu.Unlock()
	if slices.Contains(w.walks.finished, id) {
		return nil, nil
	}
	// One of an earlier run is about to end without having come to its end.
	if k := w.walks.running[id]; k != nil && k.run == r {
		return k, nil
	}
	k := &walk{run: r}
	w.walks.running[id] = k
	w.log.InfoContext(ctx, "walking plain classes", "classes", classes, "patterns", len(patterns))
	gauge := w.metrics.pending.WithLabelValues("walk")
	gauge.Inc()
	r.wait.Go(func() {
		defer gauge.Dec()
		err := w.walk(r.ctx, cause, patterns, plain)
		w.walks.mu.Lock()
		defer w.walks.mu.Unlock()
		if w.walks.running[id] == k {
			delete(w.walks.running, id)
		}
		k.over, k.well = true, err == nil
		if err != nil {
			return // the run has ended: what waits is delivered again
		}
		for _, f := range k.then {
			f()
		}
		w.walks.finished = append(w.walks.finished, id)
		if n := len(w.walks.finished) - walksKept; n > 0 {
			w.walks.finished = slices.Delete(w.walks.finished, 0, n)
		}
	})
	return k, nil
}

// walk unlinks, then raises the plain classes once more: an L1 that was told by
// the first raise may since have read a value that the walk had not reached.
// Nothing else is forgotten by it, values of plain classes have no generation.
func (w *Worker) walk(ctx context.Context, cause string, patterns, plain []string) error {
	w.hook("walk")
	err := w.retry(ctx, "walk", func(ctx context.Context) error {
		before := 0
		return w.store.Walk(ctx, patterns, func(_, unlinked int) {
			w.metrics.walked.Add(float64(unlinked - before))
			before = unlinked
		})
	})
	if err != nil || len(plain) == 0 {
		return err
	}
	w.hook("walked")
	return w.retry(ctx, "raise", func(ctx context.Context) error {
		_, err := w.store.Raise(ctx, coherence.RaiseRequest{Cause: cause + ":walked", Reason: reasonWalked, Classes: plain})
		return err
	})
}

// reasonWalked is the reason of the second raise of a plain class.
const reasonWalked = "walked"

// plainPatterns are the patterns of the plain classes among classes, and their
// names; "*" has those of keys without a class as well. Patterns of tickets are
// left out: a walk looks for the ticket of everything that it looks for.
func plainPatterns(classes []string, rules *Rules) (patterns, plain []string) {
	there := map[string]bool{}
	for _, p := range rules.Plan.PlainPatterns() {
		switch {
		case slices.Contains(classes, "*"):
		case p.Class != nil && slices.Contains(classes, p.Class.Name):
		default:
			continue
		}
		if p.Class != nil {
			plain = append(plain, p.Class.Name)
		}
		for _, g := range p.Globs {
			of, ticket := strings.CutSuffix(g, ":t")
			if ticket {
				ticket = there[of] || len(of) > 1 && there[of[1:len(of)-1]] && of == "{"+of[1:len(of)-1]+"}"
			}
			if !ticket {
				there[g] = true
				patterns = append(patterns, g)
			}
		}
	}
	return patterns, plain
}

// whenWalked calls f, which must be fast, once the walk has ended well; never
// if it ends because the run does.
func (w *Worker) whenWalked(k *walk, f func()) {
	w.walks.mu.Lock()
	defer w.walks.mu.Unlock()
	switch {
	case !k.over:
		k.then = append(k.then, f)
	case k.well:
		f()
	}
}

// walking returns how many walks of plain classes run.
func (w *Worker) walking() int {
	w.walks.mu.Lock()
	defer w.walks.mu.Unlock()
	return len(w.walks.running)
}

// deadLetterNext is how long a letter is tried behind one of the same batch that
// could not be stored: thousands must not hold the stream one after the other.
const deadLetterNext = 10 * time.Millisecond

// bury stores the batch's dead letters. The raise that each of them asked for
// stands already, so a letter that can not be stored may be given up after a
// while: holding the stream for it would leave entries stale.
func (l *lane) bury(ctx context.Context) error {
	wait := l.w.cfg.DeadLetterWait
	for _, d := range l.batch.dead {
		l.w.hook("bury")
		l.w.metrics.deadLetters.WithLabelValues(d.Reason).Inc()
		if l.w.cfg.Observer.DeadLetter != nil {
			l.w.cfg.Observer.DeadLetter(d)
		}
		bctx, cancel := context.WithTimeout(ctx, wait)
		err := l.w.retry(bctx, "dead letter", func(ctx context.Context) error { return l.w.cfg.DeadLetters.Put(ctx, d) })
		cancel()
		if err != nil && ctx.Err() != nil {
			return err
		}
		if err != nil {
			wait = min(wait, deadLetterNext)
			l.w.log.ErrorContext(ctx, "dead letter could not be stored, this line is all that is left of it", "reason", d.Reason, "cause", d.Err,
				"partition", d.Partition, "offset", d.Offset, "position", d.Position, "table", d.Table, "payload", fmt.Sprintf("%q", d.Payload), "error", err)
		}
	}
	return nil
}

package warmer

import (
	"container/heap"
	"container/list"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/invalidator"
	"github.com/lethe-cache/lethe/rules"
)

// Defaults of QueueConfig.
const (
	QueueLimitDefault  = 100_000
	StandbyWaitDefault = 2 * time.Second
)

// The results of a rewarm, as lethe_rewarm_total counts them. One entry may
// count several times, the last time with how it ended.
const (
	resultStored    = "stored"
	resultPresent   = "present"   // a reader was faster
	resultKept      = "kept"      // the value reflects the change already
	resultNoRow     = "no_row"    // there is no such row any more
	resultOversize  = "oversize"  // the value exceeds the class's limit
	resultMerged    = "merged"    // it was to be filled again already
	resultCancelled = "cancelled" // a newer invalidation overtook the load
	resultAbsent    = "absent"    // if: present, and it was not there
	resultCold      = "cold"      // if: hot, and it is not
	resultAuto      = "auto"      // action auto left it to readers
	resultDropped   = "dropped"   // the queue was full: the oldest goes
	resultBounded   = "bounded"   // a purge reached more than it fills again
	resultGivenUp   = "given_up"  // tried too often
	resultStopped   = "stopped"   // the process was about to end
)

// How often, and for how long, one entry is tried.
const (
	triesMost    = 10
	retryFirst   = 10 * time.Millisecond
	retryMost    = time.Second
	behindMost   = 100 * time.Millisecond
	leasedMost   = 30 * time.Second
	dropLogEvery = 10 * time.Second
)

// Hot tells which entries are read most. It must be fast and not block; it is
// asked by several goroutines.
type Hot interface {
	// Hot reports whether the entry of that full name is among them; of one
	// that nobody has reported it is false.
	Hot(class, name string) bool
}

// QueueConfig are the settings of a Queue. Warmer must be set.
type QueueConfig struct {
	// Warmer fills the entries. One Warmer has one Queue at most.
	Warmer *Warmer
	// Limit is how many entries may wait (QueueLimitDefault). The oldest is
	// dropped for one more: it stays forgotten until somebody reads it.
	Limit int
	// Hot answers for rules with if: hot; nil says that nothing is.
	Hot Hot
	// StandbyWait is how long an entry waits for a standby to replay what has
	// invalidated it, before it is read from the primary (StandbyWaitDefault).
	StandbyWait time.Duration
	Logger      *slog.Logger
}

// Queue fills entries again that were invalidated. It implements
// invalidator.Rewarmer: what it is asked for waits in memory, once for each
// entry whatever happens to it meanwhile, classes in turn; Run does the work.
//
// It can not store an old value. What it stores goes by the ticket that was
// taken before the load, and each invalidation, this one or a newer, kills that:
// a load that one overtakes is refused, and the entry is loaded again. Neither
// does anything wait for it: what is lost with the process, dropped or given up
// is a miss.
type Queue struct {
	cfg    QueueConfig
	w      *Warmer
	auto   *chooser
	wake   chan struct{}
	flying sync.WaitGroup

	mu struct {
		sync.Mutex
		items   map[string]*item
		order   *list.List // of items that wait, the oldest first
		ready   map[string][]*item
		gone    int      // items in ready that are to be passed over
		classes []string // those with items in ready, in turn
		delayed delayed
		running int // batches
		stopped bool
		dropped int
		logged  time.Time
	}
}

// item is one entry that is to be filled again.
type item struct {
	name, class string
	x           change.Position
	// since is when it was asked for; due when it may be loaded.
	since, due time.Time
	tries      int
	state      itemState
	// again: it was invalidated while it was loaded, and is to be loaded once
	// more, after a delay.
	again bool
	delay time.Duration
	// primary: the standby is not to be asked any more.
	primary bool

	place *list.Element
	index int // in delayed
}

type itemState byte

const (
	itemReady itemState = iota
	itemDelayed
	itemFlying
	itemGone
)

// NewQueue makes a Queue.
func NewQueue(cfg QueueConfig) (*Queue, error) {
	if cfg.Warmer == nil {
		return nil, errors.New("warmer: QueueConfig.Warmer is nil")
	}
	if cfg.Limit <= 0 {
		cfg.Limit = QueueLimitDefault
	}
	if cfg.StandbyWait <= 0 {
		cfg.StandbyWait = StandbyWaitDefault
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	q := &Queue{cfg: cfg, w: cfg.Warmer, auto: newChooser(), wake: make(chan struct{}, 1)}
	q.mu.items, q.mu.order, q.mu.ready = map[string]*item{}, list.New(), map[string][]*item{}
	return q, nil
}

// Chosen implements invalidator.Rewarmer.
func (q *Queue) Chosen(class *rules.Class) bool { return q.auto.chosen(class.Name) }

// Left implements invalidator.Rewarmer.
func (q *Queue) Left(class *rules.Class, n int) { q.count(class.Name, resultBounded, n) }

func (q *Queue) count(class, result string, n int) {
	q.w.cfg.Metrics.rewarms.WithLabelValues(class, result).Add(float64(n))
}

// Rewarm implements invalidator.Rewarmer. It never blocks.
func (q *Queue) Rewarm(asked []invalidator.Rewarm) {
	now := time.Now()
	for i := range asked {
		r := &asked[i]
		if r.Auto && !q.pays(r) {
			q.count(r.Class.Name, resultAuto, 1)
			continue
		}
		hot := r.If != rules.IfHot || q.cfg.Hot != nil && q.cfg.Hot.Hot(r.Class.Name, r.Name)
		q.mu.Lock()
		result := q.add(r, hot, now)
		q.mu.Unlock()
		if result != "" {
			q.count(r.Class.Name, result, 1)
		}
	}
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// pays asks the odds of a rule with action auto.
func (q *Queue) pays(r *invalidator.Rewarm) bool {
	rewarm, changed := q.auto.invalidated(r.Class.Name, r.Name, r.Outcome != coherence.OutcomeAbsent)
	if changed != "" {
		q.cfg.Logger.Info("action auto has chosen anew", "class", r.Class.Name, "choice", changed)
	}
	return rewarm
}

// add takes one entry, unless it need not be filled again, which is returned.
func (q *Queue) add(r *invalidator.Rewarm, hot bool, now time.Time) (result string) {
	it := q.mu.items[r.Name]
	switch {
	case q.mu.stopped:
		return resultStopped
	case it != nil:
		// What waits will be loaded after this invalidation too; what is being
		// loaded may have read before it. Its window is the one that began.
		it.x = it.x.Max(r.X)
		if it.state == itemFlying {
			it.again, it.delay = true, r.Delay
		}
		return resultMerged
	case r.Outcome == coherence.OutcomeKept:
		return resultKept
	case r.If == rules.IfPresent && r.Outcome == coherence.OutcomeAbsent:
		return resultAbsent
	case !hot:
		return resultCold
	}
	it = &item{name: r.Name, class: r.Class.Name, x: r.X, since: now.Add(r.Delay), due: now.Add(r.Delay), index: -1}
	q.mu.items[it.name] = it
	q.put(it, now)
	if len(q.mu.items) > q.cfg.Limit {
		q.drop(now)
	}
	return ""
}

// put lets an item wait until it is due.
func (q *Queue) put(it *item, now time.Time) {
	if it.place == nil {
		it.place = q.mu.order.PushBack(it)
	}
	if it.due.After(now) {
		it.state = itemDelayed
		heap.Push(&q.mu.delayed, it)
		return
	}
	it.state = itemReady
	line := q.mu.ready[it.class]
	if len(line) == 0 {
		q.mu.classes = append(q.mu.classes, it.class)
	}
	q.mu.ready[it.class] = append(line, it)
}

// drop forgets the oldest item that waits.
func (q *Queue) drop(now time.Time) {
	front := q.mu.order.Front()
	if front == nil {
		return
	}
	it := front.Value.(*item)
	if it.state == itemDelayed {
		heap.Remove(&q.mu.delayed, it.index)
	} else {
		q.mu.gone++
	}
	q.forget(it, resultDropped)
	if q.mu.gone > q.cfg.Limit {
		q.sweep()
	}
	q.mu.dropped++
	if now.Sub(q.mu.logged) >= dropLogEvery {
		q.cfg.Logger.Warn("more entries are to be filled again than the queue holds; the oldest are left to readers",
			"limit", q.cfg.Limit, "dropped", q.mu.dropped)
		q.mu.dropped, q.mu.logged = 0, now
	}
}

// sweep takes what was dropped out of the lines: while no load comes back, none
// passes it over.
func (q *Queue) sweep() {
	q.mu.classes = slices.DeleteFunc(q.mu.classes, func(class string) bool {
		line := slices.DeleteFunc(q.mu.ready[class], func(it *item) bool { return it.state == itemGone })
		if q.mu.ready[class] = line; len(line) == 0 {
			delete(q.mu.ready, class)
		}
		return len(line) == 0
	})
	q.mu.gone = 0
}

// forget takes an item off the queue. One that stands in a line is passed over
// when its turn comes.
func (q *Queue) forget(it *item, result string) {
	it.state = itemGone
	if it.place != nil {
		q.mu.order.Remove(it.place)
		it.place = nil
	}
	delete(q.mu.items, it.name)
	q.count(it.class, result, 1)
}

// Run fills entries until ctx ends, and returns when its loads are over, which
// end with ctx. What waits then is abandoned: it is a miss for who reads it.
func (q *Queue) Run(ctx context.Context) error {
	defer q.stop()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		next := q.start(ctx)
		timer.Reset(next)
		select {
		case <-ctx.Done():
			return nil
		case <-q.wake:
		case <-timer.C:
		}
	}
}

func (q *Queue) stop() {
	q.mu.Lock()
	q.mu.stopped = true
	q.mu.Unlock()
	q.flying.Wait()
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, it := range q.mu.items {
		q.forget(it, resultStopped)
	}
	q.mu.ready, q.mu.classes, q.mu.delayed = nil, nil, nil
	q.gauge()
}

// start sets as many loads going as may be, and returns when to look again.
func (q *Queue) start(ctx context.Context) time.Duration {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	for len(q.mu.delayed) > 0 && !q.mu.delayed[0].due.After(now) {
		q.put(heap.Pop(&q.mu.delayed).(*item), now)
	}
	for q.mu.running < q.w.cfg.Loader.cfg.Concurrency && ctx.Err() == nil {
		batch := q.take(now)
		if len(batch) == 0 {
			break
		}
		q.mu.running++
		q.flying.Go(func() { q.fly(ctx, batch) })
	}
	q.gauge()
	if len(q.mu.delayed) > 0 {
		return max(q.mu.delayed[0].due.Sub(now), 0)
	}
	return time.Hour
}

func (q *Queue) gauge() {
	loading := len(q.mu.items) - q.mu.order.Len()
	q.w.cfg.Metrics.queued.WithLabelValues("waiting").Set(float64(q.mu.order.Len()))
	q.w.cfg.Metrics.queued.WithLabelValues("loading").Set(float64(loading))
	q.auto.measured(q.w.cfg.Metrics)
}

// take is the next batch: of the class whose turn it is, in the order in which
// they were asked for, all from one server.
func (q *Queue) take(now time.Time) []*item {
	for len(q.mu.classes) > 0 {
		class := q.mu.classes[0]
		q.mu.classes = q.mu.classes[1:]
		line := q.mu.ready[class]
		var batch, rest []*item
		for i, it := range line {
			if len(batch) == q.w.cfg.Loader.cfg.Batch {
				if rest == nil {
					rest = line[i:]
				} else {
					rest = append(rest, line[i:]...)
				}
				break
			}
			if it.state != itemReady {
				q.mu.gone--
				continue
			}
			if !it.primary && now.Sub(it.since) >= q.cfg.StandbyWait && q.w.cfg.Loader.HasStandby() {
				it.primary, it.tries = true, 0
			}
			if len(batch) > 0 && it.primary != batch[0].primary {
				rest = append(rest, it)
				continue
			}
			it.state, it.again = itemFlying, false
			q.mu.order.Remove(it.place)
			it.place = nil
			batch = append(batch, it)
		}
		if len(rest) > 0 {
			q.mu.ready[class] = rest
			q.mu.classes = append(q.mu.classes, class)
		} else {
			delete(q.mu.ready, class)
		}
		if len(batch) > 0 {
			return batch
		}
	}
	return nil
}

// fly loads a batch.
func (q *Queue) fly(ctx context.Context, batch []*item) {
	class := batch[0].class
	names, after := make([]string, len(batch)), make([]change.Position, len(batch))
	q.mu.Lock()
	for i, it := range batch {
		names[i], after[i] = it.name, it.x
	}
	q.mu.Unlock()
	fates, err := q.fill(ctx, class, names, after, q.w.cfg.Loader.HasStandby() && !batch[0].primary)
	now := time.Now()
	q.mu.Lock()
	q.mu.running--
	for i, it := range batch {
		if err != nil {
			q.failed(it, err, now)
		} else {
			q.ended(it, fates[i], now)
		}
	}
	q.gauge()
	q.mu.Unlock()
	if err != nil && ctx.Err() == nil {
		q.cfg.Logger.WarnContext(ctx, "entries can not be filled again yet", "class", class, "entries", len(batch), "error", err)
	}
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *Queue) fill(ctx context.Context, class string, names []string, after []change.Position, standby bool) ([]fate, error) {
	set := q.w.cfg.Rules().Set()
	c := set.Class(class)
	if c == nil || !q.w.cfg.Loader.Loads(c) {
		return nil, errGone
	}
	if f, _ := q.w.cfg.Loader.external(c); f != nil {
		standby = false // the application reads the primary
	}
	_, fates, err := q.w.fill(ctx, class, names, how{
		Options: Options{IfAbsent: true, Priority: PriorityRewarm}, standby: standby, after: after, leases: true,
		observe: func(rows int, took time.Duration) { q.auto.cost(class, rows, took) },
	})
	if err != nil {
		return nil, fmt.Errorf("fill entry %q: %w", class, err)
	}
	if err := q.w.prefetch(ctx, set, c, names, Options{Priority: PriorityRewarm}); err != nil && ctx.Err() == nil {
		q.cfg.Logger.WarnContext(ctx, "what is related to filled entries can not be filled", "class", class, "error", err)
	}
	return fates, nil
}

// failed is the end of a load that told nothing.
func (q *Queue) failed(it *item, err error, now time.Time) {
	it.tries++
	switch {
	case q.mu.stopped:
		q.forget(it, resultStopped)
	case errors.Is(err, errGone) || it.tries > triesMost || incurable(err):
		q.forget(it, resultGivenUp)
	default:
		it.primary = it.primary || errors.Is(err, errStandby)
		q.retry(it, retryFirst, retryMost, now)
	}
}

// ended is the end of a load.
func (q *Queue) ended(it *item, f fate, now time.Time) {
	switch f.kind {
	case fateStored, fatePresent, fateNoRow, fateOversize:
		result := [...]string{resultStored, resultPresent, resultNoRow, resultOversize}[f.kind]
		if !it.again || q.mu.stopped {
			q.forget(it, result)
			return
		}
		// Invalidated since: whether before the load or after it nobody knows.
		q.count(it.class, result, 1)
		it.tries, it.primary, it.since = 0, false, now.Add(it.delay)
		it.due = now.Add(it.delay)
		q.put(it, now)
	case fateLeased:
		if now.Sub(it.since) > leasedMost {
			q.forget(it, resultGivenUp)
			return
		}
		it.due = now.Add(f.wait)
		q.put(it, now)
	case fateBehind:
		it.tries++
		q.retry(it, retryFirst/2, behindMost, now)
	case fateRefused, fateCancelled:
		it.tries++
		if f.kind == fateCancelled {
			q.count(it.class, resultCancelled, 1)
		}
		// A storm of invalidations refuses every load: they are tried less and
		// less often, and as long as it lasts.
		// While there is a standby to wait for, that wait is the bound.
		waits := !it.primary && q.w.cfg.Loader.HasStandby()
		if it.tries > triesMost && !it.again && !waits {
			q.forget(it, resultGivenUp)
			return
		}
		q.retry(it, retryFirst, retryMost, now)
	}
}

func (q *Queue) retry(it *item, first, most time.Duration, now time.Time) {
	it.due = now.Add(min(first<<min(it.tries-1, 16), most))
	q.put(it, now)
}

// delayed is a heap of items by the time at which they are due.
type delayed []*item

func (d delayed) Len() int           { return len(d) }
func (d delayed) Less(i, j int) bool { return d[i].due.Before(d[j].due) }
func (d delayed) Swap(i, j int) {
	d[i], d[j] = d[j], d[i]
	d[i].index, d[j].index = i, j
}

func (d *delayed) Push(x any) {
	it := x.(*item)
	it.index = len(*d)
	*d = append(*d, it)
}

func (d *delayed) Pop() any {
	old := *d
	it := old[len(old)-1]
	old[len(old)-1] = nil
	*d, it.index = old[:len(old)-1], -1
	return it
}

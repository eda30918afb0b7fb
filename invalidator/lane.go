package invalidator

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/depgraph"
	"github.com/lethe-cache/lethe/rules"
	"github.com/lethe-cache/lethe/stream"
)

// lane is one partition's work: what one call of Work holds. Its fields belong
// to the goroutine of Work, but for led, owed, past, written and noted, which the
// maintainer, a redo and the sweeps of the lane also use.
type lane struct {
	w *Worker
	p stream.Partition
	// field is the partition's number in the watermarks; see watermarkField.
	field int

	// by is this lane's name, in what Redis tells of its partition's rules.
	by string

	rules   *Rules
	follows followed
	noted   noted
	matcher *rules.Matcher
	walker  *depgraph.Walker
	handles *handles

	looked  lookups
	targets rules.Targets
	ends    []changeEnd
	timed   []*change.Change // those that targets.Timed come from, one each
	keys    *coalescer
	rewarms rewarms
	names   []string
	batch   batch

	led  *ledger
	owed owed
	past atomic.Pointer[history]
	// sweeps are the goroutines that the lane has started; ctx is theirs.
	sweeps sync.WaitGroup
	ctx    context.Context

	// windows are those that are open, held what they hold up.
	windows []*window
	held    heldUp

	// suspect says that Redis held something of ours and no source record: all
	// is to be raised once the source is known.
	suspect bool
	// applied says that Redis knows a watermark of the partition: somebody has
	// worked on it before.
	applied bool
	// floor is the watermark: what lies below it was applied.
	floor change.Position
	// written is floor for other goroutines.
	written vmax
	// expected is what every master is known to hold: a master that holds
	// less has lost it. Zero after a redo, until the next watermark.
	expected vmax
	// marking is held while a watermark is written, and to hold it back: one
	// that is on its way must not pass the walk of a redo.
	marking sync.Mutex
}

// changeEnd says which targets a change brought: those from the end of the
// change before to its own.
type changeEnd struct {
	end    int
	commit time.Time
	table  *change.Table
	op     change.Op
}

// batch is what one Fetch returned, beside the targets.
type batch struct {
	offset int64
	v      change.Position
	// mark is v as far as it may become the watermark: a record that was
	// written under a map with more partitions than are known here counts
	// what stands in partitions that nobody may look at yet.
	mark    change.Position
	marked  bool // it is the watermark already
	changes int
	raises  []coherence.RaiseRequest
	dead    []stream.DeadLetter
	// telling says that somebody beyond Redis wants to know what is forgotten;
	// forgot has that of changes below the watermark, then all.
	telling bool
	forgot  gathering
	// reads are the rules whose tables are to be read for schedules; see timed.go.
	reads reads
}

// watermarkField numbers a partition of a map of that size: a switch between
// the transports must not take the watermark of one for the other's.
func watermarkField(id, count int) int { return count*coherence.PartitionStep + id }

func newLane(w *Worker, p stream.Partition) *lane {
	return &lane{
		w: w, p: p, field: watermarkField(p.ID(), p.Count()), by: w.uniqueCause("lane"),
		handles: newHandles(w.metrics), keys: newCoalescer(), led: newLedger(),
	}
}

// work is the life of a lane. ctx ends the intake, actx abandons.
func (l *lane) work(ctx, actx context.Context) error {
	defer l.sweeps.Wait()
	// What still sweeps when an error ends the lane is delivered again, and
	// what prunes is left to the next purge: the end waits for neither.
	var over context.CancelFunc
	l.ctx, over = context.WithCancel(actx)
	defer over()
	// Before it starts: a node that is lost while it reads the watermarks must
	// not be redone without it.
	l.w.add(l)
	defer l.w.remove(l)
	defer l.dropWindows()
	if err := l.start(actx); err != nil {
		return fmt.Errorf("start: %w", err)
	}
	for ctx.Err() == nil {
		deliveries, err := l.fetch(ctx)
		if err == nil {
			err = l.apply(actx, deliveries)
		}
		if err == nil {
			err = l.endWindows(actx, false)
		}
		if err == nil {
			err = l.settle(actx)
		}
		if errors.Is(err, stream.ErrClosed) {
			// The end of the log: what it held is finished, as at a drain.
			if undone := l.drain(actx); undone != nil {
				return undone
			}
			return err
		}
		if err != nil && ctx.Err() == nil {
			return err
		}
		if actx.Err() != nil {
			return context.Cause(actx)
		}
	}
	return l.drain(actx)
}

// fetch waits for deliveries. It returns none when a window is due, or a sweep
// has ended meanwhile, so that the watermark and the offset that waited for it move even
// when the stream is silent.
func (l *lane) fetch(ctx context.Context) ([]stream.Delivery, error) {
	fctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if l.led.unsettled() > 0 || l.owed.waiting() > 0 {
		// An interrupted Fetch has taken nothing: what is there is returned.
		interrupted := make(chan struct{})
		stop := make(chan struct{})
		var window <-chan time.Time
		if due, ok := l.nextWindow(); ok {
			timer := time.NewTimer(time.Until(due))
			defer timer.Stop()
			window = timer.C
		}
		defer func() { close(stop); <-interrupted }()
		go func() {
			defer close(interrupted)
			select {
			case <-l.led.wake:
				cancel()
			case <-window:
				cancel()
			case <-stop:
			}
		}()
	}
	deliveries, err := l.p.Fetch(fctx, l.w.cfg.BatchMax)
	if err != nil && ctx.Err() == nil && fctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("fetch: %w", err)
	}
	return deliveries, nil
}

// drain waits for the sweeps and walks of what was applied, and acknowledges.
// Windows end at once: whoever stops does not wait for changes that may come.
func (l *lane) drain(actx context.Context) error {
	if err := l.endWindows(actx, true); err != nil {
		return err
	}
	for {
		if err := l.settle(actx); err != nil {
			return err
		}
		if l.led.unsettled() == 0 && l.owed.waiting() == 0 {
			return nil
		}
		select {
		case <-l.led.wake:
		case <-actx.Done():
			return context.Cause(actx)
		}
	}
}

// settle writes the watermark of the batches that are done with all their
// effects, on every master, and only then acknowledges them. It makes the lane
// wait when too many batches are not done.
func (l *lane) settle(ctx context.Context) error {
	for {
		if last, ok := l.led.settled(); ok {
			held, err := l.mark(ctx, last)
			if err != nil {
				return err
			}
			if held {
				l.led.unsettle(last)
			}
		}
		if err := l.acknowledgeTold(ctx); err != nil {
			return err
		}
		if l.led.unsettled() < l.w.cfg.UnsettledMax {
			return nil
		}
		if err := l.endWindows(ctx, true); err != nil { // the stream does not wait for them
			return err
		}
		select {
		case <-l.led.wake:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// mark writes one watermark and acknowledges. held says that it must wait for
// a walk that began meanwhile.
func (l *lane) mark(ctx context.Context, last mark) (held bool, err error) {
	l.w.hook("watermark")
	// Never lower than before, but written although it has not moved: a
	// master that lost it must get it back.
	v := last.v.Max(l.floor)
	if !last.marked || l.expected.load().Less(v) { // written with the broadcast, and not lost since
		err = l.w.retry(ctx, "write watermarks", func(ctx context.Context) (err error) {
			held, err = l.write(v, func(before change.Position) (bool, error) {
				err := l.w.store.WriteWatermarks(ctx, l.field, v, before)
				return err == nil, err
			})
			return err
		})
	}
	if err != nil || held {
		return held, err
	}
	l.floor = v
	l.written.raise(v)
	if err := l.acknowledge(ctx, last); err != nil {
		return false, err
	}
	return false, nil
}

// write lets f write v as the watermark, which says whether it stands then. It
// does nothing while a walk holds the watermark back.
func (l *lane) write(v change.Position, f func(before change.Position) (stands bool, err error)) (held bool, err error) {
	l.marking.Lock()
	if l.led.held() {
		l.marking.Unlock()
		return true, nil
	}
	before := l.expected.load()
	stands, err := f(before)
	if stands {
		l.expected.raise(v)
	}
	l.marking.Unlock() // a redo takes it, and has what wentBack takes
	var lost *coherence.NodeLostError
	if errors.As(err, &lost) && lost.Cause == causeWatermark {
		l.w.wentBack(l, before, lost)
	}
	return false, err
}

// refresh takes the rules in force. Rules are immutable, so a change of the
// pointer is a change of the rules.
func (l *lane) refresh() {
	current := l.w.cfg.Rules()
	if current == l.rules {
		return
	}
	l.rules = current
	l.matcher = current.Plan.NewMatcher(l.w.metrics.ruleObserver())
	l.matcher.UseLookups(&l.looked)
	l.walker = current.Graph.NewWalker(current.Limits)
	l.walker.ConditionUnknown = l.w.metrics.edgeObserver()
}

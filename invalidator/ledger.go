package invalidator

import (
	"slices"
	"sync"

	"github.com/lethe-cache/lethe/change"
)

// mark is the end of one batch: what may be written as the watermark, and
// acknowledged, once the batch and all before it are done.
type mark struct {
	offset int64
	v      change.Position
	// marked says that v is the watermark already.
	marked bool
	// tasks are the batch's sweeps and walks that still run.
	tasks int
	// forgot is for Beyond; it belongs to the lane's goroutine.
	forgot gathering
}

// ledger keeps the batches of one partition in their order. Keys are applied
// at once, but a sweep of a large tag or a walk may take seconds; the stream
// goes on meanwhile and only the watermark and the offset wait, because w must
// not pass an effect that is not there yet (PROTOCOL, w).
//
// It is safe for concurrent use: tasks end in goroutines of their own.
type ledger struct {
	mu   sync.Mutex
	open []*mark
	// holds are walks that no batch asked for and every batch waits for.
	holds int
	// wake receives when a task has ended, or batches may be acknowledged.
	wake chan struct{}
}

func newLedger() *ledger { return &ledger{wake: make(chan struct{}, 1)} }

// begin appends a batch with that many tasks.
func (l *ledger) begin(offset int64, v change.Position, marked bool, tasks int) *mark {
	m := &mark{offset: offset, v: v, marked: marked, tasks: tasks}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open = append(l.open, m)
	return m
}

// follow adds a batch that waits for nothing but those before it, of which there
// is one at least.
func (l *ledger) follow(offset int64, v change.Position) *mark {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := l.open[len(l.open)-1]
	m.offset, m.v, m.marked = offset, m.v.Max(v), false
	return m
}

// done says that one task of the batch has ended.
func (l *ledger) done(m *mark) {
	l.mu.Lock()
	m.tasks--
	l.mu.Unlock()
	l.poke()
}

// poke wakes who waits.
func (l *ledger) poke() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// hold keeps everything unsettled until release.
func (l *ledger) hold() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.holds++
}

func (l *ledger) release() {
	l.mu.Lock()
	l.holds--
	l.mu.Unlock()
	l.poke()
}

// held reports whether everything waits.
func (l *ledger) held() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.holds > 0
}

// unsettle gives back what settled took.
func (l *ledger) unsettle(last mark) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open = slices.Insert(l.open, 0, &last)
}

// settled takes the finished batches from the front and returns the last of
// them; ok is false if the first batch is not finished.
func (l *ledger) settled() (last mark, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.holds > 0 {
		return mark{}, false
	}
	n := 0
	for n < len(l.open) && l.open[n].tasks == 0 {
		// The greatest V: a reader that starts again repeats lower ones.
		forgot := last.forgot
		forgot.merge(&l.open[n].forgot)
		last = mark{offset: l.open[n].offset, v: last.v.Max(l.open[n].v), marked: n == 0 && l.open[n].marked, forgot: forgot}
		n++
	}
	if n == 0 {
		return mark{}, false
	}
	l.open = append(l.open[:0], l.open[n:]...)
	return last, true
}

// unsettled returns how many batches wait.
func (l *ledger) unsettled() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.open)
}

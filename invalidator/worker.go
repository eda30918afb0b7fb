package invalidator

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/stream"
)

// Errors that Work's context ends with, as causes.
var (
	// ErrHurry: Hurry was called; what was in hand is delivered again.
	ErrHurry = errors.New("worker told to hurry")
	// ErrDrainTimeout: what was fetched could not be finished within
	// Config.DrainTimeout of the end of Work's context.
	ErrDrainTimeout = errors.New("drain timed out")
)

// Worker applies the log to Redis. One Worker serves all partitions of a
// process: Work is called once for each, concurrently.
type Worker struct {
	cfg     Config
	store   *coherence.Store
	log     *slog.Logger
	metrics *Metrics
	// nonce makes causes unique to this process, for raises that must happen
	// again if they become due again.
	nonce  string
	serial atomic.Uint64

	hurry     context.Context
	hurryFunc context.CancelCauseFunc

	sources sources
	nodes   nodes
	walks   walks

	// sweeps bounds the sweeps and walks that run at a time.
	sweeps chan struct{}

	mu    sync.Mutex
	lanes map[*lane]struct{}
	// run is the life of the maintainer and the walks: from the first Work
	// that begins to the last that ends.
	run *run

	// hook is called between any two steps, by name; tests die in it.
	hook func(step string)
}

// run is one span of time in which at least one partition is worked on.
type run struct {
	ctx     context.Context
	cancel  context.CancelFunc
	wait    sync.WaitGroup
	workers int // calls of Work that are in it
}

// New makes a Worker. The error lists everything that is wrong with cfg.
func New(cfg Config) (*Worker, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	var random [8]byte
	_, _ = rand.Read(random[:]) // never fails, by its documentation
	w := &Worker{
		cfg: cfg, store: cfg.Store, log: cfg.Logger, metrics: cfg.Metrics,
		nonce:  hex.EncodeToString(random[:]),
		sweeps: make(chan struct{}, cfg.Sweeps),
		lanes:  map[*lane]struct{}{},
		hook:   func(string) {},
	}
	w.hurry, w.hurryFunc = context.WithCancelCause(context.Background())
	w.sources.kick = make(chan struct{}, 1)
	w.walks.running = map[string]*walk{}
	return w, nil
}

// Hurry abandons everything at once: each Work returns without finishing what
// it fetched, which is delivered again. It is what a second signal does; it
// does not wait, and the Worker is of no use afterwards.
func (w *Worker) Hurry() { w.hurryFunc(ErrHurry) }

// Work applies one partition until ctx ends, then finishes what it has fetched
// (for at most Config.DrainTimeout), acknowledges it and returns nil. It is
// what stream.Consumer.Run calls. Redis or the database being down is not an
// error: it retries, and the partition's offset stands still meanwhile.
//
// An error is one that a retry does not cure: the log could not be read, or
// speaks for a deposed primary (coherence.ErrOlderSource). stream.ErrClosed says
// that the log has ended and everything in it is done.
func (w *Worker) Work(ctx context.Context, p stream.Partition) error {
	actx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	defer context.AfterFunc(w.hurry, func() { cancel(ErrHurry) })()
	defer w.drainTimer(ctx, cancel)()

	r := w.enter()
	defer w.leave(r)
	l := newLane(w, p)
	err := l.work(ctx, actx)
	if errors.Is(err, stream.ErrClosed) {
		// The log has ended, and all of it is done. Nobody needs to be told
		// who was told to stop anyway.
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("work on partition %d: %w", p.ID(), err)
	}
	if err != nil && ctx.Err() != nil {
		w.log.WarnContext(ctx, "partition left unfinished, it will be delivered again", "partition", p.ID(), "error", err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("work on partition %d: %w", p.ID(), err)
	}
	return nil
}

// drainTimer cancels DrainTimeout after the end of ctx; its result stops it.
func (w *Worker) drainTimer(ctx context.Context, cancel context.CancelCauseFunc) (stop func()) {
	done := make(chan struct{})
	var wait sync.WaitGroup
	wait.Add(1)
	stopAfter := context.AfterFunc(ctx, func() {
		defer wait.Done()
		tctx, tcancel := context.WithTimeout(context.WithoutCancel(ctx), w.cfg.DrainTimeout)
		defer tcancel()
		select {
		case <-done:
		case <-tctx.Done():
			cancel(ErrDrainTimeout)
		}
	})
	return func() {
		close(done)
		if stopAfter() {
			wait.Done() // it will not run
		}
		wait.Wait()
	}
}

// enter begins a run if there is none, and counts a partition in.
func (w *Worker) enter() *run {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.run == nil {
		r := &run{}
		r.ctx, r.cancel = context.WithCancel(w.hurry)
		r.wait.Add(1)
		go func() {
			defer r.wait.Done()
			w.maintain(r.ctx)
		}()
		w.run = r
	}
	w.run.workers++
	return w.run
}

// leave ends the run with its last partition, and waits for what it started.
func (w *Worker) leave(r *run) {
	w.mu.Lock()
	r.workers--
	last := r.workers == 0
	if last {
		w.run = nil
	}
	w.mu.Unlock()
	if last {
		r.cancel()
		r.wait.Wait()
	}
}

// add and remove keep the lanes that a redo asks for what they have applied.
func (w *Worker) add(l *lane) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lanes[l] = struct{}{}
}

func (w *Worker) remove(l *lane) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.lanes, l)
}

func (w *Worker) eachLane() []*lane {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := make([]*lane, 0, len(w.lanes))
	for l := range w.lanes {
		all = append(all, l)
	}
	return all
}

// uniqueCause is a cause that no other raise has.
func (w *Worker) uniqueCause(what string) string {
	return fmt.Sprintf("%s:%s:%d", what, w.nonce, w.serial.Add(1))
}

// insertPosition reads where the primary writes now.
func (w *Worker) insertPosition(ctx context.Context) (change.Position, error) {
	before := w.sources.load()
	lsn, err := w.cfg.InsertLSN(ctx)
	if err != nil {
		return change.Position{}, fmt.Errorf("read the insert LSN of the primary: %w", err)
	}
	if now := w.sources.load(); now != before {
		// It may be the old primary's, and lie below what the new one wrote.
		return change.Position{}, fmt.Errorf("read the insert LSN of the primary: era %d became %d meanwhile", before.Era, now.Era)
	}
	return change.Position{Era: before.Era, LSN: lsn}, nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lethe-cache/lethe/cdc"
	"github.com/lethe-cache/lethe/cdc/foreign"
	"github.com/lethe-cache/lethe/cdc/source"
	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/edge"
	"github.com/lethe-cache/lethe/invalidator"
	"github.com/lethe-cache/lethe/lookup"
	"github.com/lethe-cache/lethe/rules"
	"github.com/lethe-cache/lethe/stream"
)

// drainTimeout bounds how long a stopping pipeline goes on to apply what it
// has taken from the database. What is left then is delivered again at the
// next start.
const drainTimeout = 10 * time.Second

// pipeline is the rooms of one process, wired: reader, log and worker, or
// either end of the log alone.
type pipeline struct {
	settings *settings
	roles    roles
	log      *slog.Logger
	registry *prometheus.Registry
	// observer is told of what the worker does. Optional.
	observer invalidator.Observer
	// redisRunID replaces INFO server where the server has none. Optional.
	redisRunID func(ctx context.Context, addr string) (string, error)

	// rules are those in force; asked asks to read their files again; seen is
	// the fingerprint that these had before they were read at the start.
	rules   atomic.Pointer[ruleset]
	asked   <-chan struct{}
	seen    uint64
	reloads *reloads
	edges   *edges
	metrics *metrics
	// terminal shows progress to a person; nil if there is none.
	terminal *terminal

	// What has been brought up so far; readiness looks at it from the HTTP
	// server's goroutines.
	mu    sync.Mutex
	stage string
	up    parts
	// raised says that the raises of the start are done; appended, that they
	// stand in the log up to batch raisesBelow; followed, that the consumer has
	// been asked to say when it has reached them.
	raised, appended, followed bool
	raisesBelow                uint64
}

// roles of `lethe run`.
type roles struct{ reader, worker bool }

// parts are what a pipeline runs.
type parts struct {
	database *database
	store    *coherence.Store
	writer   stream.Writer
	consumer stream.Consumer
	reader   *cdc.Reader
	worker   *invalidator.Worker
	// lookups are the worker's, on connections of their own: the log waits for
	// them, and they must not wait for anything else.
	lookups *lookup.Runner
	// deadLetters are the database's in direct, a topic's in kafka.
	deadLetters stream.DeadLetters
	warm        *warming
	// schedulable says that this role may use lethe.schedules; see schedules.go.
	schedulable bool
	// edge tells edge caches what was forgotten.
	edge *edge.Sink
	// services run beside the worker.
	services []service
}

func newPipeline(s *settings, r roles, set *rules.Set, log *slog.Logger, registry *prometheus.Registry) (*pipeline, error) {
	first, err := newRuleset(set, nil)
	if err != nil {
		return nil, err
	}
	p := &pipeline{
		settings: s, roles: r, log: log, registry: registry,
		metrics: newMetrics(registry), reloads: newReloads(registry), edges: newEdges(registry), stage: "starting",
	}
	p.rules.Store(first)
	return p, nil
}

// namespace is that of the rules, which no reload changes.
func (p *pipeline) namespace() string { return p.rules.Load().set.Namespace }

// run brings everything up and runs it until graceful ends (intake stops, what
// was taken is applied), hurry ends (everything is left as it is), or something
// fails that a retry can not cure.
func (p *pipeline) run(graceful, hurry context.Context) (err error) {
	defer func() { err = errors.Join(err, p.close()) }()
	if err := p.prepare(graceful); err != nil {
		if graceful.Err() != nil {
			return nil // asked to stop before it was up
		}
		return err
	}
	return p.stream(graceful, hurry)
}

// stream runs reader, services and worker and stops them in this order: intake
// and services, log, worker. Each is awaited before the next is stopped, so
// that nothing that was taken is lost on the way and nothing is acknowledged
// that was not applied.
func (p *pipeline) stream(graceful, hurry context.Context) error {
	intake, stopIntake := context.WithCancel(graceful)
	defer stopIntake()
	work, stopWork := context.WithCancel(hurry)
	defer stopWork()
	if p.up.worker != nil {
		defer context.AfterFunc(hurry, p.up.worker.Hurry)()
	}

	// The worker first: in direct the log holds little, and a reader would
	// wait for it.
	workerDone := make(chan error, 1)
	go func() {
		err := p.work(work)
		stopIntake() // a reader without a worker fills the log for nobody
		workerDone <- err
	}()
	followDone := make(chan struct{})
	go func() {
		defer close(followDone)
		p.followRules(intake, p.asked)
	}()
	servicesDone := make(chan error, 1)
	go func() {
		err := serve(intake, p.up.services)
		stopIntake()
		servicesDone <- err
	}()
	readErr := p.read(intake)
	if p.up.reader == nil {
		<-intake.Done()
	}
	stopIntake()
	<-followDone
	serviceErr := <-servicesDone
	if readErr != nil {
		p.setStage("stopping: " + readErr.Error())
	} else {
		p.setStage("stopping")
	}
	flushErr := p.flush(hurry, readErr == nil)
	stopWork()
	return errors.Join(readErr, serviceErr, flushErr, <-workerDone)
}

// read runs the reader and what goes with it, until intake ends.
func (p *pipeline) read(intake context.Context) error {
	if p.up.reader == nil {
		return nil
	}
	ctx, cancel := context.WithCancel(intake)
	watchDone := make(chan struct{})
	go func() {
		defer close(watchDone)
		p.up.database.watchPublication(ctx, p.up.reader, p.settings.Slot)
	}()
	err := p.up.reader.Run(ctx)
	cancel()
	<-watchDone
	if intake.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// flush hands what the writer holds to the workers, or gives that up when the
// reader failed, time is up, or a second signal came.
func (p *pipeline) flush(hurry context.Context, wait bool) error {
	if p.up.writer == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(hurry, drainTimeout)
	defer cancel()
	if !wait {
		cancel()
	}
	err := p.up.writer.Close(ctx)
	if err != nil && ctx.Err() != nil {
		p.log.Warn("stopped before everything was applied; the rest is delivered again at the next start", "error", err)
		return nil
	}
	return err
}

func (p *pipeline) work(ctx context.Context) error {
	if p.up.consumer == nil {
		<-ctx.Done()
		return nil
	}
	consumer := p.up.consumer
	if !p.settings.direct() {
		// The topic may be Debezium's, whose records lack what our reader knows.
		consumer = foreign.New(consumer, foreign.Config{
			Conn: p.up.database.pool, Hints: p.hints, Logger: p.log,
			Tracker: source.New("foreign:"+p.settings.kafka(p.namespace(), p.log).Group, p.log),
		})
	}
	err := consumer.Run(ctx, p.up.worker.Work)
	if ctx.Err() != nil && (errors.Is(err, context.Canceled) || errors.Is(err, invalidator.ErrHurry)) {
		return nil
	}
	return err
}

// close releases what prepare has brought up, in reverse.
func (p *pipeline) close() error {
	p.mu.Lock()
	up := p.up
	p.up = parts{}
	p.mu.Unlock()
	var errs []error
	if up.writer != nil {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // flushed already, or given up
		if err := up.writer.Close(ctx); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, stream.ErrClosed) {
			errs = append(errs, fmt.Errorf("close the log: %w", err))
		}
	}
	if letters, ok := up.deadLetters.(io.Closer); ok {
		errs = append(errs, letters.Close())
	}
	up.warm.close()
	if up.store != nil {
		errs = append(errs, up.store.Close())
	}
	if up.lookups != nil {
		up.lookups.Close()
	}
	if up.database != nil {
		up.database.close()
	}
	return errors.Join(errs...)
}

func (p *pipeline) setStage(stage string) {
	p.mu.Lock()
	p.stage = stage
	p.mu.Unlock()
}

// insertLSN is what bounds and bases are made of: the primary's insert LSN.
//
// It must not answer for the wrong server. A standby and an old primary are
// errors, and the caller tries again. Another system than the one that the log
// comes from has LSNs that say nothing about it: the greatest is returned then,
// which closes standby fills of this era (too much is refused, never too
// little) until the source is known again.
func (p *pipeline) insertLSN(ctx context.Context) (change.LSN, error) {
	instance, err := p.up.database.instance(ctx)
	if err != nil {
		return 0, err
	}
	if instance.InRecovery {
		return 0, errors.New("read the insert LSN: LETHE_POSTGRES_URL names a standby")
	}
	recorded, err := p.up.store.Source(ctx)
	if err != nil && !errors.Is(err, coherence.ErrNoSource) {
		return 0, err
	}
	switch {
	case recorded.SystemID == 0:
	case recorded.SystemID != instance.SystemID:
		p.log.Warn("LETHE_POSTGRES_URL names another system than the log comes from; standby reads are not cached",
			"recorded", recorded.SystemID, "found", instance.SystemID)
		return ^change.LSN(0), nil
	case recorded.Timeline > instance.Timeline:
		return 0, fmt.Errorf("read the insert LSN: the server is on timeline %d, the log on %d: it is an old primary", instance.Timeline, recorded.Timeline)
	}
	return instance.Insert, nil
}

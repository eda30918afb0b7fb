package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/redis/go-redis/v9"
	kafkago "github.com/segmentio/kafka-go"

	"github.com/lethe-cache/lethe/cdc"
	"github.com/lethe-cache/lethe/cdc/publication"
	"github.com/lethe-cache/lethe/cdc/source"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/invalidator"
	"github.com/lethe-cache/lethe/lookup"
	"github.com/lethe-cache/lethe/migrations"
	"github.com/lethe-cache/lethe/rules"
	"github.com/lethe-cache/lethe/stream/deadletter"
	"github.com/lethe-cache/lethe/stream/direct"
	"github.com/lethe-cache/lethe/stream/kafka"
)

// prepare brings up the parts in the order in which they need each other. A
// server that does not answer is tried again until ctx ends; what a retry can
// not cure is returned at once.
func (p *pipeline) prepare(ctx context.Context) error {
	set := p.rules.Load().set
	var changes publication.Changes
	steps := []struct {
		stage string
		do    func(context.Context) error
	}{
		{"connecting to Postgres", p.prepareDatabase},
		{"bringing the publications in step", func(ctx context.Context) error {
			if !p.roles.reader {
				return nil
			}
			// A repeated attempt does not report again what an earlier one did.
			done, err := p.up.database.syncPublications(ctx, p.settings.Publication, set.Tables())
			changes.Add(done)
			return err
		}},
		{"connecting to Redis", p.prepareStore},
		{"reading the declared dependencies", p.prepareDependencies},
		{"opening the log", p.prepareLog},
	}
	for _, s := range steps {
		p.setStage(s.stage)
		if err := p.retry(ctx, s.stage, s.do); err != nil {
			return err
		}
	}
	if p.roles.worker {
		if err := p.prepareWorker(); err != nil {
			return err
		}
	}
	if p.roles.reader {
		if err := p.prepareReader(changes); err != nil {
			return err
		}
		stage := "reading the gaps of the publications"
		p.setStage(stage)
		err := p.retry(ctx, stage, func(ctx context.Context) error {
			return p.up.database.raiseDue(ctx, p.up.reader, p.settings.Slot)
		})
		if err != nil {
			return err
		}
	}
	p.setStage(stageRunning)
	return nil
}

// retry repeats a step while its error is one that time may cure.
func (p *pipeline) retry(ctx context.Context, stage string, step func(context.Context) error) error {
	policy := backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(50*time.Millisecond), backoff.WithMaxInterval(2*time.Second),
		backoff.WithMaxElapsedTime(0)) // a supervisor: it is for people to give up
	var last error
	err := backoff.RetryNotify(func() error {
		last = step(ctx)
		if last != nil && permanent(last) {
			return backoff.Permanent(last)
		}
		return last
	}, backoff.WithContext(policy, ctx), func(err error, wait time.Duration) {
		p.setStage(stage + ": " + err.Error())
		p.log.Warn("trying again", "step", stage, "error", err, "retry_in", wait.Round(time.Millisecond))
	})
	if err != nil && last != nil {
		return last
	}
	return err
}

// permanent reports whether trying again can not cure err.
func permanent(err error) bool {
	var exit *exitError
	var findings rules.Findings
	var denied *publication.DeniedError
	var unusable *publication.UnusableError
	var refused *source.RefusedError
	var config *pgconn.ParseConfigError
	switch {
	case errors.As(err, &exit), errors.As(err, &findings), errors.As(err, &denied), errors.As(err, &unusable),
		errors.As(err, &config), cdc.IsPermanent(err):
		return true
	case errors.As(err, &refused):
		return refused.Permanent()
	}
	return false
}

// prepareDatabase connects, applies pending migrations where it may, and checks
// the rules against the live schema.
func (p *pipeline) prepareDatabase(ctx context.Context) error {
	if p.up.database == nil {
		d, err := openDatabase(p.settings.PostgresURL, p.log)
		if err != nil {
			return err
		}
		p.mu.Lock()
		p.up.database = d
		p.mu.Unlock()
	}
	d := p.up.database
	if err := d.pool.Ping(ctx); err != nil {
		return cdc.Classify("connect to Postgres", err)
	}
	if p.roles.reader {
		if err := d.checkWALLevel(ctx); err != nil {
			return err
		}
	}
	return d.withConn(ctx, func(conn *pgx.Conn) error {
		result, err := migrations.Apply(ctx, conn, migrations.Options{})
		if err != nil {
			return cdc.Classify("apply migrations", err)
		}
		if len(result.Applied) > 0 {
			p.log.Info("migrations applied", "names", result.Applied)
		}
		for _, lost := range result.Degraded {
			p.log.Warn("a migration may not be applied by this role", "lost", lost)
		}
		set := p.rules.Load().set
		schema, err := readSchema(ctx, conn, set)
		if err != nil {
			return err
		}
		findings := set.Check(schema)
		for _, f := range findings.Warnings() {
			p.log.Warn("rules", "code", f.Code, "finding", f.String(), "fix", f.Fix)
		}
		if errs := findings.Errors(); len(errs) > 0 {
			return errs
		}
		if p.roles.worker {
			return p.checkSchedules(ctx, conn, set)
		}
		return nil
	})
}

func (p *pipeline) prepareStore(ctx context.Context) error {
	if !p.roles.worker {
		return nil
	}
	store, err := coherence.Dial(ctx, p.settings.RedisURL, coherence.Options{
		Namespace: p.namespace(), Logger: p.log, RunID: p.redisRunID,
	})
	if err != nil {
		return classifyRedis(err)
	}
	p.mu.Lock()
	p.up.store = store
	p.mu.Unlock()
	return nil
}

// prepareDependencies reads the table of dependencies before the first batch is
// worked on; later the log says when it has changed.
func (p *pipeline) prepareDependencies(ctx context.Context) error {
	if !p.roles.worker {
		return nil
	}
	err := p.learn(ctx, "")
	if errors.Is(err, coherence.ErrNodeLost) {
		// Redis was replaced since prepareStore. Its redo is the worker's, and there
		// is none yet: every command would be refused for ever. Nothing was written
		// through this store, so it is a start that came later: whoever connects now
		// meets the loss as one that happened while nobody ran, by what the
		// watermarks say that they were written under.
		lost := p.up.store
		if dialErr := p.prepareStore(ctx); dialErr != nil {
			return dialErr
		}
		_ = lost.Close()
		return p.learn(ctx, "")
	}
	return err
}

// classifyRedis marks what a retry can not cure: who we are is not accepted.
func classifyRedis(err error) error {
	if redis.HasErrorPrefix(err, "DB index") || redis.HasErrorPrefix(err, "SELECT is not allowed") {
		return &exitError{code: exitFailed, err: err, hint: "correct the number of the database at the end of LETHE_REDIS_URL"}
	}
	if redis.HasErrorPrefix(err, "WRONGPASS") || redis.HasErrorPrefix(err, "NOAUTH") || redis.HasErrorPrefix(err, "NOPERM") {
		return &exitError{code: exitFailed, err: err, hint: "put the user and password into LETHE_REDIS_URL: redis://user:password@host:port"}
	}
	return err
}

// openTimeout is how long one attempt to open the topic may take, after which
// it is told what hinders it, and tried again.
const openTimeout = 3 * time.Second

// openWriter is one attempt: a writer tries for as long as its context lasts,
// and a start that says nothing tells nobody which setting is wrong.
func openWriter(ctx context.Context, cfg kafka.Config) (*kafka.Writer, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	writer, err := kafka.NewWriter(ctx, cfg)
	for _, refused := range []kafkago.Error{
		kafkago.SASLAuthenticationFailed, kafkago.UnsupportedSASLMechanism, kafkago.IllegalSASLState,
		kafkago.TopicAuthorizationFailed, kafkago.ClusterAuthorizationFailed, kafkago.PolicyViolation,
	} {
		if errors.Is(err, refused) {
			return nil, &exitError{code: exitFailed, err: err,
				hint: "correct the LETHE_KAFKA_* settings, or let somebody who may create the topic; lethe doctor says how"}
		}
	}
	return writer, err
}

// prepareLog opens one end of the log or both.
func (p *pipeline) prepareLog(ctx context.Context) error {
	if p.settings.direct() {
		log := direct.New(direct.Config{})
		p.mu.Lock()
		p.up.writer, p.up.consumer = log, log
		p.up.deadLetters = deadletter.NewPostgres(p.up.database.pool)
		p.mu.Unlock()
		return nil
	}
	cfg := p.settings.kafka(p.namespace(), p.log)
	if p.up.deadLetters == nil {
		letters, err := kafka.NewDeadLetters(cfg)
		if err != nil {
			return usagef("kafka settings: %w", err)
		}
		p.mu.Lock()
		p.up.deadLetters = letters
		p.mu.Unlock()
	}
	cfg.DeadLetters = p.up.deadLetters
	if p.roles.reader && p.up.writer == nil {
		writer, err := openWriter(ctx, cfg)
		if err != nil {
			return err
		}
		p.mu.Lock()
		p.up.writer = writer
		p.mu.Unlock()
	}
	if p.roles.worker && p.up.consumer == nil {
		consumer, err := kafka.NewConsumer(cfg)
		if err != nil {
			return err
		}
		p.mu.Lock()
		p.up.consumer = consumer
		p.mu.Unlock()
	}
	return nil
}

func (p *pipeline) prepareWorker() error {
	lookups, err := lookup.Open(lookup.Config{URL: p.settings.PostgresURL})
	if err != nil {
		return usagef("LETHE_POSTGRES_URL: %w", err)
	}
	p.mu.Lock()
	p.up.lookups = lookups
	p.mu.Unlock()
	warm, err := p.openWarming()
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.up.warm = warm
	p.mu.Unlock()
	schedules, err := p.prepareSchedules()
	if err != nil {
		return err
	}
	sink, err := p.openEdge()
	if err != nil {
		return err
	}
	worker, err := invalidator.New(invalidator.Config{
		Store: p.up.store, Rules: func() *invalidator.Rules { return p.rules.Load().compiled },
		DeadLetters: p.up.deadLetters, InsertLSN: p.insertLSN, Lookup: lookups.Lookup, PruneRate: p.pruneRate(),
		Schedules:    schedules,
		Dependencies: p.learn,
		Logger:       p.log, Metrics: invalidator.NewMetrics(p.registry), Observer: p.observer, Rewarmer: warm.queue, Beyond: p.beyond,
	})
	if err != nil {
		return fmt.Errorf("make the worker: %w", err)
	}
	p.mu.Lock()
	p.up.worker, p.up.edge = worker, sink
	p.up.services = append(p.up.services, service{"index pruner", worker.Prune}, service{"rewarm queue", warm.queue.Run},
		service{"warm-up", p.serveWarmups}, service{"hot keys", warm.hot.Run}, service{"edge caches", p.tellEdge})
	p.mu.Unlock()
	return nil
}

func (p *pipeline) prepareReader(changes publication.Changes) error {
	reader, err := cdc.New(cdc.Config{
		URL: p.settings.PostgresURL, Slot: p.settings.Slot,
		Publications: publication.Config{Name: p.settings.Publication}.Names(),
		Writer:       p.up.writer, Source: source.New(p.settings.Slot, p.log), Hints: p.hints,
		DeadLetters: p.up.deadLetters, Logger: p.log, Observer: p.metrics,
		WALBudget: p.settings.WALBudget,
	})
	if err != nil {
		return fmt.Errorf("make the reader: %w", err)
	}
	raiseGaps(reader, changes)
	p.mu.Lock()
	p.up.reader = reader
	p.mu.Unlock()
	return nil
}

// hints tell the reader what the cache and the log remember of the source.
func (p *pipeline) hints(ctx context.Context) (source.Hints, error) {
	var hints source.Hints
	if p.up.store != nil {
		recorded, err := p.up.store.Source(ctx)
		if err != nil && !errors.Is(err, coherence.ErrNoSource) {
			return hints, err
		}
		hints.Redis = recorded
	}
	if log, ok := p.up.writer.(*kafka.Writer); ok {
		last, err := log.LastSource(ctx)
		if err != nil {
			return hints, err
		}
		hints.Log = last
	}
	return hints, nil
}

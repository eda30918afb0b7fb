package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/pprof"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lethe-cache/lethe/internal/servers"
)

// env is what the measurements share. They run one after the other.
type env struct {
	sizes   sizes
	metrics *metrics
	log     *slog.Logger
	dir     string // throwaway
	// profiles is where CPU profiles of what runs in this process go; "" takes
	// none.
	profiles string

	db        *database
	redis     *servers.Redis
	kafka     *servers.Kafka
	cache     *cache
	lethe     *letheProgram
	workloads []*workload
	tableRows int

	// letheErr and kafkaErr say why there is none.
	letheErr, kafkaErr error
}

// open starts the servers, all at the same time. A Kafka that is not there
// leaves only some metrics without numbers.
func (e *env) open(ctx context.Context) error {
	e.workloads, e.tableRows = workloads(e.sizes)
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		e.db, err = openDatabase(ctx, e.tableRows)
		return err
	})
	g.Go(func() (err error) {
		if e.redis, err = servers.StartRedis(ctx, servers.RedisConfig{}); err == nil {
			e.cache = openCache(e.redis.Addr())
		}
		return err
	})
	g.Go(func() error {
		if e.metrics.wants("kafka_vs_direct") || e.metrics.wants(l1Metrics...) {
			e.openKafka(ctx)
		}
		return nil
	})
	if err := g.Wait(); err != nil {
		return err
	}
	if e.lethe != nil {
		e.lethe.postgres, e.lethe.redis = e.db.server.URL("postgres"), e.redis.URL()
	}
	return nil
}

func (e *env) openKafka(ctx context.Context) {
	k, err := servers.StartKafka(ctx, servers.KafkaConfig{Brokers: 1})
	switch {
	case err != nil:
		e.kafkaErr = fmt.Errorf("no Kafka: %w", err)
	case !k.Real():
		e.kafkaErr = errors.Join(errors.New("no real Kafka on this machine (it takes Java and Maven); an imitation is not measured"), k.Close())
	default:
		e.kafka = k
	}
}

// openLethe builds the binary, or takes the given one, if there is a metric that
// needs it. One that does not build leaves only those without numbers.
func (e *env) openLethe(ctx context.Context, binary string) {
	if e.metrics.wants(pipelineMetrics...) || e.metrics.wants(l1Metrics...) {
		e.lethe, e.letheErr = e.makeLethe(ctx, binary)
	}
}

func (e *env) makeLethe(ctx context.Context, binary string) (*letheProgram, error) {
	if binary == "" {
		var err error
		if binary, err = buildLethe(ctx, e.dir); err != nil {
			return nil, err
		}
	}
	path, err := filepath.Abs(binary)
	if err != nil {
		return nil, err
	}
	return newLetheProgram(ctx, path, e.dir)
}

// close stops every server that was started.
func (e *env) close() error {
	var errs []error
	if e.cache != nil {
		errs = append(errs, e.cache.rdb.Close())
	}
	if e.kafka != nil {
		errs = append(errs, e.kafka.Close())
	}
	if e.redis != nil {
		errs = append(errs, e.redis.Close())
	}
	if e.db != nil {
		errs = append(errs, e.db.close())
	}
	return errors.Join(errs...)
}

// machine adds the servers to what is known of the machine.
func (e *env) machine(ctx context.Context, m Machine) Machine {
	if e.db != nil {
		_ = e.db.conn.QueryRow(ctx, "SHOW server_version").Scan(&m.Postgres) // stays empty; no measurement hangs on it
	}
	if e.cache != nil {
		m.Redis = e.cache.version(ctx)
	}
	if e.kafka != nil {
		m.Kafka = e.kafka.String()
	}
	if e.lethe != nil {
		m.Lethe = e.lethe.version
	}
	return m
}

// alternate measures both sides of a pair, 0 the subject and 1 the baseline,
// each first in every other round: what drifts while a round lasts then favours
// neither.
func (e *env) alternate(ctx context.Context, round int, measure func(side int) (float64, error)) (Pair, error) {
	var got [2]float64
	for i := range got {
		side := (i + round) % 2
		if err := ctx.Err(); err != nil {
			return Pair{}, err
		}
		value, err := measure(side)
		if err != nil {
			return Pair{}, err
		}
		got[side] = value
	}
	return Pair{Subject: got[0], Baseline: got[1]}, nil
}

// more reports whether a measurement that began at start goes on to a round. The
// first it always has; another one only while it has not used its share of the
// run's time, so that a slow machine costs rounds, and not whole metrics.
func (e *env) more(round, rounds int, start time.Time, share float64) bool {
	if round >= rounds {
		return false
	}
	return round == 0 || time.Since(start) < time.Duration(share*float64(e.sizes.Limit))
}

// profile begins a CPU profile of this process and returns how to end it.
func (e *env) profile(name string) (stop func(), err error) {
	if e.profiles == "" {
		return func() {}, nil
	}
	if err := os.MkdirAll(e.profiles, 0o755); err != nil {
		return nil, fmt.Errorf("make directory of profiles: %w", err)
	}
	f, err := os.Create(filepath.Join(e.profiles, name+".prof"))
	if err != nil {
		return nil, fmt.Errorf("make profile: %w", err)
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, errors.Join(fmt.Errorf("start profile: %w", err), f.Close())
	}
	return func() { pprof.StopCPUProfile(); _ = f.Close() }, nil
}

// step runs one measurement and notes what became of it. A measurement that
// fails leaves the others alone; the metrics it leaves without numbers say why.
func (e *env) step(ctx context.Context, name string, run func(context.Context) error, leaves func(error)) {
	start := time.Now()
	err := ctx.Err()
	if err == nil {
		err = run(ctx)
	}
	if err == nil {
		e.log.Info("measured", "what", name, "took", time.Since(start).Round(100*time.Millisecond))
		return
	}
	if cause := context.Cause(ctx); ctx.Err() != nil && cause != nil {
		err = cause
	}
	e.log.Warn("not measured", "what", name, "err", err)
	leaves(err)
}

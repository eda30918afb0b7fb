package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"

	"github.com/lethe-cache/lethe/client"
)

const (
	// l1Commits is the rate of the application's commits, a second, spread over
	// l1Connections: one connection waits for the disk at each commit, and would
	// not reach it everywhere.
	l1Commits     = 2000
	l1Connections = 4
	// l1WarmUp commits of a round are made and not counted.
	l1WarmUp = l1Commits / 2
	// l1Look is how often the entries that are to go are looked at. What an entry
	// that goes in between is late by counts against Lethe.
	l1Look = 200 * time.Microsecond
	// l1Fill is how long the filling of L1 may take, l1Loads how many loads it
	// runs at a time.
	l1Fill  = time.Minute
	l1Loads = 16
)

// errL1Lost says that a round measured something else than invalidations.
var errL1Lost = errors.New("the client forgot entries of its L1 for other reasons than their invalidation")

// l1Cache is a client of the bench process, with L1 and without a loader's
// database: what matters is how entries go.
type l1Cache struct {
	client *client.Client
	rows   *client.Class[string]
	gone   context.Context // over: a read under it looks at L1 and goes no further
}

func openL1(ctx context.Context, rdb *redis.Client) (*l1Cache, error) {
	c, err := client.Open(ctx, client.Options{Redis: rdb, Namespace: "bench", Name: "bench"})
	if err != nil {
		return nil, fmt.Errorf("open client: %w", err)
	}
	over, cancel := context.WithCancel(ctx)
	cancel()
	return &l1Cache{client: c, rows: client.Entries[string](c, "row", client.TTL(time.Hour)), gone: over}, nil
}

func l1Key(row int64) string { return "row:" + strconv.FormatInt(row, 10) }

// has reports whether L1 has the entry of a row.
func (c *l1Cache) has(row int64) bool {
	_, err := c.rows.Get(c.gone, l1Key(row))
	return err == nil
}

// fill reads n rows until L1 has all of them: what is read before the client
// hears the worker is cached nowhere.
func (c *l1Cache) fill(ctx context.Context, first int64, n int, value string) error {
	load := func(context.Context, *client.Load) (string, error) { return value, nil }
	return poll(ctx, l1Fill, 10*time.Millisecond, "fill L1", func() (bool, error) {
		if c.client.State() != client.Live {
			return false, nil
		}
		g, gctx := errgroup.WithContext(ctx)
		var next atomic.Int64
		for range l1Loads {
			g.Go(func() error {
				for i := next.Add(1) - 1; i < int64(n); i = next.Add(1) - 1 {
					if _, err := c.rows.Get(gctx, l1Key(first+i), load); err != nil {
						return err
					}
				}
				return nil
			})
		}
		if err := g.Wait(); err != nil {
			return false, err
		}
		return c.client.Stats().L1Entries == n, nil
	})
}

// lost counts what takes entries out of L1 besides their invalidation.
func (c *l1Cache) lost() uint64 {
	s := c.client.Stats()
	return s.StateChanges + s.Epochs + s.Classes["row"].L1Evictions
}

// watch notes when the entries of commits that have returned are gone.
func (c *l1Cache) watch(ctx context.Context, l *latencies, returned <-chan int) error {
	var waiting []int
	for l.left.Load() > 0 {
		for more := true; more; {
			select {
			case i := <-returned:
				waiting = append(waiting, i)
			default:
				more = false
			}
		}
		left := waiting[:0]
		for _, i := range waiting {
			if c.has(l.first + int64(i)) {
				left = append(left, i)
			} else {
				l.went(i, int64(time.Since(l.start)))
			}
		}
		waiting = left
		if err := pause(ctx, l1Look); err != nil {
			return fmt.Errorf("%d of %d entries are still in L1: %w", l.left.Load(), len(l.gone), err)
		}
	}
	return nil
}

// l1Once lets a client live through one round and returns the median and the
// 99th percentile of the time from commit to gone from L1, and the rate of
// commits that was reached.
func (e *env) l1Once(ctx context.Context) (p50, p99 time.Duration, rate float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, e.sizes.Latency+l1Fill+time.Minute)
	defer cancel()
	const first, slot = 1, "bench_l1"
	n := l1WarmUp + int(e.sizes.Latency.Seconds()*l1Commits)
	if err := e.cache.reset(ctx, first, first); err != nil {
		return 0, 0, 0, err
	}
	if err := e.db.createSlot(ctx, slot); err != nil {
		return 0, 0, 0, err
	}
	defer func() { err = errors.Join(err, e.db.dropSlot(context.WithoutCancel(ctx), slot)) }()
	run, err := e.lethe.start(ctx, slot, e.kafka.Brokers())
	if err != nil {
		return 0, 0, 0, err
	}
	defer func() { err = errors.Join(err, run.stop()) }()
	if err := errors.Join(run.ready(ctx), run.waitReady(ctx)); err != nil {
		return 0, 0, 0, err
	}
	c, err := openL1(ctx, e.cache.rdb)
	if err != nil {
		return 0, 0, 0, err
	}
	defer func() { err = errors.Join(err, c.client.Close()) }()
	if err := c.fill(ctx, first, n, e.cache.value); err != nil {
		return 0, 0, 0, err
	}
	conns := make([]*pgx.Conn, l1Connections)
	for i := range conns {
		if conns[i], err = pgx.Connect(ctx, e.db.server.URL("postgres")); err != nil {
			return 0, 0, 0, fmt.Errorf("connect to the bench database: %w", err)
		}
		defer func() { _ = conns[i].Close(context.WithoutCancel(ctx)) }()
	}
	before := c.lost()
	l, returned := newLatencies(first, n), make(chan int, n)
	var took time.Duration
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		err := commitAtRate(gctx, conns, l1Commits, l, run.failed, func(i int) { returned <- i }) // has room for all
		took = time.Since(l.start)
		return err
	})
	g.Go(func() error {
		wctx, cancel := context.WithTimeout(gctx, e.sizes.Latency+latencyPatience+time.Second)
		defer cancel()
		return c.watch(wctx, l, returned)
	})
	if err := g.Wait(); err != nil {
		return 0, 0, 0, err
	}
	if c.lost() != before {
		return 0, 0, 0, errL1Lost
	}
	delays := l.delays(l1WarmUp)
	return percentile(delays, 50), percentile(delays, 99), float64(n) / took.Seconds(), nil
}

// l1Metrics are what measureL1 measures.
var l1Metrics = []string{"commit_to_l1_p50_ms", "commit_to_l1_p99_ms"}

// measureL1 measures how long after a commit its entry is gone from the L1 of a
// client, with Kafka in between.
func (e *env) measureL1(ctx context.Context) error {
	if !e.metrics.wants(l1Metrics...) {
		return nil
	}
	if e.lethe == nil {
		return e.letheErr
	}
	if e.kafka == nil {
		return e.kafkaErr
	}
	var mids, tails, rates []float64
	var lost int
	defer func() {
		e.metrics.values(l1Metrics[0], noWorkload, mids)
		e.metrics.values(l1Metrics[1], noWorkload, tails)
		if len(rates) == 0 {
			return
		}
		note := fmt.Sprintf("at %.0f commits/s", summarize(rates).Median)
		if lost > 0 {
			note += fmt.Sprintf("; %d rounds left out: %v", lost, errL1Lost)
		}
		for _, name := range l1Metrics {
			e.metrics.note(name, noWorkload, note)
		}
	}()
	for start, round := time.Now(), 0; e.more(round, e.sizes.LatencyRounds, start, 0.1); round++ {
		mid, tail, rate, err := e.l1Once(ctx)
		if errors.Is(err, errL1Lost) && (len(rates) > 0 || e.more(round+1, e.sizes.LatencyRounds, start, 0.1)) {
			lost++
			continue
		}
		if err != nil {
			return fmt.Errorf("commit to L1: %w", err)
		}
		mids, tails, rates = append(mids, milliseconds(mid)), append(tails, milliseconds(tail)), append(rates, rate)
	}
	return nil
}

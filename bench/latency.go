package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/redis/go-redis/v9"
	"golang.org/x/sync/errgroup"
)

const (
	// latencyCommits is the rate of the application's commits, a second.
	latencyCommits = 500
	// latencyWarmUp commits of a round are made and not counted.
	latencyWarmUp = latencyCommits / 2
	// latencyPatience is how long after the last commit its key may stay.
	latencyPatience = 10 * time.Second
)

// latencies are when each commit returned and when its key had gone, in
// nanoseconds since a common start.
type latencies struct {
	start time.Time
	first int64 // the row of the first commit
	// committed and gone are by commit; 0 is not yet.
	committed, gone []atomic.Int64
	left            atomic.Int64
	done            chan struct{} // closed when every key has gone
}

func newLatencies(first int64, n int) *latencies {
	l := &latencies{start: time.Now(), first: first, committed: make([]atomic.Int64, n), gone: make([]atomic.Int64, n), done: make(chan struct{})}
	l.left.Store(int64(n))
	return l
}

// deleted takes the name of a key that has gone.
func (l *latencies) deleted(name string) {
	at := int64(time.Since(l.start))
	id, ok := strings.CutPrefix(name, keyPrefix)
	if !ok {
		return
	}
	row, err := strconv.ParseInt(id, 10, 64)
	if err != nil || row < l.first || row >= l.first+int64(len(l.gone)) {
		return
	}
	l.went(int(row-l.first), at)
}

// went notes that the key of commit i was gone at a moment since start; only the
// first time counts.
func (l *latencies) went(i int, at int64) {
	if l.gone[i].CompareAndSwap(0, at) && l.left.Add(-1) == 0 {
		close(l.done)
	}
}

// returned notes that commit i has returned to the application.
func (l *latencies) returned(i int) { l.committed[i].Store(int64(time.Since(l.start))) }

// delays are how long after its commit had returned each key was gone, without
// the first skip commits. A key can go before the application hears that its
// own commit is through; that counts as no delay.
func (l *latencies) delays(skip int) []time.Duration {
	out := make([]time.Duration, 0, len(l.gone)-skip)
	for i := skip; i < len(l.gone); i++ {
		out = append(out, time.Duration(max(0, l.gone[i].Load()-l.committed[i].Load())))
	}
	return out
}

// latencyOnce lets a started subject follow 500 commits a second and returns
// the median and the 99th percentile of the time from commit to key gone.
func (e *env) latencyOnce(ctx context.Context, s subject, ready func(context.Context, *running) error) (p50, p99 time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, e.sizes.Latency+time.Minute)
	defer cancel()
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: %w", s.name, err)
		}
	}()
	n := latencyWarmUp + int(e.sizes.Latency.Seconds()*latencyCommits)
	const first, slot = 1, "bench_latency"
	if err := e.cache.reset(ctx, first, first+int64(n)); err != nil {
		return 0, 0, err
	}
	if err := e.db.createSlot(ctx, slot); err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, e.db.dropSlot(context.WithoutCancel(ctx), slot)) }()
	r, err := s.start(ctx, slot)
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, r.stop()) }()
	if err := ready(ctx, r); err != nil {
		return 0, 0, err
	}
	l := newLatencies(first, n)
	stop, err := e.listen(ctx, l)
	if err != nil {
		return 0, 0, err
	}
	defer stop()
	if err := commitAtRate(ctx, []*pgx.Conn{e.db.conn}, latencyCommits, l, r.failed, func(int) {}); err != nil {
		return 0, 0, err
	}
	timer := time.NewTimer(latencyPatience)
	defer timer.Stop()
	select {
	case <-l.done:
	case err := <-r.failed:
		return 0, 0, err
	case <-timer.C:
		return 0, 0, fmt.Errorf("%d of %d keys are still there %v after the last commit", l.left.Load(), n, latencyPatience)
	case <-ctx.Done():
		return 0, 0, ctx.Err()
	}
	delays := l.delays(latencyWarmUp)
	return percentile(delays, 50), percentile(delays, 99), nil
}

// listen feeds l from Redis's own notifications, on a connection of its own.
// Asking again and again whether a key is there would be too coarse, and would
// load the server under measurement.
func (e *env) listen(ctx context.Context, l *latencies) (stop func(), err error) {
	if err := e.cache.rdb.ConfigSet(ctx, "notify-keyspace-events", "Eg").Err(); err != nil {
		return nil, fmt.Errorf("turn keyspace notifications on: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	sub := e.cache.rdb.Subscribe(ctx, "__keyevent@0__:del")
	if _, err := sub.Receive(ctx); err != nil {
		cancel()
		return nil, errors.Join(fmt.Errorf("subscribe to keyspace notifications: %w", err), sub.Close())
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			message, err := sub.Receive(ctx)
			if err != nil {
				return // closed; what is missing then shows in l
			}
			if m, ok := message.(*redis.Message); ok {
				l.deleted(m.Payload)
			}
		}
	}()
	return func() {
		cancel()
		_ = sub.Close()
		<-done
		_ = e.cache.rdb.ConfigSet(context.WithoutCancel(ctx), "notify-keyspace-events", "").Err()
	}, nil
}

// commitAtRate updates one row after the other at a rate, a second, in turns on
// several connections, each in a transaction of its own, as an application does.
// It tells the number of each commit that has returned.
func commitAtRate(ctx context.Context, conns []*pgx.Conn, rate int, l *latencies, failed <-chan error, tell func(int)) error {
	g, ctx := errgroup.WithContext(ctx)
	start := time.Now()
	for lane, conn := range conns {
		g.Go(func() error {
			for i := lane; i < len(l.committed); i += len(conns) {
				due := start.Add(time.Duration(i) * time.Second / time.Duration(rate))
				if err := pause(ctx, time.Until(due)); err != nil {
					return err
				}
				select {
				case err := <-failed:
					return err
				default:
				}
				if _, err := conn.Exec(ctx, "UPDATE bench SET amount = amount + 1 WHERE id = $1", l.first+int64(i)); err != nil {
					return fmt.Errorf("commit: %w", err)
				}
				l.returned(i)
				tell(i)
			}
			return nil
		})
	}
	return g.Wait()
}

// measureLatency compares lethe's commit-to-Redis with that of the consumer
// which sends a DEL for each change, and reports both percentiles.
func (e *env) measureLatency(ctx context.Context) error {
	p50, p99 := "commit_to_redis_vs_del_p50", "commit_to_redis_vs_del_p99"
	if !e.metrics.wants(p50, p99, "commit_to_redis_p50_ms", "commit_to_redis_p99_ms") {
		return nil
	}
	if e.lethe == nil {
		return e.letheErr
	}
	type side struct {
		subject subject
		ready   func(context.Context, *running) error
	}
	var run *letheRun
	direct := e.direct()
	sides := [2]side{
		{
			subject{name: direct.name, start: func(ctx context.Context, slot string) (_ *running, err error) {
				if run, err = e.lethe.start(ctx, slot, nil); err != nil {
					return nil, err
				}
				return &run.running, nil
			}},
			func(ctx context.Context, _ *running) error { return run.waitReady(ctx) },
		},
		{e.plainDel(0), func(ctx context.Context, r *running) error {
			h, err := e.db.hold(ctx, "bench_latency", r.failed)
			if err != nil {
				return err
			}
			_, err = h.release()
			return err
		}},
	}
	var pairs50, pairs99 []Pair
	defer func() {
		values50, _ := split(pairs50)
		values99, _ := split(pairs99)
		e.metrics.pairs(p50, noWorkload, pairs50)
		e.metrics.pairs(p99, noWorkload, pairs99)
		e.metrics.values("commit_to_redis_p50_ms", noWorkload, values50)
		e.metrics.values("commit_to_redis_p99_ms", noWorkload, values99)
	}()
	for start, round := time.Now(), 0; e.more(round, e.sizes.LatencyRounds, start, 0.1); round++ {
		var tails [2]float64
		pair, err := e.alternate(ctx, round, func(i int) (float64, error) {
			mid, tail, err := e.latencyOnce(ctx, sides[i].subject, sides[i].ready)
			tails[i] = milliseconds(tail)
			return milliseconds(mid), err
		})
		if err != nil {
			return err
		}
		pairs50 = append(pairs50, pair)
		pairs99 = append(pairs99, Pair{tails[0], tails[1]})
	}
	return nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/client"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/servers"
)

// world is a Redis and a worker that has nothing to invalidate: it sends
// heartbeats, as a worker does.
type world struct {
	server *servers.Redis
	bare   *redis.Client // what one would use without a cache library
	worker *coherence.Store
	stop   context.CancelFunc
	wg     sync.WaitGroup
	errs   []func() error
}

const (
	namespace = "bench"
	beat      = 100 * time.Millisecond // the default of `lethe run`
)

func openWorld(ctx context.Context) (w *world, err error) {
	w = &world{stop: func() {}}
	if w.server, err = servers.StartRedis(ctx, servers.RedisConfig{}); err != nil {
		return nil, err
	}
	w.bare = redis.NewClient(&redis.Options{Addr: w.server.Addr(), Protocol: 2, ContextTimeoutEnabled: true, MaxRetries: -1})
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close())
		}
	}()
	if w.worker, err = coherence.Dial(ctx, w.server.URL(), coherence.Options{Namespace: namespace}); err != nil {
		return nil, err
	}
	if _, err = w.worker.SetSource(ctx, change.Source{Era: 1, SystemID: 1, Timeline: 1}); err != nil {
		return nil, err
	}
	at := func(lsn change.LSN) change.Position { return change.Position{Era: 1, LSN: lsn} }
	if _, err = w.worker.Seed(ctx, func(context.Context) (change.Position, error) { return at(100), nil }); err != nil {
		return nil, err
	}
	send := func(ctx context.Context) error {
		_, _, err := w.worker.Broadcast(ctx, coherence.Message{Kind: coherence.KindHeartbeat, V: at(1000), W: at(900)})
		return err
	}
	if err = send(ctx); err != nil {
		return nil, err
	}
	beating, stop := context.WithCancel(context.WithoutCancel(ctx))
	w.stop = stop
	w.wg.Go(func() {
		ticker := time.NewTicker(beat)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				_ = send(beating) // the client tells when it hears nothing
			case <-beating.Done():
				return
			}
		}
	})
	return w, nil
}

// client opens one that is closed with the world.
func (w *world) client(ctx context.Context, o client.Options) (*client.Client, error) {
	o.Redis, o.Namespace = w.bare, namespace
	o.RedisTimeout = 5 * time.Second // a busy machine must not turn hits into misses
	c, err := client.Open(ctx, o)
	if err != nil {
		return nil, err
	}
	w.errs = append(w.errs, c.Close)
	return c, nil
}

// reads is how often Redis has read something from a socket.
func (w *world) reads() (int64, error) {
	info, err := w.bare.Info(context.Background(), "stats").Result()
	if err != nil {
		return 0, err
	}
	for line := range strings.SplitSeq(info, "\r\n") {
		if value, ok := strings.CutPrefix(line, "total_reads_processed:"); ok {
			return strconv.ParseInt(value, 10, 64)
		}
	}
	return 0, fmt.Errorf("redis counts no reads: it is older than 6.0")
}

func (w *world) close() error {
	var errs []error
	for _, f := range w.errs {
		errs = append(errs, f())
	}
	w.stop()
	w.wg.Wait()
	if w.worker != nil {
		errs = append(errs, w.worker.Close())
	}
	return errors.Join(append(errs, w.bare.Close(), w.server.Close())...)
}

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/coherence"
)

// purged is what one purge has shown.
type purged struct {
	// l1 and l2 are from the sending of the UPDATE to the end of the first read
	// that does not return the old value: of a client with an L1, and of one
	// that reads Redis only.
	l1, l2 time.Duration
	// sweep is from the broadcast of the purge to that of its end.
	sweep time.Duration
	// bytes is the memory of index and header.
	bytes int64
	// quiet and busy are latencies of another client, before and during the sweep.
	quiet, busy []time.Duration
}

// quietFor is how long the latency of another client is taken before a purge.
const quietFor = 300 * time.Millisecond

// purge makes a group of that many members, changes it and watches.
func (w *world) purge(ctx context.Context, size int) (p purged, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	w.group++
	group := w.group
	if _, err := w.pool.Exec(ctx, "INSERT INTO groups VALUES ($1, 0)", group); err != nil {
		return p, err
	}
	// Two of the members are those that are read; one is both if there is one.
	hot, cold := keyOf(group, "hot"), keyOf(group, "cold")
	if size == 1 {
		cold = hot
	}
	if err := w.fill(ctx, group, max(0, size-2)); err != nil {
		return p, err
	}
	for _, r := range []struct {
		*reader
		key string
	}{{w.hot, hot}, {w.cold, cold}} {
		if err := r.settle(ctx, group, r.key); err != nil {
			return p, err
		}
	}
	if p.bytes, err = w.weigh(ctx, group, size); err != nil {
		return p, err
	}

	other := startOther(ctx, w.redis)
	defer other.stop()
	pause(ctx, quietFor)
	heard, err := w.listen(ctx, group)
	if err != nil {
		return p, err
	}
	old := w.version.Add(1) - 1
	var wait sync.WaitGroup
	errs := make([]error, 2)
	start := time.Now()
	wait.Go(func() { p.l1, errs[0] = w.hot.refuses(ctx, group, hot, old, start) })
	wait.Go(func() { p.l2, errs[1] = w.cold.refuses(ctx, group, cold, old, start) })
	_, err = w.pool.Exec(ctx, "UPDATE groups SET n = n + 1 WHERE id = $1", group)
	wait.Wait()
	if err := errors.Join(append(errs, err)...); err != nil {
		return p, err
	}
	h := <-heard
	if h.err != nil {
		return p, h.err
	}
	p.sweep = h.swept.Sub(h.opened)
	for _, s := range other.stop() {
		switch {
		case s.at.Before(start):
			p.quiet = append(p.quiet, s.took)
		case s.at.Add(s.took).After(h.opened) && s.at.Before(h.swept):
			p.busy = append(p.busy, s.took)
		}
	}
	return p, nil
}

// refuses reads until the old value does not come any more.
func (r *reader) refuses(ctx context.Context, group int, key string, old int64, start time.Time) (time.Duration, error) {
	for {
		v, err := r.get(ctx, group, key)
		if err != nil {
			return 0, err
		}
		if v.Version > old {
			return time.Since(start), nil
		}
		if time.Since(start) > time.Minute {
			return 0, fmt.Errorf("%s is still the old value after a minute", key)
		}
		pause(ctx, 50*time.Microsecond) // two cores are to share
	}
}

// weigh asks for the memory of the group's index.
func (w *world) weigh(ctx context.Context, group, size int) (int64, error) {
	l := w.store.Layout()
	tag := l.Name(tagOf(group))
	n, err := w.redis.HLen(ctx, l.TagIndex(tag)).Result()
	if err != nil {
		return 0, err
	}
	if int(n) != size {
		return 0, fmt.Errorf("%d members are registered, want %d", n, size)
	}
	var sum int64
	for _, key := range []string{l.TagIndex(tag), l.TagHeader(tag)} {
		n, err := w.redis.MemoryUsage(ctx, key, 2000).Result()
		if err != nil {
			return 0, err
		}
		sum += n
	}
	return sum, nil
}

// heard is when a purge was broadcast, and its end.
type heard struct {
	opened, swept time.Time
	err           error
}

// listen follows the stream of broadcasts from now on until a group is swept.
func (w *world) listen(ctx context.Context, group int) (<-chan heard, error) {
	stream := w.store.Layout().Control("stream")
	tag := w.store.Layout().Name(tagOf(group))
	last := "0"
	tail, err := w.redis.XRevRangeN(ctx, stream, "+", "-", 1).Result()
	if err != nil {
		return nil, err
	}
	if len(tail) > 0 {
		last = tail[0].ID
	}
	out := make(chan heard, 1)
	go func() {
		var h heard
		for h.err == nil && h.swept.IsZero() {
			streams, err := w.redis.XRead(ctx, &redis.XReadArgs{Streams: []string{stream, last}, Block: time.Second}).Result()
			if errors.Is(err, redis.Nil) {
				continue
			}
			if h.err = err; err != nil {
				break
			}
			now := time.Now()
			for _, e := range streams[0].Messages {
				last = e.ID
				text, _ := e.Values["m"].(string)
				m, err := coherence.ParseMessage([]byte(text))
				if err != nil {
					h.err = err
					break
				}
				switch {
				case !slices.Contains(m.Names, tag):
				case m.Kind == coherence.KindPurge:
					h.opened = now
				case m.Kind == coherence.KindSwept:
					h.swept = now
				}
			}
		}
		out <- h
	}()
	return out, nil
}

// other is a client of the same Redis that has nothing to do with Lethe.
type other struct {
	cancel  context.CancelFunc
	done    chan struct{}
	samples []sample
}

type sample struct {
	at   time.Time
	took time.Duration
}

func startOther(ctx context.Context, rdb *redis.Client) *other {
	ctx, cancel := context.WithCancel(ctx)
	o := &other{cancel: cancel, done: make(chan struct{})}
	options := *rdb.Options()
	go func() {
		defer close(o.done)
		c := redis.NewClient(&options)
		defer c.Close()
		_ = c.Ping(ctx).Err() // connect
		for i := 0; ctx.Err() == nil; i++ {
			s := sample{at: time.Now()}
			var err error
			if i%2 == 0 {
				err = c.Set(ctx, "other", i, 0).Err()
			} else {
				err = c.Get(ctx, "other").Err()
			}
			if s.took = time.Since(s.at); err == nil {
				o.samples = append(o.samples, s)
			}
			pause(ctx, 500*time.Microsecond)
		}
	}()
	return o
}

// stop ends it and returns what it saw. It may be called twice.
func (o *other) stop() []sample {
	o.cancel()
	<-o.done
	return o.samples
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

package history

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/coherence"
)

func newRandom(seed, stream uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, stream)) }

// fault is something that goes wrong for a while. It returns when it is over.
type fault struct {
	name string
	f    func(ctx context.Context, random *rand.Rand) error
}

// nemesis lets faults come and go until ctx ends. Each series has a schedule of
// its own, so that faults of different kinds meet.
func (w *world) nemesis(ctx context.Context, seed uint64) {
	var all sync.WaitGroup
	for i, series := range [][]fault{w.clientFaults(), w.serverFaults(), w.databaseFaults()} {
		random := newRandom(seed, uint64(2000+i))
		all.Go(func() {
			var order []fault // each comes once before any comes again
			for {
				pause(ctx, time.Duration(50+random.IntN(700))*time.Millisecond)
				if ctx.Err() != nil {
					return
				}
				if len(order) == 0 {
					for _, i := range random.Perm(len(series)) {
						order = append(order, series[i])
					}
				}
				f := order[0]
				order = order[1:]
				from := Now()
				err := f.f(ctx, random)
				w.mu.Lock()
				w.events = append(w.events, fmt.Sprintf("%8.3f -%8.3f  %s", w.since(from), w.since(Now()), f.name))
				w.mu.Unlock()
				if err != nil {
					w.t.Errorf("%s: %v", f.name, err)
					return
				}
			}
		})
	}
	all.Wait()
}

func (w *world) since(at int64) float64 { return time.Duration(at - w.began).Seconds() }

// between is a random duration.
func between(random *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(random.Int64N(int64(most-least)))
}

func (w *world) clientFaults() []fault {
	one := func(random *rand.Rand) *remote { return w.agents[random.IntN(len(w.agents))] }
	return []fault{
		{"a client is stopped", func(ctx context.Context, random *rand.Rand) error {
			r := w.agents[random.IntN(3)]
			if err := r.process.Signal(syscall.SIGSTOP); err != nil {
				return err
			}
			pause(ctx, between(random, 300*time.Millisecond, 3500*time.Millisecond))
			return r.process.Signal(syscall.SIGCONT)
		}},
		{"a client loses its connections", func(_ context.Context, random *rand.Rand) error {
			one(random).network.Cut()
			return nil
		}},
		{"a client can not connect", func(ctx context.Context, random *rand.Rand) error {
			r := one(random)
			r.network.Refuse(true)
			pause(ctx, between(random, 100*time.Millisecond, 2*time.Second))
			r.network.Refuse(false)
			return nil
		}},
		{"a client is cut off in silence", func(ctx context.Context, random *rand.Rand) error {
			r := one(random)
			r.network.Blackhole(true)
			pause(ctx, between(random, 100*time.Millisecond, 3500*time.Millisecond))
			r.network.Blackhole(false)
			return nil
		}},
		{"broadcasts are lost and reordered", func(ctx context.Context, random *rand.Rand) error {
			from := Now()
			for _, r := range w.agents {
				r.messages.Set(Chaos{Drop: 0.2 * random.Float64(), Hold: 0.2 * random.Float64(), Twice: 0.1 * random.Float64()})
			}
			pause(ctx, between(random, 500*time.Millisecond, 2*time.Second))
			for _, r := range w.agents {
				r.messages.Set(Chaos{})
			}
			w.mu.Lock()
			w.history.Dropping = append(w.history.Dropping, Interval{from, Now()})
			w.mu.Unlock()
			return nil
		}},
		{"no broadcast arrives", func(ctx context.Context, random *rand.Rand) error {
			from, r := Now(), one(random)
			r.messages.Set(Chaos{Drop: 1})
			pause(ctx, between(random, 500*time.Millisecond, 2*time.Second))
			r.messages.Set(Chaos{})
			w.mu.Lock()
			w.history.Dropping = append(w.history.Dropping, Interval{from, Now()})
			w.mu.Unlock()
			return nil
		}},
	}
}

func (w *world) serverFaults() []fault {
	return []fault{
		{"redis comes back empty", func(ctx context.Context, random *rand.Rand) error {
			w.redis.Kill()
			if err := os.Remove(filepath.Join(w.redis.Dir(), "dump.rdb")); err != nil && !os.IsNotExist(err) {
				return err
			}
			pause(ctx, between(random, 0, 800*time.Millisecond))
			return w.redis.Start(context.WithoutCancel(ctx))
		}},
		{"redis is restarted with its data", func(ctx context.Context, random *rand.Rand) error {
			err := w.atRedis(ctx, func(ctx context.Context, rdb *redis.Client) error {
				return rdb.ShutdownSave(ctx).Err()
			})
			if err != nil {
				return err
			}
			if err := w.redis.Stop(); err != nil { // waits until it is gone
				return err
			}
			pause(ctx, between(random, 0, 800*time.Millisecond))
			return w.redis.Start(context.WithoutCancel(ctx))
		}},
		{"redis comes back with older data", w.restoreRedis},
		{"the workers are stopped", func(ctx context.Context, random *rand.Rand) error {
			if err := w.lethe.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
				return err
			}
			pause(ctx, between(random, 100*time.Millisecond, 1500*time.Millisecond))
			return w.lethe.cmd.Process.Signal(syscall.SIGCONT)
		}},
		{"the workers are killed and started", func(ctx context.Context, random *rand.Rand) error {
			w.lethe.kill()
			pause(ctx, between(random, 0, 500*time.Millisecond))
			w.startLethe()
			return nil
		}},
		{"the workers lose redis", func(ctx context.Context, random *rand.Rand) error {
			w.workers.Refuse(true)
			pause(ctx, between(random, 50*time.Millisecond, time.Second))
			w.workers.Refuse(false)
			return nil
		}},
	}
}

// atRedis sends commands straight to Redis.
func (w *world) atRedis(ctx context.Context, f func(context.Context, *redis.Client) error) error {
	rdb := redis.NewClient(&redis.Options{Addr: w.redis.Addr(), MaxRetries: -1})
	defer rdb.Close()
	return f(context.WithoutCancel(ctx), rdb)
}

// restoreRedis brings Redis back as it was a moment before. What is read until
// the workers have redone what was lost promises nothing.
func (w *world) restoreRedis(ctx context.Context, random *rand.Rand) error {
	err := w.atRedis(ctx, func(ctx context.Context, rdb *redis.Client) error { return rdb.Save(ctx).Err() })
	if err != nil {
		return err
	}
	pause(ctx, between(random, 100*time.Millisecond, 1500*time.Millisecond))
	w.mu.Lock()
	n := len(w.history.Lost)
	w.history.Lost = append(w.history.Lost, Interval{From: Now(), To: math.MaxInt64})
	w.mu.Unlock()
	w.redis.Kill()
	killed := time.Now()
	if err := w.redis.Start(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	if err := w.redone(context.WithoutCancel(ctx), killed); err != nil {
		return err
	}
	w.mu.Lock()
	w.history.Lost[n].To = Now() + int64(Life)
	w.mu.Unlock()
	return nil
}

// redone waits for the epoch that ends a redo: everybody who is live hears it.
func (w *world) redone(ctx context.Context, killed time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute) // a hang, not a slow machine
	defer cancel()
	stream, after := w.store.Layout().Control("stream"), strconv.FormatInt(killed.UnixMilli(), 10)
	for {
		var items []redis.XMessage
		err := w.atRedis(ctx, func(ctx context.Context, rdb *redis.Client) (err error) {
			items, err = rdb.XRange(ctx, stream, after, "+").Result()
			return err
		})
		if err != nil {
			return fmt.Errorf("the workers have not redone what redis lost: %w", err)
		}
		for _, item := range items {
			body, _ := item.Values["m"].(string)
			if m, err := coherence.ParseMessage([]byte(body)); err == nil && m.Kind == coherence.KindEpoch {
				return nil
			}
		}
		if pause(ctx, 5*time.Millisecond); ctx.Err() != nil {
			return errors.New("the workers have not redone what redis lost")
		}
	}
}

func (w *world) databaseFaults() []fault {
	return []fault{
		{"commits are invisible", func(ctx context.Context, random *rand.Rand) error {
			err := w.primary.Exec(context.WithoutCancel(ctx), "postgres", "ALTER SYSTEM SET synchronous_standby_names = 'nobody'", "SELECT pg_reload_conf()")
			if err != nil {
				return err
			}
			pause(ctx, between(random, 100*time.Millisecond, 1200*time.Millisecond))
			return w.primary.Exec(context.WithoutCancel(ctx), "postgres", "ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")
		}},
		{"the standby stands still", func(ctx context.Context, random *rand.Rand) error {
			err := w.standby.Exec(context.WithoutCancel(ctx), "postgres", "SELECT pg_wal_replay_pause()")
			if err != nil {
				return err
			}
			pause(ctx, between(random, 500*time.Millisecond, 2500*time.Millisecond))
			return w.standby.Exec(context.WithoutCancel(ctx), "postgres", "SELECT pg_wal_replay_resume()")
		}},
	}
}

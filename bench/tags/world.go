package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/client"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/servers"
)

const namespace = "tags"

const rulesYAML = `version: 1
namespace: ` + namespace + `
entries:
  item:
    key: item:{id}
    tags: [ "group:{group_id}" ]
rules:
  - name: a group changes
    table: public.groups
    on: [update]
    tags: [ "group:{id}" ]
`

// item is what the members hold.
type item struct {
	Version int64  `json:"version"`
	Text    string `json:"text"`
}

// world is the servers, two readers and what a round needs of them.
type world struct {
	names string
	pool  *pgxpool.Pool
	redis *redis.Client
	store *coherence.Store
	// hot reads through its L1, cold has none.
	hot, cold *reader
	// version is what the database holds, as loaders read it.
	version atomic.Int64
	group   int
	close   func() error
}

// reader is a client and how often it has loaded.
type reader struct {
	c     *client.Client
	items *client.Class[item]
	w     *world
	loads atomic.Int64
}

func openWorld(ctx context.Context, binary string) (_ *world, err error) {
	var closers []func() error
	w := &world{close: func() error {
		var errs []error
		for i := len(closers) - 1; i >= 0; i-- {
			errs = append(errs, closers[i]())
		}
		return errors.Join(errs...)
	}}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.close())
		}
	}()
	dir, err := os.MkdirTemp("", "lethe-tags-")
	if err != nil {
		return nil, err
	}
	closers = append(closers, func() error { return os.RemoveAll(dir) })
	if binary == "" {
		if binary, err = servers.BuildLethe(ctx, dir); err != nil {
			return nil, err
		}
	}
	pg, err := servers.StartPostgres(ctx, servers.PostgresConfig{})
	if err != nil {
		return nil, err
	}
	closers = append(closers, pg.Close)
	server, err := servers.StartRedis(ctx, servers.RedisConfig{})
	if err != nil {
		return nil, err
	}
	closers = append(closers, server.Close)
	w.names = pg.String() + ", " + server.String()
	if err := pg.Exec(ctx, "postgres", "CREATE TABLE groups (id int PRIMARY KEY, n int NOT NULL)"); err != nil {
		return nil, err
	}
	if w.pool, err = pgxpool.New(ctx, pg.URL("postgres")); err != nil {
		return nil, err
	}
	closers = append(closers, func() error { w.pool.Close(); return nil })
	lethe, err := servers.StartLethe(ctx, servers.LetheConfig{
		Binary: binary, Rules: rulesYAML, PostgresURL: pg.URL("postgres"), RedisURL: server.URL(),
	})
	if err != nil {
		return nil, err
	}
	closers = append(closers, lethe.Close)
	w.redis = redis.NewClient(&redis.Options{Addr: server.Addr(), Protocol: 2, ReadTimeout: time.Minute})
	closers = append(closers, w.redis.Close)
	if w.store, err = coherence.Dial(ctx, server.URL(), coherence.Options{Namespace: namespace, ReadTimeout: time.Minute}); err != nil {
		return nil, err
	}
	closers = append(closers, w.store.Close)
	for _, r := range []struct {
		to    **reader
		bytes int64
	}{{&w.hot, 0}, {&w.cold, -1}} {
		c, err := client.Open(ctx, client.Options{
			Redis: w.redis, Namespace: namespace, L1Bytes: r.bytes, Logger: slog.New(slog.DiscardHandler),
		})
		if err != nil {
			return nil, err
		}
		closers = append(closers, c.Close)
		*r.to = &reader{c: c, w: w, items: client.Entries[item](c, "item", client.TTL(time.Hour))}
	}
	return w, nil
}

func tagOf(group int) string           { return fmt.Sprintf("group:%d", group) }
func keyOf(group int, i string) string { return fmt.Sprintf("item:%d-%s", group, i) }

// get reads one item of a group.
func (r *reader) get(ctx context.Context, group int, key string) (item, error) {
	return r.items.Get(ctx, key, func(_ context.Context, l *client.Load) (item, error) {
		r.loads.Add(1)
		l.Tag(tagOf(group))
		return item{Version: r.w.version.Load()}, nil
	})
}

// settle reads until it is served from the cache.
func (r *reader) settle(ctx context.Context, group int, key string) error {
	deadline := time.Now().Add(10 * time.Second)
	for hits := 0; hits < 20; {
		before := r.loads.Load()
		if _, err := r.get(ctx, group, key); err != nil {
			return err
		}
		if hits++; r.loads.Load() != before {
			hits = 0
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s is not cached after 10 s: %v", key, r.c.State())
		}
		pause(ctx, 5*time.Millisecond)
	}
	return nil
}

// fill registers and fills members of a group with the commands that a client
// uses, many at a time.
func (w *world) fill(ctx context.Context, group, n int) error {
	control, err := w.store.Control(ctx, "item")
	if err != nil {
		return err
	}
	known := control.Known("item")
	layout := w.store.Layout()
	tag := layout.Name(tagOf(group))
	payload := []byte(`{"version":0,"text":"sixty-four bytes of text stand for what an item of a list would hold"}`)
	const batch = 2000
	for from := 0; from < n; from += batch {
		var begins []coherence.BeginRequest
		for i := from; i < min(n, from+batch); i++ {
			begins = append(begins, coherence.BeginRequest{Name: layout.Name(keyOf(group, fmt.Sprint(i))), Known: known})
		}
		begun, err := w.store.BeginAll(ctx, begins)
		if err != nil {
			return err
		}
		regs := make([]coherence.RegisterRequest, len(begun))
		fills := make([]coherence.FillRequest, len(begun))
		now := time.Now()
		for i := range begun {
			fills[i] = coherence.FillRequest{Ticket: begun[i].Ticket, TTL: time.Hour, Payload: payload, Header: coherence.Header{
				Filled: now.UnixMicro(), SoftExpiry: now.Add(time.Hour).UnixMicro(), HardExpiry: now.Add(time.Hour).UnixMicro(),
				ValueVersion: 1, Codec: coherence.CodecJSON, Names: []coherence.Name{{Kind: coherence.NameTag, Name: tag}},
			}}
			regs[i] = coherence.RegisterRequest{Name: tag, Member: begins[i].Name, Stamp: fills[i].RegisterStamp()}
		}
		reasons, err := w.store.RegisterAll(ctx, regs)
		if err != nil {
			return err
		}
		filled, err := w.store.FillAll(ctx, fills)
		if err != nil {
			return err
		}
		for i := range reasons {
			if reasons[i] != coherence.Stored || filled[i] != coherence.Stored {
				return fmt.Errorf("fill %s: registered %v, filled %v", begins[i].Name, reasons[i], filled[i])
			}
		}
	}
	return nil
}

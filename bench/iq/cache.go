package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
)

// loader reads a page from the database.
type loader func(context.Context) (page, error)

// cache is one way to keep pages.
type cache interface {
	// read returns a page from the cache, or else that of load, which it then
	// caches if it may.
	read(ctx context.Context, k kind, member int64, load loader) (page, error)
	// before runs in a writer's transaction, right before its COMMIT; after when
	// COMMIT has returned. The write ends when after has.
	before(ctx context.Context, conn *pgxpool.Conn, c *change) error
	after(ctx context.Context, conn *pgxpool.Conn, c *change) error
	// kept is everything that readers may be served for a page as things stand.
	kept(ctx context.Context, k kind, member int64) ([]page, error)
	close() error
}

// plain is the usual cache-aside: GET, and after a miss SET; a writer deletes
// what it has changed, either right before its COMMIT, as a trigger or a hook of
// the transaction does, or after it.
type plain struct {
	redis  redis.UniversalClient
	prefix string
	early  bool
}

// pageTTL is longer than any run: what is wrong is not repaired by its end.
const pageTTL = time.Hour

func (p *plain) get(ctx context.Context, key string) (v page, ok bool, err error) {
	raw, err := p.redis.Get(ctx, p.prefix+key).Bytes()
	if errors.Is(err, redis.Nil) {
		return v, false, nil
	}
	if err == nil {
		err = json.Unmarshal(raw, &v)
	}
	return v, err == nil, err
}

func (p *plain) read(ctx context.Context, k kind, member int64, load loader) (page, error) {
	key := k.key(member)
	if v, ok, err := p.get(ctx, key); ok || err != nil {
		return v, err
	}
	v, err := load(ctx)
	if err != nil {
		return v, err
	}
	raw, err := json.Marshal(v)
	if err != nil {
		return v, err
	}
	return v, p.redis.Set(ctx, p.prefix+key, raw, pageTTL).Err()
}

func (p *plain) before(ctx context.Context, _ *pgxpool.Conn, c *change) error {
	if !p.early {
		return nil
	}
	return p.forget(ctx, c, "")
}

func (p *plain) after(ctx context.Context, _ *pgxpool.Conn, c *change) error {
	if p.early {
		return nil
	}
	return p.forget(ctx, c, "")
}

// forget deletes every key of a change, and what else has its name with a
// suffix.
func (p *plain) forget(ctx context.Context, c *change, suffix string) error {
	var names []string
	for _, key := range c.keys() {
		names = append(names, p.prefix+key)
		if suffix != "" {
			names = append(names, p.prefix+key+suffix)
		}
	}
	return p.redis.Del(ctx, names...).Err()
}

func (p *plain) kept(ctx context.Context, k kind, member int64) ([]page, error) {
	v, ok, err := p.get(ctx, k.key(member))
	if !ok {
		return nil, err
	}
	return []page{v}, nil
}

func (p *plain) close() error { return nil }

// leased is plain with the leases of memcached: the first reader that misses
// gets one, the others wait; a value is stored only if its lease is still there,
// and a delete takes it away.
type leased struct{ plain }

const (
	leaseSuffix = ":lease"
	leaseLife   = 10 * time.Second
	leaseTries  = 12 // with the waits below, about 50 ms
)

var (
	leaseScript = redis.NewScript(`
		local v = redis.call('GET', KEYS[1])
		if v then return {1, v} end
		if redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2]) then return {0, ''} end
		return {2, ''}`)
	storeScript = redis.NewScript(`
		if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
		redis.call('DEL', KEYS[2])
		redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
		return 1`)
)

func (l *leased) read(ctx context.Context, k kind, member int64, load loader) (v page, err error) {
	key := k.key(member)
	names := []string{l.prefix + key, l.prefix + key + leaseSuffix}
	token := rand.Text()
	pause := time.Millisecond / 2
	held := false
	for range leaseTries {
		answer, err := leaseScript.Run(ctx, l.redis, names, token, leaseLife.Milliseconds()).Slice()
		if err != nil {
			return v, err
		}
		switch answer[0] {
		case int64(1):
			raw, _ := answer[1].(string)
			return v, json.Unmarshal([]byte(raw), &v)
		case int64(0):
			held = true
		}
		if held {
			break
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return v, ctx.Err()
		}
		pause = min(2*pause, 8*time.Millisecond)
	}
	if v, err = load(ctx); err != nil || !held {
		return v, err
	}
	raw, err := json.Marshal(v)
	if err != nil {
		return v, err
	}
	return v, storeScript.Run(ctx, l.redis, names, token, raw, pageTTL.Milliseconds()).Err()
}

func (l *leased) before(ctx context.Context, _ *pgxpool.Conn, c *change) error {
	if !l.early {
		return nil
	}
	return l.forget(ctx, c, leaseSuffix)
}

func (l *leased) after(ctx context.Context, _ *pgxpool.Conn, c *change) error {
	if l.early {
		return nil
	}
	return l.forget(ctx, c, leaseSuffix)
}

// variant is a cache under test.
type variant struct {
	name string
	// order is what a writer does, in words.
	order string
	// exact is true for what must show no wrong read.
	exact bool
	open  func(ctx context.Context, w *world, prefix string) (cache, error)
}

// variants are compared side by side.
var variants = []variant{
	{"plain delete", "DEL, COMMIT", false, func(_ context.Context, w *world, prefix string) (cache, error) {
		return &plain{redis: w.redis, prefix: prefix, early: true}, nil
	}},
	{"plain delete", "COMMIT, DEL", false, func(_ context.Context, w *world, prefix string) (cache, error) {
		return &plain{redis: w.redis, prefix: prefix}, nil
	}},
	{"lease only", "DEL, COMMIT", false, func(_ context.Context, w *world, prefix string) (cache, error) {
		return &leased{plain{redis: w.redis, prefix: prefix, early: true}}, nil
	}},
	{"lease only", "COMMIT, DEL", false, func(_ context.Context, w *world, prefix string) (cache, error) {
		return &leased{plain{redis: w.redis, prefix: prefix}}, nil
	}},
	{"Lethe", "COMMIT, token", true, func(ctx context.Context, w *world, _ string) (cache, error) {
		return openLethe(ctx, w, true)
	}},
	{"Lethe, no tokens", "COMMIT", false, func(ctx context.Context, w *world, _ string) (cache, error) {
		return openLethe(ctx, w, false)
	}},
}

func (v *variant) String() string { return fmt.Sprintf("%s (%s)", v.name, v.order) }

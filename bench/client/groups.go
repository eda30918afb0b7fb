package main

import (
	"context"
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/eko/gocache/lib/v4/cache"
	"github.com/eko/gocache/lib/v4/store"
	gocachestore "github.com/eko/gocache/store/go_cache/v4"
	redisstore "github.com/eko/gocache/store/redis/v4"
	"github.com/maypok86/otter/v2"
	gocache "github.com/patrickmn/go-cache"
	"github.com/redis/go-redis/v9"
	"github.com/redis/rueidis"
	"github.com/viccon/sturdyc"

	"github.com/lethe-cache/lethe/client"
)

// targets are the bounds of the design.
var targets = map[string]float64{"l1_hit_vs_otter": 1.5, "l2_hit_vs_get": 1.15}

const ttl = time.Hour

var errWrong = errors.New("that is not what was stored")

// load is the loader of all: the database takes no time, so that what is
// measured is the caches.
func load(_ context.Context, key string) (*product, error) {
	_, digits, _ := strings.Cut(key, "product:")
	id, err := strconv.ParseInt(digits, 10, 64)
	return newProduct(id), err
}

func check(p *product, err error) error {
	if err == nil && p == nil {
		return errWrong
	}
	return err
}

// in gives op the key whose turn it is.
func in(names []string, op func(key string) error) func(int, int) error {
	return func(worker, i int) error { return op(names[(i+worker*4099)&(len(names)-1)]) }
}

// l1 is a hit in the process.
func (w *world) l1(ctx context.Context, names []string) ([]group, error) {
	c, err := w.client(ctx, client.Options{})
	if err != nil {
		return nil, err
	}
	class := client.Entries[*product](c, "product", client.TTL(ttl), client.LoadWith(
		func(ctx context.Context, key string, _ *client.Load) (*product, error) { return load(ctx, key) }))
	alone := otter.Must(&otter.Options[string, *product]{
		MaximumWeight: client.L1BytesDefault, Weigher: func(string, *product) uint32 { return 600 },
		ExpiryCalculator: otter.ExpiryWriting[string, *product](ttl), // as all the others have
	})
	timeless := otter.Must(&otter.Options[string, *product]{
		MaximumWeight: client.L1BytesDefault, Weigher: func(string, *product) uint32 { return 600 },
	})
	w.errs = append(w.errs, func() error { alone.StopAllGoroutines(); timeless.StopAllGoroutines(); return nil })
	sturdy := sturdyc.New[*product](4*products, 64, ttl, 10)
	aside, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{w.server.Addr()}})
	if err != nil {
		return nil, err
	}
	w.errs = append(w.errs, func() error { aside.Close(); return nil })
	chained := cache.New[*product](gocachestore.NewGoCache(gocache.New(ttl, 0)))
	for i := range products {
		key := "product:" + strconv.Itoa(i)
		p, err := class.Get(ctx, key)
		if err != nil {
			return nil, err
		}
		raw, err := json.Marshal(p)
		if err != nil {
			return nil, err
		}
		alone.Set(key, p)
		timeless.Set(key, p)
		sturdy.Set(key, p)
		if err := errors.Join(chained.Set(ctx, key, p), w.bare.Set(ctx, "plain:"+key, raw, 0).Err()); err != nil {
			return nil, err
		}
	}
	plain := keys("plain:")
	subjects := []subject{
		{name: "otter alone, with a TTL", op: in(names, func(key string) error {
			p, ok := alone.GetIfPresent(key)
			if !ok {
				return errWrong
			}
			return check(p, nil)
		})},
		{name: "lethe client", metric: "l1_hit_vs_otter", op: in(names, func(key string) error { return check(class.Get(ctx, key)) })},
		{name: "otter alone, without a TTL", op: in(names, func(key string) error {
			p, ok := timeless.GetIfPresent(key)
			if !ok {
				return errWrong
			}
			return check(p, nil)
		})},
		{name: "sturdyc GetOrFetch", op: in(names, func(key string) error {
			return check(sturdy.GetOrFetch(ctx, key, func(ctx context.Context) (*product, error) { return load(ctx, key) }))
		})},
		{name: "gocache on go-cache", op: in(names, func(key string) error { return check(chained.Get(ctx, key)) })},
		{name: "rueidis client-side cache + decode", op: in(plain, func(key string) error {
			var p product
			return aside.DoCache(ctx, aside.B().Get().Key(key).Cache(), ttl).DecodeJSON(&p)
		})},
	}
	return []group{{"L1 hit", 1, subjects}, {"L1 hit, 16 goroutines", 16, subjects}}, nil
}

// l2 is a hit in Redis; the keys are there since l1.
func (w *world) l2(ctx context.Context, names []string) ([]group, error) {
	c, err := w.client(ctx, client.Options{L1Bytes: -1})
	if err != nil {
		return nil, err
	}
	class := client.Entries[*product](c, "product", client.TTL(ttl), client.LoadWith(
		func(ctx context.Context, key string, _ *client.Load) (*product, error) { return load(ctx, key) }))
	for i := range products { // what has not been filled yet is
		if _, err := class.Get(ctx, "product:"+strconv.Itoa(i)); err != nil {
			return nil, err
		}
	}
	direct, err := rueidis.NewClient(rueidis.ClientOption{InitAddress: []string{w.server.Addr()}, DisableCache: true})
	if err != nil {
		return nil, err
	}
	w.errs = append(w.errs, func() error { direct.Close(); return nil })
	chained := cache.New[string](redisstore.NewRedis(w.bare))
	get := func(ctx context.Context, key string) error {
		raw, err := w.bare.Get(ctx, key).Bytes()
		if err != nil {
			return err
		}
		var p *product
		return check(p, errors.Join(json.Unmarshal(raw, &p), check(p, nil)))
	}
	plain := keys("plain:")
	subjects := []subject{
		{name: "go-redis GET + decode", op: in(plain, func(key string) error { return get(ctx, key) })},
		{name: "lethe client", metric: "l2_hit_vs_get", op: in(names, func(key string) error { return check(class.Get(ctx, key)) })},
		{name: "go-redis GET + decode, time limit", op: in(plain, func(key string) error {
			ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
			defer cancel()
			return get(ctx, key)
		})},
		{name: "gocache on Redis + decode", op: in(plain, func(key string) error {
			raw, err := chained.Get(ctx, key)
			if err != nil {
				return err
			}
			var p *product
			return json.Unmarshal([]byte(raw), &p)
		})},
		{name: "rueidis GET + decode", op: in(plain, func(key string) error {
			var p product
			return direct.Do(ctx, direct.B().Get().Key(key).Build()).DecodeJSON(&p)
		})},
	}
	return []group{{"L2 hit", 1, subjects}, {"L2 hit, 16 goroutines", 16, subjects}}, nil
}

// miss reads keys that nobody has read before, and fills them.
func (w *world) miss(ctx context.Context) ([]group, error) {
	const short = 10 * time.Second // the run must not fill the memory
	c, err := w.client(ctx, client.Options{})
	if err != nil {
		return nil, err
	}
	class := client.Entries[*product](c, "product", client.TTL(short))
	loadable := cache.NewLoadable(func(ctx context.Context, key any) (string, []store.Option, error) {
		p, err := load(ctx, key.(string))
		if err != nil {
			return "", nil, err
		}
		raw, err := json.Marshal(p)
		return string(raw), []store.Option{store.WithExpiration(short)}, err
	}, cache.New[string](redisstore.NewRedis(w.bare)))
	w.errs = append(w.errs, loadable.Close)
	var next atomic.Int64
	fresh := func(op func(key string) error) func(int, int) error {
		return func(int, int) error { return op("product:" + strconv.FormatInt(products+next.Add(1), 10)) }
	}
	subjects := []subject{
		{name: "go-redis GET, SET", op: fresh(func(key string) error {
			if err := w.bare.Get(ctx, key).Err(); err == nil {
				return errWrong
			}
			p, err := load(ctx, key)
			if err != nil {
				return err
			}
			raw, err := json.Marshal(p)
			if err != nil {
				return err
			}
			return w.bare.Set(ctx, "plain:"+key, raw, short).Err()
		})},
		{name: "lethe client", metric: "miss_vs_cache_aside", op: fresh(func(key string) error {
			return check(class.Get(ctx, key, func(ctx context.Context, _ *client.Load) (*product, error) { return load(ctx, key) }))
		})},
		{name: "lethe client, with a tag", metric: "miss_with_tag_vs_cache_aside", op: fresh(func(key string) error {
			return check(class.Get(ctx, key, func(ctx context.Context, l *client.Load) (*product, error) {
				p, err := load(ctx, key)
				if err == nil {
					l.Tag("category:" + strconv.FormatInt(p.Category, 10))
				}
				return p, err
			}))
		})},
		{name: "gocache loadable on Redis", op: fresh(func(key string) error {
			raw, err := loadable.Get(ctx, "loadable:"+key)
			if err == nil && raw == "" {
				err = errWrong
			}
			return err
		})},
	}
	return []group{{"miss", 1, subjects}, {"miss, 16 goroutines", 16, subjects}}, nil
}

// batch reads a hundred keys at once, from Redis or from L1.
func (w *world) batch(ctx context.Context, names, plain []string) ([]group, error) {
	const size = 100
	open := func(o client.Options) (*client.Class[*product], error) {
		c, err := w.client(ctx, o)
		if err != nil {
			return nil, err
		}
		class := client.Entries[*product](c, "product", client.TTL(ttl), client.LoadWith(
			func(ctx context.Context, key string, _ *client.Load) (*product, error) { return load(ctx, key) }))
		for i := range products { // into L1, if there is one
			if _, err := class.Get(ctx, "product:"+strconv.Itoa(i)); err != nil {
				return nil, err
			}
		}
		return class, nil
	}
	near, err := open(client.Options{})
	if err != nil {
		return nil, err
	}
	far, err := open(client.Options{L1Bytes: -1})
	if err != nil {
		return nil, err
	}
	some := func(names []string, i int) []string {
		at := i * size & (len(names) - 1)
		return names[at:min(at+size, len(names))]
	}
	many := func(class *client.Class[*product]) func(int, int) error {
		return func(_, i int) error {
			got, err := class.GetMany(ctx, some(names, i))
			if err == nil && len(got) == 0 {
				err = errWrong
			}
			return err
		}
	}
	return []group{{"batch of 100", 1, []subject{
		{name: "go-redis MGET + decode", op: func(_, i int) error {
			values, err := w.bare.MGet(ctx, some(plain, i)...).Result()
			if err != nil {
				return err
			}
			out := make(map[string]*product, len(values))
			for n, v := range values {
				raw, _ := v.(string)
				var p *product
				if err := json.Unmarshal([]byte(raw), &p); err != nil {
					return err
				}
				out[some(plain, i)[n]] = p
			}
			return nil
		}},
		{name: "go-redis pipeline of GET + decode", op: func(_, i int) error {
			commands, err := w.bare.Pipelined(ctx, func(pipe redis.Pipeliner) error {
				for _, key := range some(plain, i) {
					pipe.Get(ctx, key)
				}
				return nil
			})
			if err != nil {
				return err
			}
			out := make(map[string]*product, len(commands))
			for n, c := range commands {
				raw, err := c.(*redis.StringCmd).Bytes()
				if err != nil {
					return err
				}
				var p *product
				if err := json.Unmarshal(raw, &p); err != nil {
					return err
				}
				out[some(plain, i)[n]] = p
			}
			return nil
		}},
		{name: "lethe client, from Redis", metric: "batch_l2_vs_mget", op: many(far)},
		{name: "lethe client, from L1", metric: "batch_l1_vs_mget", op: many(near)},
	}}}, nil
}

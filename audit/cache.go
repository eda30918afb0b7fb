package audit

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"
)

// Value is what is under a key.
type Value struct {
	Bytes []byte
	// Missing: there is nothing. Foreign: it is no string.
	Missing, Foreign bool
}

// Cache reads what is in Redis, from masters only. Safe for concurrent use.
type Cache interface {
	// Scan calls each with the keys that match a glob pattern, on every master,
	// by one goroutine at a time; a key may come twice.
	Scan(ctx context.Context, pattern string, each func(keys []string) error) error
	// Values reads keys, each at its index.
	Values(ctx context.Context, keys []string) ([]Value, error)
}

// scanCount is how many keys a step of a scan looks at.
const scanCount = 1000

// OnRedis reads through a client, which the caller closes: a *redis.Client on
// a master or behind Sentinels, or a *redis.ClusterClient.
func OnRedis(rdb redis.UniversalClient) Cache { return onRedis{rdb} }

type onRedis struct{ rdb redis.UniversalClient }

func (c onRedis) Scan(ctx context.Context, pattern string, each func([]string) error) error {
	var mu sync.Mutex
	one := func(ctx context.Context, m *redis.Client) error {
		for cursor := uint64(0); ; {
			keys, next, err := m.Scan(ctx, cursor, pattern, scanCount).Result()
			if err != nil {
				return fmt.Errorf("scan %s: %w", m.Options().Addr, err)
			}
			mu.Lock()
			err = each(keys)
			mu.Unlock()
			if err != nil {
				return err
			}
			if cursor = next; cursor == 0 {
				return nil
			}
		}
	}
	switch rdb := c.rdb.(type) {
	case *redis.Client:
		return one(ctx, rdb)
	case *redis.ClusterClient:
		return rdb.ForEachMaster(ctx, one)
	}
	return fmt.Errorf("scan: %T is neither *redis.Client nor *redis.ClusterClient", c.rdb)
}

func (c onRedis) Values(ctx context.Context, keys []string) ([]Value, error) {
	p := c.rdb.Pipeline()
	cmds := make([]*redis.StringCmd, len(keys))
	for i, k := range keys {
		cmds[i] = p.Get(ctx, k)
	}
	// Each command has its own error; that of Exec is the first of them.
	_, _ = p.Exec(ctx)
	values := make([]Value, len(keys))
	for i, cmd := range cmds {
		b, err := cmd.Bytes()
		switch {
		case err == nil:
			values[i].Bytes = b
		case errors.Is(err, redis.Nil):
			values[i].Missing = true
		case strings.HasPrefix(err.Error(), "WRONGTYPE"):
			values[i].Foreign = true
		default:
			return nil, fmt.Errorf("read %q: %w", keys[i], err)
		}
	}
	return values, nil
}

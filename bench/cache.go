package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// fillBatch is how many keys one MSET writes.
const fillBatch = 1000

// cache is the Redis under measurement.
type cache struct {
	rdb *redis.Client
	// value is what stands under every key.
	value string
}

func openCache(addr string) *cache {
	return &cache{
		rdb: redis.NewClient(&redis.Options{
			Addr: addr, ContextTimeoutEnabled: true, MaxRetries: -1,
			DialTimeout: 5 * time.Second, ReadTimeout: 30 * time.Second, WriteTimeout: 30 * time.Second,
		}),
		value: strings.Repeat("v", 100),
	}
}

func key(id int64) string { return keyPrefix + strconv.FormatInt(id, 10) }

// reset empties the server and writes the keys of rows from..to-1, so that
// every invalidation has something to remove.
func (c *cache) reset(ctx context.Context, from, to int64) error {
	// SYNC: otherwise Redis frees the old keys in the middle of the round.
	if err := c.rdb.Do(ctx, "FLUSHALL", "SYNC").Err(); err != nil {
		return fmt.Errorf("empty redis: %w", err)
	}
	return c.fill(ctx, from, to)
}

// fill writes the keys of rows from..to-1.
func (c *cache) fill(ctx context.Context, from, to int64) error {
	args := make([]any, 0, 2*fillBatch)
	for id := from; id < to; {
		args = args[:0]
		for ; id < to && len(args) < 2*fillBatch; id++ {
			args = append(args, key(id), c.value)
		}
		if err := c.rdb.MSet(ctx, args...).Err(); err != nil {
			return fmt.Errorf("fill redis: %w", err)
		}
	}
	return nil
}

// waitGone returns when the keys of all rows from..to-1 have gone. It asks for
// one key at a time, once a millisecond, so that the asking costs nothing that
// shows. failed ends the wait.
func (c *cache) waitGone(ctx context.Context, from, to int64, failed <-chan error) error {
	ticker := time.NewTicker(time.Millisecond)
	defer ticker.Stop()
	for id := from; id < to; {
		n, err := c.rdb.Exists(ctx, key(id)).Result()
		if err != nil {
			return fmt.Errorf("look for %s: %w", key(id), err)
		}
		if n == 0 {
			id++
			continue
		}
		select {
		case err := <-failed:
			return fmt.Errorf("ended before %s was gone: %w", key(id), err)
		case <-ctx.Done():
			return fmt.Errorf("wait for %s to go: %w", key(id), ctx.Err())
		case <-ticker.C:
		}
	}
	return nil
}

// remaining counts which of a thousand random keys of rows from..to-1 are still
// there: 0 after a drain that did its work.
func (c *cache) remaining(ctx context.Context, from, to int64) (int64, error) {
	keys := make([]string, 1000)
	for i := range keys {
		keys[i] = key(from + rand.Int64N(to-from))
	}
	n, err := c.rdb.Exists(ctx, keys...).Result()
	if err != nil {
		return 0, fmt.Errorf("count keys that are left: %w", err)
	}
	return n, nil
}

// size is the number of keys of the server.
func (c *cache) size(ctx context.Context) (int64, error) { return c.rdb.DBSize(ctx).Result() }

// version is the server's name and version.
func (c *cache) version(ctx context.Context) string {
	info, err := c.rdb.Info(ctx, "server").Result()
	if err != nil {
		return ""
	}
	fields := map[string]string{}
	for line := range strings.Lines(info) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
			fields[name] = value
		}
	}
	if v := fields["valkey_version"]; v != "" {
		return "Valkey " + v
	}
	return fields["redis_version"]
}

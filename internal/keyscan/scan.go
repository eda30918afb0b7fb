// Package keyscan samples the keys of Redis, groups them into patterns and says
// of each pattern what a person who takes over a cache wants to know. It writes
// nothing and touches no key's age.
package keyscan

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// Defaults of Options.
const (
	KeysDefault = 100_000
	TimeDefault = time.Minute
	batch       = 500
)

// Options bound a scan.
type Options struct {
	// Keys is how many are looked at, over all masters; 0 is the default.
	Keys int
	// Time bounds the whole of it; 0 is the default.
	Time time.Duration
	// Skip leaves keys out, may be nil.
	Skip func(key string) bool
}

// Key is what one key is like.
type Key struct {
	Name, Type string
	// Bytes is MEMORY USAGE, an estimate for large collections.
	Bytes int64
	// TTL is what is left of its life, -1 if it has no end.
	TTL time.Duration
	// Idle is how long nobody has asked for it, -1 if the server does not know:
	// under an LFU policy it counts instead. Frequency is that count then, else -1.
	Idle      time.Duration
	Frequency int64
	// Weight is how many keys it stands for.
	Weight float64
}

// Sample is some of the keys, or all of them.
type Sample struct {
	Keys []Key
	// Total is how many keys the masters have.
	Total int64
	// Complete: every key was looked at.
	Complete bool
}

// Scan looks at keys of every master by SCAN. A bound that is reached is no
// error: what was seen until then stands for the rest, weighted by master. It
// blocks until then.
func Scan(ctx context.Context, rdb redis.UniversalClient, o Options) (*Sample, error) {
	if o.Keys <= 0 {
		o.Keys = KeysDefault
	}
	if o.Time <= 0 {
		o.Time = TimeDefault
	}
	until := time.Now().Add(o.Time)
	switch c := rdb.(type) {
	case *redis.Client:
		s := &Sample{Complete: true}
		return s, scanMaster(ctx, c, o, o.Keys, until, s)
	case *redis.ClusterClient:
		return scanCluster(ctx, c, o, until)
	}
	return nil, fmt.Errorf("scan keys: %T is neither *redis.Client nor *redis.ClusterClient", rdb)
}

func scanCluster(ctx context.Context, c *redis.ClusterClient, o Options, until time.Time) (*Sample, error) {
	var mu sync.Mutex
	masters := 0
	if err := c.ForEachMaster(ctx, func(context.Context, *redis.Client) error {
		mu.Lock()
		defer mu.Unlock()
		masters++
		return nil
	}); err != nil {
		return nil, err
	}
	all := &Sample{Complete: true}
	err := c.ForEachMaster(ctx, func(ctx context.Context, m *redis.Client) error {
		s := &Sample{Complete: true}
		if err := scanMaster(ctx, m, o, max(1, o.Keys/max(1, masters)), until, s); err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		all.Keys = append(all.Keys, s.Keys...)
		all.Total += s.Total
		all.Complete = all.Complete && s.Complete
		return nil
	})
	return all, err
}

// scanMaster samples one master. SCAN goes by the hash of the names, so that its
// first keys are as good a sample as any.
func scanMaster(ctx context.Context, m *redis.Client, o Options, most int, until time.Time, s *Sample) error {
	addr := m.Options().Addr
	total, err := m.DBSize(ctx).Result()
	if err != nil {
		return fmt.Errorf("count keys of %s: %w", addr, err)
	}
	s.Total = total
	seen := map[string]bool{} // SCAN may return a key twice
	for cursor := uint64(0); ; {
		names, next, err := m.Scan(ctx, cursor, "*", batch).Result()
		if err != nil {
			return fmt.Errorf("scan %s: %w", addr, err)
		}
		var fresh []string
		for _, n := range names {
			if !seen[n] && len(seen) < most {
				seen[n] = true
				if o.Skip == nil || !o.Skip(n) {
					fresh = append(fresh, n)
				}
			}
		}
		keys, err := describe(ctx, m, fresh)
		if err != nil {
			return fmt.Errorf("look at keys of %s: %w", addr, err)
		}
		s.Keys = append(s.Keys, keys...)
		if cursor = next; cursor == 0 {
			break
		}
		if len(seen) >= most || time.Now().After(until) {
			s.Complete = false
			break
		}
	}
	weight := 1.0
	if !s.Complete && len(seen) > 0 {
		weight = max(1, float64(total)/float64(len(seen)))
	}
	for i := range s.Keys {
		s.Keys[i].Weight = weight
	}
	return nil
}

// describe asks what keys are like, all of it in one pipeline. None of these
// commands counts as a use of the key.
func describe(ctx context.Context, m *redis.Client, names []string) ([]Key, error) {
	if len(names) == 0 {
		return nil, nil
	}
	type asked struct {
		typ   *redis.StatusCmd
		bytes *redis.IntCmd
		ttl   *redis.Cmd
		idle  *redis.Cmd
		freq  *redis.Cmd
	}
	p := m.Pipeline()
	cmds := make([]asked, len(names))
	for i, n := range names {
		cmds[i] = asked{typ: p.Type(ctx, n), bytes: p.MemoryUsage(ctx, n), ttl: p.Do(ctx, "PTTL", n),
			idle: p.Do(ctx, "OBJECT", "IDLETIME", n), freq: p.Do(ctx, "OBJECT", "FREQ", n)}
	}
	if _, err := p.Exec(ctx); err != nil && !isReply(err) {
		return nil, err
	}
	keys := make([]Key, 0, len(names))
	for i, n := range names {
		c := cmds[i]
		typ, err := c.typ.Result()
		if err != nil {
			return nil, err
		}
		if typ == "none" {
			continue // it went meanwhile
		}
		k := Key{Name: n, Type: typ, Bytes: c.bytes.Val(), TTL: -1, Idle: -1, Frequency: -1}
		if ms, err := c.ttl.Int64(); err == nil && ms >= 0 {
			k.TTL = time.Duration(ms) * time.Millisecond
		}
		if seconds, err := c.idle.Int64(); err == nil {
			k.Idle = time.Duration(seconds) * time.Second
		}
		if n, err := c.freq.Int64(); err == nil {
			k.Frequency = n
		}
		keys = append(keys, k)
	}
	return keys, nil
}

// isReply reports whether the server answered, if only to say no: OBJECT FREQ
// and OBJECT IDLETIME exclude each other, and a key may be gone.
func isReply(err error) bool {
	var reply redis.Error
	return errors.Is(err, redis.Nil) || errors.As(err, &reply) && !strings.HasPrefix(reply.Error(), "NOAUTH")
}

package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/rules"
	"github.com/lethe-cache/lethe/warmer"
)

// scanned is a key of a class, with how long nobody has read it. Where Redis
// counts reads instead (the LFU policies), it is the reverse of that count.
type scanned struct {
	name string
	idle time.Duration
	ttl  time.Duration
}

// hotNames are the names of a snapshot: of each class the keys that clients
// report, then those that were read last; the first of each class first, then the
// second of each.
func (w *warmCommand) hotNames(ctx context.Context) ([]warmer.SnapshotName, error) {
	rdb, err := coherence.OpenClient(ctx, w.p.settings.RedisURL)
	if err != nil {
		return nil, classifyRedis(err)
	}
	defer rdb.Close()
	byClass, err := w.scan(ctx, rdb)
	if err != nil {
		return nil, fmt.Errorf("look for entries: %w", err)
	}
	prefix := w.set.FullName("")
	lists := make([][]warmer.SnapshotName, len(w.set.Entries))
	longest := 0
	for i, c := range w.set.Entries {
		if len(w.entries) > 0 && !slices.Contains(w.entries, c.Name) {
			continue
		}
		reported, err := w.store.Hot(ctx, c.Name, min(w.top, coherence.HotMax))
		if err != nil {
			return nil, err
		}
		seen := map[string]bool{}
		add := func(full string, ttl time.Duration) {
			if len(lists[i]) < w.top && !seen[full] {
				seen[full] = true
				lists[i] = append(lists[i], warmer.SnapshotName{Class: c.Name, Name: strings.TrimPrefix(full, prefix), TTL: max(0, ttl.Milliseconds())})
			}
		}
		ttls := map[string]time.Duration{}
		for _, k := range byClass[c.Name] {
			ttls[k.name] = k.ttl
		}
		for _, k := range reported {
			if _, ok := c.Captures([]byte(k.Name)); ok {
				add(k.Name, ttls[k.Name])
			}
		}
		for _, k := range byClass[c.Name] {
			add(k.name, k.ttl)
		}
		longest = max(longest, len(lists[i]))
	}
	var names []warmer.SnapshotName
	for rank := range longest {
		for _, list := range lists {
			if rank < len(list) {
				names = append(names, list[rank])
			}
		}
	}
	return names, nil
}

// scan looks at every key of the namespace, without touching it: of each class
// the keys that were read last, w.top of them at most.
func (w *warmCommand) scan(ctx context.Context, rdb redis.UniversalClient) (map[string][]scanned, error) {
	plan, err := w.set.Compile()
	if err != nil {
		return nil, err
	}
	out := map[string][]scanned{}
	trim := func(class string, most int) {
		if list := out[class]; len(list) > most {
			slices.SortFunc(list, func(a, b scanned) int { return cmp.Or(cmp.Compare(a.idle, b.idle), cmp.Compare(a.name, b.name)) })
			out[class] = list[:min(w.top, len(list))]
		}
	}
	// Masters are walked one after the other: this is in no hurry, and others
	// are.
	var masters []*redis.Client
	if cluster, ok := rdb.(*redis.ClusterClient); ok {
		found := make(chan *redis.Client, 1024)
		if err := cluster.ForEachMaster(ctx, func(_ context.Context, c *redis.Client) error { found <- c; return nil }); err != nil {
			return nil, err
		}
		close(found)
		for c := range found {
			masters = append(masters, c)
		}
	} else if c, ok := rdb.(*redis.Client); ok {
		masters = []*redis.Client{c}
	}
	for _, c := range masters {
		for cursor := uint64(0); ; {
			keys, next, err := c.Scan(ctx, cursor, coherence.EscapeGlob(w.set.FullName(""))+"*", 1000).Result()
			if err != nil {
				return nil, err
			}
			if err := w.look(ctx, c, plan.ClassOf, keys, out); err != nil {
				return nil, err
			}
			for class := range out {
				trim(class, 2*w.top)
			}
			if cursor = next; cursor == 0 {
				break
			}
		}
	}
	for class := range out {
		trim(class, 0)
	}
	return out, nil
}

// look asks how long ago each key was read, and how long it lives, by commands
// that do not count as reading it.
func (w *warmCommand) look(ctx context.Context, c *redis.Client, classOf func([]byte) *rules.Class, keys []string, out map[string][]scanned) error {
	pipe := c.Pipeline()
	type answer struct {
		key, class string
		freq, idle *redis.Cmd
		ttl        *redis.DurationCmd
	}
	var answers []answer
	for _, key := range keys {
		class := classOf([]byte(key))
		if class == nil || string(class.Unversioned([]byte(key))) != key {
			continue
		}
		answers = append(answers, answer{key: key, class: class.Name, freq: pipe.Do(ctx, "object", "freq", key),
			idle: pipe.Do(ctx, "object", "idletime", key), ttl: pipe.PTTL(ctx, key)})
	}
	if len(answers) == 0 {
		return nil
	}
	// One of freq and idle is always refused, by the policy of the server.
	if _, err := pipe.Exec(ctx); err != nil && answers[0].ttl.Err() != nil {
		return err
	}
	for _, a := range answers {
		s := scanned{name: a.key, ttl: a.ttl.Val()}
		if n, err := a.idle.Int64(); err == nil {
			s.idle = time.Duration(n) * time.Second
		} else if n, err := a.freq.Int64(); err == nil {
			s.idle = time.Duration(256-n) * time.Second
		} else {
			continue // it is gone
		}
		out[a.class] = append(out[a.class], s)
	}
	return nil
}

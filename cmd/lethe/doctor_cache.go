package main

import (
	"context"
	"fmt"

	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/rules"
	"github.com/lethe-cache/lethe/stream/kafka"
)

// lookAtRedis checks every master: version, memory, eviction policy.
func (p *program) lookAtRedis(ctx context.Context, set *rules.Set) []diagnosis {
	const area = "redis"
	store, err := coherence.Dial(ctx, p.settings.RedisURL, coherence.Options{Namespace: set.Namespace, Logger: p.log})
	if err != nil {
		return []diagnosis{{area, "reachable", statusFail, err.Error(), "check LETHE_REDIS_URL"}}
	}
	defer store.Close()
	stats, err := store.NodeStats(ctx)
	if err != nil {
		return []diagnosis{{area, "reachable", statusFail, err.Error(), "check LETHE_REDIS_URL"}}
	}
	out := []diagnosis{{Area: area, Name: "reachable", Status: statusOK, Detail: fmt.Sprintf("%d master(s)", len(stats))}}
	for _, s := range stats {
		out = append(out, redisVersion(s), redisPolicy(s))
	}
	return append(out, redisSource(ctx, store))
}

func redisVersion(s coherence.NodeStats) diagnosis {
	d := diagnosis{Area: "redis", Name: "version of " + s.Node, Status: statusOK, Detail: s.Version}
	var major, minor int
	if _, err := fmt.Sscanf(s.Version, "%d.%d", &major, &minor); err == nil && (major < 6 || major == 6 && minor < 2) {
		d.Status, d.Fix = statusFail, "use Redis 6.2 or later, or Valkey"
	}
	return d
}

func redisPolicy(s coherence.NodeStats) diagnosis {
	g := coherence.Policy(s.Policy)
	d := diagnosis{Area: "redis", Name: "maxmemory-policy of " + s.Node, Status: statusOK, Detail: s.Policy + ": " + g.Text}
	switch {
	case s.MaxMemory == 0:
		d.Detail = s.Policy + ", and no maxmemory: nothing is ever evicted"
	case !g.Exact():
		d.Status, d.Fix = statusWarn, "CONFIG SET maxmemory-policy volatile-lfu"
	}
	return d
}

func redisSource(ctx context.Context, store *coherence.Store) diagnosis {
	d := diagnosis{Area: "redis", Name: "source record", Status: statusOK}
	source, err := store.Source(ctx)
	switch {
	case err != nil:
		d.Status, d.Detail = statusFail, err.Error()
		return d
	case source.Era == 0: // nothing, or a source without an era
		d.Detail = "none yet: nothing is cached in this namespace until a worker has run"
		return d
	}
	d.Detail = fmt.Sprintf("era %d of system %d, timeline %d", source.Era, source.SystemID, source.Timeline)
	return d
}

// lookAtKafka checks brokers and topic, where there are any.
func (p *program) lookAtKafka(ctx context.Context, set *rules.Set) []diagnosis {
	if p.settings.direct() {
		return nil
	}
	var out []diagnosis
	for _, f := range kafka.Check(ctx, p.settings.kafka(set.Namespace, p.log)) {
		status := statusOK
		switch f.Severity {
		case kafka.Warning:
			status = statusWarn
		case kafka.Error:
			status = statusFail
		}
		out = append(out, diagnosis{"kafka", f.Name, status, f.Message, f.Fix})
	}
	return out
}

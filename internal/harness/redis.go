package harness

import (
	"testing"

	"github.com/lethe-cache/lethe/internal/servers"
)

// Redis is the server that the tests of this process share. Each test uses a
// namespace of its own (Namespace) and no command that touches all keys.
func Redis(t testing.TB) *servers.Redis {
	t.Helper()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.redis == nil {
		ctx, cancel := startContext(t)
		defer cancel()
		r, err := servers.StartRedis(ctx, servers.RedisConfig{})
		started(t, err)
		shared.redis = r
	}
	return shared.redis
}

// NewRedis starts a server for this test alone.
func NewRedis(t testing.TB, cfg servers.RedisConfig) *servers.Redis {
	t.Helper()
	ctx, cancel := startContext(t)
	defer cancel()
	r, err := servers.StartRedis(ctx, cfg)
	started(t, err)
	closed(t, r)
	return r
}

// NewRedisReplica starts a replica of master for this test alone.
func NewRedisReplica(t testing.TB, master *servers.Redis, args ...string) *servers.Redis {
	t.Helper()
	ctx, cancel := startContext(t)
	defer cancel()
	r, err := master.Replica(ctx, args...)
	started(t, err)
	closed(t, r)
	return r
}

// NewRedisCluster starts a cluster without replicas for this test alone.
func NewRedisCluster(t testing.TB, masters int, args ...string) *servers.RedisCluster {
	t.Helper()
	ctx, cancel := startContext(t)
	defer cancel()
	c, err := servers.StartRedisCluster(ctx, masters, args...)
	started(t, err)
	closed(t, c)
	return c
}

// NewReplicatedRedisCluster starts a cluster with one replica to each master
// for this test alone.
func NewReplicatedRedisCluster(t testing.TB, masters int, args ...string) *servers.RedisCluster {
	t.Helper()
	ctx, cancel := startContext(t)
	defer cancel()
	c, err := servers.StartReplicatedRedisCluster(ctx, masters, args...)
	started(t, err)
	closed(t, c)
	return c
}

// NewSentinel starts n sentinels that watch master for this test alone.
func NewSentinel(t testing.TB, master *servers.Redis, n int) *servers.Sentinel {
	t.Helper()
	ctx, cancel := startContext(t)
	defer cancel()
	s, err := servers.StartSentinel(ctx, master, n)
	started(t, err)
	closed(t, s)
	return s
}

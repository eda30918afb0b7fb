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

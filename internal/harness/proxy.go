package harness

import (
	"testing"

	"github.com/lethe-cache/lethe/internal/servers"
)

// Proxy puts a breakable network in front of target (host:port).
func Proxy(t testing.TB, target string) *servers.Proxy {
	t.Helper()
	p, err := servers.NewProxy(target)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.Close() })
	return p
}

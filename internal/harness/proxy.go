package harness

import (
	"testing"

	"github.com/lethe-cache/lethe/internal/servers"
)

// Addr is an address of 127.0.0.1 that nobody else is given while the test runs:
// for a program that the test starts and that listens there. A port that the
// kernel named as free may be somebody's outgoing connection a moment later.
func Addr(t testing.TB) string {
	t.Helper()
	addr, release, err := servers.ReserveAddr()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	return addr
}

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

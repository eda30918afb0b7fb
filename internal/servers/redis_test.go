package servers_test

import (
	"bufio"
	"net"
	"strings"
	"testing"

	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

// ask sends one inline command to a Redis and returns the first line of the
// answer, without its type byte.
func ask(t *testing.T, addr, cmd string) string {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(cmd + "\r\n")); err != nil {
		t.Fatal(err)
	}
	r := bufio.NewReader(conn)
	line, err := r.ReadString('\n')
	if err != nil {
		t.Fatalf("%s: %v", cmd, err)
	}
	if strings.HasPrefix(line, "$") && !strings.HasPrefix(line, "$-1") {
		if line, err = r.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
	}
	return strings.TrimLeft(strings.TrimSpace(line), "+:")
}

func TestServerRedisRestartsOnItsPort(t *testing.T) {
	t.Parallel()
	r := harness.NewRedis(t, servers.RedisConfig{Args: []string{"--appendonly", "yes", "--appendfsync", "always"}})
	addr := r.Addr()
	ask(t, addr, "SET a 1")
	r.Kill()
	if _, err := net.Dial("tcp", addr); err == nil {
		t.Fatal("a killed server still listens")
	}
	if err := r.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, addr, "GET a"); got != "1" {
		t.Errorf("GET after a kill = %q, want 1", got)
	}
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := r.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, addr, "GET a"); got != "1" {
		t.Errorf("GET after a stop = %q, want 1", got)
	}
	if err := r.Start(t.Context()); err == nil {
		t.Error("starting a running server succeeded")
	}
}

package servers_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

// ownerVariable makes this test binary a process that starts servers, says what
// they are, and waits to be ended.
const ownerVariable = "LETHE_TEST_OWNER"

// belongings is what an owner says about its servers.
type belongings struct {
	Addrs []string
	Dirs  []string
}

func TestMain(m *testing.M) {
	if end := os.Getenv(ownerVariable); end != "" {
		own(end)
		return
	}
	harness.Main(m)
}

// own starts Postgres, which has children, and Redis where it is installed.
func own(end string) {
	ctx := context.Background()
	p, err := servers.StartPostgres(ctx, servers.PostgresConfig{})
	if err != nil {
		panic(err)
	}
	b := belongings{Addrs: []string{fmt.Sprintf("127.0.0.1:%d", p.Port())}, Dirs: []string{p.DataDir()}}
	r, err := servers.StartRedis(ctx, servers.RedisConfig{})
	switch {
	case err == nil:
		b.Addrs, b.Dirs = append(b.Addrs, r.Addr()), append(b.Dirs, r.Dir())
	case !errors.Is(err, servers.ErrNotInstalled):
		panic(err)
	}
	if err := json.NewEncoder(os.Stdout).Encode(b); err != nil {
		panic(err)
	}
	if end == "panic" {
		_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
		panic("on purpose")
	}
	select {}
}

// TestServersDieWithTheirOwner ends a process that owns servers in each violent
// way; its servers must be gone, and the directories too.
func TestServersDieWithTheirOwner(t *testing.T) {
	t.Parallel()
	if _, err := servers.FindPostgres(t.Context(), ""); errors.Is(err, servers.ErrNotInstalled) {
		t.Skip("left out:", err)
	}
	ends := map[string]func(*exec.Cmd) error{
		"kill":      func(c *exec.Cmd) error { return c.Process.Kill() },
		"terminate": func(c *exec.Cmd) error { return c.Process.Signal(syscall.SIGTERM) },
		"interrupt": func(c *exec.Cmd) error { return c.Process.Signal(os.Interrupt) },
		"panic":     func(*exec.Cmd) error { return nil },
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), ownerVariable+"="+name)
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var b belongings
			if err := json.NewDecoder(stdout).Decode(&b); err != nil {
				_ = cmd.Process.Kill()
				t.Fatalf("what the owner says: %v, %v", err, cmd.Wait())
			}
			for _, addr := range b.Addrs {
				conn, err := net.Dial("tcp", addr)
				if err != nil {
					t.Fatalf("the owner's server does not listen: %v", err)
				}
				conn.Close()
			}
			if err := end(cmd); err != nil {
				t.Fatal(err)
			}
			stdin.Close()
			if err := cmd.Wait(); err == nil {
				t.Error("the owner ended well")
			}
			harness.Eventually(t, 20*time.Second, func() error { return gone(b) })
		})
	}
}

// gone says what is left of an owner: ports, directories, and processes whose
// command line names one of the directories.
func gone(b belongings) error {
	for _, addr := range b.Addrs {
		if conn, err := net.Dial("tcp", addr); err == nil {
			conn.Close()
			return errors.New(addr + " still listens")
		}
	}
	for _, dir := range b.Dirs {
		if _, err := os.Stat(dir); !os.IsNotExist(err) {
			return fmt.Errorf("%s is still there (%v)", dir, err)
		}
		if out, err := exec.Command("pgrep", "-f", dir).Output(); err == nil {
			return fmt.Errorf("processes %s still run in %s", strings.Fields(string(out)), dir)
		}
	}
	return nil
}

func TestClosedServersLeaveNothing(t *testing.T) {
	t.Parallel()
	p, err := servers.StartPostgres(t.Context(), servers.PostgresConfig{})
	if errors.Is(err, servers.ErrNotInstalled) {
		t.Skip("left out:", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
	b := belongings{Addrs: []string{fmt.Sprintf("127.0.0.1:%d", p.Port())}, Dirs: []string{p.DataDir()}}
	if err := gone(b); err != nil {
		t.Error(err)
	}
	if err := p.Start(t.Context()); err == nil {
		t.Error("a closed server started")
	}
}

func TestPostgresInADirectoryOfChoice(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	p, err := servers.StartPostgres(t.Context(), servers.PostgresConfig{Dir: dir})
	switch {
	case errors.Is(err, servers.ErrNotInstalled):
		t.Skip("left out:", err)
	case err == nil: // not root
		if !strings.HasPrefix(p.DataDir(), dir+"/") {
			t.Errorf("DataDir() = %s, want it below %s", p.DataDir(), dir)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	case os.Geteuid() != 0 || !strings.Contains(err.Error(), dir):
		t.Errorf("start in %s: %v, want it to work, or to say that the directory is closed to others", dir, err)
	}
}

func TestStartSaysWhyItFailed(t *testing.T) {
	t.Parallel()
	_, err := servers.StartPostgres(t.Context(), servers.PostgresConfig{Settings: map[string]string{"no_such_setting": "1"}})
	if errors.Is(err, servers.ErrNotInstalled) {
		t.Skip("left out:", err)
	}
	if err == nil || !strings.Contains(err.Error(), "no_such_setting") {
		t.Errorf("start with a wrong setting: %v, want the server's own words", err)
	}
	_, err = servers.StartPostgres(t.Context(), servers.PostgresConfig{Version: "9"})
	if err == nil || errors.Is(err, servers.ErrNotInstalled) {
		t.Errorf("start of version 9: %v, want an error that is not about installing", err)
	}
}

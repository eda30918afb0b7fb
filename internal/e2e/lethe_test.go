package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

// binary is the program, built once for the package.
var binary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "lethe-e2e-")
	if err != nil {
		return "", err
	}
	harness.AtEnd(func() error { return os.RemoveAll(dir) })
	return servers.BuildLethe(context.Background(), dir)
})

func TestMain(m *testing.M) { harness.Main(m) }

// lethe is one run of the program.
type lethe struct {
	t      *testing.T
	cmd    *exec.Cmd
	listen string
	output lockedBuffer
	done   chan struct{}
	err    error
}

// lockedBuffer collects what a process prints while a test may read it.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// start runs the program with settings given as LETHE_* variables.
func start(t *testing.T, env map[string]string, args ...string) *lethe {
	t.Helper()
	path, err := binary()
	if err != nil {
		t.Fatal(err)
	}
	l := &lethe{t: t, cmd: exec.Command(path, args...), done: make(chan struct{})}
	l.cmd.Dir = t.TempDir()
	l.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	l.cmd.Stdout, l.cmd.Stderr = &l.output, &l.output
	l.listen = harness.Addr(t)
	l.cmd.Env = append(os.Environ(), "LETHE_LISTEN="+l.listen)
	for k, v := range env {
		l.cmd.Env = append(l.cmd.Env, k+"="+v)
	}
	if err := l.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { l.err = l.cmd.Wait(); close(l.done) }()
	t.Cleanup(func() {
		l.kill()
		if t.Failed() {
			t.Logf("lethe %s printed:\n%s", strings.Join(args, " "), tail(l.output.String(), 12000))
		}
	})
	return l
}

func tail(s string, n int) string {
	if len(s) > n {
		return "..." + s[len(s)-n:]
	}
	return s
}

// wait waits for the program to end and returns its exit code.
func (l *lethe) wait(d time.Duration) int {
	l.t.Helper()
	select {
	case <-l.done:
	case <-time.After(d):
		l.t.Fatalf("lethe still runs after %s", d)
	}
	var exit *exec.ExitError
	if l.err != nil && !errors.As(l.err, &exit) {
		l.t.Fatal(l.err)
	}
	return l.cmd.ProcessState.ExitCode()
}

// kill ends the program at once, as a lost machine would.
func (l *lethe) kill() {
	_ = l.cmd.Process.Signal(syscall.SIGKILL)
	<-l.done
}

// stop asks the program to end and expects it to end well.
func (l *lethe) stop() {
	l.t.Helper()
	if err := l.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		l.t.Fatal(err)
	}
	if code := l.wait(harness.Patience); code != 0 {
		l.t.Fatalf("exit code %d after SIGTERM, want 0", code)
	}
}

// ready waits until /readyz answers 200 and no raise of the start is due any
// more. Such a raise waits for transactions of any database of the server, which
// are those of the tests beside this one, and after ten seconds /readyz answers
// 200 without it; it would forget what the test fills then.
func (l *lethe) ready() {
	l.t.Helper()
	harness.Eventually(l.t, 60*time.Second, func() error {
		select {
		case <-l.done:
			l.t.Fatalf("lethe ended before it was ready: %v", l.err)
		default:
		}
		code, body, err := l.get("/readyz")
		if err != nil {
			return err
		}
		if code != http.StatusOK {
			return fmt.Errorf("readyz answers %d: %s", code, body)
		}
		if strings.Contains(body, "raise_due_") {
			return fmt.Errorf("a raise is due: %s", body)
		}
		return nil
	})
}

func (l *lethe) get(path string) (int, string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience) // of a hang
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+l.listen+path, nil)
	if err != nil {
		return 0, "", err
	}
	response, err := httpClient.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return response.StatusCode, string(body), err
}

// httpClient keeps no connection, so that none is left when a test ends.
var httpClient = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

// readyz is the body of /readyz.
func (l *lethe) readyz() (state struct {
	Ready   bool
	Reasons []string
	Details map[string]any
}) {
	l.t.Helper()
	_, body, err := l.get("/readyz")
	if err != nil {
		l.t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(body), &state); err != nil {
		l.t.Fatalf("readyz: %v: %s", err, body)
	}
	return state
}

// rulesFile writes rules into a throwaway file.
func rulesFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "rules.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

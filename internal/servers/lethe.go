package servers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// BuildLethe builds the program of this module into dir and returns its path.
// The working directory must be inside the module.
func BuildLethe(ctx context.Context, dir string) (string, error) {
	path := filepath.Join(dir, "lethe")
	cmd := exec.CommandContext(ctx, "go", "build", "-o", path, "github.com/lethe-cache/lethe/cmd/lethe")
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build lethe: %w: %s", err, bytes.TrimSpace(out))
	}
	return path, nil
}

// LetheConfig says how to run `lethe run` without brokers.
type LetheConfig struct {
	// Binary is what BuildLethe returned.
	Binary string
	// Rules is the text of rules.yaml.
	Rules string
	// PostgresURL and RedisURL are where it connects to.
	PostgresURL, RedisURL string
}

// Lethe is a running `lethe run`.
type Lethe struct {
	scratch *scratch
	port    *port
	proc    *process
}

// StartLethe starts the program and returns when /readyz answers 200.
func StartLethe(ctx context.Context, cfg LetheConfig) (*Lethe, error) {
	p, err := reservePort(0)
	if err != nil {
		return nil, err
	}
	l := &Lethe{port: p}
	if l.scratch, err = newScratch("lethe", ""); err != nil {
		p.release()
		return nil, err
	}
	rules := l.scratch.path("rules.yaml")
	if err := os.WriteFile(rules, []byte(cfg.Rules), 0o644); err != nil {
		return nil, errors.Join(fmt.Errorf("write rules: %w", err), l.Close())
	}
	l.proc, err = startProcess(command{
		path: cfg.Binary, args: []string{"run"},
		dir: l.scratch.dir, log: l.Log(), pidFile: l.scratch.path("lethe.pid"), lastWill: syscall.SIGTERM,
		env: []string{
			"LETHE_POSTGRES_URL=" + cfg.PostgresURL, "LETHE_REDIS_URL=" + cfg.RedisURL, "LETHE_RULES=" + rules,
			"LETHE_LISTEN=" + p.addr(), "LETHE_KAFKA_BROKERS=",
		},
	})
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	if err := l.proc.ready(ctx, l.probe); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// probe asks whether Lethe is ready, on a connection that is not kept.
func (l *Lethe) probe(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+l.port.addr()+"/readyz", nil)
	if err != nil {
		return err
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 2000))
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("readyz answers %d: %s", resp.StatusCode, bytes.TrimSpace(body))
	}
	return nil
}

// Log is the file with the program's output.
func (l *Lethe) Log() string { return l.scratch.path("lethe.log") }

// Close stops the program as an operator would, kills it after 15 s, and
// removes its directory.
func (l *Lethe) Close() error {
	var err error
	if l.proc != nil {
		err = l.proc.stop(syscall.SIGTERM, 15*time.Second)
	}
	err = errors.Join(err, l.scratch.close())
	l.port.release()
	return err
}

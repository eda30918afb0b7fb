package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/lethe-cache/lethe"
	"github.com/lethe-cache/lethe/internal/servers"
	shopdata "github.com/lethe-cache/lethe/internal/shop"
)

// stage is the shop with all that it needs. a and b are the addresses of its
// two instances.
type stage struct {
	a, b     string
	postgres *servers.Postgres
	redis    *servers.Redis
	ends     []func() error // in the order of starting
}

const startTimeout = 5 * time.Minute // a first start may download Postgres

// start starts everything; the programs' logs go to log. The error wraps
// servers.ErrNotInstalled if there is no Redis.
func start(ctx context.Context, log io.Writer) (s *stage, err error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	s = &stage{}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close())
		}
	}()
	if s.postgres, err = servers.StartPostgres(ctx, servers.PostgresConfig{}); err != nil {
		return s, err
	}
	s.ends = append(s.ends, s.postgres.Close)
	if s.redis, err = servers.StartRedis(ctx, servers.RedisConfig{}); err != nil {
		return s, err
	}
	s.ends = append(s.ends, s.redis.Close)
	if err := s.postgres.Exec(ctx, "postgres", shopdata.Schema); err != nil {
		return s, fmt.Errorf("load the shop: %w", err)
	}

	dir, err := os.MkdirTemp("", "lethe-shop-")
	if err != nil {
		return s, err
	}
	s.ends = append(s.ends, func() error { return os.RemoveAll(dir) })
	out, err := exec.CommandContext(ctx, "go", "build", "-o", dir+"/",
		"github.com/lethe-cache/lethe/cmd/lethe", "github.com/lethe-cache/lethe/examples/shop").CombinedOutput()
	if err != nil {
		return s, fmt.Errorf("build: %w\n%s", err, out)
	}
	return s, s.programs(ctx, dir, log)
}

// programs starts lethe and, when it is ready, the instances.
func (s *stage) programs(ctx context.Context, dir string, log io.Writer) error {
	worker, err := freeAddress()
	if err != nil {
		return err
	}
	if s.a, err = freeAddress(); err != nil {
		return err
	}
	if s.b, err = freeAddress(); err != nil {
		return err
	}
	rules := filepath.Join(dir, "rules.yaml")
	if err := os.WriteFile(rules, []byte(lethe.ExampleRules), 0o600); err != nil {
		return err
	}
	url := s.postgres.URL("postgres")
	if err := s.run(ctx, log, dir, worker, "/readyz", []string{"lethe", "run"},
		"LETHE_POSTGRES_URL="+url, "LETHE_REDIS_URL="+s.redis.URL(), "LETHE_RULES="+rules, "LETHE_LISTEN="+worker); err != nil {
		return err
	}
	for _, address := range []string{s.a, s.b} {
		if err := s.run(ctx, log, dir, address, "/healthz", []string{"shop"},
			"DATABASE_URL="+url, "REDIS_URL="+s.redis.URL(), "LISTEN="+address); err != nil {
			return err
		}
	}
	return nil
}

// run starts a program and waits until it answers 200. close asks it to end.
func (s *stage) run(ctx context.Context, log io.Writer, dir, address, ready string, command []string, env ...string) error {
	cmd := exec.Command(filepath.Join(dir, command[0]), command[1:]...)
	var printed bytes.Buffer // read after Wait only
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	cmd.Stdout = io.MultiWriter(&printed, log)
	cmd.Stderr = cmd.Stdout
	// A group of its own: Ctrl-C is for this program, which ends them in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	s.ends = append(s.ends, func() error {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case err := <-ended:
			if err != nil {
				return fmt.Errorf("%s: %w\n%s", command[0], err, printed.String())
			}
			return nil
		case <-time.After(30 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
			return fmt.Errorf("%s did not end within 30 s of SIGTERM\n%s", command[0], printed.String())
		}
	})
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if r, err := request(ctx, http.MethodGet, address, ready, "", ""); err == nil && r.code == http.StatusOK {
			return nil
		}
		select {
		case err := <-ended:
			ended <- err
			return fmt.Errorf("%s ended before it was ready", command[0])
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w", command[0], ctx.Err())
		case <-tick.C:
		}
	}
}

// close ends everything, the last first.
func (s *stage) close() error {
	var errs []error
	for i := len(s.ends) - 1; i >= 0; i-- {
		errs = append(errs, s.ends[i]())
	}
	s.ends = nil
	return errors.Join(errs...)
}

func freeAddress() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}

type answer struct {
	code   int
	header http.Header
	body   string
}

// web keeps no connection, so that none is left at the end.
var web = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 30 * time.Second}

func request(ctx context.Context, method, address, path, body, token string) (answer, error) {
	r, err := http.NewRequestWithContext(ctx, method, "http://"+address+path, strings.NewReader(body))
	if err != nil {
		return answer{}, err
	}
	if token != "" {
		r.Header.Set("Lethe-After", token)
	}
	response, err := web.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	return answer{code: response.StatusCode, header: response.Header, body: strings.TrimSpace(string(text))}, err
}

package servers

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/redis/go-redis/v9"
)

// RedisConfig says how to start a Redis or Valkey.
type RedisConfig struct {
	// Args follow the defaults on the command line and override them, such as
	// "--appendonly", "yes". By default nothing is persisted.
	Args []string
	// Port is the port of 127.0.0.1 to listen on; 0 takes a free one.
	Port int
}

// Redis is a running redis-server or valkey-server of its own.
type Redis struct {
	program string
	args    []string
	scratch *scratch
	port    *port
	bus     *port // of a cluster's node, else nil

	mu     sync.Mutex
	proc   *process
	closed bool
}

// StartRedis starts redis-server or, if that is not on PATH, valkey-server, and
// returns when it answers. The error wraps ErrNotInstalled if there is neither.
func StartRedis(ctx context.Context, cfg RedisConfig) (*Redis, error) {
	p, err := reservePort(cfg.Port)
	if err != nil {
		return nil, err
	}
	return startRedis(ctx, p, nil, cfg.Args)
}

// startRedis starts a server on ports that are now its own.
func startRedis(ctx context.Context, p, bus *port, args []string) (*Redis, error) {
	r := &Redis{args: args, port: p, bus: bus}
	var err error
	if r.program, err = redisProgram(); err == nil {
		r.scratch, err = newScratch("redis", "")
	}
	if err != nil {
		p.release()
		bus.release()
		return nil, err
	}
	if err := r.Start(ctx); err != nil {
		return nil, errors.Join(err, r.Close())
	}
	return r, nil
}

// Replica starts a replica of r and returns when it is in step. Args are like
// RedisConfig.Args.
func (r *Redis) Replica(ctx context.Context, args ...string) (*Redis, error) {
	_, number, _ := net.SplitHostPort(r.Addr())
	replica, err := StartRedis(ctx, RedisConfig{Args: append([]string{"--replicaof", "127.0.0.1 " + number}, args...)})
	if err != nil {
		return nil, err
	}
	client := replica.client()
	defer client.Close()
	err = replica.proc.ready(ctx, func(ctx context.Context) error {
		info, err := client.Info(ctx, "replication").Result()
		if err == nil && !strings.Contains(info, "master_link_status:up") {
			err = fmt.Errorf("not in step with %s", r.Addr())
		}
		return err
	})
	if err != nil {
		return nil, errors.Join(err, replica.Close())
	}
	return replica, nil
}

// client is a plain client for what the harness itself asks of a server.
func (r *Redis) client() *redis.Client {
	return redis.NewClient(&redis.Options{Addr: r.Addr(), PoolSize: 1, MaxRetries: -1, ContextTimeoutEnabled: true, DisableIdentity: true, Protocol: 2})
}

func redisProgram() (string, error) {
	for _, name := range []string{"redis-server", "valkey-server"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("look for redis-server and valkey-server on PATH: %w", ErrNotInstalled)
}

// Start starts a stopped or killed server again, on the same port and in the
// same directory. What it finds there depends on the persistence in Args.
func (r *Redis) Start(ctx context.Context) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return errors.New("start redis: closed")
	}
	if r.proc != nil && !r.proc.exited() {
		return errors.New("start redis: already running")
	}
	proc, err := startProcess(command{
		path: r.program,
		args: append([]string{
			"--port", strconv.Itoa(r.port.number), "--bind", "127.0.0.1", "--dir", r.scratch.dir,
			"--save", "", "--appendonly", "no", "--daemonize", "no", "--protected-mode", "no",
			"--repl-diskless-sync-delay", "0", // else a replica waits 5 s for others to join it
		}, r.args...),
		dir: r.scratch.dir, log: r.Log(), pidFile: r.scratch.path("redis.pid"), lastWill: syscall.SIGKILL,
	})
	if err != nil {
		return err
	}
	r.proc = proc
	return proc.ready(ctx, r.ping)
}

// ping is done when the server answers anything but that it is still loading;
// a demand for a password is an answer.
func (r *Redis) ping(ctx context.Context) error {
	answer, err := askRedis(ctx, r.Addr(), "PING")
	if err == nil && strings.HasPrefix(answer, "-LOADING") {
		err = errors.New(answer)
	}
	return err
}

// askRedis sends one inline command and returns the first line of the answer.
func askRedis(ctx context.Context, addr, cmd string) (string, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		_ = conn.SetDeadline(deadline)
	}
	if _, err := conn.Write([]byte(cmd + "\r\n")); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	return strings.TrimSpace(line), err
}

// Stop ends the server as an operator would (SIGTERM, which saves if Args ask
// for persistence) and waits. Stopping a stopped server does nothing.
func (r *Redis) Stop() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.proc == nil {
		return nil
	}
	return r.proc.stop(syscall.SIGTERM, 20*time.Second)
}

// Kill ends the server with SIGKILL and leaves its directory as it is.
func (r *Redis) Kill() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.proc != nil {
		r.proc.kill()
	}
}

// Close ends the server and removes its directory. Calling it again does
// nothing.
func (r *Redis) Close() error {
	r.Kill()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil
	}
	r.closed = true
	err := r.scratch.close()
	r.port.release()
	r.bus.release()
	return err
}

// URL is the address as LETHE_REDIS_URL takes it, database 0.
func (r *Redis) URL() string { return "redis://" + r.Addr() + "/0" }

// Addr is host:port; it stays the same while the server is stopped.
func (r *Redis) Addr() string { return r.port.addr() }

// Dir is the server's working directory, where it persists to.
func (r *Redis) Dir() string { return r.scratch.dir }

// Log is the file with the server's output, over all its starts.
func (r *Redis) Log() string { return r.scratch.path("redis.log") }

// String says which server this is, for people.
func (r *Redis) String() string {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	out, err := run(ctx, nil, "/", r.program, "--version")
	version := ""
	if err == nil {
		for f := range strings.FieldsSeq(out) {
			if v, ok := strings.CutPrefix(f, "v="); ok {
				version = " " + v
			}
		}
	}
	name := "Redis"
	if strings.Contains(r.program, "valkey") {
		name = "Valkey"
	}
	return fmt.Sprintf("%s%s (%s)", name, version, r.program)
}

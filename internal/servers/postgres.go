package servers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// PostgresConfig says which Postgres to start, and how. The zero value starts
// the best one there is.
type PostgresConfig struct {
	// Version is "debian" (what the system's packages or PATH offer), "14" to
	// "18" (embedded binaries, downloaded once), or "" for the system's and, if
	// there is none, embedded 18.
	Version string
	// Settings are lines of postgresql.conf; they override the defaults below,
	// and ALTER SYSTEM overrides them.
	Settings map[string]string
	// Dir is where the throwaway directory is made; the default is the system's
	// directory for temporary files. Under root everybody must be able to enter
	// it, because Postgres runs as another user.
	Dir string
}

// defaultSettings make a server that logical replication can start on at once,
// and that is fast because nothing in it is worth keeping. Segments of dynamic
// shared memory live in the data directory, so that a killed server leaves none
// behind in /dev/shm.
var defaultSettings = map[string]string{
	"dynamic_shared_memory_type": "mmap",
	"fsync":                      "off",
	"listen_addresses":           "127.0.0.1",
	"log_line_prefix":            "%m [%p] %q%a ",
	"max_connections":            "100",
	"max_replication_slots":      "100",
	"max_wal_senders":            "40",
	"wal_level":                  "logical",
	// A standby that lost its primary asks again, and can be promoted, at once
	// and not after 5 s.
	"wal_retrieve_retry_interval": "100ms",
}

// Postgres is a running server of its own. Everybody on this machine may
// connect over 127.0.0.1 as the superuser postgres without a password.
type Postgres struct {
	settings map[string]string
	install  installation
	user     *user
	scratch  *scratch
	port     *port
	primary  *Postgres // whom a standby follows; nil for a primary
	slot     string    // the standby's, on its primary

	mu         sync.Mutex
	proc       *process // nil or exited: stopped
	versionNum int
	closed     bool
}

// StartPostgres makes a database cluster, starts a server on it and returns
// when it accepts connections. If Version is "" or "14" to "18" it may download
// the binaries first. The error wraps ErrNotInstalled if there is no such
// Postgres here.
func StartPostgres(ctx context.Context, cfg PostgresConfig) (*Postgres, error) {
	install, err := findPostgres(ctx, cfg.Version)
	if err != nil {
		return nil, fmt.Errorf("find postgres %q: %w", cfg.Version, err)
	}
	p, err := newPostgres(install, cfg.Settings, cfg.Dir)
	if err != nil {
		return nil, err
	}
	if err := p.create(ctx); err != nil {
		return nil, errors.Join(err, p.Close())
	}
	return p, nil
}

// newPostgres prepares the place of a server: directory, user, port.
func newPostgres(install installation, settings map[string]string, dir string) (*Postgres, error) {
	p := &Postgres{install: install, settings: maps.Clone(defaultSettings)}
	maps.Copy(p.settings, settings)
	var err error
	if p.user, err = unprivileged(); err != nil {
		return nil, err
	}
	if dir != "" && p.user != nil && !enterable(dir) {
		return nil, fmt.Errorf("start postgres in %s: user %s, whom it runs as instead of root, may not enter it", dir, p.user.name)
	}
	if p.port, err = reservePort(0); err != nil {
		return nil, err
	}
	if p.scratch, err = newScratch("postgres", dir); err != nil {
		p.port.release()
		return nil, err
	}
	for _, d := range []string{p.DataDir(), p.SocketDir()} {
		if err := errors.Join(os.Mkdir(d, 0o700), p.user.own(d)); err != nil {
			return nil, errors.Join(fmt.Errorf("make %s: %w", d, err), p.Close())
		}
	}
	return p, nil
}

// create initialises the data directory and starts the server.
func (p *Postgres) create(ctx context.Context) error {
	_, err := run(ctx, p.user, p.scratch.dir, p.install.tool("initdb"),
		"--pgdata="+p.DataDir(), "--username=postgres", "--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C")
	if err != nil {
		return err
	}
	if err := p.configure(nil); err != nil {
		return err
	}
	return p.Start(ctx)
}

// configure writes the settings that Start uses; extra ones win.
func (p *Postgres) configure(extra map[string]string) error {
	all := maps.Clone(p.settings)
	maps.Copy(all, extra)
	all["port"] = strconv.Itoa(p.Port())
	all["unix_socket_directories"] = p.SocketDir()
	for name, value := range all {
		all[name] = strings.ReplaceAll(value, "'", "''")
	}
	// A file of its own instead of lines at the end of postgresql.conf: a
	// standby's data directory starts as a copy and replaces it as a whole.
	if err := p.write("lethe.conf", lines(all, "%s = '%s'\n")); err != nil {
		return err
	}
	main, err := os.ReadFile(p.data("postgresql.conf"))
	if err != nil {
		return fmt.Errorf("read settings: %w", err)
	}
	const include = "include 'lethe.conf'\n"
	if strings.Contains(string(main), include) {
		return nil
	}
	return p.write("postgresql.conf", string(main)+include)
}

// write puts a file into the data directory, readable by the server alone.
func (p *Postgres) write(name, text string) error {
	path := p.data(name)
	if err := errors.Join(os.WriteFile(path, []byte(text), 0o600), p.user.own(path)); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// Start starts a stopped or killed server again, on the same port and data.
func (p *Postgres) Start(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return errors.New("start postgres: closed")
	}
	if p.proc != nil && !p.proc.exited() {
		return errors.New("start postgres: already running")
	}
	proc, err := startProcess(command{
		path: p.install.tool("postgres"), args: []string{"-D", p.DataDir()},
		dir: p.scratch.dir, log: p.Log(), pidFile: p.scratch.path("postgres.pid"),
		// Immediate shutdown: the postmaster ends its children and gives its
		// shared memory back, which it could not after SIGKILL.
		user: p.user, lastWill: syscall.SIGQUIT,
	})
	if err != nil {
		return err
	}
	p.proc = proc
	return proc.ready(ctx, p.ping)
}

// ping connects once; the first time it also learns the server's version.
func (p *Postgres) ping(ctx context.Context) error {
	conn, err := pgconn.Connect(ctx, p.URL("postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	if p.versionNum == 0 {
		res := conn.ExecParams(ctx, "SHOW server_version_num", nil, nil, nil, nil).Read()
		if res.Err != nil {
			return res.Err
		}
		p.versionNum, err = strconv.Atoi(string(res.Rows[0][0]))
	}
	return err
}

// The modes of Stop.
const (
	// Fast ends sessions, writes a checkpoint and waits until walsenders have
	// sent everything: the ordinary restart of an operator.
	Fast = "fast"
	// Immediate ends without a checkpoint: the next start recovers from WAL.
	Immediate = "immediate"
)

// Stop shuts the server down and waits for it. A server that is not down after
// 30 s is killed, which is an error. Stopping a stopped server does nothing.
func (p *Postgres) Stop(mode string) error {
	signals := map[string]syscall.Signal{Fast: syscall.SIGINT, Immediate: syscall.SIGQUIT}
	sig, ok := signals[mode]
	if !ok {
		return fmt.Errorf("stop postgres: unknown mode %q", mode)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.proc == nil {
		return nil
	}
	return p.proc.stop(sig, 30*time.Second)
}

// Kill ends the server and all its processes with SIGKILL, as a crash of the
// machine would, and leaves the data directory as it is.
func (p *Postgres) Kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.proc != nil {
		p.proc.kill()
	}
}

// Running says whether the server's process is there.
func (p *Postgres) Running() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.proc != nil && !p.proc.exited()
}

// Close stops the server at once and removes its data. Calling it again does
// nothing.
func (p *Postgres) Close() error {
	err := p.Stop(Immediate)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil
	}
	p.closed = true
	err = errors.Join(err, p.forgetSlot(), p.scratch.close())
	p.port.release()
	return err
}

// Exec runs SQL commands in a database, on one connection made for them, each
// in a transaction of its own.
func (p *Postgres) Exec(ctx context.Context, db string, commands ...string) error {
	conn, err := pgconn.Connect(ctx, p.URL(db))
	if err != nil {
		return fmt.Errorf("connect to %s: %w", db, err)
	}
	defer conn.Close(context.WithoutCancel(ctx))
	for _, sql := range commands {
		if _, err := conn.Exec(ctx, sql).ReadAll(); err != nil {
			return fmt.Errorf("run %q: %w", sql, err)
		}
	}
	return nil
}

// URL is the connection string of the superuser for a database.
func (p *Postgres) URL(db string) string {
	u := url.URL{Scheme: "postgres", User: url.User("postgres"), Host: p.port.addr(), Path: "/" + db, RawQuery: "sslmode=disable"}
	return u.String()
}

// Port is the same for the whole life of the server, also while it is stopped.
func (p *Postgres) Port() int { return p.port.number }

// SocketDir is where the unix socket is: the host of a libpq connection string.
func (p *Postgres) SocketDir() string { return p.scratch.path("s") }

// DataDir is PGDATA.
func (p *Postgres) DataDir() string { return p.scratch.path("data") }

// BinDir is where postgres and initdb are and, in a system's installation only,
// psql, pgbench and pg_recvlogical; Tool finds one of those.
func (p *Postgres) BinDir() string { return p.install.bin }

// Tool is the path of a program of this installation. Its error wraps
// ErrNotInstalled: the embedded binaries have no client programs.
func (p *Postgres) Tool(name string) (string, error) {
	path := p.install.tool(name)
	if _, err := os.Stat(path); err != nil {
		return "", fmt.Errorf("find %s in %s: %w", name, p.install.bin, ErrNotInstalled)
	}
	return path, nil
}

// Log is the file with the server's output, over all its starts.
func (p *Postgres) Log() string { return p.scratch.path("postgres.log") }

// VersionNum is server_version_num: 150013 for 15.13.
func (p *Postgres) VersionNum() int { return p.versionNum }

// String says which server this is, for people.
func (p *Postgres) String() string { return p.install.String() }

func (p *Postgres) data(name string) string { return p.DataDir() + "/" + name }

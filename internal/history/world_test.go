package history

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
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

const namespace = "history"

const rules = `version: 1
namespace: ` + namespace + `
entries:
  item: {key: "item:{id}"}
  list: {key: "list:{grp}"}
  page: {key: "page:{id}"}
rules:
  - name: item
    table: public.item
    keys: ["item:{id}"]
    tags: ["grp:{grp}"]
`

const schema = `CREATE TABLE item (id int PRIMARY KEY, grp int NOT NULL, n bigint NOT NULL);
ALTER TABLE item REPLICA IDENTITY FULL;
CREATE TABLE version (id int PRIMARY KEY, n bigint NOT NULL);
INSERT INTO version SELECT id, 0 FROM generate_series(0, %[1]d) id;
INSERT INTO item SELECT id, id %% %[2]d, 0 FROM generate_series(0, %[1]d) id;`

// world is the servers, the program and the clients of one run.
type world struct {
	t       *testing.T
	primary *servers.Postgres
	standby *servers.Postgres
	redis   *servers.Redis
	admin   *pgxpool.Pool // on the primary
	replica *pgxpool.Pool
	store   *coherence.Store // straight to Redis
	workers *servers.Proxy   // between the program and Redis
	lethe   *program
	agents  []*remote

	mu      sync.Mutex
	history History
	failed  []string
	events  []string // what the nemesis did
	began   int64
}

func newWorld(t *testing.T, seed uint64) *world {
	t.Helper()
	w := &world{t: t, began: Now(), history: History{Strict: strict}}
	var ready sync.WaitGroup
	ready.Go(func() { buildLethe(t) })
	w.primary = harness.NewPostgres(t, servers.PostgresConfig{Settings: map[string]string{"max_connections": "200"}})
	w.redis = harness.NewRedis(t, servers.RedisConfig{})
	w.execute(fmt.Sprintf(schema, rowCount-1, groupCount))
	w.standby = harness.NewStandby(t, w.primary, servers.StandbyConfig{Settings: map[string]string{"recovery_min_apply_delay": "150ms"}})
	w.admin, w.replica = w.pool(w.primary), w.pool(w.standby)
	store, err := coherence.Dial(t.Context(), w.redis.URL(), coherence.Options{Namespace: namespace})
	w.must(err)
	w.store = store
	t.Cleanup(func() { _ = store.Close() })
	w.workers = harness.Proxy(t, w.redis.Addr())
	ready.Wait()
	w.startLethe()
	w.lethe.ready(t)
	harness.Eventually(t, 20*time.Second, func() error { // made by the program
		return w.replica.QueryRow(t.Context(), "SELECT 1 FROM lethe.source()").Scan(new(int))
	})
	for i, p := range []plan{
		{Database: w.primary.URL("postgres")},
		{Database: w.standby.URL("postgres"), Standby: true},
		{},
		{Database: w.standby.URL("postgres"), Standby: true, L1Bytes: 8 << 10}, // in this process, short of room
	} {
		p.ID, p.Seed, p.Namespace, p.Primary, p.Workers = i, seed, namespace, w.primary.URL("postgres"), 3
		w.agents = append(w.agents, w.start(p, i == 3))
	}
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) execute(sql ...string) {
	w.t.Helper()
	w.must(w.primary.Exec(w.t.Context(), "postgres", sql...))
}

func (w *world) pool(p *servers.Postgres) *pgxpool.Pool {
	w.t.Helper()
	pool, err := pgxpool.New(w.t.Context(), p.URL("postgres")+"&pool_max_conns=4")
	w.must(err)
	w.t.Cleanup(pool.Close)
	return pool
}

// program is a run of "lethe run".
type program struct {
	cmd    *exec.Cmd
	listen string
	output bytes.Buffer
	done   chan struct{}
}

var build struct {
	once sync.Once
	path string
	err  error
}

func buildLethe(t *testing.T) string {
	build.once.Do(func() {
		dir, err := os.MkdirTemp("", "lethe-history-")
		if err != nil {
			build.err = err
			return
		}
		harness.AtEnd(func() error { return os.RemoveAll(dir) })
		build.path = filepath.Join(dir, "lethe")
		if out, err := exec.Command("go", "build", "-o", build.path, "github.com/lethe-cache/lethe/cmd/lethe").CombinedOutput(); err != nil {
			build.err = fmt.Errorf("build: %w\n%s", err, out)
		}
	})
	if build.err != nil {
		t.Error(build.err)
	}
	return build.path
}

// startLethe starts the program, for the first time or after it was killed.
func (w *world) startLethe() {
	w.t.Helper()
	p := &program{done: make(chan struct{})}
	p.listen = harness.Addr(w.t)
	dir := w.t.TempDir()
	file := filepath.Join(dir, "rules.yaml")
	w.must(os.WriteFile(file, []byte(rules), 0o600))
	p.cmd = exec.Command(buildLethe(w.t), "run")
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = dir, &p.output, &p.output
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.Env = append(os.Environ(), "LETHE_LISTEN="+p.listen, "LETHE_RULES="+file,
		"LETHE_POSTGRES_URL="+w.primary.URL("postgres"), "LETHE_REDIS_URL=redis://"+w.workers.Addr()+"/0")
	w.must(p.cmd.Start())
	go func() { _ = p.cmd.Wait(); close(p.done) }()
	w.t.Cleanup(func() {
		p.kill()
		if w.t.Failed() {
			out := p.output.Bytes()
			w.t.Logf("lethe run printed:\n%s", out[max(0, len(out)-6000):])
		}
	})
	w.lethe = p
}

func (p *program) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

var httpClient = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}

func (p *program) ready(t *testing.T) {
	t.Helper()
	harness.Eventually(t, time.Minute, func() error {
		select {
		case <-p.done:
			return errors.New("lethe run has ended")
		default:
		}
		answer, err := httpClient.Get("http://" + p.listen + "/readyz")
		if err != nil {
			return err
		}
		defer answer.Body.Close()
		if answer.StatusCode != http.StatusOK {
			body, _ := io.ReadAll(answer.Body)
			return fmt.Errorf("readyz answers %d: %s", answer.StatusCode, body)
		}
		return nil
	})
}

// remote is an agent as this process sees it.
type remote struct {
	plan
	w        *world
	messages *Broadcast     // what comes from Redis passes this first
	network  *servers.Proxy // and then this
	process  *os.Process    // nil: the agent is in this process
	in       io.WriteCloser
	answers  chan report
	done     chan error // how it ended
}

// start begins an agent, in a process of its own or in this one.
func (w *world) start(p plan, inside bool) *remote {
	w.t.Helper()
	r := &remote{w: w, network: harness.Proxy(w.t, w.redis.Addr()), answers: make(chan report, 1), done: make(chan error, 1)}
	var err error
	r.messages, err = NewBroadcast(r.network.Addr(), newRandom(p.Seed, uint64(1000+p.ID)))
	w.must(err)
	w.t.Cleanup(func() { _ = r.messages.Close() })
	p.Redis = r.messages.Addr()
	r.plan = p
	var out io.Reader
	if inside {
		in, commands := io.Pipe()
		lines, result := io.Pipe()
		r.in, out = commands, lines
		go func() {
			err := run(p, in, result)
			_ = result.Close()
			r.done <- err
		}()
	} else {
		text, err := json.Marshal(p)
		w.must(err)
		self, err := os.Executable()
		w.must(err)
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), planVariable+"="+string(text))
		cmd.Stderr = os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		r.in, err = cmd.StdinPipe()
		w.must(err)
		pipe, err := cmd.StdoutPipe()
		w.must(err)
		w.must(cmd.Start())
		r.process, out = cmd.Process, pipe
		w.t.Cleanup(func() { _ = cmd.Process.Kill() })
		go func() {
			r.listen(out)
			r.done <- cmd.Wait()
		}()
		return r
	}
	go r.listen(out)
	return r
}

// listen records what an agent reports, until it says nothing any more.
func (r *remote) listen(out io.Reader) {
	for lines := json.NewDecoder(out); ; {
		var line report
		if err := lines.Decode(&line); err != nil {
			close(r.answers)
			return
		}
		r.w.mu.Lock()
		if line.Op != nil {
			r.w.history.Ops = append(r.w.history.Ops, *line.Op)
		}
		if line.Failed != "" {
			r.w.failed = append(r.w.failed, line.Failed)
		}
		r.w.mu.Unlock()
		if line.Done != "" {
			r.answers <- line
		}
	}
}

// ask sends a command and waits for the answer.
func (r *remote) ask(cmd string) report {
	r.w.t.Helper()
	if _, err := io.WriteString(r.in, cmd+"\n"); err != nil {
		r.w.t.Fatalf("tell agent %d to %s: %v", r.ID, cmd, err)
	}
	select {
	case answer, ok := <-r.answers:
		if !ok {
			r.w.t.Fatalf("agent %d has ended", r.ID)
		}
		return answer
	case <-time.After(time.Minute):
		r.w.t.Fatalf("agent %d does not answer %q", r.ID, cmd)
	}
	return report{}
}

// end lets the agents close their clients.
func (w *world) end() {
	w.t.Helper()
	for _, r := range w.agents {
		_ = r.in.Close()
		select {
		case err := <-r.done:
			w.must(err)
		case <-time.After(time.Minute):
			w.t.Fatalf("agent %d does not end", r.ID)
		}
	}
}

// watch notes the watermark and the standby's position until ctx ends.
func (w *world) watch(ctx context.Context) {
	var both sync.WaitGroup
	note := func(marks *[]Mark, read func(context.Context) (change.LSN, error)) {
		for ctx.Err() == nil {
			step, cancel := context.WithTimeout(ctx, time.Second)
			lsn, err := read(step)
			cancel()
			if err == nil {
				w.mu.Lock()
				*marks = append(*marks, Mark{At: Now(), LSN: uint64(lsn)})
				w.mu.Unlock()
			}
			pause(ctx, 10*time.Millisecond)
		}
	}
	both.Go(func() { note(&w.history.W, w.watermark) })
	both.Go(func() { note(&w.history.Replayed, w.replayed) })
	both.Wait()
}

func (w *world) watermark(ctx context.Context) (change.LSN, error) {
	c, err := w.control(ctx)
	if err != nil {
		return 0, err
	}
	return c.W.LSN, nil
}

// control reads the control data, whatever became of Redis before.
func (w *world) control(ctx context.Context, classes ...string) (*coherence.ControlState, error) {
	for {
		c, err := w.store.Control(ctx, classes...)
		var lost *coherence.NodeLostError
		if !errors.As(err, &lost) {
			return c, err
		}
		if err := w.store.Acknowledge(ctx, lost); err != nil {
			return nil, err
		}
	}
}

func (w *world) replayed(ctx context.Context) (change.LSN, error) {
	var text string
	if err := w.replica.QueryRow(ctx, "SELECT pg_last_wal_replay_lsn()::text").Scan(&text); err != nil {
		return 0, err
	}
	return change.ParseLSN(text)
}

func (w *world) written(ctx context.Context) (change.LSN, error) {
	var text string
	if err := w.admin.QueryRow(ctx, "SELECT pg_current_wal_insert_lsn()::text").Scan(&text); err != nil {
		return 0, err
	}
	return change.ParseLSN(text)
}

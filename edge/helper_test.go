package edge

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/migrations"
	"github.com/lethe-cache/lethe/rules"
)

func TestMain(m *testing.M) { harness.Main(m) }

// patience is how long a test waits for what must happen.
const patience = harness.Patience

// server is an endpoint. answer says what it says; nil is 200 with nothing done.
type server struct {
	*httptest.Server
	mu     sync.Mutex
	posts  []post
	answer func(p post, w http.ResponseWriter) bool // true: it was taken
}

type post struct {
	path   string
	header http.Header
	body   string
	taken  bool
}

// says renders what was asked for, in any format.
func (p post) says() string {
	return strings.TrimSpace(p.header.Get("Surrogate-Key") + p.body)
}

func newServer(t *testing.T) *server {
	s := &server{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		p := post{path: r.URL.Path, header: r.Header.Clone(), body: string(body), taken: true}
		s.mu.Lock()
		answer := s.answer
		s.mu.Unlock()
		if answer != nil {
			p.taken = answer(p, w)
		}
		s.mu.Lock()
		s.posts = append(s.posts, p)
		s.mu.Unlock()
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *server) set(answer func(post, http.ResponseWriter) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

// refuse answers with a status.
func refuse(code int) func(post, http.ResponseWriter) bool {
	return func(_ post, w http.ResponseWriter) bool {
		w.WriteHeader(code)
		return false
	}
}

func (s *server) all() []post {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.posts)
}

func (s *server) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.posts = nil
}

// taken are the words that were taken, in order.
func (s *server) taken() []string {
	var out []string
	for _, p := range s.all() {
		if p.taken {
			out = append(out, p.says())
		}
	}
	return out
}

// until waits until what was taken, all together, holds each text.
func (s *server) until(t *testing.T, want ...string) {
	t.Helper()
	harness.Eventually(t, patience, func() error {
		got := strings.Join(s.taken(), "\n")
		for _, w := range want {
			if !strings.Contains(got, w) {
				return fmt.Errorf("%q is not in %q", w, got)
			}
		}
		return nil
	})
}

// world is a database and what tells of it.
type world struct {
	t     *testing.T
	pool  *pgxpool.Pool
	cfg   Config
	edges []*rules.EdgeCache
	logs  *lines
}

type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// newWorld parses edges, the text under `edge:`.
func newWorld(t *testing.T, edges string, args ...any) *world {
	t.Helper()
	pool, err := pgxpool.New(t.Context(), harness.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, err = migrations.Apply(t.Context(), conn.Conn(), migrations.Options{})
	conn.Release()
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, pool: pool, logs: &lines{}}
	w.edges = w.parse(edges, args...)
	w.cfg = Config{
		DB: pool, Owner: "shop|test", Namespace: "shop", Poll: 20 * time.Millisecond, Lease: 2 * time.Second,
		RetryFirst: 5 * time.Millisecond, RetryMost: 50 * time.Millisecond, Logger: slog.New(slog.NewTextHandler(w.logs, nil)),
		Env: func(name string) (string, bool) {
			v, ok := map[string]string{"SECRET": "s3cret", "KEY": "k3y", "TOKEN": "t0ken"}[name]
			return v, ok
		},
	}
	return w
}

func (w *world) parse(edges string, args ...any) []*rules.EdgeCache {
	w.t.Helper()
	text := "version: 1\nnamespace: shop\nentries: {product: {key: 'product:{id}', ttl: 1h}, page: {key: 'page:{id}', ttl: 1h}}\nedge:\n" + fmt.Sprintf(edges, args...)
	set, err := rules.Parse("rules.yaml", []byte(text))
	if err != nil {
		w.t.Fatal(err)
	}
	for _, e := range set.EdgeCaches {
		e.Again = 100 * time.Millisecond // shorter than a file may say
	}
	return set.EdgeCaches
}

// running is a sink that tells.
type running struct {
	*Sink
	registry *prometheus.Registry
	stop     func()
}

func (w *world) sink() *Sink {
	w.t.Helper()
	s, err := New(w.cfg, w.edges)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

// run starts a sink; what the start makes of a new endpoint is told and over.
func (w *world) run(servers ...*server) *running {
	w.t.Helper()
	cfg := w.cfg
	cfg.Registerer = prometheus.NewRegistry()
	s, err := New(cfg, w.edges)
	if err != nil {
		w.t.Fatal(err)
	}
	r := w.start(s)
	r.registry = cfg.Registerer.(*prometheus.Registry)
	if len(servers) > 0 {
		w.empty()
		for _, s := range servers {
			s.forget()
		}
	}
	return r
}

func (w *world) start(s *Sink) *running {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	var once sync.Once
	r := &running{Sink: s}
	r.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				w.t.Errorf("Run: %v", err)
			}
		})
	}
	w.t.Cleanup(r.stop)
	return r
}

// rows counts the table.
func (w *world) rows() (n int) {
	w.t.Helper()
	if err := w.pool.QueryRow(w.t.Context(), `SELECT count(*) FROM lethe.edge_outbox`).Scan(&n); err != nil {
		w.t.Fatal(err)
	}
	return n
}

// empty waits until all is told, twice.
func (w *world) empty() {
	w.t.Helper()
	harness.Eventually(w.t, patience, func() error {
		var known int
		if err := w.pool.QueryRow(w.t.Context(), `SELECT count(*) FROM lethe.edge_endpoints`).Scan(&known); err != nil {
			return err
		}
		if n := w.rows(); n > 0 || known < len(w.edges) {
			return fmt.Errorf("%d rows wait, %d endpoints are known", n, known)
		}
		return nil
	})
}

func (w *world) keep(s *Sink, f Forgotten) {
	w.t.Helper()
	if f.X.IsZero() {
		f.X = change.Position{Era: 1, LSN: 77}
	}
	if err := s.Keep(w.t.Context(), f); err != nil {
		w.t.Fatal(err)
	}
}

func products(ids ...string) Forgotten {
	f := Forgotten{Keys: map[string][]string{}}
	for _, id := range ids {
		f.Keys["product"] = append(f.Keys["product"], "shop:product:"+id)
	}
	return f
}

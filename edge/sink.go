package edge

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lethe-cache/lethe/rules"
)

// Sink keeps what was forgotten for the endpoints, and tells them. All methods
// may be called by several goroutines; Run by one.
type Sink struct {
	cfg     Config
	outbox  outbox
	metrics *metrics
	client  *http.Client
	changed chan struct{} // Set was called; capacity one

	mu        sync.Mutex
	endpoints map[string]*endpoint
}

// endpoint is one endpoint as it is configured now.
type endpoint struct {
	*rules.EdgeCache
	credentials credentials
	kick        chan struct{} // something was put; capacity one
	// bounded is when the table was last counted. Guarded by Sink.mu.
	bounded time.Time
}

// New makes a sink for endpoints, of which there may be none. The error names
// every variable of the environment that is missing.
func New(cfg Config, edges []*rules.EdgeCache) (*Sink, error) {
	if cfg.DB == nil || cfg.Owner == "" {
		return nil, errors.New("edge: Config.DB and Config.Owner must be set")
	}
	cfg = cfg.withDefaults()
	if cfg.Transport == nil {
		cfg.Transport = http.DefaultTransport.(*http.Transport).Clone()
	}
	s := &Sink{
		cfg: cfg, outbox: outbox{db: cfg.DB, owner: cfg.Owner}, metrics: newMetrics(cfg.Registerer), changed: make(chan struct{}, 1),
		// A redirected POST arrives as a GET: what points elsewhere is refused.
		client: &http.Client{Transport: cfg.Transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }},
	}
	return s, s.Set(edges)
}

// Check returns the error that Set would.
func (s *Sink) Check(edges []*rules.EdgeCache) error {
	_, err := s.resolve(edges)
	return err
}

func (s *Sink) resolve(edges []*rules.EdgeCache) (map[string]*endpoint, error) {
	next := map[string]*endpoint{}
	var errs []error
	for _, e := range edges {
		c, err := s.cfg.resolve(e)
		errs = append(errs, err)
		next[e.Name] = &endpoint{EdgeCache: e, credentials: c, kick: make(chan struct{}, 1)}
	}
	return next, errors.Join(errs...)
}

// Set takes other endpoints into force, all of them or, with an error, none.
func (s *Sink) Set(edges []*rules.EdgeCache) error {
	next, err := s.resolve(edges)
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.endpoints = next
	s.mu.Unlock()
	select {
	case s.changed <- struct{}{}:
	default:
	}
	return nil
}

// Active reports whether there is an endpoint.
func (s *Sink) Active() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.endpoints) > 0
}

func (s *Sink) current() map[string]*endpoint {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.endpoints // replaced, never changed
}

// Keep stores what was forgotten, and returns once it is durable in Postgres:
// the log may forget it then. What an endpoint is not to be told is not stored.
// After an error the whole call is to be repeated.
func (s *Sink) Keep(ctx context.Context, f Forgotten) error {
	endpoints := s.current()
	rows := map[string]*row{}
	for name, e := range endpoints {
		if r := s.rowOf(e, &f); r != nil {
			rows[name] = r
		}
	}
	if len(rows) == 0 {
		return nil
	}
	if err := s.outbox.put(ctx, rows); err != nil {
		return err
	}
	for name := range rows {
		e := endpoints[name]
		s.bound(ctx, e)
		select {
		case e.kick <- struct{}{}:
		default:
		}
	}
	return nil
}

// rowOf is what one endpoint is to be told of f; nil is nothing.
func (s *Sink) rowOf(e *endpoint, f *Forgotten) *row {
	r := &row{}
	if !f.X.IsZero() {
		r.position = f.X.String()
	}
	if slices.Contains(f.Classes, "*") {
		s.metrics.everything.WithLabelValues(e.Name, causeRaised).Inc()
		r.everything = true
		return r
	}
	told := func(class string) bool { return e.Classes == nil || slices.Contains(e.Classes, class) }
	for _, c := range f.Classes {
		if told(c) {
			r.classes = append(r.classes, c)
		}
	}
	if e.Keys {
		for _, class := range slices.Sorted(maps.Keys(f.Keys)) {
			if told(class) {
				r.keys = s.named(r.keys, e, f.Keys[class])
			}
		}
	}
	if e.Tags {
		r.tags = s.named(r.tags, e, f.Tags)
	}
	switch n := r.names(); {
	case n == 0:
		return nil
	case n > e.Pending:
		s.overflow(e, int64(n))
		return &row{everything: true, position: r.position}
	}
	return r
}

func (s *Sink) named(to [][]byte, e *endpoint, names []string) [][]byte {
	for _, n := range names {
		if !e.Namespaced && s.cfg.Namespace != "" {
			n = strings.TrimPrefix(n, s.cfg.Namespace+":")
		}
		to = append(to, []byte(n))
	}
	return to
}

// overflow tells that everything takes the place of names.
func (s *Sink) overflow(e *endpoint, names int64) {
	s.metrics.everything.WithLabelValues(e.Name, causePending).Inc()
	s.cfg.Logger.Error("too much waits for an edge, it is told to forget everything instead", "endpoint", e.Name, "names", names, "pending", e.Pending)
}

// boundEvery is how often the table is counted while things are put into it.
const boundEvery = time.Second

// bound keeps the table small. An error is left to the next time: nothing is
// lost by it.
func (s *Sink) bound(ctx context.Context, e *endpoint) {
	s.mu.Lock()
	due := time.Since(e.bounded) >= boundEvery
	if due {
		e.bounded = time.Now()
	}
	s.mu.Unlock()
	if !due {
		return
	}
	names, err := s.outbox.bound(ctx, e.Name, e.Pending)
	switch {
	case err != nil:
		s.cfg.Logger.WarnContext(ctx, "edge", "endpoint", e.Name, "error", err)
	case names > 0:
		s.overflow(e, names)
	}
}

// Run tells the endpoints until ctx ends, and returns once nothing of it is
// left. What is not told then stands in the table.
func (s *Sink) Run(ctx context.Context) error {
	defer s.client.CloseIdleConnections()
	if s.cfg.Alone && s.Active() {
		s.persist(ctx, s.outbox.takeOver)
	}
	var before map[string]*endpoint
	for ctx.Err() == nil {
		select { // what was set is what is taken now
		case <-s.changed:
		default:
		}
		endpoints := s.current()
		var left []string
		for name := range before {
			if endpoints[name] == nil {
				left = append(left, name)
			}
		}
		before = endpoints
		rctx, cancel := context.WithCancel(ctx)
		var wait sync.WaitGroup
		wait.Go(func() {
			s.persist(rctx, func(ctx context.Context) error { return s.register(ctx, endpoints, left) })
		})
		for _, e := range endpoints {
			wait.Go(func() { (&sender{s: s, e: e}).run(rctx) })
		}
		select {
		case <-s.changed:
			select {
			case s.changed <- struct{}{}: // for the next round
			default:
			}
		case <-ctx.Done():
		}
		cancel()
		wait.Wait()
	}
	return nil
}

// persist repeats what needs the database until it succeeds or ctx ends.
func (s *Sink) persist(ctx context.Context, do func(context.Context) error) {
	wait := s.newBackoff()
	for {
		err := do(ctx)
		if err == nil || ctx.Err() != nil {
			return
		}
		s.cfg.Logger.WarnContext(ctx, "edge: trying again", "error", err)
		if pause(ctx, wait.NextBackOff()) != nil {
			return
		}
	}
}

func (s *Sink) register(ctx context.Context, endpoints map[string]*endpoint, left []string) error {
	scopes := map[string]string{}
	for name, e := range endpoints {
		scopes[name] = s.scope(e)
	}
	fresh, err := s.outbox.register(ctx, scopes, left)
	if denied := new(pgconn.PgError); len(endpoints) == 0 && errors.As(err, &denied) {
		return nil // who has no edges need not have the table
	}
	for _, name := range fresh {
		s.metrics.everything.WithLabelValues(name, causeNew).Inc()
		s.cfg.Logger.InfoContext(ctx, "an edge is new, or is told more than before: it is told to forget everything first", "endpoint", name)
		select {
		case endpoints[name].kick <- struct{}{}:
		default:
		}
	}
	return err
}

// scope is all that decides which responses an endpoint forgets.
func (s *Sink) scope(e *endpoint) string {
	h := sha256.New()
	classes := slices.Sorted(slices.Values(e.Classes))
	fmt.Fprintf(h, "%q %q %t %t %t %q", e.URL, e.Format, e.Keys, e.Tags, e.Namespaced, classes)
	return hex.EncodeToString(h.Sum(nil)[:16])
}

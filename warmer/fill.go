package warmer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"

	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/rules"
)

// TTLDefault is the life of an entry whose class does not say.
const TTLDefault = time.Hour

// ErrOtherSource: the database is not the one that the log in Redis comes from.
var ErrOtherSource = errors.New("database is not the recorded source")

// Config holds what a Warmer needs. Store, Loader and Rules must be set.
type Config struct {
	Store  *coherence.Store
	Loader *Loader
	// Rules returns the plan in force.
	Rules  func() *rules.Plan
	Logger *slog.Logger
	// Metrics, nil counts into nothing.
	Metrics *Metrics
}

// Metrics count fills. Safe for concurrent use.
type Metrics struct{ fills *prometheus.CounterVec }

// NewMetrics makes the metrics and registers them; nil registers nothing.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{fills: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "lethe_fills_total", Help: "Values offered to the cache, by what became of them.",
	}, []string{"class", "result", "reason"})}
	if reg != nil {
		reg.MustRegister(m.fills)
	}
	return m
}

// Warmer fills entries by the protocol. It is safe for concurrent use.
type Warmer struct {
	cfg Config
}

// New makes a Warmer.
func New(cfg Config) (*Warmer, error) {
	var errs []error
	if cfg.Store == nil {
		errs = append(errs, errors.New("warmer: Config.Store is nil"))
	}
	if cfg.Loader == nil {
		errs = append(errs, errors.New("warmer: Config.Loader is nil"))
	}
	if cfg.Rules == nil {
		errs = append(errs, errors.New("warmer: Config.Rules is nil"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Metrics == nil {
		cfg.Metrics = NewMetrics(nil)
	}
	return &Warmer{cfg: cfg}, nil
}

// Options say which entries Fill leaves alone. The zero Options load and store
// every name.
type Options struct {
	// IfAbsent leaves entries that hold a value of the current generation as
	// they are. Of plain entries nothing is known but their ticket: they are
	// always loaded.
	IfAbsent bool
}

// Result counts what became of the names.
type Result struct {
	// Stored values were accepted.
	Stored int
	// Present were left alone, because of Options.IfAbsent.
	Present int
	// NoRow had no row in the database: nothing is stored for them.
	NoRow int
	// Oversize values exceed the class's limit.
	Oversize int
	// Refused counts the others by the reason: an invalidation overtook the
	// load ("absent", "incarnation"), or the table can not vouch for a tag yet
	// ("closed", "table"). Filling them again is all that they need.
	Refused map[string]int
}

func (r *Result) add(o Result) {
	r.Stored += o.Stored
	r.Present += o.Present
	r.NoRow += o.NoRow
	r.Oversize += o.Oversize
	for reason, n := range o.Refused {
		r.refuse(reason, n)
	}
}

func (r *Result) refuse(reason string, n int) {
	if r.Refused == nil {
		r.Refused = map[string]int{}
	}
	r.Refused[reason] += n
}

// Fill loads entries of a class by their full names and stores them: BEGIN,
// LOAD on the primary, REGISTER under the tags of the row, FILL. It blocks until
// all of them are dealt with; several loads run at a time. The same line of
// JSON is stored for every version of the class's values.
//
// A refusal is no error. An error (Redis or the database away, another source,
// a statement that fails) leaves the names that were not reached as they were.
func (w *Warmer) Fill(ctx context.Context, class string, names []string, o Options) (Result, error) {
	plan := w.cfg.Rules()
	c := plan.Set().Class(class)
	if c == nil {
		return Result{}, fmt.Errorf("fill entry %q: there is no such class", class)
	}
	if c.Load == nil {
		return Result{}, fmt.Errorf("fill entry %q: %w", class, ErrNoLoader)
	}
	var mu sync.Mutex
	var total Result
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(w.cfg.Loader.cfg.Concurrency)
	for start := 0; start < len(names) && gctx.Err() == nil; start += w.cfg.Loader.cfg.Batch {
		batch := names[start:min(start+w.cfg.Loader.cfg.Batch, len(names))]
		g.Go(func() error {
			r, err := w.fill(gctx, plan.Set(), c, batch, o)
			mu.Lock()
			defer mu.Unlock()
			total.add(r)
			return err
		})
	}
	err := g.Wait()
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return total, fmt.Errorf("fill entry %q: %w", class, err)
	}
	return total, nil
}

// fill does one batch.
func (w *Warmer) fill(ctx context.Context, set *rules.Set, class *rules.Class, names []string, o Options) (Result, error) {
	var r Result
	control, err := w.cfg.Store.Control(ctx, class.Name)
	if err != nil {
		return r, err
	}
	if control.Source.Era == 0 {
		return r, coherence.ErrNoSource
	}
	known := control.Known(class.Name)
	tickets, err := w.begin(ctx, class, names, known, o, &r)
	if err != nil || len(tickets) == 0 {
		return r, err
	}
	// Names in the order of the tickets, each once: versions share the value.
	wanted := make([]string, 0, len(names))
	for _, t := range tickets {
		if len(wanted) == 0 || wanted[len(wanted)-1] != t.name {
			wanted = append(wanted, t.name)
		}
	}
	start := time.Now()
	loaded, err := w.cfg.Loader.Load(ctx, set, class, wanted)
	if err != nil {
		return r, err
	}
	// A record of an unknown source names no system: there is nothing to
	// compare with, and nothing is stamped.
	if src := known.Source; src.SystemID != 0 && (loaded.Source.SystemID != src.SystemID || loaded.Source.Timeline != src.Timeline) {
		return r, fmt.Errorf("%w: it is system %d timeline %d, recorded is %d/%d", ErrOtherSource,
			loaded.Source.SystemID, loaded.Source.Timeline, src.SystemID, src.Timeline)
	}
	// In two statements: in one, whether r is copied before or after the call
	// fills it is not specified.
	err = w.store(ctx, class, tickets, wanted, loaded, time.Since(start), &r)
	return r, err
}

// ticket is the right to fill one version of one entry.
type ticket struct {
	name string
	coherence.Ticket
	version int
}

// begin takes the tickets, and leaves out what need not be loaded.
func (w *Warmer) begin(ctx context.Context, class *rules.Class, names []string, known coherence.Known, o Options, r *Result) ([]ticket, error) {
	versions := class.Versions
	if len(versions) == 0 {
		versions = []int{1}
	}
	plain := class.Mode == rules.Plain
	var requests []coherence.BeginRequest
	var tickets []ticket
	for _, name := range names {
		for _, v := range versions {
			key := w.cfg.Store.Layout().Versioned(name, uint32(v))
			requests = append(requests, coherence.BeginRequest{Name: key, Known: known, Plain: plain})
			tickets = append(tickets, ticket{name: name, version: v})
		}
	}
	begun, err := w.cfg.Store.BeginAll(ctx, requests)
	if err != nil {
		return nil, err
	}
	kept := tickets[:0]
	for i, b := range begun {
		if h := &b.Header; o.IfAbsent && !plain && !b.Mine && h.State == coherence.StateValue && h.Generation == known.Generation {
			r.Present++
			continue
		}
		t := tickets[i]
		t.Ticket = b.Ticket
		kept = append(kept, t)
	}
	return kept, nil
}

// store registers and fills. wanted and loaded are in the order of tickets.
func (w *Warmer) store(ctx context.Context, class *rules.Class, tickets []ticket, wanted []string, loaded Loaded, took time.Duration, r *Result) error {
	now := time.Now()
	cost := uint32(min(took.Microseconds()/int64(len(wanted)), 1<<32-1))
	var fills []coherence.FillRequest
	at := 0
	for _, t := range tickets {
		for wanted[at] != t.name {
			at++
		}
		value := loaded.Values[at]
		switch {
		case value == nil:
			r.NoRow++
			w.count(class, "no_row", "")
			continue
		case class.MaxValue > 0 && int64(len(value)) > class.MaxValue:
			r.Oversize++
			w.count(class, "refused", "oversize")
			continue
		}
		f := coherence.FillRequest{Ticket: t.Ticket, Payload: value, TTL: class.TTL, Header: coherence.Header{
			Filled: now.UnixMicro(), LoadCost: cost, ValueVersion: uint32(t.version), Codec: coherence.CodecJSON,
		}}
		switch class.TTL {
		case 0:
			f.TTL = TTLDefault
		case rules.TTLNever:
			f.TTL = 0
		}
		if f.TTL > 0 {
			f.Header.HardExpiry = now.Add(f.TTL).UnixMicro()
		}
		for _, tag := range loaded.Tags[at] {
			f.Header.Names = append(f.Header.Names, coherence.Name{Kind: coherence.NameTag, Name: tag})
		}
		fills = append(fills, f)
	}
	fills, err := w.register(ctx, class, fills, r)
	if err != nil {
		return err
	}
	reasons, err := w.cfg.Store.FillAll(ctx, fills)
	if err != nil {
		return err
	}
	for _, reason := range reasons {
		if reason == coherence.Stored {
			r.Stored++
			w.count(class, "stored", "")
			continue
		}
		r.refuse(reason.String(), 1)
		w.count(class, "refused", reason.String())
	}
	return nil
}

// register puts entries under their tags, and leaves out those that a tag
// refuses: a purge could not find them.
func (w *Warmer) register(ctx context.Context, class *rules.Class, fills []coherence.FillRequest, r *Result) ([]coherence.FillRequest, error) {
	var requests []coherence.RegisterRequest
	var of []int
	for i := range fills {
		stamp := fills[i].RegisterStamp()
		for _, n := range fills[i].Header.Names {
			requests = append(requests, coherence.RegisterRequest{Name: n.Name, Member: fills[i].Ticket.Name, Stamp: stamp})
			of = append(of, i)
		}
	}
	if len(requests) == 0 {
		return fills, nil
	}
	reasons, err := w.cfg.Store.RegisterAll(ctx, requests)
	if err != nil {
		return nil, err
	}
	refused := map[int]coherence.Reason{}
	for j, reason := range reasons {
		if reason != coherence.Stored {
			refused[of[j]] = reason
		}
	}
	kept := fills[:0]
	for i := range fills {
		if reason, ok := refused[i]; ok {
			r.refuse(reason.String(), 1)
			w.count(class, "refused", reason.String())
			continue
		}
		kept = append(kept, fills[i])
	}
	return kept, nil
}

func (w *Warmer) count(class *rules.Class, result, reason string) {
	w.cfg.Metrics.fills.WithLabelValues(class.Name, result, reason).Inc()
}

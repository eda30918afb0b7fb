package warmer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/rules"
)

// TTLDefault is the life of an entry whose class does not say.
const TTLDefault = time.Hour

// ErrOtherSource says that the database is not the one that the log in Redis comes from.
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
	// Limiter bounds the loads, of this Warmer and of whoever else shares it;
	// nil does not.
	Limiter *Limiter
}

// Warmer fills entries by the protocol. It is safe for concurrent use.
type Warmer struct {
	cfg    Config
	leases leases
	units  unitsOf
	// hook is called between two steps, by name; tests let things happen in it.
	hook func(step string)
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
	return &Warmer{cfg: cfg, leases: newLeases(), hook: func(string) {}}, nil
}

// Options say which entries Fill leaves alone. The zero Options load and store
// every name.
type Options struct {
	// IfAbsent leaves entries that hold a value of the current generation as
	// they are, and plain entries that hold any.
	IfAbsent bool
	// Ahead is the share of an entry's life, 0 to 1, in which a value that is
	// about to expire counts as absent: 0.1 is its last tenth.
	Ahead float64
	// Prefetch fills, where they are absent, the entries that the classes' prefetch
	// names for what was stored. They prefetch nothing themselves.
	Prefetch bool
	// Priority says whose loads go first; the zero Priority is PriorityWarm.
	Priority Priority
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

	// early are the names among them that a moment may cure, and of which their
	// refusals are: see fillPatiently.
	early   []string
	earlyBy map[string]int
}

func (r *Result) add(o Result) {
	r.Stored += o.Stored
	r.Present += o.Present
	r.NoRow += o.NoRow
	r.Oversize += o.Oversize
	for reason, n := range o.Refused {
		r.refuse(reason, n)
	}
	r.early = append(r.early, o.early...)
	for reason, n := range o.earlyBy {
		r.refuseEarly(reason, n)
	}
}

func (r *Result) refuse(reason string, n int) {
	if r.Refused == nil {
		r.Refused = map[string]int{}
	}
	r.Refused[reason] += n
}

func (r *Result) refuseEarly(reason string, n int) {
	if r.earlyBy == nil {
		r.earlyBy = map[string]int{}
	}
	r.earlyBy[reason] += n
}

// Fill loads entries of a class by their full names and stores them: BEGIN,
// LOAD, REGISTER under the tags of the row, FILL. It blocks until all of them
// are dealt with; several loads run at a time, as fast as the Limiter lets them.
// They are read from the Loader's standby if it has one; what that may not fill,
// being too far behind, from the primary. The same line of JSON is stored for
// every version of the class's values.
//
// A refusal is no error. An error (Redis or the database away, another source,
// a statement that fails) leaves the names that were not reached as they were.
func (w *Warmer) Fill(ctx context.Context, class string, names []string, o Options) (Result, error) {
	r, err := w.fillNames(ctx, class, names, o)
	r.early, r.earlyBy = nil, nil
	return r, err
}

func (w *Warmer) fillNames(ctx context.Context, class string, names []string, o Options) (Result, error) {
	plan := w.cfg.Rules()
	c := plan.Set().Class(class)
	if c == nil {
		return Result{}, fmt.Errorf("fill entry %q: there is no such class", class)
	}
	if !w.cfg.Loader.Loads(c) {
		return Result{}, fmt.Errorf("fill entry %q: %w", class, ErrNoLoader)
	}
	size := w.cfg.Loader.batchOf(c)
	var mu sync.Mutex
	var total Result
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(w.cfg.Loader.cfg.Concurrency)
	for start := 0; start < len(names) && gctx.Err() == nil; start += size {
		batch := names[start:min(start+size, len(names))]
		g.Go(func() error {
			r, err := w.fillAnywhere(gctx, c, batch, o)
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
	if err == nil && o.Prefetch {
		err = w.prefetch(ctx, plan.Set(), c, names, o)
	}
	if err != nil {
		return total, fmt.Errorf("fill entry %q: %w", class, err)
	}
	return total, nil
}

// fillAnywhere fills a batch from the standby if there is one, and then what it
// may not fill, or all if it does not answer, from the primary.
func (w *Warmer) fillAnywhere(ctx context.Context, class *rules.Class, names []string, o Options) (Result, error) {
	if f, _ := w.cfg.Loader.external(class); f != nil || !w.cfg.Loader.HasStandby() {
		r, _, err := w.fill(ctx, class.Name, names, how{Options: o})
		return r, err
	}
	r, fates, err := w.fill(ctx, class.Name, names, how{Options: o, standby: true})
	if err != nil {
		if ctx.Err() != nil || !errors.Is(err, errStandby) {
			return r, err
		}
		w.cfg.Logger.WarnContext(ctx, "standby can not be read, loading from the primary", "class", class.Name, "error", err)
		r, _, err = w.fill(ctx, class.Name, names, how{Options: o})
		return r, err
	}
	var left []string
	for i, f := range fates {
		if f.kind == fateRefused || f.kind == fateBehind {
			left = append(left, names[i])
		}
	}
	if len(left) == 0 {
		return r, nil
	}
	r.Refused, r.early, r.earlyBy = nil, nil, nil // they are asked for again; what else was refused is told below
	for _, f := range fates {
		if f.kind == fateCancelled {
			r.refuse(f.reason, 1)
		}
	}
	more, _, err := w.fill(ctx, class.Name, left, how{Options: o})
	r.add(more)
	return r, err
}

// errStandby is that of a load for which the primary may be asked instead.
var errStandby = errors.New("read the standby")

// how a batch is filled.
type how struct {
	Options
	// standby reads it from there. after are the commits that it must have
	// replayed, each at the index of its name; nil asks for none.
	standby bool
	after   []change.Position
	// leases are taken, so that readers wait for this load rather than load
	// as well; who holds one already is left alone.
	leases bool
	// observe, unless nil, is told of the load.
	observe func(rows int, took time.Duration)
}

// fate is what became of one name, the best that can be said of all versions of
// its value.
type fate struct {
	kind   fateKind
	reason string
	// wait is how long somebody else's load may take, for fateLeased.
	wait time.Duration
}

type fateKind byte

// The fates of a name. Of several versions the greatest counts.
const (
	fateStored    fateKind = iota
	fatePresent            // a value is there already
	fateNoRow              // there is nothing to store
	fateOversize           // nor may there be
	fateLeased             // somebody else loads it
	fateBehind             // the standby has not replayed what it is to show
	fateRefused            // the table can not vouch for it yet
	fateCancelled          // an invalidation overtook the load
)

func (f *fate) worsen(kind fateKind, reason string) {
	if kind >= f.kind {
		f.kind, f.reason = kind, reason
	}
}

// ErrOtherRules says that not every partition of the log is worked on by the
// rules of this process, as far as they touch the class: a process with other
// rules is among the workers, or is about to follow a reload. What is filled
// would be registered under tags that those may not purge, and hold what they do
// not look at (docs/coherence.md, "Fillers with other rules").
var ErrOtherRules = errors.New("the workers do not follow the rules of this process")

// errGone: a reload took the class, or its loader.
var errGone = errors.New("class is gone, or has no loader")

// fill does one batch.
func (w *Warmer) fill(ctx context.Context, name string, names []string, h how) (r Result, fates []fate, err error) {
	var permit *Permit
	if w.cfg.Limiter != nil {
		if permit, err = w.cfg.Limiter.Acquire(ctx, name, len(names), h.Priority); err != nil {
			return r, nil, err
		}
	}
	// How many rows were asked for, how long that took, and whether it failed,
	// is what the limiter learns from.
	rows, took, failed := 0, time.Duration(0), false
	defer func() {
		if permit != nil {
			permit.Done(rows, took, failed)
		}
	}()
	control, followed, err := w.cfg.Store.ControlFollowed(ctx, name)
	if err != nil {
		return r, nil, err
	}
	// The rules after the generation, and no others: a reload puts its rules into
	// force and then raises what they change. Those from before the wait above
	// could store a value under the new generation and the old tags, which no
	// purge would find.
	set := w.cfg.Rules().Set()
	class := set.Class(name)
	if class == nil || !w.cfg.Loader.Loads(class) {
		return r, nil, errGone
	}
	if control.Source.Era == 0 {
		return r, nil, coherence.ErrNoSource
	}
	// The workers' rules were read behind the generation, so what they follow
	// from now on and not yet then comes with a raise that this one does not
	// survive.
	units := w.units.of(set, class)
	if !followed.All(units) {
		return r, nil, w.otherRules(class, len(names))
	}
	w.hook("controlled")
	b := batch{w: w, class: class, names: names, how: h, known: control.Known(class.Name), fates: make([]fate, len(names))}
	if h.standby {
		if err := b.behind(ctx); err != nil {
			return r, nil, fmt.Errorf("%w: %w", errStandby, err)
		}
	}
	if err := b.begin(ctx); err != nil {
		return r, nil, err
	}
	defer b.giveBack(ctx)
	if class.Mode == rules.Plain {
		// A plain value has no generation. What a raise has of it is the walk,
		// which takes the tickets that are there when it begins: so the rules
		// must be those of the workers once the ticket stands.
		if followed, err = w.cfg.Store.Followed(ctx); err != nil {
			return r, nil, err
		}
		if !followed.All(units) {
			return r, nil, w.otherRules(class, len(names))
		}
	}
	if wanted := b.wanted(); len(wanted) > 0 {
		rows = len(wanted)
		start := time.Now()
		b.loaded, err = w.cfg.Loader.loadAll(ctx, h.standby, set, class, wanted)
		took = time.Since(start)
		if err == nil && !b.loaded.External {
			err = b.sameSource(b.loaded.Source)
		}
		if err != nil {
			if failed = ctx.Err() == nil; incurable(err) {
				rows = 0 // the statement is wrong: that tells nothing of the database, and other classes need not wait
			}
			if h.standby {
				err = fmt.Errorf("%w: %w", errStandby, err)
			}
			return b.result, nil, err
		}
		w.leases.note(class.Name, took)
		if h.observe != nil {
			h.observe(rows, took)
		}
		w.cfg.Metrics.loads.WithLabelValues(class.Name).Observe(took.Seconds())
		err = b.store(ctx, wanted, took)
	}
	for i := range b.fates {
		if b.fates[i].kind == fateBehind {
			b.result.refuse("behind", 1)
		}
	}
	return b.result, b.fates, err
}

// batch is one load on its way.
type batch struct {
	w     *Warmer
	class *rules.Class
	names []string
	how   how
	known coherence.Known

	tickets []ticket
	loaded  Loaded
	fates   []fate
	result  Result
}

// ticket is the right to fill one version of one entry.
type ticket struct {
	at int // the index of its name
	coherence.Ticket
	version int
	// lease is the one that is held, stored says that it went with the fill.
	lease  coherence.Lease
	stored bool
}

// behind finds the names whose invalidation the standby has not replayed yet,
// before anything is begun: readers would wait for a load that can not be.
func (b *batch) behind(ctx context.Context) error {
	o, err := b.w.cfg.Loader.replayed(ctx)
	if err == nil {
		err = b.sameSource(o.source)
	}
	if err != nil || !o.standby {
		return err
	}
	p := change.Position{Era: b.known.Source.Era, LSN: o.replayed}
	for i := range b.names {
		if !p.Covers(b.known.Bound) || b.how.after != nil && !p.Covers(b.how.after[i]) {
			b.fates[i].kind = fateBehind
		}
	}
	return nil
}

// sameSource makes sure that values come from the server that the log comes
// from. A record of an unknown source names no system: there is nothing to
// compare with, and nothing is stamped.
func (b *batch) sameSource(s change.Source) error {
	src := b.known.Source
	if src.SystemID != 0 && (s.SystemID != src.SystemID || s.Timeline != src.Timeline) {
		return fmt.Errorf("%w: it is system %d timeline %d, recorded is %d/%d", ErrOtherSource,
			s.SystemID, s.Timeline, src.SystemID, src.Timeline)
	}
	return nil
}

// wanted are the names that there are tickets for, in the order of these, each
// once: versions share the value.
func (b *batch) wanted() []string {
	wanted := make([]string, 0, len(b.names))
	last := -1
	for _, t := range b.tickets {
		if t.at != last {
			wanted = append(wanted, b.names[t.at])
			last = t.at
		}
	}
	return wanted
}

// store registers and fills.
func (b *batch) store(ctx context.Context, wanted []string, took time.Duration) error {
	now := time.Now()
	class := b.class
	cost := uint32(min(took.Microseconds()/int64(len(wanted)), 1<<32-1))
	var fills []filling
	at, last := -1, -1
	for i := range b.tickets {
		t := &b.tickets[i]
		if t.at != last {
			at, last = at+1, t.at
		}
		value := b.loaded.Values[at]
		switch {
		case b.loaded.Refused != nil && b.loaded.Refused[at] != "":
			b.result.refuse(b.loaded.Refused[at], 1)
			b.ended(t, fateNoRow, "refused", b.loaded.Refused[at])
			continue
		case value == nil:
			b.result.NoRow++
			b.ended(t, fateNoRow, "no_row", "")
			continue
		case class.MaxValue > 0 && int64(len(value)) > class.MaxValue:
			b.result.Oversize++
			b.ended(t, fateOversize, "refused", "oversize")
			continue
		}
		f := filling{t: t, FillRequest: coherence.FillRequest{Ticket: t.Ticket, Payload: value, TTL: class.TTL, Header: coherence.Header{
			Filled: now.UnixMicro(), LoadCost: cost, ValueVersion: uint32(t.version), Codec: coherence.CodecJSON,
		}}}
		if b.loaded.Standby {
			// What it had replayed before the data was read, of the era that
			// was known before: the table is asked about it.
			f.Standby, f.Stamp = true, change.Position{Era: b.known.Source.Era, LSN: b.loaded.Replayed}
		}
		switch class.TTL {
		case 0:
			f.TTL = TTLDefault
		case rules.TTLNever:
			f.TTL = 0
		}
		if b.loaded.TTLs != nil && b.loaded.TTLs[at] > 0 {
			f.TTL = b.loaded.TTLs[at]
		}
		if f.TTL > 0 {
			f.Header.HardExpiry = now.Add(f.TTL).UnixMicro()
		}
		for _, tag := range b.loaded.Tags[at] {
			f.Header.Names = append(f.Header.Names, coherence.Name{Kind: coherence.NameTag, Name: tag})
		}
		fills = append(fills, f)
	}
	fills, err := b.register(ctx, fills)
	if err != nil {
		return err
	}
	requests := make([]coherence.FillRequest, len(fills))
	for i := range fills {
		requests[i] = fills[i].FillRequest
	}
	reasons, err := b.w.cfg.Store.FillAll(ctx, requests)
	if err != nil {
		return err
	}
	for i, reason := range reasons {
		b.filled(fills[i].t, reason)
	}
	return nil
}

// filling is a value on its way, with its ticket.
type filling struct {
	coherence.FillRequest
	t *ticket
}

func (b *batch) filled(t *ticket, reason coherence.Reason) {
	switch reason {
	case coherence.Stored:
		t.stored = true
		b.result.Stored++
		b.ended(t, fateStored, "stored", "")
		return
	case coherence.RefusedAbsent, coherence.RefusedIncarnation, coherence.RefusedGeneration:
		b.ended(t, fateCancelled, "refused", reason.String())
	case coherence.RefusedClosed, coherence.RefusedTable, coherence.RefusedBound:
		b.result.refuseEarly(reason.String(), 1)
		b.result.early = append(b.result.early, b.names[t.at]) // once for each version
		b.ended(t, fateRefused, "refused", reason.String())
	case coherence.RefusedForeign, coherence.RefusedSource:
		b.ended(t, fateRefused, "refused", reason.String())
	}
	b.result.refuse(reason.String(), 1)
}

func (b *batch) ended(t *ticket, kind fateKind, result, reason string) {
	b.fates[t.at].worsen(kind, reason)
	b.w.cfg.Metrics.fills.WithLabelValues(b.class.Name, result, reason).Inc()
}

// register puts entries under their tags, and leaves out those that a tag
// refuses: a purge could not find them.
func (b *batch) register(ctx context.Context, fills []filling) ([]filling, error) {
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
	reasons, err := b.w.cfg.Store.RegisterAll(ctx, requests)
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
			b.filled(fills[i].t, reason)
			continue
		}
		kept = append(kept, fills[i])
	}
	return kept, nil
}

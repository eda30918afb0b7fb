package audit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/rules"
	"github.com/lethe-cache/lethe/warmer"
)

// Defaults of Config.
const (
	BatchDefault = 500
	WaitDefault  = 30 * time.Second
	// FindingsDefault bounds the findings that are kept whole.
	FindingsDefault = 1000
	// pollEvery is how often the watermark is asked for.
	pollEvery = 20 * time.Millisecond
)

// Config holds what Compare needs. Store, Cache, Plan and Loader must be set.
type Config struct {
	Store *coherence.Store
	// Cache reads the entries; see OnRedis.
	Cache  Cache
	Plan   *rules.Plan
	Loader *warmer.Loader
	// Classes are those to compare; empty means every class with a loader.
	Classes []string
	// Batch is how many entries are compared with one statement.
	Batch int
	// Wait bounds how long a mismatch waits for the watermark.
	Wait time.Duration
	// Findings bounds how many findings are kept; all are counted.
	Findings int
	Logger   *slog.Logger
}

// Kind says what is wrong with an entry.
type Kind string

// The kinds of a Finding.
const (
	// KindStale: it differs from its row.
	KindStale Kind = "stale"
	// KindGone: its row is not there.
	KindGone Kind = "gone"
	// KindUndecodable: it is no entry. Readers take it for a miss.
	KindUndecodable Kind = "undecodable"
)

// Finding is one entry that something is wrong with.
type Finding struct {
	Class, Name string
	Kind        Kind
	// Cached is the value in the cache, Truth the loader's; nil for no row.
	Cached, Truth []byte
	// Stamp is what the entry claims to contain.
	Stamp change.Position
}

// Report says what was found. The counts are of entries.
type Report struct {
	// Checked were compared with their row: those that a reader would be
	// served.
	Checked int
	// Stale differ from their row, for reasons that no commit on its way
	// explains. Missing of them have no row any more.
	Stale, Missing int
	// Dead are of an older generation, Expired past their end, Marked stale on
	// purpose, Empty tickets: none of them is served as a hit.
	Dead, Expired, Marked, Empty int
	// Undecodable are no entries; they are not served either.
	Undecodable int
	// Incomparable hold something that can not be compared with a row: another
	// codec, compressed, or without a field in common.
	Incomparable int
	// Unsettled differed, but the watermark did not pass within Config.Wait,
	// or they kept changing.
	Unsettled int
	// Findings are the stale and the undecodable ones.
	Findings []Finding
	// Skipped are the classes without a loader.
	Skipped []string
}

// OK reports whether nothing stale was found and nothing was left open.
func (r *Report) OK() bool { return r.Stale == 0 && r.Unsettled == 0 }

// Compare reads the whole cache, on every master, and the rows behind it. It
// blocks for as long as that takes, and for the watermark where it finds
// mismatches. Entries that come and go meanwhile may or may not be compared.
func Compare(ctx context.Context, cfg Config) (*Report, error) {
	if cfg.Store == nil || cfg.Cache == nil || cfg.Plan == nil || cfg.Loader == nil {
		return nil, errors.New("audit: Config.Store, Cache, Plan and Loader must be set")
	}
	if cfg.Batch <= 0 {
		cfg.Batch = BatchDefault
	}
	if cfg.Wait <= 0 {
		cfg.Wait = WaitDefault
	}
	if cfg.Findings <= 0 {
		cfg.Findings = FindingsDefault
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	a := &auditor{Config: cfg, set: cfg.Plan.Set()}
	classes, err := a.classes()
	if err != nil {
		return nil, err
	}
	for _, c := range classes {
		if err := a.class(ctx, c); err != nil {
			return nil, fmt.Errorf("audit entry %q: %w", c.Name, err)
		}
	}
	return &a.report, nil
}

type auditor struct {
	Config
	set    *rules.Set
	report Report
}

func (a *auditor) classes() ([]*rules.Class, error) {
	var classes []*rules.Class
	for _, name := range a.Classes {
		c := a.set.Class(name)
		if c == nil {
			return nil, fmt.Errorf("audit entry %q: there is no such class", name)
		}
		if !a.Loader.Loads(c) {
			return nil, fmt.Errorf("audit entry %q: %w", name, warmer.ErrNoLoader)
		}
		classes = append(classes, c)
	}
	if len(a.Classes) > 0 {
		return classes, nil
	}
	for _, c := range a.set.Entries {
		if !a.Loader.Loads(c) {
			a.report.Skipped = append(a.report.Skipped, c.Name)
			continue
		}
		classes = append(classes, c)
	}
	return classes, nil
}

// class compares the entries of one class, batch by batch.
func (a *auditor) class(ctx context.Context, class *rules.Class) error {
	prefix := ""
	if a.set.Namespace != "" {
		prefix = a.set.Namespace + ":"
	}
	seen := map[string]struct{}{} // SCAN may return a key twice
	var batch []string
	flush := func() error {
		err := a.batch(ctx, class, batch)
		batch = batch[:0]
		return err
	}
	err := a.Cache.Scan(ctx, class.Key.Pattern().Glob(prefix)+"*", func(keys []string) error {
		for _, k := range keys {
			if _, ok := seen[k]; ok || a.Plan.ClassOf([]byte(k)) != class {
				continue
			}
			seen[k] = struct{}{}
			if batch = append(batch, k); len(batch) == a.Batch {
				if err := flush(); err != nil {
					return err
				}
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return flush()
}

// suspect is an entry that differed from its row.
type suspect struct {
	name string
	// raw is the whole entry: an exact one has an incarnation in it, so it is
	// the same only if nobody has touched it.
	raw []byte
	// looks is how often the same bytes differed.
	looks int
}

// looksPlain is how often a plain value must differ. The same bytes may be
// another value there, filled again while the row went to and fro.
const looksPlain = 3

// rounds bounds how often an entry that keeps changing is looked at.
const rounds = 6

func (a *auditor) batch(ctx context.Context, class *rules.Class, names []string) error {
	suspects := make([]suspect, 0, len(names))
	for _, n := range names {
		suspects = append(suspects, suspect{name: n})
	}
	for round := 0; len(suspects) > 0; round++ {
		if round > 0 {
			ok, err := a.passed(ctx)
			if err != nil {
				return err
			}
			if !ok || round == rounds {
				a.report.Unsettled += len(suspects)
				a.Logger.WarnContext(ctx, "entries differ from their rows, but the watermark did not settle it", "class", class.Name, "entries", len(suspects), "first", suspects[0].name)
				return nil
			}
		}
		var err error
		if suspects, err = a.look(ctx, class, suspects, round == 0); err != nil {
			return err
		}
	}
	return nil
}

// passed waits until everything that was committed before is applied. It
// returns false if that takes longer than Wait.
func (a *auditor) passed(ctx context.Context) (bool, error) {
	src, err := a.Store.Source(ctx)
	if err != nil {
		return false, err
	}
	lsn, err := a.Loader.InsertLSN(ctx, src)
	if err != nil {
		return false, err
	}
	bound := change.Position{Era: src.Era, LSN: change.Bound(lsn)}
	deadline := time.NewTimer(a.Wait)
	defer deadline.Stop()
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		control, err := a.Store.Control(ctx)
		if err != nil {
			return false, err
		}
		if control.W.Covers(bound) {
			return true, nil
		}
		select {
		case <-ctx.Done():
			return false, context.Cause(ctx)
		case <-deadline.C:
			return false, nil
		case <-tick.C:
		}
	}
}

// look reads the entries, then their rows, and returns those that differ. The
// entry first: its row is read later and may only be newer.
func (a *auditor) look(ctx context.Context, class *rules.Class, suspects []suspect, first bool) ([]suspect, error) {
	names := make([]string, len(suspects))
	for i, s := range suspects {
		names[i] = s.name
	}
	control, err := a.Store.Control(ctx, class.Name)
	if err != nil {
		return nil, err
	}
	values, err := a.Cache.Values(ctx, names)
	if err != nil {
		return nil, err
	}
	var served []served
	var wanted []string
	for i := range suspects {
		e, ok := a.open(class, control.Known(class.Name).Generation, names[i], values[i], first)
		if !ok {
			continue
		}
		e.suspect = suspects[i]
		served = append(served, e)
		wanted = append(wanted, names[i])
	}
	if len(wanted) == 0 {
		return nil, nil
	}
	loaded, err := a.Loader.Load(ctx, a.set, class, wanted)
	if err != nil {
		return nil, err
	}
	var left []suspect
	for i := range served {
		if s, differs := a.judge(class, &served[i], loaded.Values[i], first); differs {
			left = append(left, s)
		}
	}
	return left, nil
}

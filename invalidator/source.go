package invalidator

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
)

// sources is what this process knows of the source of the log.
type sources struct {
	mu sync.Mutex // held while the record is written
	// known is the record in Redis as this process last saw it, nil before.
	known atomic.Pointer[change.Source]
	// v is the greatest visibility position that was seen.
	v vmax
	// seedsDue counts the reasons to seed, seedsDone those that are answered;
	// kick wakes the seeder.
	seedsDue, seedsDone atomic.Uint64
	kick                chan struct{}
	// base is the greatest that this process has seeded tables with: they
	// refuse stamps that do not cover it.
	base vmax
}

// vmax is a position that only grows.
type vmax struct {
	mu sync.Mutex
	p  change.Position
}

func (m *vmax) raise(p change.Position) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.p = m.p.Max(p)
}

func (m *vmax) reset() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.p = change.Position{}
}

func (m *vmax) load() change.Position {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.p
}

func (s *sources) load() change.Source {
	if p := s.known.Load(); p != nil {
		return *p
	}
	return change.Source{}
}

// learn takes over what stands in Redis, unless a later era is known already.
func (s *sources) learn(src change.Source) {
	s.advance(src)
	s.needSeed()
}

// advance makes src what is known, and reports whether it is of a later era
// than what was. It may be called under mu and without.
func (s *sources) advance(src change.Source) bool {
	for {
		known := s.known.Load()
		if known != nil && known.Era >= src.Era {
			return false
		}
		if s.known.CompareAndSwap(known, &src) {
			return true
		}
	}
}

// needSeed asks the maintainer to seed the tables.
func (s *sources) needSeed() {
	s.seedsDue.Add(1)
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// adopt makes sure that the source record is that of a record's source before
// anything of it is applied, and returns the era that its positions have.
//
// A later era is written first: v becomes 0 of it and all tables are closed
// until they are seeded (PROTOCOL, RAISE). Records of an earlier era, which
// come after it when the log repeats itself, are applied with their own, older
// positions: that does no harm, and no good is needed of them, because the new
// era came with a raise of everything.
func (w *Worker) adopt(ctx context.Context, src change.Source) (era uint16, err error) {
	if src.Era == 0 {
		return w.adoptUnknown(ctx)
	}
	if src.Era <= w.sources.load().Era {
		return src.Era, nil
	}
	w.sources.mu.Lock()
	defer w.sources.mu.Unlock()
	if src.Era <= w.sources.load().Era {
		return src.Era, nil
	}
	var refused error
	err = w.retry(ctx, "set source", func(ctx context.Context) error {
		_, err := w.store.SetSource(ctx, src)
		if errors.Is(err, coherence.ErrOlderSource) {
			refused = err
			return nil
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	recorded := src
	if refused != nil {
		if recorded, err = w.readSource(ctx); err != nil {
			return 0, err
		}
		if recorded.Era <= src.Era {
			return 0, fmt.Errorf("the log is of %+v: %w", src, refused)
		}
	}
	w.sources.advance(recorded)
	w.sources.needSeed()
	if refused == nil {
		w.log.InfoContext(ctx, "source recorded", "era", src.Era, "system_id", src.SystemID, "timeline", src.Timeline)
	}
	return src.Era, nil
}

// adoptUnknown gives the changes of a reader that can not store its era one
// that no stamp can cover: an era of no system. Its v never rises and its
// tables are never seeded, so that every stamp made in it is (era, 0), standby
// fills and registrations are refused, and what remains is the ticket, which
// needs no positions (DESIGN: "stamps are not used until an era is known").
func (w *Worker) adoptUnknown(ctx context.Context) (uint16, error) {
	w.sources.mu.Lock()
	defer w.sources.mu.Unlock()
	if known := w.sources.load(); known.Era != 0 && known.SystemID == 0 {
		return known.Era, nil
	}
	var src change.Source
	err := w.retry(ctx, "set source", func(ctx context.Context) error {
		var err error
		if src, err = w.store.Source(ctx); err != nil {
			return err
		}
		if src.Era != 0 && src.SystemID == 0 {
			return nil
		}
		src = change.Source{Era: src.Era + 1}
		_, err = w.store.SetSource(ctx, src)
		return err
	})
	if err != nil {
		return 0, err
	}
	w.sources.advance(src)
	w.log.WarnContext(ctx, "the reader can not store its era: values are not stamped", "era", src.Era)
	return src.Era, nil
}

// unstamped reports whether the known era is one of adoptUnknown.
func (w *Worker) unstamped() bool { return w.sources.load().SystemID == 0 }

// readSource reads the record; the zero Source if there is none.
func (w *Worker) readSource(ctx context.Context) (src change.Source, err error) {
	err = w.retry(ctx, "read source", func(ctx context.Context) error {
		var err error
		src, err = w.store.Source(ctx)
		return err
	})
	return src, err
}

// unseeded reports whether tables may have no base.
func (s *sources) unseeded() bool { return s.seedsDone.Load() < s.seedsDue.Load() }

// seed gives tables without base one. It does nothing while no era is known:
// the record that brings one asks again.
func (w *Worker) seed(ctx context.Context) error {
	due := w.sources.seedsDue.Load()
	src := w.sources.load()
	if src.Era == 0 || src.SystemID == 0 {
		return nil
	}
	var base change.Position
	n, err := w.store.Seed(ctx, func(ctx context.Context) (change.Position, error) {
		p, err := w.insertPosition(ctx)
		base = change.Position{Era: p.Era, LSN: change.Bound(p.LSN)}
		return p, err
	})
	if err != nil {
		return fmt.Errorf("seed tables: %w", err)
	}
	if n > 0 {
		if base.LSN != change.Bound(^change.LSN(0)) { // else nothing ever covers it
			w.sources.base.raise(base)
		}
		w.log.InfoContext(ctx, "tables seeded", "tables", n, "era", src.Era)
	}
	for {
		done := w.sources.seedsDone.Load()
		if done >= due || w.sources.seedsDone.CompareAndSwap(done, due) {
			return nil
		}
	}
}

package invalidator

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/rules"
)

// followed is by which rules a lane works, and worked before.
type followed struct {
	// known are the identities of the units (rules.Unit) that the partition was
	// worked on by, whoever did; current is true once they are those of rules.
	known   map[uint64]bool
	current bool
	// unnoted says that Redis does not tell yet of all that is known: it is
	// told when the batch that ends at due is done, with its walks.
	unnoted bool
	due     int64
	// told says that Redis was told, for the first time since the lane began.
	told bool
}

// noted is what Redis tells of a lane's rules, as far as this process knows. A
// redo uses it too.
type noted struct {
	mu  sync.Mutex // held during a write, so that the last one is the latest
	ids []uint64
	// begun says that the lane works, stands that what it works by was noted
	// once, by whomever.
	begun, stands atomic.Bool
}

// recall reads by which rules the partition was worked on before this process.
// applied says that something was.
func (l *lane) recall(ctx context.Context, applied bool) error {
	return l.w.retry(ctx, "read rules", func(ctx context.Context) error {
		ids, found, others, err := l.w.store.ReadRules(ctx, l.field, l.by)
		if err != nil {
			return err
		}
		l.noted.mu.Lock()
		l.noted.ids = ids
		l.noted.mu.Unlock()
		l.follows = followed{known: map[uint64]bool{}}
		if !found && !others && !applied {
			// Nothing was ever worked on: nothing was cached that these rules
			// would have invalidated.
			ids = l.unitIDs()
		}
		for _, id := range ids {
			l.follows.known[id] = true
		}
		if found && !slices.ContainsFunc(l.unitIDs(), func(id uint64) bool { return !l.follows.known[id] }) {
			l.noted.stands.Store(true) // as it was left by whoever worked by the same
		}
		return nil
	})
}

// unitIDs are the identities of the rules that the lane works by.
func (l *lane) unitIDs() []uint64 {
	units := l.rules.Plan.Set().Units()
	ids := make([]uint64, len(units))
	for i := range units {
		ids[i] = units[i].ID
	}
	return ids
}

// follow takes the rules in force. What they touch and those before did not is
// raised with the batch: changes that came earlier were not looked at with
// them, and entries may be from before those changes. A change that was handed
// on is visible, so what is read after the raise contains it, and one raise is
// enough; a table that enters the publication has two of its own.
//
// Each partition does so for itself, in its own time: a class is safe when the
// last of them has.
//
// What is no rule any more is struck off in Redis first: from this batch on
// changes are not looked at with it, and whoever works by it again, after a
// crash too, has to raise it. Whoever fills entries by it, in another process,
// sees that too (warmer, errRules).
func (l *lane) follow(ctx context.Context) error {
	l.noted.begun.Store(true)
	before := l.rules
	l.refresh()
	if l.rules == before && l.follows.current {
		return nil
	}
	l.follows.current = false
	units := l.rules.Plan.Set().Units()
	if err := l.strike(ctx, units); err != nil {
		return err
	}
	var classes, what []string
	for _, u := range units {
		if u.Timed != nil {
			l.batch.reads.follow(u.Timed, l.follows.known[u.ID])
		}
		if l.follows.known[u.ID] {
			continue
		}
		what = append(what, u.What)
		if u.All {
			classes = append(classes, "*")
		}
		classes = append(classes, classNames(u.Classes)...)
	}
	if len(classes) == 0 {
		return nil
	}
	if slices.Contains(classes, "*") {
		classes = []string{"*"}
	}
	slices.Sort(classes)
	classes = slices.Compact(classes)
	l.w.log.InfoContext(ctx, "the rules have changed: what they newly touch is forgotten", "partition", l.p.ID(), "changed", what, "classes", classes)
	l.batch.raises = append(l.batch.raises, coherence.RaiseRequest{
		Cause: l.w.uniqueCause(fmt.Sprintf("rules:%d", l.p.ID())), Reason: change.ReasonRules, Classes: classes,
	})
	return nil
}

// strike leaves of what Redis tells only what is among the units.
func (l *lane) strike(ctx context.Context, units []rules.Unit) error {
	l.noted.mu.Lock()
	kept := slices.DeleteFunc(slices.Clone(l.noted.ids), func(id uint64) bool {
		return !slices.ContainsFunc(units, func(u rules.Unit) bool { return u.ID == id })
	})
	struck := len(l.noted.ids) - len(kept)
	l.noted.mu.Unlock()
	if struck == 0 {
		return nil
	}
	return l.w.retry(ctx, "note rules", func(ctx context.Context) error {
		l.noted.mu.Lock()
		defer l.noted.mu.Unlock()
		if err := l.w.store.StrikeRules(ctx, l.field, kept); err != nil {
			return err
		}
		l.noted.ids = kept
		return nil
	})
}

// followed says that what the rules newly touch was raised with the batch.
func (l *lane) followed() {
	if l.follows.current {
		return
	}
	l.follows = followed{known: map[uint64]bool{}, current: true, unnoted: true, due: l.batch.offset, told: l.follows.told}
	for _, id := range l.unitIDs() {
		l.follows.known[id] = true
	}
}

// noteRules leaves word by which rules the partition is worked on, once the
// batches up to an offset are done: a walk of plain classes that a crash has
// ended begins again only if nobody was told that it is over.
func (l *lane) noteRules(ctx context.Context, done int64) {
	if !l.follows.unnoted || done < l.follows.due {
		return
	}
	ids := make([]uint64, 0, len(l.follows.known))
	for id := range l.follows.known {
		ids = append(ids, id)
	}
	if err := l.note(ctx, ids, !l.follows.told); err != nil {
		// With the next batch again. Whoever starts before raises once more:
		// too much, not too little.
		l.w.log.WarnContext(ctx, "note by which rules a partition is worked on", "partition", l.p.ID(), "error", err)
		return
	}
	l.follows.unnoted, l.follows.told = false, true
	l.noted.stands.Store(true)
}

// note tells Redis. Where another has begun to work on the partition, which may
// follow other rules, it is not for this one to say by which it is worked on: a
// rebalance waits neither for a walk nor for a process that was stopped, and a
// note that comes late would have the next one believe that changes were looked
// at with rules that they went by without.
func (l *lane) note(ctx context.Context, ids []uint64, first bool) error {
	l.noted.mu.Lock()
	defer l.noted.mu.Unlock()
	written, err := l.w.store.WriteRules(ctx, l.field, l.by, ids, first)
	if err != nil {
		return err
	}
	if !written {
		l.w.log.InfoContext(ctx, "another worker has begun with the partition, and tells by which rules it works", "partition", l.p.ID())
	}
	l.noted.ids = ids
	return nil
}

// renote tells a Redis that may have forgotten, or remembers what was struck
// off.
func (l *lane) renote(ctx context.Context) error {
	l.noted.mu.Lock()
	defer l.noted.mu.Unlock()
	if l.noted.ids == nil {
		return nil // nothing is there, or not yet read
	}
	_, err := l.w.store.WriteRules(ctx, l.field, l.by, l.noted.ids, false)
	return err
}

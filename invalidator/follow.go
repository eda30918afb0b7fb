package invalidator

import (
	"context"
	"fmt"
	"slices"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
)

// followed is by which rules a lane works, and worked before.
type followed struct {
	// known are the identities of the units (rules.Unit) that the partition was
	// worked on by, whoever did; current is true once they are those of rules.
	known   map[uint64]bool
	current bool
}

// recall reads by which rules the partition was worked on before this process.
// applied says that something was.
func (l *lane) recall(ctx context.Context, applied bool) error {
	return l.w.retry(ctx, "read rules", func(ctx context.Context) error {
		ids, found, others, err := l.w.store.ReadRules(ctx, l.field)
		if err != nil {
			return err
		}
		l.follows = followed{known: map[uint64]bool{}}
		if !found && !others && !applied {
			// Nothing was ever worked on: nothing was cached that these rules
			// would have invalidated.
			for _, u := range l.rules.Plan.Set().Units() {
				ids = append(ids, u.ID)
			}
		}
		for _, id := range ids {
			l.follows.known[id] = true
		}
		return nil
	})
}

// follow takes the rules in force. What they touch and those before did not is
// raised with the batch: changes that came earlier were not looked at with
// them, and entries may be from before those changes. A change that was handed
// on is visible, so what is read after the raise contains it, and one raise is
// enough; a table that enters the publication has two of its own.
//
// Each partition does so for itself, in its own time: a class is safe when the
// last of them has.
func (l *lane) follow(ctx context.Context) {
	before := l.rules
	l.refresh()
	if l.rules == before && l.follows.current {
		return
	}
	l.follows.current = false
	var classes, what []string
	for _, u := range l.rules.Plan.Set().Units() {
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
		return
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
}

// noteRules leaves word by which rules the partition is worked on, once what
// they newly touch was raised.
func (l *lane) noteRules(ctx context.Context) {
	if l.follows.current {
		return
	}
	var ids []uint64
	for _, u := range l.rules.Plan.Set().Units() {
		ids = append(ids, u.ID)
	}
	l.follows = followed{known: map[uint64]bool{}, current: true}
	for _, id := range ids {
		l.follows.known[id] = true
	}
	if err := l.w.store.WriteRules(ctx, l.field, ids); err != nil {
		// Whoever starts next raises once more: too much, not too little.
		l.w.log.WarnContext(ctx, "note by which rules a partition is worked on", "partition", l.p.ID(), "error", err)
	}
}

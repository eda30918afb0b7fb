package invalidator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/rules"
)

// Schedules keeps durably what is due at a time. It is safe for concurrent use.
type Schedules interface {
	// Put stores all that a batch brings, or nothing. For each of its Items it
	// says whether the time had come when the change was committed, by the
	// database's clock: such an item is not stored, the caller invalidates at
	// once. One whose time came since then is stored, and due. Whatever is stored
	// of later changes stays as it is, so that a batch may be put again, and in
	// any order.
	Put(ctx context.Context, b ScheduleBatch) (due []bool, err error)
}

// ScheduleBatch is what one batch of changes makes of schedules.
type ScheduleBatch struct {
	Items []ScheduleItem
	// Gone are rules none of whose rows is left: what was scheduled below the
	// position goes.
	Gone []ScheduleItem
	// Read are rules whose tables are to be read: what the log has told of them
	// is not everything. Known are those that have been read before, if the
	// deployment knows of it.
	Read, Known []ScheduleRule
}

// ScheduleRule identifies a rule.
type ScheduleRule struct {
	ID   uint64
	Name string
}

// ScheduleItem is the schedule of one row of a rule, or of a message.
type ScheduleItem struct {
	Rule ScheduleRule
	Key  string
	// X and Ordinal order the changes of a row.
	X       change.Position
	Ordinal uint32
	// At is when Message is to be emitted; no Message: nothing is due.
	At      time.Time
	Message []byte
	// Committed is when the change was committed, by the database's clock; zero
	// where that is not known, as of a message outside a transaction.
	//
	// What is past by then may be invalidated at the place of the change: whoever
	// read after the commit read after the time, too. What became past on the way
	// to the worker may not. An entry that was read between the two is stamped
	// above the change (another partition need only be quicker), so that an
	// invalidation at the change's place is one that it seems to contain: L1 and
	// entries that are kept would stay as they were before the time. It needs the
	// message, whose place is above every stamp from before it.
	Committed time.Time
}

// errNoSchedules makes a dead letter of what asks for a time.
var errNoSchedules = errors.New("nothing can be scheduled: lethe.schedules is missing or this role may not write it (lethe migrate)")

// reads collects the rules whose tables are to be read, which is what a raise
// is for rules with `at`: an entry that is forgotten knows what is true now,
// but nobody would tell it when that ends.
type reads struct {
	all    bool
	tables []string
	rules  []*rules.Rule
	known  []*rules.Rule
}

func (r *reads) everything()           { r.all = true }
func (r *reads) table(name string)     { r.tables = append(r.tables, name) }
func (r *reads) rule(rule *rules.Rule) { r.rules = append(r.rules, rule) }

// follow takes note of a rule in force, and whether the partition was worked on
// by it before.
func (r *reads) follow(rule *rules.Rule, known bool) {
	if known {
		r.known = append(r.known, rule)
	} else {
		r.rules = append(r.rules, rule)
	}
}

func (r *reads) of(rule *rules.Rule) bool {
	return r.all || slices.Contains(r.rules, rule) || slices.Contains(r.tables, rule.QualifiedTable())
}

// schedulable refuses what is to be scheduled where nothing can.
func (l *lane) schedulable() error {
	if l.w.cfg.Schedules != nil {
		return nil
	}
	for _, t := range l.targets.Timed[len(l.timed):] {
		if t.Kind == rules.TimedSet || t.Kind == rules.TimedUnknown {
			return errNoSchedules
		}
	}
	return nil
}

// schedule stores what the batch makes of schedules, before anything of it is
// acknowledged, and adds to its targets what was due already when it was committed.
//
// A change whose time the log does not carry has its table read, and since the
// time may have come, its classes raised.
func (l *lane) schedule(ctx context.Context) error {
	if l.w.cfg.Schedules == nil || len(l.targets.Timed) == 0 && !l.batch.reads.any() {
		return nil
	}
	batch, origin, err := l.scheduleBatch()
	if err != nil {
		return err
	}
	if len(batch.Items)+len(batch.Gone)+len(batch.Read)+len(batch.Known) == 0 {
		return nil
	}
	l.w.hook("schedule")
	var due []bool
	err = l.w.retry(ctx, "store schedules", func(ctx context.Context) (err error) {
		due, err = l.w.cfg.Schedules.Put(ctx, batch)
		return err
	})
	if err != nil {
		return err
	}
	for i := range due {
		if !due[i] {
			continue
		}
		timed, c := &l.targets.Timed[origin[i]], l.timed[origin[i]]
		from := len(l.targets.List)
		l.targets.List = append(l.targets.List, l.targets.TimedTargets(timed)...)
		l.cascade(ctx, from, c, timed.X)
		l.ends = append(l.ends, changeEnd{end: len(l.targets.List), commit: c.Commit.Time, table: c.Table, op: c.Op})
	}
	return nil
}

func (r *reads) any() bool { return r.all || len(r.tables)+len(r.rules)+len(r.known) > 0 }

// scheduleBatch makes the batch; origin says which Timed each of its items is.
func (l *lane) scheduleBatch() (b ScheduleBatch, origin []int, err error) {
	plan := l.rules.Plan
	for i := range l.targets.Timed {
		t := &l.targets.Timed[i]
		item := ScheduleItem{Rule: ScheduleRule{ID: t.ID}, Key: string(t.Key), X: t.X, Ordinal: t.Ordinal, At: t.At}
		if c := l.timed[i].Commit; c != nil {
			item.Committed = c.Time
		}
		if t.Rule != nil {
			item.Rule.Name = t.Rule.Name
		}
		switch t.Kind {
		case rules.TimedSet:
			if item.Message, err = plan.Scheduled(t.Rule, l.targets.TimedTargets(t)); err != nil {
				return b, nil, fmt.Errorf("schedule: %w", err)
			}
		case rules.TimedDropAll:
			b.Gone = append(b.Gone, item)
			continue
		case rules.TimedUnknown:
			l.batch.reads.rule(t.Rule)
			l.raiseTable(t.Rule, t.X)
			continue
		}
		b.Items = append(b.Items, item)
		origin = append(origin, i)
	}
	for _, r := range plan.Set().Rules {
		if r.At == "" {
			continue
		}
		rule := ScheduleRule{ID: plan.ScheduleID(r), Name: r.Name}
		if l.batch.reads.of(r) {
			b.Read = append(b.Read, rule)
		} else if slices.Contains(l.batch.reads.known, r) {
			b.Known = append(b.Known, rule)
		}
	}
	return b, origin, nil
}

// raiseTable raises what a rule's table touches.
func (l *lane) raiseTable(r *rules.Rule, x change.Position) {
	classes := []string{"*"}
	if touched, all := l.rules.Plan.ClassesOfTable(r.QualifiedTable()); !all && len(touched) > 0 {
		classes = classNames(touched)
	}
	l.batch.raises = append(l.batch.raises, coherence.RaiseRequest{
		Cause: l.w.uniqueCause("at:" + r.QualifiedTable()), Reason: change.ReasonOldValue, Classes: classes, X: x,
	})
}

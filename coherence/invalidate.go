package coherence

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/change"
)

// legacyRun bounds the keys that a legacy script unlinks in one command.
const legacyRun = 500

// Invalidate forgets a batch of entries: for each it raises the bucket of the
// name, then unlinks, keeps or marks the value, in that order on one
// connection. After an error the caller repeats the whole batch: part of it
// may have been applied, which does no harm. It blocks for one round trip.
//
// The broadcast comes after it, and only then a watermark. Entries that are
// used as names (ControlState.Named) are to be purged as well.
//
// The table may be raised to the greatest X of the batch, which refuses a few
// more fills from standbys; whether a value is kept or becomes stale is decided
// by its own X.
func (s *Store) Invalidate(ctx context.Context, batch []Invalidation) (Result, error) {
	if len(batch) == 0 {
		return Result{}, nil
	}
	a := application{s: s, ctx: ctx, batch: batch}
	if err := a.build(); err != nil {
		return Result{}, fmt.Errorf("invalidate: %w", err)
	}
	if err := s.do(ctx, a.units); err != nil {
		return Result{}, fmt.Errorf("invalidate %d entries: %w", len(batch), err)
	}
	return a.result()
}

// application is one batch on its way.
type application struct {
	s      *Store
	ctx    context.Context
	batch  []Invalidation
	units  []unit
	tally  []tally
	groups int
	random []byte // of new incarnations, eight bytes each
}

// tally says how the reply to a command counts.
type tally struct {
	cmd   redis.Cmder
	group int
	n     int // keys in the command
	kind  tallyKind
	runs  []tally // of a legacy script's reply
	tell  string  // the name whose outcome is asked for
}

type tallyKind byte

const (
	tallyUnlinked tallyKind = iota // the reply is how many were there
	tallyKept                      // the reply is a letter
	tallyIgnored                   // counted elsewhere
	tallyRuns                      // the reply is a list, one for each run
	tallyThere                     // the reply is whether it was there; counted elsewhere
)

func (a *application) build() error {
	kept := 0
	for i := range a.batch {
		inv := &a.batch[i]
		if inv.Group < 0 {
			return fmt.Errorf("%q: group %d is negative", inv.Name, inv.Group)
		}
		a.groups = max(a.groups, inv.Group+1)
		if !inv.Action.unlinks() && !inv.Plain {
			kept++
		}
	}
	a.random = make([]byte, kept*len(Incarnation{}))
	_, _ = rand.Read(a.random) // never errs
	if a.s.cluster == nil {
		a.part(a.batch)
		return nil
	}
	// One part for each slot.
	bySlot := make([]slotted, len(a.batch))
	for i := range a.batch {
		bySlot[i] = slotted{Slot(a.batch[i].Name), i}
	}
	slices.SortFunc(bySlot, func(x, y slotted) int {
		if x.slot != y.slot {
			return x.slot - y.slot
		}
		return x.index - y.index
	})
	sorted := make([]Invalidation, len(a.batch))
	for i, b := range bySlot {
		sorted[i] = a.batch[b.index]
	}
	a.units = make([]unit, 0, len(a.batch))
	for from := 0; from < len(sorted); {
		to := from + 1
		for to < len(sorted) && bySlot[to].slot == bySlot[from].slot {
			to++
		}
		a.part(sorted[from:to])
		from = to
	}
	return nil
}

type slotted struct{ slot, index int }

// part adds the unit of invalidations that share a table: all of them on one
// node, those of a slot in Cluster.
func (a *application) part(part []Invalidation) {
	var x change.Position
	for i := range part {
		x = x.Max(part[i].X)
	}
	u := unit{key: part[0].Name}
	deletes, plains := a.split(part)
	cells, fields := a.s.raised(part)
	raise := tableRaise{x: x, cells: cells, fields: fields}
	a.looks(&u, part)
	if a.s.legacy {
		// One script that unlinks, then raises.
		a.add(&u, a.legacy(&raise, part[0].Name, deletes, plains))
	} else {
		a.add(&u, tally{cmd: redis.NewSliceCmd(a.ctx, raise.args(a.s, "")...), kind: tallyIgnored})
		for g, keys := range deletes {
			if len(keys) > 1 {
				a.add(&u, tally{cmd: redis.NewIntCmd(a.ctx, keys...), group: g, n: len(keys) - 1})
			}
		}
		for g, p := range plains {
			if len(p.names) > 1 {
				// Key and ticket go in one command, whose count says nothing
				// of the values: they are counted before.
				a.add(&u, tally{cmd: redis.NewIntCmd(a.ctx, p.names...), group: g, n: len(p.names) - 1})
				a.add(&u, tally{cmd: redis.NewIntCmd(a.ctx, p.both...), kind: tallyIgnored})
			}
		}
	}
	a.keeps(&u, part)
	a.units = append(a.units, u)
}

func (a *application) add(u *unit, t tally) {
	u.cmds = append(u.cmds, t.cmd)
	a.tally = append(a.tally, t)
}

type plainKeys struct{ names, both []any }

// split sorts the keys to be unlinked by group, as arguments of commands.
func (a *application) split(part []Invalidation) (deletes [][]any, plains []plainKeys) {
	deletes, plains = make([][]any, a.groups), make([]plainKeys, a.groups)
	for i := range part {
		inv := &part[i]
		switch {
		case inv.Plain:
			p := &plains[inv.Group]
			if p.names == nil {
				p.names, p.both = append(make([]any, 0, len(part)+1), "exists"), append(make([]any, 0, 2*len(part)+1), "unlink")
			}
			p.names = append(p.names, &inv.Name)
			p.both = append(p.both, &inv.Name, a.s.layout.Ticket(inv.Name))
		case inv.Action.unlinks():
			if deletes[inv.Group] == nil {
				deletes[inv.Group] = append(make([]any, 0, len(part)+1), "unlink")
			}
			deletes[inv.Group] = append(deletes[inv.Group], &inv.Name)
		}
	}
	return deletes, plains
}

// looks adds the questions for plain entries that are asked for one by one,
// before they are unlinked.
func (a *application) looks(u *unit, part []Invalidation) {
	for i := range part {
		if inv := &part[i]; inv.Plain && inv.Tell {
			a.add(u, tally{cmd: redis.NewIntCmd(a.ctx, "exists", &inv.Name), kind: tallyThere, tell: inv.Name})
		}
	}
}

// keeps adds the scripts of entries whose value may stay.
func (a *application) keeps(u *unit, part []Invalidation) {
	for i := range part {
		inv := &part[i]
		if inv.Plain || inv.Action.unlinks() {
			continue
		}
		action := "K"
		if inv.Action == ActionStale {
			action = "S"
		}
		args := a.s.evalArgs(scriptKeep, a.s.layout.Ticket(inv.Name), []string{inv.Name}, action, inv.X.Append(nil), a.random[:8])
		a.random = a.random[8:]
		t := tally{cmd: redis.NewStringCmd(a.ctx, args...), group: inv.Group, kind: tallyKept}
		if inv.Tell {
			t.tell = inv.Name
		}
		a.add(u, t)
	}
}

// legacy is the one script of servers that would refuse to raise a full table
// unless they have unlinked something before.
func (a *application) legacy(raise *tableRaise, name string, deletes [][]any, plains []plainKeys) tally {
	t := tally{kind: tallyRuns}
	run := func(keys []any, per, group int, kind tallyKind) {
		for len(keys) > 0 {
			n := min(len(keys), legacyRun)
			for _, k := range keys[:n] {
				if p, ok := k.(*string); ok {
					raise.unlink = append(raise.unlink, *p)
				} else {
					raise.unlink = append(raise.unlink, k.(string))
				}
			}
			raise.runs = append(raise.runs, n)
			t.runs = append(t.runs, tally{group: group, n: n / per, kind: kind})
			keys = keys[n:]
		}
	}
	for g, keys := range deletes {
		if len(keys) > 1 {
			run(keys[1:], 1, g, tallyUnlinked)
		}
	}
	for g, p := range plains {
		if len(p.both) > 1 {
			run(p.both[1:], 2, g, tallyUnlinked)
		}
	}
	t.cmd = redis.NewSliceCmd(a.ctx, raise.args(a.s, a.s.layout.Ticket(name))...)
	return t
}

// result counts the replies.
func (a *application) result() (Result, error) {
	r := Result{Groups: make([]Counts, a.groups)}
	for _, t := range a.tally {
		switch c := t.cmd.(type) {
		case *redis.IntCmd:
			if t.kind == tallyUnlinked {
				r.Groups[t.group].unlinked(int(c.Val()), t.n)
			}
			if t.kind == tallyThere {
				outcome := OutcomeAbsent
				if c.Val() > 0 {
					outcome = OutcomeDeleted
				}
				r.Told = append(r.Told, Told{Name: t.tell, Outcome: outcome})
			}
		case *redis.StringCmd:
			outcome := r.Groups[t.group].script(c.Val())
			if t.tell != "" {
				r.Told = append(r.Told, Told{Name: t.tell, Outcome: outcome})
			}
		case *redis.SliceCmd:
			counts := c.Val()
			if t.kind == tallyRuns && len(counts) != len(t.runs) {
				return Result{}, fmt.Errorf("invalidate: %d counts of %d runs", len(counts), len(t.runs))
			}
			for i, run := range t.runs {
				n, _ := counts[i].(int64)
				r.Groups[run.group].unlinked(int(n), run.n)
			}
		}
	}
	for _, g := range r.Groups {
		r.Deleted += g.Deleted
		r.Absent += g.Absent
		r.Kept += g.Kept
		r.Stale += g.Stale
	}
	return r, nil
}

// script counts the letter of a script.
func (c *Counts) script(letter string) Outcome {
	switch letter {
	case "A":
		c.Absent++
		return OutcomeAbsent
	case "K":
		c.Kept++
		return OutcomeKept
	case "S":
		c.Stale++
		return OutcomeStale
	}
	c.Deleted++
	return OutcomeDeleted
}

// unlinked counts a command on n entries of which had were there. (A plain
// entry's ticket may count as well on servers before 7.0.)
func (c *Counts) unlinked(had, n int) {
	had = min(had, n)
	c.Deleted += had
	c.Absent += n - had
}

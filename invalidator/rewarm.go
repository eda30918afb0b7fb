package invalidator

import (
	"context"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/rules"
)

// Rewarmer fills entries again. Its methods are called by the goroutines that
// apply invalidations, several at a time: they must be fast and never block.
//
// No watermark waits for it: an entry that is not filled again is a miss and
// never a stale value, so what a crash loses of it need not be repeated.
type Rewarmer interface {
	// Chosen reports whether entries of a class are filled again at present
	// under action auto.
	Chosen(class *rules.Class) bool
	// Rewarm asks for entries to be filled again. It is called after they were
	// invalidated in Redis and after that was broadcast, or is sure to be. The
	// slice is the Rewarmer's.
	Rewarm(asked []Rewarm)
	// Left counts entries that a purge has reached beyond what is filled again.
	Left(class *rules.Class, n int)
}

// Rewarm asks for one entry to be filled again.
type Rewarm struct {
	// Name is the full name of the entry, without a version.
	Name  string
	Class *rules.Class
	// X is the greatest commit that has invalidated it in the batch.
	X  change.Position
	If rules.RewarmIf
	// Auto: the rule leaves it to the Rewarmer whether it pays.
	Auto bool
	// Delay is how long it may wait for more changes; see rules.Rule.Debounce.
	Delay time.Duration
	// Outcome is what the invalidation found.
	Outcome coherence.Outcome
}

// rewarms collects what a batch of invalidations asks to be filled again. It
// belongs to one goroutine.
type rewarms struct {
	list  []Rewarm
	index map[rewarmKey]int
}

// rewarmKey: what several rules ask of one entry is merged where they ask for
// the same; otherwise each is judged by itself.
type rewarmKey struct {
	name string
	asks rewarmAsks
}

// rewarmAsks is what of a rule matters for the entries that it names.
type rewarmAsks struct {
	action rules.Action
	cond   rules.RewarmIf
	delay  time.Duration
}

func asksOf(action rules.Action, rule *rules.Rule) rewarmAsks {
	a := rewarmAsks{action: action}
	if rule != nil && action.Rewarms() {
		a.cond, a.delay = rule.If, rule.Debounce
	}
	return a
}

// wants reports whether entries of a class are to be filled again after an
// action. Without a loader nothing can, and under an unknown source nothing
// would be stored.
func (w *Worker) wants(class *rules.Class, action rules.Action) bool {
	return action.Rewarms() && w.cfg.Rewarmer != nil && class != nil && class.Load != nil && !w.unstamped()
}

// add notes an entry. name may be memory that is reused.
func (r *rewarms) add(class *rules.Class, name []byte, x change.Position, asks rewarmAsks) {
	name = class.Unversioned(name)
	if at, ok := r.index[rewarmKey{string(name), asks}]; ok { // no allocation: only looked up
		r.list[at].X = r.list[at].X.Max(x)
		return
	}
	if r.index == nil {
		r.index = map[rewarmKey]int{}
	}
	own := string(name)
	r.index[rewarmKey{own, asks}] = len(r.list)
	r.list = append(r.list, Rewarm{
		Name: own, Class: class, X: x, If: asks.cond, Auto: asks.action == rules.Auto, Delay: asks.delay,
	})
}

// take gives away what was collected, with what became of the entries. Of a
// batch that was tried more than once, nobody knows what was there before.
func (r *rewarms) take(told []coherence.Told, attempts int) []Rewarm {
	list := r.list
	r.list = nil
	clear(r.index)
	if len(list) == 0 {
		return nil
	}
	outcomes := make(map[string]coherence.Outcome, len(told))
	for _, t := range told {
		if t.Outcome == coherence.OutcomeAbsent && attempts > 1 {
			t.Outcome = coherence.OutcomeDeleted
		}
		outcomes[t.Name] = t.Outcome
	}
	for i := range list {
		list[i].Outcome = outcomeOf(&list[i], outcomes)
	}
	return list
}

// outcomeOf is that of all versions of an entry's value: kept if every one is,
// absent if none was there.
func outcomeOf(r *Rewarm, outcomes map[string]coherence.Outcome) coherence.Outcome {
	out, n := coherence.OutcomeAbsent, 0
	for _, v := range r.Class.Versions {
		o, ok := outcomes[r.Class.VersionName(r.Name, v)]
		if !ok {
			continue
		}
		if n++; n == 1 {
			out = o
		} else if o != out {
			out = coherence.OutcomeDeleted
		}
	}
	if n == 0 {
		return coherence.OutcomeDeleted // nobody was asked
	}
	return out
}

// rewarm hands on what the keys of the batch ask for.
func (l *lane) rewarm(told []coherence.Told, attempts int) {
	if list := l.rewarms.take(told, attempts); len(list) > 0 {
		l.w.cfg.Rewarmer.Rewarm(list)
	}
}

// action notes a member of a purge that is to be filled again, as far as
// the purge's share goes, and returns what becomes of it: what exceeds the
// share is forgotten as any other.
func (s *sweeper) action(ctx context.Context, p *purge, class *rules.Class, member string) (action rules.Action, tell bool) {
	if !s.w.wants(class, p.asks.action) {
		return p.asks.action, false
	}
	if p.rewarmed++; p.rewarmed <= s.w.cfg.SweepRewarms {
		s.rewarms.add(class, []byte(member), p.X, p.asks)
		return p.asks.action, true
	}
	if p.rewarmed == s.w.cfg.SweepRewarms+1 {
		s.w.log.WarnContext(ctx, "purge reaches more entries than it fills again; the others are only forgotten",
			"tags", p.Tags, "bound", s.w.cfg.SweepRewarms)
	}
	s.w.cfg.Rewarmer.Left(class, 1)
	return rules.Delete, false
}

package invalidator

import (
	"cmp"
	"context"
	"slices"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/rules"
	"github.com/lethe-cache/lethe/stream"
)

// A broadcast is cut so that it stays small beside a client's output buffer.
const (
	broadcastNames = 1000
	broadcastBytes = 64 << 10
)

// apply does everything that the deliveries ask for, but for what may take
// long: sweeps and walks are left running, and the batch's mark waits for them.
//
// L2 always before the broadcast: an L1 that is told first could read the old
// value again and would not be told twice.
func (l *lane) apply(ctx context.Context, deliveries []stream.Delivery) error {
	if len(deliveries) == 0 {
		return nil
	}
	if err := l.collect(ctx, deliveries); err != nil {
		return err
	}
	defer l.keys.reset()
	if err := l.schedule(ctx); err != nil {
		return err
	}
	todo := l.plan()
	if l.batch.telling {
		l.batch.forgot.targets(l.targets.List)
		l.batch.forgot.raises(l.batch.raises)
	}
	l.w.hook("planned")

	// Raises stand before the dead letters that caused them: what is lost
	// when the process dies between the two is the letter, not the safety.
	walks, err := l.raise(ctx, todo.raised)
	if err != nil {
		return err
	}
	l.followed()
	if err := l.bury(ctx); err != nil {
		return err
	}
	named, err := l.invalidate(ctx, todo, len(walks) == 0 && len(todo.purges) == 0)
	if err != nil {
		return err
	}
	purges := l.named(todo.purges, named)
	slices.SortStableFunc(purges, func(a, b purge) int { return cmp.Compare(a.debounce, b.debounce) })
	if len(purges) > 0 {
		// Members are not remembered one by one; see missed.
		l.past.Load().put(time.Now(), l.batch.v, nil, []string{"*"})
	}
	for i := range purges {
		if err := l.open(ctx, purges[i].Purge); err != nil {
			return err
		}
	}
	l.observe(time.Now(), func(k rules.Kind) bool { return k != rules.KindKey })
	l.w.sources.v.raise(l.batch.v)
	l.w.metrics.batchChanges.Observe(float64(l.batch.changes))

	late := slices.IndexFunc(purges, func(p purge) bool { return p.debounce > 0 })
	if late < 0 || l.batch.telling { // caches beyond Redis are told behind the watermark, and do not wait
		late = len(purges)
	}
	tasks := len(walks) + l.newWindows(purges[late:])
	if late > 0 {
		tasks++
	}
	m := l.begin(tasks)
	for _, k := range walks {
		l.w.whenWalked(k, func() { l.led.done(m) })
	}
	if err := l.join(ctx, purges[late:], m); err != nil {
		return err
	}
	l.weigh(deliveries)
	if late > 0 {
		return l.sweepBeside(ctx, purges[:late], l.batch.v, m)
	}
	return nil
}

// begin puts the batch into the ledger. While windows are open, one that waits
// for nothing itself counts with the one before it: nothing can be done for it
// sooner, and a window of seconds must not fill the ledger.
func (l *lane) begin(tasks int) *mark {
	if tasks == 0 && len(l.windows) > 0 {
		m := l.led.follow(l.batch.offset, l.batch.mark)
		m.forgot.merge(&l.batch.forgot)
		return m
	}
	m := l.led.begin(l.batch.offset, l.batch.mark, l.batch.marked, tasks)
	m.forgot = l.batch.forgot
	return m
}

// work of a batch besides the keys, which are in the coalescer.
type todo struct {
	purges []purge
	// raised are the classes of all raises, for the history.
	raised []string
	groups []*ruleHandles
}

// purge is a purge with what becomes of the members.
type purge struct {
	coherence.Purge
	asks rewarmAsks
	// rewarmed counts the members that were to be filled again.
	rewarmed int
	// debounce is how long the sweep may wait for others, group what it has
	// waited for.
	debounce time.Duration
	group    *windowGroup
}

// plan sorts the targets of the batch: keys into the coalescer, tags into as
// few purges as their actions allow, classes into the raises.
func (l *lane) plan() todo {
	var t todo
	groups := map[*rules.Rule]int{}
	var tags map[string]uint64
	classes := map[*rules.Class]int{}
	for i := range l.targets.List {
		target := &l.targets.List[i]
		group, ok := groups[target.Rule]
		if !ok {
			group = len(t.groups)
			groups[target.Rule] = group
			t.groups = append(t.groups, l.handles.rule(target.Rule))
		}
		switch target.Kind {
		case rules.KindKey:
			action, plain := l.w.variant(target.Class, target.Action)
			wants := l.w.wants(target.Class, target.Action)
			if wants {
				l.rewarms.add(target.Class, target.Name, target.X, asksOf(target.Action, target.Rule))
			}
			if !l.keys.add(target.Name, target.X, action, plain, group, wants) {
				l.handles.outcome(t.groups[group], OutcomeCoalesced)
			}
		case rules.KindTag:
			if tags == nil {
				tags = map[string]uint64{}
			}
			l.addTag(&t, target, tags)
			l.handles.outcome(t.groups[group], OutcomePurged)
		case rules.KindAllTags:
			p := purge{Purge: coherence.Purge{X: target.X, All: true}, asks: asksOf(target.Action, target.Rule), debounce: debounceOf(target.Rule)}
			for _, name := range target.Names {
				p.Tags = append(p.Tags, string(name))
			}
			t.purges = append(t.purges, p)
			l.handles.outcome(t.groups[group], OutcomePurged)
		case rules.KindClass:
			l.addClass(target, classes)
			l.handles.outcome(t.groups[group], OutcomeRaised)
		}
	}
	for i := range l.batch.raises {
		t.raised = append(t.raised, l.batch.raises[i].Classes...)
	}
	return t
}

// variant chooses what an invalidation does to an entry of a class. Plain
// values and keys without a class carry no stamp, and under an unknown era
// stamps say nothing: they are unlinked.
func (w *Worker) variant(class *rules.Class, action rules.Action) (coherence.Action, bool) {
	switch {
	case class == nil || class.Mode == rules.Plain:
		return coherence.ActionDelete, true
	case action == rules.Stale:
		return coherence.ActionStale, false
	case w.unstamped():
		return coherence.ActionDelete, false
	case class.StaleFor > 0 && w.wants(class, action) && (action == rules.Rewarm || w.cfg.Rewarmer.Chosen(class)):
		// Readers that accept it are served the old value until the new one is
		// there; to all others the entry is as good as gone.
		return coherence.ActionStale, false
	case action.Rewarms() || class.Rewarmed || class.Keep:
		return coherence.ActionKeep, false
	}
	return coherence.ActionDelete, false
}

func debounceOf(r *rules.Rule) time.Duration {
	if r == nil {
		return 0
	}
	return r.Debounce
}

// addTag puts a tag into the purge of its action. One purge has one X, the
// greatest: a position that is too great refuses a few registrations and
// standby fills for a moment, and hides no entry for longer than the sweep.
func (l *lane) addTag(t *todo, target *rules.Target, tags map[string]uint64) {
	asks := asksOf(target.Action, target.Rule)
	debounce := debounceOf(target.Rule)
	at := slices.IndexFunc(t.purges, func(p purge) bool { return !p.All && p.asks == asks && p.debounce == debounce })
	if at < 0 {
		at = len(t.purges)
		t.purges = append(t.purges, purge{asks: asks, debounce: debounce})
	}
	p := &t.purges[at]
	p.X = p.X.Max(target.X)
	bit := uint64(1) << (at & 63) // more kinds than that: a tag may be swept twice
	if at > 63 {
		bit = 0
	}
	if have := tags[string(target.Name)]; bit == 0 || have&bit == 0 {
		name := string(target.Name)
		tags[name] = have | bit
		p.Tags = append(p.Tags, name)
	}
}

// addClass asks for the raise that a target is: once for each class and batch,
// because the raise of a later commit does what that of an earlier one would.
func (l *lane) addClass(t *rules.Target, classes map[*rules.Class]int) {
	at, ok := classes[t.Class]
	if !ok {
		at = len(l.batch.raises)
		classes[t.Class] = at
		l.batch.raises = append(l.batch.raises, coherence.RaiseRequest{Reason: t.Reason, Classes: []string{t.ClassName()}})
	}
	r := &l.batch.raises[at]
	if r.Cause != "" && !r.X.Less(t.X) {
		return
	}
	r.X = r.X.Max(t.X)
	// The position makes the cause the same when the change is delivered
	// again, but for one of an unknown source, where it may come twice.
	r.Cause = t.Reason + ":" + r.X.String() + ":" + t.ClassName()
	if l.w.unstamped() {
		r.Cause = l.w.uniqueCause(r.Cause)
	}
}

// invalidate applies the keys of the batch and tells who caches them. alone
// says that the batch brings nothing else that takes time: then its watermark
// goes with the message, if nothing before it is to be waited for. It returns
// the classes whose keys are names.
func (l *lane) invalidate(ctx context.Context, t todo, alone bool) (named []string, err error) {
	keys := l.keys.list
	// Before it is applied, see history.
	l.past.Load().put(time.Now(), l.batch.v, keys, nil)
	if len(keys) == 0 {
		return nil, nil
	}
	l.w.hook("keys")
	var result coherence.Result
	attempts := 0
	err = l.w.retry(ctx, "invalidate", func(ctx context.Context) error {
		var err error
		attempts++
		result, err = l.w.store.Invalidate(ctx, keys)
		return err
	})
	if err != nil {
		return nil, err
	}
	l.observe(time.Now(), func(k rules.Kind) bool { return k == rules.KindKey })
	for group, counts := range result.Groups {
		if group < len(t.groups) {
			l.handles.counts(t.groups[group], counts)
		}
	}
	l.w.hook("broadcast")
	marker := l
	if !alone || l.led.unsettled() > 0 {
		marker = nil
	}
	named, l.batch.marked, err = l.w.broadcastKeys(ctx, keys, l.batch.v, &l.names, marker)
	if err == nil {
		l.rewarm(result.Told, attempts)
	}
	return named, err
}

// broadcastKeys tells the names of keys, in as many messages as it takes. X of
// a message is the greatest of its keys: an L1 drops at worst a value too many.
// The last one takes the watermark of marker's batch along, if there is one.
func (w *Worker) broadcastKeys(
	ctx context.Context, keys []coherence.Invalidation, v change.Position, scratch *[]string, marker *lane,
) (named []string, marked bool, err error) {
	names := (*scratch)[:0]
	defer func() {
		clear(names)
		*scratch = names[:0]
	}()
	m := coherence.Message{Kind: coherence.KindKeys, V: v}
	size := 0
	for i := range keys {
		names = append(names, keys[i].Name)
		size += len(keys[i].Name)
		m.X = m.X.Max(keys[i].X)
		if i < len(keys)-1 && len(names) < broadcastNames && size < broadcastBytes {
			continue
		}
		m.Names = names
		err := w.retry(ctx, "broadcast", func(ctx context.Context) (err error) {
			if i == len(keys)-1 && marker != nil {
				named, marked, err = marker.broadcastMarking(ctx, m)
			} else {
				named, marked, err = w.store.BroadcastKeys(ctx, m, nil)
			}
			return err
		})
		if err != nil {
			return nil, false, err
		}
		names, size, m.X = names[:0], 0, change.Position{}
	}
	return named, marked, nil
}

// broadcastMarking sends the last message of a batch and writes its watermark,
// unless that has to wait for a walk; see mark.
func (l *lane) broadcastMarking(ctx context.Context, m coherence.Message) (named []string, marked bool, err error) {
	v := l.batch.mark.Max(l.floor)
	held, err := l.write(v, func(before change.Position) (stands bool, err error) {
		mark := coherence.Mark{Partition: l.field, Position: v, Before: before}
		named, marked, err = l.w.store.BroadcastKeys(ctx, m, &mark)
		return marked, err
	})
	if held {
		return l.w.store.BroadcastKeys(ctx, m, nil)
	}
	return named, marked, err
}

func (w *Worker) broadcast(ctx context.Context, m coherence.Message) error {
	return w.retry(ctx, "broadcast", func(ctx context.Context) error {
		_, _, err := w.store.Broadcast(ctx, m)
		return err
	})
}

// observe times the targets of some kinds, once for each change and rule, and
// tells the observer of each.
func (l *lane) observe(now time.Time, of func(rules.Kind) bool) {
	from := 0
	for _, end := range l.ends {
		var last *ruleHandles
		var latency time.Duration
		for i := from; i < end.end; i++ {
			target := &l.targets.List[i]
			if !of(target.Kind) {
				continue
			}
			if rh := l.handles.rule(target.Rule); rh != last {
				last = rh
				latency = rh.observe(now, end.commit)
			}
			if l.w.cfg.Observer.Applied != nil {
				l.w.cfg.Observer.Applied(appliedOf(target, &end, last.name, latency))
			}
		}
		from = end.end
	}
}

func appliedOf(t *rules.Target, end *changeEnd, rule string, latency time.Duration) Applied {
	a := Applied{Rule: rule, Op: end.op, Kind: t.Kind, Action: t.Action, Depth: t.Depth, X: t.X, Latency: latency}
	if end.table != nil {
		a.Table = end.table.QualifiedName()
	}
	switch t.Kind {
	case rules.KindClass:
		a.Names = []string{t.ClassName()}
	case rules.KindAllTags:
		for _, n := range t.Names {
			a.Names = append(a.Names, string(n))
		}
	default:
		a.Names = []string{string(t.Name)}
	}
	return a
}

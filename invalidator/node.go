package invalidator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
)

// nodes is what this process knows of Redis nodes that may have lost writes.
type nodes struct {
	mu sync.Mutex // held during a redo
	// control is the control data as this process last saw it, for a control
	// node that forgot.
	control *coherence.ControlState
	// back are masters whose watermark went back although they are the same
	// process as before; the Store can not know of them.
	back []*coherence.NodeLostError
	// judged says that evictions before the start were asked for.
	judged bool
}

func (w *Worker) isLost(err error) bool { return errors.Is(err, coherence.ErrNodeLost) }

// causeWatermark is the cause of a loss that the watermark shows: it stands in
// the master, so a master that forgot it forgot what came before it too.
const causeWatermark = coherence.CauseWatermark

// start finds out where the lane stands: what was applied before, and whether
// any master lost writes while nobody looked.
func (l *lane) start(ctx context.Context) (err error) {
	defer func() {
		if err != nil { // the next one to start asks again
			l.w.nodes.mu.Lock()
			l.w.nodes.judged = false
			l.w.nodes.mu.Unlock()
		}
	}()
	l.refresh()
	src, err := l.w.readSource(ctx)
	if err != nil {
		return err
	}
	l.w.sources.learn(src)
	var marks []coherence.Watermark
	err = l.w.retry(ctx, "read watermarks", func(ctx context.Context) error {
		var err error
		marks, err = l.w.store.ReadWatermarks(ctx, l.field)
		return err
	})
	if err != nil {
		return err
	}
	var lost []coherence.Watermark
	for i, m := range marks {
		if m.Lost() {
			lost = append(lost, m)
		}
		if i == 0 || m.Position.Less(l.floor) {
			l.floor = m.Position
		}
	}
	if len(lost) > 0 {
		l.floor = change.Position{}
	}
	l.applied = slices.ContainsFunc(marks, func(m coherence.Watermark) bool { return m.Found })
	if err := l.recall(ctx, l.applied); err != nil {
		return err
	}
	l.written.raise(l.floor)
	l.expected.raise(l.floor)
	l.past.Store(newHistory(l.w.cfg.History, l.w.cfg.HistoryBytes, l.floor))
	evicted, err := l.w.evictedWhileDown(ctx)
	switch {
	case err != nil:
		return err
	case src.Era == 0:
		// Without a source record nothing was ever cached, unless the record
		// was and is gone. Its era comes with the first record of the log, and
		// behind that a second raise, whose bound needs it.
		l.suspect = evicted || l.applied
		if !l.suspect {
			return nil
		}
		return l.forget(ctx, lostAtStart, "source")
	case len(lost) > 0:
		return l.lostWhileDown(ctx, lost)
	case evicted:
		return l.forget(ctx, lostAtStart, "evicted")
	}
	return nil
}

// lostAtStart stands for the node where it was not one alone.
const lostAtStart = "any"

// evictedWhileDown reports, to the first partition of a process that asks,
// whether a master that may evict what Lethe relies on has evicted anything.
// What that was nobody knows: an index, the record of a generation, a watermark.
func (w *Worker) evictedWhileDown(ctx context.Context) (bool, error) {
	w.nodes.mu.Lock()
	judged := w.nodes.judged
	w.nodes.judged = true
	w.nodes.mu.Unlock()
	if judged {
		return false, nil
	}
	var stats []coherence.NodeStats
	err := w.retry(ctx, "check masters", func(ctx context.Context) error {
		// First the check, which remembers evicted_keys: what moves between
		// the two is seen by one of them.
		err := w.store.Check(ctx)
		if err == nil {
			stats, err = w.store.NodeStats(ctx)
		}
		return err
	})
	evicted := false
	for _, s := range stats {
		if g := coherence.Policy(s.Policy); s.EvictedKeys > 0 && (!g.Tags || !g.Records) {
			evicted = true
			w.log.WarnContext(ctx, "redis has evicted keys while nobody looked, and may evict what lethe relies on; raising every class",
				"node", s.Node, "policy", s.Policy, "evicted_keys", s.EvictedKeys)
		}
	}
	return evicted, err
}

// forget raises every class for a loss that was found at the start.
func (l *lane) forget(ctx context.Context, node, cause string) error {
	classes := []string{"*"}
	l.w.metrics.nodesLost.Inc()
	k, err := l.w.raise(ctx, coherence.RaiseRequest{
		Cause: l.w.uniqueCause("node_lost:" + node), Reason: change.ReasonNodeLost, Classes: classes,
	}, l.rules)
	if err != nil {
		return err
	}
	l.hold(k)
	if l.w.beyond() != nil {
		l.owed.lateFor(classes, nil)
	}
	if err := l.w.broadcast(ctx, coherence.Message{Kind: coherence.KindEpoch, V: l.w.sources.v.load()}); err != nil {
		return err
	}
	if l.w.cfg.Observer.NodeLost != nil {
		l.w.cfg.Observer.NodeLost(node, cause, classes)
	}
	return nil
}

// lostWhileDown is NODE LOST at the start of a partition: what was applied and
// acknowledged before may be gone from these masters, and the log does not
// bring it again. So everything is raised. (A partition that this Redis has
// never seen looks the same, and needs the same: nobody knows what it missed.)
func (l *lane) lostWhileDown(ctx context.Context, lost []coherence.Watermark) error {
	var which []string
	for _, m := range lost {
		which = append(which, fmt.Sprintf("%s (run_id %q, watermark of %q)", m.Node, m.Current, m.RunID))
	}
	l.w.log.WarnContext(ctx, "masters do not hold this partition's watermark, raising every class", "partition", l.p.ID(), "masters", which)
	return l.forget(ctx, lost[0].Node, "run_id")
}

// hold keeps the lane's watermark where it is until the walk is done.
func (l *lane) hold(k *walk) {
	if k != nil {
		l.marking.Lock()
		l.led.hold()
		l.marking.Unlock()
		l.w.whenWalked(k, l.led.release)
	}
}

// redo brings nodes that lost writes back to what the protocol promised
// (PROTOCOL, NODE LOST), for everything that this process has applied. done is
// true if no loss is left, whoever did it.
//
// The order: records first, since a raise needs the source; then raises and
// seeds; the keys again; the epoch, which tells every L1, behind all of it;
// and last the acknowledgement, until which nothing else is written to the node.
func (w *Worker) redo(ctx context.Context) (done bool, err error) {
	w.nodes.mu.Lock()
	defer w.nodes.mu.Unlock()
	lost := slices.Concat(w.store.Lost(), w.nodes.back)
	if len(lost) == 0 {
		return true, nil
	}
	for _, l := range lost {
		ctx = coherence.DuringRedo(ctx, l)
	}
	w.hook("redo")
	if err := w.rewriteSource(ctx); err != nil {
		return false, fmt.Errorf("redo: %w", err)
	}
	due, err := w.missed(ctx, lost)
	if err != nil {
		return false, fmt.Errorf("redo: %w", err)
	}
	request := coherence.RaiseRequest{
		Cause: w.uniqueCause("node_lost:" + lost[0].Node + ":" + lost[0].New), Reason: change.ReasonNodeLost, Classes: due.classes,
	}
	if len(due.classes) > 0 {
		if err := w.raiseOnce(ctx, &request); err != nil {
			return false, fmt.Errorf("redo: raise: %w", err)
		}
	}
	if err := w.seed(ctx); err != nil {
		return false, fmt.Errorf("redo: %w", err)
	}
	for chunk := range slices.Chunk(due.keys, w.cfg.BatchMax) {
		w.hook("redo keys")
		if _, err := w.store.Invalidate(ctx, chunk); err != nil {
			return false, fmt.Errorf("redo: invalidate: %w", err)
		}
	}
	if err := w.restoreControl(ctx); err != nil {
		return false, fmt.Errorf("redo: restore control: %w", err)
	}
	for _, l := range w.eachLane() {
		if err := l.renote(ctx); err != nil {
			return false, fmt.Errorf("redo: %w", err)
		}
	}
	if len(due.classes) > 0 {
		k, err := w.walkAfter(ctx, request.Cause, due.classes, w.cfg.Rules())
		if err != nil {
			return false, fmt.Errorf("redo: %w", err)
		}
		for _, l := range w.eachLane() {
			l.hold(k)
		}
	}
	w.tellRedone(due)
	for _, l := range lost {
		if l.Cause != causeWatermark {
			if err := w.store.Acknowledge(ctx, l); err != nil {
				return false, fmt.Errorf("redo: %w", err)
			}
		}
		w.metrics.nodesLost.Inc()
		w.log.WarnContext(ctx, "redis node redone", "node", l.Node, "cause", l.Cause, "keys", len(due.keys), "raised", due.classes)
		if w.cfg.Observer.NodeLost != nil {
			w.cfg.Observer.NodeLost(l.Node, l.Cause, due.classes)
		}
	}
	w.nodes.back = nil
	// What the masters hold now is not known; the next watermark tells.
	for _, l := range w.eachLane() {
		l.expected.reset()
	}
	return true, nil
}

// rewriteSource gives the source record back to a control node that forgot it.
// If somebody has recorded a later one, that is what the redo goes on with: the
// record of the log that says so may stand behind what the redo holds up.
func (w *Worker) rewriteSource(ctx context.Context) error {
	src := w.sources.load()
	if src.Era == 0 {
		return nil
	}
	_, err := w.store.SetSource(ctx, src)
	if !errors.Is(err, coherence.ErrOlderSource) {
		if err != nil {
			return fmt.Errorf("write source: %w", err)
		}
		return nil
	}
	recorded, readErr := w.store.Source(ctx)
	if readErr != nil {
		return fmt.Errorf("read source: %w", readErr)
	}
	if w.sources.advance(recorded) {
		w.sources.needSeed()
	}
	return nil
}

// wentBack notes masters that hold less than the watermark before, which the
// lane had written, unless a redo has dealt with it meanwhile.
func (w *Worker) wentBack(l *lane, before change.Position, lost ...*coherence.NodeLostError) {
	w.nodes.mu.Lock()
	defer w.nodes.mu.Unlock()
	if l.expected.load() == before {
		w.nodes.back = lost
	}
}

// missedWork is what a redo has to do again.
type missedWork struct {
	keys    []coherence.Invalidation
	classes []string
}

// missed collects what the lost nodes may have missed: for each partition
// everything from the watermark on that the node still holds. A watermark that
// is gone, or older than what is remembered, costs a raise of everything.
//
// Purges are not remembered: members may be missing from the index, so the
// classes that use tags are raised anyway (H8).
func (w *Worker) missed(ctx context.Context, lost []*coherence.NodeLostError) (missedWork, error) {
	var due missedWork
	classes, all := tagClasses(w.cfg.Rules())
	due.classes = classes
	// Entries that were made of others are registered under their keys, and
	// nothing tells of which classes they are.
	control, err := w.store.Control(ctx)
	if err != nil {
		return missedWork{}, fmt.Errorf("read control: %w", err)
	}
	all = all || len(control.Named) > 0 || w.nodes.control != nil && len(w.nodes.control.Named) > 0
	for _, l := range w.eachLane() {
		marks, err := w.store.ReadWatermarks(ctx, l.field)
		if err != nil {
			return missedWork{}, fmt.Errorf("read watermarks of partition %d: %w", l.p.ID(), err)
		}
		var from change.Position
		found := false
		for _, n := range lost {
			i := slices.IndexFunc(marks, func(m coherence.Watermark) bool { return m.Node == n.Node })
			switch {
			case i < 0:
				// It is a master no longer: who took its slots is lost too.
			case !marks[i].Found:
				all = true
			case !found || marks[i].Position.Less(from):
				from, found = marks[i].Position, true
			}
		}
		past := l.past.Load()
		if !found || past == nil { // nil: the lane does not know yet where it stands
			all = true
			continue
		}
		keys, raised, ok := past.since(from)
		if !ok {
			all = true
		}
		due.keys = append(due.keys, keys...)
		due.classes = append(due.classes, raised...)
	}
	slices.Sort(due.classes)
	due.classes = slices.Compact(due.classes)
	if all || slices.Contains(due.classes, "*") {
		due.classes = []string{"*"}
	}
	return due, nil
}

// tagClasses are the classes that use tags, as far as the rules tell: those of
// entries that declare them. Where a rule purges a tag, any client may have
// registered entries of any class under it, which no rule tells: all is true.
func tagClasses(r *Rules) (classes []string, all bool) {
	set := r.Plan.Set()
	for _, e := range set.Entries {
		if len(e.Tags) > 0 {
			classes = append(classes, e.Name)
		}
	}
	for _, rule := range set.Rules {
		all = all || len(rule.Tags) > 0
	}
	return classes, all
}

// remember keeps the control data for the day when its node forgets it: of
// every class the highest record that was ever seen, because what is read may
// already be that of a node which went back.
func (n *nodes) remember(c *coherence.ControlState) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.control == nil {
		n.control = c
		return
	}
	for class, r := range n.control.Classes {
		have := c.Classes[class]
		if have.Generation < r.Generation {
			have.Generation, have.Cause = r.Generation, r.Cause
		}
		have.Bound = have.Bound.Max(r.Bound)
		c.Classes[class] = have
	}
	c.Named = append(c.Named, n.control.Named...)
	slices.Sort(c.Named)
	c.Named = slices.Compact(c.Named)
	n.control = c
}

// forgotten reports whether control holds less than was seen of it: it was
// deleted, or it went back, though its master looks the same.
func (n *nodes) forgotten(c *coherence.ControlState, known change.Source) bool {
	if c.Source.Era < known.Era {
		return true
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.control == nil {
		return false
	}
	for class, r := range n.control.Classes {
		have, asked := c.Classes[class] // after a reload others are asked for
		if asked && (have.Generation < r.Generation || have.Bound.Less(r.Bound)) {
			return true
		}
	}
	return false
}

// restore is the redo of control alone.
func (w *Worker) restore(ctx context.Context) error {
	w.nodes.mu.Lock()
	defer w.nodes.mu.Unlock()
	if err := w.rewriteSource(ctx); err != nil {
		return err
	}
	return w.restoreControl(ctx)
}

// restoreControl rewrites what this process knows of the control data, never
// lower than what stands there, and begins a new epoch for every L1.
func (w *Worker) restoreControl(ctx context.Context) error {
	known := coherence.ControlState{V: w.sources.v.load()} // the source was rewritten first
	if c := w.nodes.control; c != nil {
		known.Classes, known.Purges, known.Named = c.Classes, c.Purges, c.Named
	}
	return w.store.RestoreControl(ctx, &known)
}

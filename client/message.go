package client

import (
	"context"
	"maps"
	"slices"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
)

// message handles one broadcast. Whatever does not follow on the one before is
// a gap, and a gap is replayed.
func (c *Client) message(ctx context.Context, r *received) (beat bool, err error) {
	m, err := coherence.ParseMessage([]byte(r.body))
	if err != nil {
		c.counts.gap()
		c.logger.Warn("can not read a broadcast", "err", err)
		return false, c.catchUp(ctx)
	}
	c.mu.Lock()
	last, caughtUpAt := c.view.Load().control, c.caughtUpAt
	c.mu.Unlock()
	if m.Kind == coherence.KindHeartbeat {
		return true, c.heartbeat(ctx, &m, r, &last)
	}
	switch {
	case m.Number == last.Number+1 && m.Previous == last.ID:
		return false, c.apply(ctx, &m)
	case m.Number <= last.Number && r.at <= caughtUpAt:
		return false, nil // it was in what was caught up with
	}
	c.counts.gap()
	c.logger.Info("gap in the broadcast", "number", m.Number, "known", last.Number)
	return false, c.catchUp(ctx)
}

// heartbeat compares what control knows last with what this Client knows.
func (c *Client) heartbeat(ctx context.Context, m *coherence.Message, r *received, last *coherence.ControlState) error {
	if r.at <= c.caughtUpAt && m.Number < last.Number {
		return nil
	}
	epoch := c.epoch.Load()
	lost := m.Number != last.Number || m.ID != last.ID
	if lost || digest(m.Digest) != digest(last.Digest) {
		if lost {
			c.counts.gap()
		}
		if !lost || m.Number < last.Number {
			// A record changed without its message, or control begins anew.
			c.mu.Lock()
			c.bumpLocked()
			c.mu.Unlock()
			c.counts.epoch("the control data changed without a message")
		}
		if err := c.catchUp(ctx); err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.epoch.Load() != epoch {
		return nil // what has been read since may be another server's, of which it says nothing
	}
	next := *c.view.Load()
	next.advance(m.V, m.W)
	if next.purgesOver() {
		next.control.Purges = slices.DeleteFunc(slices.Clone(next.control.Purges), func(p coherence.Purge) bool { return next.swept(&p) })
	}
	if !sameNames(next.named, m.Names) {
		next.named = make(map[string]bool, len(m.Names))
		for _, n := range m.Names {
			next.named[n] = true
		}
	}
	c.publishLocked(&next)
	return nil
}

func (v *view) purgesOver() bool {
	return slices.ContainsFunc(v.control.Purges, func(p coherence.Purge) bool { return v.swept(&p) })
}

func sameNames(have map[string]bool, names []string) bool {
	return len(have) == len(names) && !slices.ContainsFunc(names, func(n string) bool { return !have[n] })
}

func digest(s string) string {
	if s == "" {
		return noID
	}
	return s
}

// apply handles a message that follows on the last one.
func (c *Client) apply(ctx context.Context, m *coherence.Message) error {
	if m.Kind == coherence.KindSource || m.Kind == coherence.KindEpoch {
		c.mu.Lock()
		c.bumpLocked()
		c.mu.Unlock()
		c.counts.epoch("a broadcast says so")
		return c.catchUp(ctx)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	v := c.view.Load()
	next := *v
	next.control.Number, next.control.ID = m.Number, m.ID
	next.advance(m.V, m.W)
	tags := m.Kind == coherence.KindPurge || m.Kind == coherence.KindSwept
	p := coherence.Purge{X: m.X, Tags: m.Names, All: m.All}
	switch m.Kind {
	case coherence.KindKeys:
		c.marks.add(m.Names, false)
	case coherence.KindPurge:
		c.marks.add(m.Names, true)
		next.control.Purges = append(slices.Clone(v.control.Purges), p)
	case coherence.KindSwept:
		c.marks.add(m.Names, true)
		next.control.Purges = slices.DeleteFunc(slices.Clone(v.control.Purges), func(o coherence.Purge) bool { return samePurge(&o, &p) })
	case coherence.KindRaise:
		// Loads under way are not joined any more, as after a purge: of which
		// classes they have read is not known before they end.
		c.marks.add(nil, true)
		next.control.Digest = m.ID
		next.control.Classes = maps.Clone(v.control.Classes)
		for _, class := range m.Names {
			if r, ok := next.control.Classes[class]; ok {
				next.control.Classes[class] = coherence.ClassRecord{Generation: max(r.Generation, m.Generation), Bound: r.Bound.Max(m.Bound)}
			}
		}
	}
	if c.l1 != nil {
		c.dropLocked(m, &p, tags)
	}
	// Last: who sees the new w must not find in L1 what lies below it.
	c.publishLocked(&next)
	return nil
}

// dropLocked forgets what a message names.
func (c *Client) dropLocked(m *coherence.Message, p *coherence.Purge, tags bool) {
	for _, name := range m.Names {
		switch {
		case m.Kind == coherence.KindRaise:
			c.dropComposites(name)
		case tags:
			c.dropPurged(p, name)
		default:
			c.dropKey(name, m.X)
		}
	}
}

// dropKey forgets an entry, and those made from it, where they miss X.
func (c *Client) dropKey(name string, x change.Position) {
	for _, v := range c.versions {
		for _, n := range [...]string{name, c.bare(name)} {
			if key, ok := c.short(n); ok {
				if e := c.l1.find(l1Key{key: key, version: v}); e != nil && !e.stamp.Covers(x) {
					c.dropEntry(e)
				}
			}
		}
	}
	for _, e := range c.l1.dependents(name) {
		if !e.stamp.Covers(x) {
			c.dropEntry(e)
		}
	}
}

func (c *Client) dropPurged(p *coherence.Purge, tag string) {
	for _, e := range c.l1.dependents(tag) {
		if !e.stamp.Covers(p.X) && concerns(p, e.names, "") {
			c.dropEntry(e)
		}
	}
}

// dropComposites forgets entries made from values of a class that was raised;
// the class's own are void by their generation.
func (c *Client) dropComposites(class string) {
	if class == namespaceClass {
		for name := range c.classes {
			c.dropComposites(name)
		}
		return
	}
	for _, e := range c.l1.dependents(classIndex(class)) {
		c.l1.drop(e)
	}
}

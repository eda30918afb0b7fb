package client

import (
	"slices"
	"sync/atomic"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
)

// view is what the Client knows of the control data. It is never changed:
// whoever learns something publishes another one, under Client.mu.
type view struct {
	control coherence.ControlState
	footing
}

// footing is what else a look at the control data has told beside the
// generations, for a value that will depend on names. It goes with a ticket: its
// names and its generation are those of one look. Whoever loses the list of
// names raises every class, so that a value which trusts in a list that is no
// more is of a generation that is no more.
type footing struct {
	// usable says that this program knows the layout of the source record.
	usable bool
	// named are the classes that a heartbeat has echoed: their keys may be
	// used as names of other entries.
	named map[string]bool
}

// generation is the one known of a class; false if its record was not read.
func (v *view) generation(class string) (uint64, bool) {
	own, ok := v.control.Classes[class]
	if !ok {
		return 0, false
	}
	return max(own.Generation, v.control.Classes[namespaceClass].Generation), true
}

// namespaceClass is the class record of the whole namespace.
const namespaceClass = "*"

// knows reports whether the record of a class was read.
func (v *view) knows(class string) bool {
	_, ok := v.control.Classes[class]
	return ok
}

// stillNamed are the classes that a heartbeat has echoed and that control has now.
// What is there no more the workers do not purge, however well it was known:
// Redis may have come back empty, to workers that were never told.
func (v *view) stillNamed(echoed map[string]bool) {
	v.named = make(map[string]bool, len(echoed))
	for _, n := range v.control.Named {
		if echoed[n] {
			v.named[n] = true
		}
	}
}

// notBehind takes from what was known before what must not go back, whatever
// control has lost since.
func (v *view) notBehind(old *view) {
	for name, have := range v.control.Classes {
		r := old.control.Classes[name]
		have.Generation, have.Bound = max(have.Generation, r.Generation), have.Bound.Max(r.Bound)
		v.control.Classes[name] = have
	}
}

// advance takes the v and w of a message; those of another era say nothing.
func (v *view) advance(pv, pw change.Position) {
	era := v.control.Source.Era
	if pv.Era == era {
		v.control.V = v.control.V.Max(pv)
	}
	if pw.Era == era {
		v.control.W = v.control.W.Max(pw)
	}
}

// swept reports whether an open purge is over although nobody said so: w has
// passed it, and w passes a purge only after its sweep.
func (v *view) swept(p *coherence.Purge) bool { return v.control.W.Covers(p.X) }

// purged reports whether an open purge asks for an entry of these names whose
// stamp does not show the purge's commit.
func (v *view) purged(stamp change.Position, names []coherence.Name, name string) bool {
	for i := range v.control.Purges {
		p := &v.control.Purges[i]
		if !stamp.Covers(p.X) && !v.swept(p) && concerns(p, names, name) {
			return true
		}
	}
	return false
}

// concerns reports whether a purge is about an entry.
func concerns(p *coherence.Purge, names []coherence.Name, name string) bool {
	has := func(tag string) bool {
		return tag == name || slices.ContainsFunc(names, func(n coherence.Name) bool {
			return n.Kind != coherence.NameClass && n.Name == tag
		})
	}
	if p.All {
		return !slices.ContainsFunc(p.Tags, func(tag string) bool { return !has(tag) })
	}
	return slices.ContainsFunc(p.Tags, has)
}

func samePurge(a, b *coherence.Purge) bool {
	if a.X != b.X || a.All != b.All {
		return false
	}
	x, y := slices.Clone(a.Tags), slices.Clone(b.Tags)
	slices.Sort(x)
	slices.Sort(y)
	return slices.Equal(slices.Compact(x), slices.Compact(y))
}

// marksMax is the number of names in each of the two halves of marks.
const marksMax = 1 << 15

// marks remember which names were invalidated lately, so that what was asked
// before a message and answered after it is recognised. The names of an entry
// are known only from the answer, so not the questions are marked but the
// names; a question that began before the oldest one remembered counts as
// marked. Guarded by Client.mu, but for seq.
type marks struct {
	seq       atomic.Uint64
	cur, prev map[string]uint64
	// start is the number of the first message in cur; those below floor have
	// been forgotten.
	start, floor uint64
	// purge is the number of the last message about tags.
	purge uint64
}

// add notes a message.
func (m *marks) add(names []string, purge bool) {
	seq := m.seq.Add(1)
	switch {
	case len(names) > marksMax:
		// A message of that size marks everything.
		m.forget(seq)
		names = nil
	case len(m.cur)+len(names) > marksMax:
		m.prev, m.cur = m.cur, nil
		m.start, m.floor = seq, m.start
	}
	if m.cur == nil {
		m.cur = make(map[string]uint64)
	}
	for _, n := range names {
		m.cur[n] = seq
	}
	if purge {
		m.purge = seq
	}
}

// everything is a message about all names.
func (m *marks) everything() { m.forget(m.seq.Add(1)) }

// forget makes what was asked before a message count as marked.
func (m *marks) forget(seq uint64) {
	m.prev, m.cur = nil, nil
	m.start, m.floor = seq+1, seq+1
}

// hit reports whether a name was in a message after number since.
func (m *marks) hit(since uint64, name string) bool {
	return m.cur[name] > since || m.prev[name] > since
}

// forgotten reports whether it is unknown what came after number since.
func (m *marks) forgotten(since uint64) bool { return since+1 < m.floor }

// since is the moment at which something was asked.
type since struct {
	epoch, seq uint64
	view       *view // as it was
}

// sending is called before a question is sent.
func (c *Client) sending() since {
	return since{epoch: c.epoch.Load(), seq: c.marks.seq.Load(), view: c.view.Load()}
}

// marked reports whether anything that concerns the entry was handled since:
// its answer may be from before it. seen is the view by which the answer was
// judged.
//
// Where that is the view as it was when the question was sent, nothing that was
// handled since then can have shown in it, and if no message was counted and no
// epoch began either, there is nothing to look for: that takes no lock, so that
// hits in Redis wait neither for each other nor for the handling of a large
// message.
func (c *Client) marked(s since, seen *view, name string, names []coherence.Name) bool {
	if seen == s.view && s.epoch == c.epoch.Load() && s.seq == c.marks.seq.Load() {
		return false
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.markedLocked(s, name, names)
}

func (c *Client) markedLocked(s since, name string, names []coherence.Name) bool {
	if s.epoch != c.epoch.Load() || c.marks.forgotten(s.seq) {
		return true
	}
	if c.marks.seq.Load() == s.seq {
		return false
	}
	if c.marks.hit(s.seq, name) || c.marks.hit(s.seq, c.bare(name)) {
		return true
	}
	for i := range names {
		if names[i].Kind != coherence.NameClass && c.marks.hit(s.seq, names[i].Name) {
			return true
		}
	}
	return false
}

package client

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
)

// Load is what a loader is given. Through it the loader says what its value
// depends on and how long it may live, and, if it does not read the primary by
// itself, reads the database.
//
// A loader that reads the primary may use any library, as long as what it reads
// is committed and is read after the loader was called: not in a transaction
// that was begun before, and not in one that writes. One that reads a standby
// must do so through QueryRow or Query. The two ways must not be mixed in one
// load, unless Options.Database is the primary. Entries that the loader reads
// with Get, under the context that it was given, become names that the value
// depends on, with all theirs. What such an entry depends on it has to say in
// its own loader: it would be left stale otherwise, and what is made of it too.
//
// It may be used by several goroutines, until the loader returns.
type Load struct {
	c     *Client
	class string
	name  string
	// known is what was known at BEGIN.
	known coherence.Known
	footing
	bound change.Position // of After
	// began is when the loader was called, by Client.now; 0 if there was none.
	began time.Duration

	mu        sync.Mutex
	over      bool
	open      int // queries that were not closed
	tags      []string
	keys      []coherence.Name
	unknown   bool
	ttl       time.Duration
	cacheable bool
	reason    string
	// primary: something was read from the primary, or by other means.
	primary, standby, composite bool
	own                         lowest // what was read from standbys
	parts                       lowest // the entries that were read
	brought                     map[string]lowest
	said                        []string // keys of DependsOn
	misnamedAs                  error
}

// lowest is the least of the positions that were added.
type lowest struct {
	least change.Position
	some  bool
}

func (m *lowest) add(p change.Position) {
	if !m.some || p.Less(m.least) {
		m.least = p
	}
	m.some = true
}

// Tag names things that the value depends on, without the namespace: when a
// rule or InvalidateTags purges one, the value is forgotten. A tag that may not
// be used (ErrKey) is the error of the load.
func (l *Load) Tag(tags ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		return
	}
	for _, t := range tags {
		if !l.checkLocked(t) {
			continue
		}
		if full := l.c.full(t); !slices.Contains(l.tags, full) {
			l.tags = append(l.tags, full)
		}
	}
}

// TTL replaces the class's TTL for this value.
func (l *Load) TTL(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.over {
		l.ttl = d
	}
}

// DoNotCache hands the value to those who wait, and to nobody after them.
func (l *Load) DoNotCache() { l.refuse("loader") }

// DependsOn says that the value was made from what these keys (without the
// namespace) stand for: it is forgotten when one of them is. The class of a key
// is the longest name of a class of this Client that the key begins with,
// followed by a colon; a value that depends on a key without one is not cached.
// A key that may not be used (ErrKey) is the error of the load.
func (l *Load) DependsOn(keys ...string) {
	l.c.mu.Lock()
	classes := l.c.classNames()
	l.c.mu.Unlock()
	v := l.c.view.Load()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		return
	}
	for _, key := range keys {
		if !l.checkLocked(key) {
			continue
		}
		best := ""
		for _, class := range classes {
			if len(class) > len(best) && strings.HasPrefix(key, class+":") {
				best = class
			}
		}
		if best == "" || v == nil {
			l.unknown = true
			continue
		}
		g, ok := v.generation(best)
		if !ok {
			l.unknown = true
		}
		l.addKey(l.c.full(key), best, g)
		l.said = append(l.said, l.c.full(key))
	}
}

func (l *Load) addKey(name, class string, generation uint64) {
	for _, n := range [...]coherence.Name{{Kind: coherence.NameKey, Name: name}, {Kind: coherence.NameClass, Name: class, Generation: generation}} {
		if !slices.Contains(l.keys, n) {
			l.keys = append(l.keys, n)
		}
	}
}

// checkLocked keeps the first name that may not be used; misnamed returns it.
func (l *Load) checkLocked(name string) bool {
	err := l.c.checkName(name)
	if err != nil && l.misnamedAs == nil {
		l.misnamedAs = fmt.Errorf("a name that the value depends on: %w", err)
		l.refuseLocked("name") // without the name nobody would forget it
	}
	return err == nil
}

func (l *Load) misnamed() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.misnamedAs
}

func (l *Load) refuse(reason string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.over {
		l.refuseLocked(reason)
	}
}

func (l *Load) refuseLocked(reason string) {
	if l.cacheable {
		l.cacheable, l.reason = false, reason
	}
}

// part takes over what an entry that the loader read was made of.
func (l *Load) part(cl *class, name string, m *meta) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.over {
		return
	}
	switch {
	case cl.plain:
		l.refuseLocked("plain_part") // it has no stamp, nor its tags
	case !m.cacheable:
		l.refuseLocked("part")
	}
	l.composite = true
	l.parts.add(m.stamp)
	l.addKey(name, cl.name, m.generation)
	l.bring(name, m.stamp)
	for _, n := range m.names {
		if !slices.Contains(l.keys, n) {
			l.keys = append(l.keys, n)
		}
		if n.Kind != coherence.NameClass {
			l.bring(n.Name, m.stamp)
		}
	}
}

// bring notes that a part of a stamp depends on a name.
func (l *Load) bring(name string, stamp change.Position) {
	if l.brought == nil {
		l.brought = map[string]lowest{}
	}
	b := l.brought[name]
	b.add(stamp)
	l.brought[name] = b
}

// finish ends the load: what the loader still does through it counts no more.
func (l *Load) finish() {
	l.mu.Lock()
	l.over = true
	if l.open > 0 {
		l.refuseLocked("open_rows")
	}
	l.mu.Unlock()
}

// stamp is the position below which the value contains every commit: the least
// of its parts' and of ownStamp.
func (l *Load) stamp() change.Position {
	m := l.parts
	m.add(l.ownStamp())
	return m.least
}

// ownStamp is that of what the load read itself. What is not known to come from
// a standby counts as read from the primary after BEGIN.
func (l *Load) ownStamp() change.Position {
	m := l.own
	if !l.standby || l.primary || l.composite {
		m.add(l.known.V)
	}
	return m.least
}

// stampUnder is the stamp under which a composite is registered under a name:
// the least of the parts that brought the name, which is all that REGISTER asks
// about. (With the least of all parts, a page of five products would not be
// cached after one of them was changed until the other four are loaded again.)
// What the loader says by itself may be about any of its parts, so that has the
// least of all. See docs/coherence.md, Composites.
func (l *Load) stampUnder(name string) change.Position {
	m := l.brought[name]
	if !m.some || slices.Contains(l.tags, name) || slices.Contains(l.said, name) {
		return l.stamp()
	}
	return m.least
}

// allNames are the names that the value depends on, or why they can not be.
func (l *Load) allNames() (names []coherence.Name, reason string) {
	if !l.cacheable {
		return nil, l.reason
	}
	if l.unknown {
		return nil, "unknown_class"
	}
	for _, t := range l.tags {
		names = append(names, coherence.Name{Kind: coherence.NameTag, Name: t})
	}
	names = append(names, l.keys...)
	if len(names) > 0 && !l.usable {
		return nil, "layout"
	}
	if l.standby && !l.usable {
		return nil, "layout"
	}
	return names, l.announce()
}

// meta is what a value passes on to one that is made from it.
func (l *Load) meta(negative bool) meta {
	m := meta{generation: l.known.Generation, negative: negative, cacheable: l.cacheable && !l.unknown && l.known.Source.Era != 0}
	for _, t := range l.tags {
		m.names = append(m.names, coherence.Name{Kind: coherence.NameTag, Name: t})
	}
	m.names = append(m.names, l.keys...)
	m.stamp = l.stamp()
	return m
}

// announce makes the classes of keys that are used as names known to the
// workers, who then purge such a key when they invalidate it. Until a heartbeat
// echoes a class, nothing that depends on its keys is cached.
func (l *Load) announce() (reason string) {
	var classes []string
	for i := range l.keys {
		if n := &l.keys[i]; n.Kind == coherence.NameClass && !l.named[n.Name] {
			classes = append(classes, n.Name)
		}
	}
	if len(classes) == 0 {
		return ""
	}
	c := l.c
	_ = c.withStore(c.ctx, func(ctx context.Context, s *coherence.Store) error { return s.AddNamed(ctx, classes...) })
	return "unnamed"
}

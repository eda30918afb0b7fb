package rules

import "github.com/lethe-cache/lethe/change"

// Kind says what a Target names.
type Kind byte

// The kinds of a Target.
const (
	// KindKey is one key.
	KindKey Kind = iota
	// KindTag is one tag: every entry that carries it.
	KindTag
	// KindAllTags is several tags: every entry that carries all of them.
	KindAllTags
	// KindClass is a whole class, whose generation is to be raised.
	KindClass
)

// String names the kind.
func (k Kind) String() string {
	return [...]string{"key", "tag", "all tags", "class"}[k&3]
}

// Target is one thing that a change invalidates. Its names alias the buffer of
// the Targets that hold it.
type Target struct {
	Kind Kind
	// Name is the full name, namespace included, of a key or a tag.
	Name []byte
	// Names are the full names of KindAllTags.
	Names [][]byte
	// Class is the key's class, nil if it has none. For KindClass it is the
	// class to raise, nil for every class of the namespace ("*").
	Class *Class
	// Rule caused it; nil for a logical message.
	Rule *Rule
	// Template built the name, or would have built it where a class is raised;
	// nil for a logical message and for TRUNCATE.
	Template *Template
	// Parent is one more than the index in the list of what the cascade came
	// from; 0 for what a rule or message itself names. It holds until the list
	// is reordered.
	Parent int
	Action Action
	// Cascade says how far dependencies are still to be followed from here.
	Cascade Cascade
	// Depth is how many edges lie behind: 0 for what a rule itself names.
	Depth int
	// X is the position of the commit.
	X change.Position
	// Reason is why a class is raised, one of change.Reason...; else empty.
	Reason string
}

// ClassName is the name of the class to raise: "*" for every class.
func (t *Target) ClassName() string {
	if t.Class == nil {
		return "*"
	}
	return t.Class.Name
}

// Targets collects what changes invalidate. It is reused: Reset keeps its
// memory, and what was in it is gone then. Not safe for concurrent use.
type Targets struct {
	List []Target
	// Timed is what becomes of schedules; its targets are not in List.
	Timed []Timed

	timed []Target
	buf   []byte
	names [][]byte
}

// Reset empties t and keeps its memory.
func (t *Targets) Reset() {
	t.List = t.List[:0]
	t.Timed, t.timed = t.Timed[:0], t.timed[:0]
	t.buf = t.buf[:0]
	t.names = t.names[:0]
}

// Intern copies a name into t's memory; it is good until Reset.
func (t *Targets) Intern(name []byte) []byte {
	start := t.room(len(name))
	t.buf = append(t.buf, name...)
	return t.buf[start:len(t.buf):len(t.buf)]
}

// AddName appends the target of one key or tag whose Name is interned. A key
// whose class has several versions of values is added once for each.
func (t *Targets) AddName(target Target) {
	c := target.Class
	if target.Kind != KindKey || !c.versioned() {
		t.List = append(t.List, target)
		return
	}
	// The bare name always goes: it may be left from a version before.
	t.List = append(t.List, target)
	name := target.Name
	for _, v := range c.Versions {
		if v <= 1 {
			continue
		}
		start := t.room(len(name) + versionLen)
		t.buf = appendVersion(append(t.buf, name...), v)
		target.Name = t.buf[start:len(t.buf):len(t.buf)]
		t.List = append(t.List, target)
	}
}

// AddClass appends the raise of a class, nil for every class, unless it is in
// t.List[from:] already.
func (t *Targets) AddClass(from int, target Target, c *Class) {
	target.Kind, target.Class, target.Name, target.Names = KindClass, c, nil, nil
	for i := from; i < len(t.List); i++ {
		if have := &t.List[i]; have.Kind == KindClass && have.Class == c {
			if target.Cascade.Depth > have.Cascade.Depth {
				have.Cascade = target.Cascade
			}
			return
		}
	}
	t.List = append(t.List, target)
}

// versioned reports that names of the class come with @n.
func (c *Class) versioned() bool { return c != nil && (len(c.Versions) != 1 || c.Versions[0] != 1) }

// grow appends a target and returns it for the caller to fill. What it holds is
// whatever was there before.
func (t *Targets) grow() *Target {
	if n := len(t.List); n < cap(t.List) {
		t.List = t.List[:n+1]
	} else {
		t.List = append(t.List, Target{})
	}
	return &t.List[len(t.List)-1]
}

// versionLen is the room that @n takes at most.
const versionLen = 8

// targetsChunk is how much a new piece of name memory holds at least.
const targetsChunk = 4 << 10

// room makes sure that n more bytes fit without moving the buffer: names that
// were handed out keep the old piece alive, which is never written to again.
func (t *Targets) room(n int) (start int) {
	if cap(t.buf)-len(t.buf) < n {
		t.buf = make([]byte, 0, max(2*cap(t.buf), targetsChunk, n))
	}
	return len(t.buf)
}

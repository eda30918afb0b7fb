// Package rules turns rules.yaml into a plan, and changes of the database into
// what they invalidate.
//
// Parse and Load read the file and report every mistake at once, each with its
// place. Set.Lint and Set.Check say what will go wrong later, the latter
// against a live schema. Set.Compile makes a Plan; a Matcher of that plan takes
// changes and appends the keys, tags and classes that they invalidate.
package rules

import (
	"strings"
	"time"

	"github.com/lethe-cache/lethe/change"
)

// Limits of a cascade that the file does not set.
const (
	// CascadeDepthDefault is how many edges a cascade follows where the rule
	// does not say.
	CascadeDepthDefault = 8
	// CascadeDepthMax bounds what a rule may ask for.
	CascadeDepthMax = 64
)

// DebounceMax bounds a rule's debounce: the watermark waits for it.
const DebounceMax = 10 * time.Second

// Set is a parsed rules.yaml, or several merged. It is immutable after Parse.
type Set struct {
	// Files are the names that the set was read from, as given; those that a file
	// includes follow it.
	Files []string
	// Version is the grammar's version: 1.
	Version int
	// Namespace is the prefix of every key and tag, without its colon; empty
	// means that names stand as written.
	Namespace string
	// Entries are the classes of cache entries in the order of the file.
	Entries []*Class
	// Rules in the order of the file.
	Rules []*Rule
	// Dependencies are the static edges of the cascade.
	Dependencies []*Dependency
	// Warm are the warm-ups, in the order of the file.
	Warm []*Warm
	// EdgeCaches are the endpoints that are told what was forgotten.
	EdgeCaches []*EdgeCache
	// Policy is what the block `lint` asks of names.
	Policy Policy

	warnings Findings
	index    classIndex
	edges    *formGraph
	secrets  []secret
	// namespaced: the namespace was said, be it empty.
	namespaced bool
}

// Class is one class of cache entries.
type Class struct {
	// Name is the entry's name in the file.
	Name string
	// Key is the template of its keys.
	Key *Template
	// Mode says how values are stored.
	Mode Mode
	// TTL is the entry's life; 0 means that the file does not say, TTLNever
	// that it has none.
	TTL time.Duration
	// NegativeTTL is the life of "there is no such row"; 0 is not said.
	NegativeTTL time.Duration
	// MaxStale bounds the watermark's age for the client; 0 is not said.
	MaxStale time.Duration
	// Tags are the names that a value depends on, rendered from the loaded row.
	Tags []*Template
	// StaleFor is for how long readers may be served the value that an
	// invalidation has made stale while the entry is rewarmed; 0 is never.
	StaleFor time.Duration
	// Keep asks for the keep variant on invalidation: the class's writers
	// refresh the entry themselves.
	Keep bool
	// Versions are the value versions that live at the same time, ascending.
	// Version 1 is the bare name, version n > 1 is name@n. Default [1].
	Versions []int
	// MaxValue is the greatest size of a value in bytes; 0 is not said.
	MaxValue int64
	// L1 is false if values of the class stay out of the process's cache.
	L1 bool
	// Load is how Lethe itself reads values of the class, nil if it can not.
	Load *Loader
	// Prefetch are names that are warmed with an entry of this class when it is
	// hot or filled again, of the placeholders of its key. One step: what is
	// prefetched prefetches nothing.
	Prefetch []*Template

	Owner, Description string

	// Rewarmed is true if some rule with action rewarm or auto names the class.
	Rewarmed bool

	namespace string
	pos       place
	ordinal   int
}

// TTLNever is the TTL of an entry that says `ttl: never`.
const TTLNever = time.Duration(-1)

// Mode says how the values of a class are stored.
type Mode byte

// The modes of a class.
const (
	// Exact values carry a header; the whole protocol holds for them.
	Exact Mode = iota
	// Plain values are raw bytes that any program reads with GET.
	Plain
)

// String names the mode as the file does.
func (m Mode) String() string {
	if m == Plain {
		return "plain"
	}
	return "exact"
}

// Loader is how values of a class are read, many at once.
type Loader struct {
	// SQL selects by the arrays @name, one for each placeholder of the key; ""
	// if HTTP is set.
	SQL string
	// HTTP asks the application instead; nil without.
	HTTP *HTTPLoader
	// Params are the placeholders of the key that the statement names, in
	// the order of their first use.
	Params []string

	pos place
}

// Action is what becomes of an entry that is invalidated.
type Action byte

// The actions of a rule.
const (
	// Delete unlinks the entry.
	Delete Action = iota
	// Stale keeps the value for readers that accept stale ones.
	Stale
	// Rewarm asks for the entry to be filled again; until a warmer does it,
	// the entry is forgotten.
	Rewarm
	// Auto is Rewarm or Delete, whichever costs less as measured.
	Auto
)

// Rewarms reports whether entries may be filled again after the action.
func (a Action) Rewarms() bool { return a == Rewarm || a == Auto }

// RewarmIf says which entries action Rewarm fills again.
type RewarmIf byte

// What a rule's `if` may say.
const (
	// IfAlways: every entry, whether it was cached or not.
	IfAlways RewarmIf = iota
	// IfPresent: those that were cached when they were invalidated, or were to
	// be: one whose rewarm is due or under way counts.
	IfPresent
	// IfHot: those that clients report among their most read.
	IfHot
)

// String names the condition as the file does.
func (i RewarmIf) String() string {
	return [...]string{"always", "present", "hot"}[min(i, IfHot)]
}

// String names the action as the file does.
func (a Action) String() string {
	switch a {
	case Stale:
		return "stale"
	case Rewarm:
		return "rewarm"
	case Auto:
		return "auto"
	}
	return "delete"
}

// Ops is a set of operations.
type Ops byte

// The operations that a rule may name in `on`.
const (
	OnInsert Ops = 1 << iota
	OnUpdate
	OnDelete
	OnTruncate

	OnAll = OnInsert | OnUpdate | OnDelete | OnTruncate
)

// Has reports whether the set contains the operation of a change.
func (o Ops) Has(op change.Op) bool { return o&opBit(op) != 0 }

// String lists the operations, separated by commas; "all" for all of them.
func (o Ops) String() string {
	if o == OnAll {
		return "all"
	}
	var names []string
	for _, n := range []struct {
		bit  Ops
		name string
	}{{OnInsert, "insert"}, {OnUpdate, "update"}, {OnDelete, "delete"}, {OnTruncate, "truncate"}} {
		if o&n.bit != 0 {
			names = append(names, n.name)
		}
	}
	return strings.Join(names, ", ")
}

func opBit(op change.Op) Ops {
	switch op {
	case change.Insert:
		return OnInsert
	case change.Update:
		return OnUpdate
	case change.Delete:
		return OnDelete
	case change.Truncate:
		return OnTruncate
	}
	return 0
}

// Cascade says how far a rule's invalidation follows dependencies.
type Cascade struct {
	// Depth is the number of edges; 0 is off.
	Depth int
	// Bound is true if the file gave the depth: nothing beyond it is touched.
	// Otherwise what lies beyond the default depth has its classes raised.
	Bound bool
	// StaleFrom is the depth from which on entries are kept stale, whatever the
	// rule does with those before it; 0: nowhere. It is one more than the file's
	// stale_beyond.
	StaleFrom int
}

// Rule says which changes of a table matter, and what they invalidate.
type Rule struct {
	// Name is unique; it names metrics, logs and explanations.
	Name string
	// Schema and Table name the table, unquoted.
	Schema, Table string
	// On are the operations that matter. OnDelete implies OnTruncate.
	On Ops
	// When is the condition's text; empty means always.
	When string
	// Keys are rendered for the old and the new row.
	Keys []*Template
	// Tags are purged, each alternative by itself; see TagSet.
	Tags []TagSet
	// Lookup finds values that the rows do not have, for {lookup.column} in Keys
	// and Tags; nil if no key or tag needs one.
	Lookup *Lookup
	// Action is what becomes of the entries.
	Action Action
	// If bounds which entries action Rewarm fills again.
	If RewarmIf
	// Cascade bounds how far dependencies are followed.
	Cascade Cascade
	// At is the column whose time is that of the invalidation, in place of the
	// change's own; empty: at once. Names are rendered from the row as it is
	// after the change, and {old.x} has no place in them.
	At string
	// Strict raises a key's class when the log does not carry an old value
	// that the key needs.
	Strict bool
	// Debounce is how long what is costly and not urgent may wait for more of
	// the same, counted from the first change: the sweep of a tag, and rewarming.
	// Entries are forgotten at once. 0 is no wait; at most DebounceMax.
	Debounce time.Duration

	Owner, Description string

	pos     map[string]place
	ordinal int
	cond    *condition
	// folded: the condition's lines were joined, so places in it are lost.
	folded bool
}

// QualifiedTable is schema.name, unquoted, as change.Table has it.
func (r *Rule) QualifiedTable() string { return r.Schema + "." + r.Table }

// TagSet is one purge of a rule: a single tag, or several of which an entry
// must carry all.
type TagSet struct {
	// All has one template for a plain tag, more for `all: [...]`.
	All []*Template
}

// Dependency is a static edge of the cascade: whatever invalidates a name of
// the form Of also invalidates each of Also.
type Dependency struct {
	// ID is the number of the row that declares it; 0: the file does. See
	// Set.WithEdges.
	ID   int64
	Of   *Template
	Also []*Template
	// When is the condition's text; empty means always. See EdgeScope.
	When string

	pos  place
	cond *edgeCondition
}

// TableUse is what the rules need of one table.
type TableUse struct {
	Schema, Name string
	// Columns that rules read, sorted. The replica identity is not added.
	Columns []string
	// OldColumns are those whose old value some rule needs, sorted.
	OldColumns []string
	// Ops that rules name.
	Ops Ops
}

// QualifiedName is schema.name, unquoted.
func (t TableUse) QualifiedName() string { return t.Schema + "." + t.Name }

// Class returns the class of that name, or nil.
func (s *Set) Class(name string) *Class {
	for _, c := range s.Entries {
		if c.Name == name {
			return c
		}
	}
	return nil
}

// FullName puts the namespace before a rendered name.
func (s *Set) FullName(name string) string {
	if s.Namespace == "" {
		return name
	}
	return s.Namespace + ":" + name
}

// Place is where the rule begins: the file as it was given, line and column
// from 1.
func (r *Rule) Place() (file string, line, col int) {
	p := r.pos[""]
	return p.file, p.line, p.col
}

package coherence

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/lethe-cache/lethe/change"
)

// Options are the settings of a Store. The zero value of each field is its
// default.
type Options struct {
	// Namespace is the prefix of every name, "" for none. ReservedNamespace is
	// refused.
	Namespace string
	// Logger receives what an operator should know; nil discards it.
	Logger *slog.Logger
	// DialTimeout bounds the making of a connection (default 2 s), ReadTimeout
	// and WriteTimeout each reply and each write (default 5 s). A context that
	// ends earlier wins.
	DialTimeout, ReadTimeout, WriteTimeout time.Duration
	// PoolSize is the number of connections to each node (default 16).
	PoolSize int
	// StreamLength bounds the stream of broadcasts in messages (default 4096);
	// StreamBytes bounds it in bytes, about (default 16 MiB).
	StreamLength, StreamBytes int64
	// CoarseBatch is the number of entries from which a batch on one node
	// raises one mark for all of them instead of a bucket for each (default
	// 256, negative: never). Such batches are a backlog or one large
	// transaction; while the mark is ahead of a standby, or of v, the fills
	// and registrations that it would have let through are refused.
	CoarseBatch int
	// RunID asks a server who it is; nil asks INFO server. It is called on
	// every new connection before its first command. Servers without INFO
	// (fakes) need one.
	RunID func(ctx context.Context, addr string) (string, error)
	// OnNodeLost is called, by the goroutine that noticed, once for each
	// change of a run_id. It must not block and not call the Store.
	OnNodeLost func(*NodeLostError)
}

// Errors that callers branch on.
var (
	// ErrNodeLost: a Redis node may have lost writes: its run_id changed, or
	// it evicted what must not be evicted. See NodeLostError.
	ErrNodeLost = errors.New("redis node lost")
	// ErrNoSource: there is no source record, or none of an era; nothing can
	// be stamped.
	ErrNoSource = errors.New("no source record")
	// ErrOlderSource: the record in Redis is of a later era, or of the same
	// system on a later timeline. The caller speaks for a deposed primary and
	// stops.
	ErrOlderSource = errors.New("source is older than the recorded one")
	// ErrClosed: the Store was closed.
	ErrClosed = errors.New("store closed")
)

// NodeLostError says which node is lost. Every command on the node fails with
// it until Store.Acknowledge, but for those under DuringRedo. It matches
// ErrNodeLost.
type NodeLostError struct {
	// Node is the address, or the name of the master behind Sentinels.
	Node string
	// Old is the run_id that was known, "" if the node was not; New the one
	// that answers now.
	Old, New string
	// Cause is one of "run_id", "topology" (another master owns slots of this
	// one) and "evicted" (evicted_keys moved where indexes can be evicted).
	Cause string
}

// Error implements error.
func (e *NodeLostError) Error() string {
	return fmt.Sprintf("redis node %s lost (%s): run_id %q, known %q", e.Node, e.Cause, e.New, e.Old)
}

// Is makes errors.Is(err, ErrNodeLost) hold.
func (e *NodeLostError) Is(target error) bool { return target == ErrNodeLost }

// Known is what a reader knew when it began: it goes into the ticket, so that
// a fill can not use what became known later.
type Known struct {
	Source change.Source
	// V is the visibility position. One of another era than Source's counts
	// as none.
	V change.Position
	// Generation is the greater of the class's and the namespace's.
	Generation uint64
	// Bound is that record's bound: a standby's stamp must cover it.
	Bound change.Position
}

// BeginRequest asks for the ticket of one entry.
type BeginRequest struct {
	// Name is the key of the entry, with its class version if it has one.
	Name  string
	Known Known
	// Plain says that the entry is a raw value: its ticket is beside it.
	Plain bool
	// Lease goes into the empty entry, if the entry is absent.
	Lease Lease
}

// Ticket is the right to fill an entry, as long as no invalidation took it.
type Ticket struct {
	Name        string
	Plain       bool
	Incarnation Incarnation
	Known       Known
}

// Begun is the answer to a BeginRequest.
type Begun struct {
	Ticket Ticket
	// Mine says that the entry was absent and now holds this caller's ticket.
	Mine bool
	// Header and Payload are what was there otherwise. Of a plain entry only
	// the ticket was read.
	Header  Header
	Payload []byte
}

// Reason says what became of a fill or a registration.
type Reason byte

// The outcomes of fills and registrations.
const (
	// Stored: accepted.
	Stored Reason = iota
	// RefusedAbsent: the entry is gone: invalidated, evicted or expired.
	RefusedAbsent
	// RefusedIncarnation: another incarnation is there.
	RefusedIncarnation
	// RefusedForeign: what is there is no entry. It was unlinked.
	RefusedForeign
	// RefusedClosed: the table of the name has no base, or one of an older era.
	RefusedClosed
	// RefusedTable: the stamp does not cover what the table, or the header of
	// the tag, has seen.
	RefusedTable
	// RefusedGeneration: a value of a later generation is there.
	RefusedGeneration
	// RefusedBound: the standby's stamp does not cover the generation's bound.
	RefusedBound
	// RefusedSource: no source is known, or the stamp is of another era.
	RefusedSource
)

// String names a reason as metrics do.
func (r Reason) String() string {
	if int(r) < len(reasonNames) {
		return reasonNames[r]
	}
	return "unknown"
}

var reasonNames = [...]string{
	"stored", "absent", "incarnation", "foreign", "closed", "table", "generation", "bound", "source",
}

// FillRequest is a loaded value.
type FillRequest struct {
	Ticket Ticket
	// Standby says that the value was read from a standby, Stamp what it had
	// replayed before the read. A value from the primary has the V of its
	// ticket as stamp, whatever stands here, but for Composite.
	Standby bool
	Stamp   change.Position
	// Composite says that the value has several parts, and Stamp is the least
	// of theirs. Own is the stamp of what the load read itself, besides other
	// entries: if it is set, it is what the table is asked about for a Standby,
	// for the name of the entry stands for no more than that. It must be at
	// least Stamp, of the same era.
	Composite bool
	Own       change.Position
	// Header gives everything else: times, cost, version, flags, codec, lease,
	// names. State, Incarnation, Generation, Stamp and StaleSince are set by
	// Fill. Ignored for plain entries.
	Header  Header
	Payload []byte
	// TTL is how long Redis keeps the entry; 0 is for ever.
	TTL time.Duration
}

// RegisterRequest puts an entry under a name: a tag, or the key of an entry it
// was made from.
type RegisterRequest struct {
	Name, Member string
	Stamp        change.Position
}

// Action is what an invalidation does to a value.
type Action byte

// The actions, the weakest first: of several for one entry the greatest is
// right. The zero Action is ActionDelete, as an invalidation that says nothing
// must forget.
const (
	// ActionStale turns a value that misses X into a stale one.
	ActionStale Action = iota + 1
	// ActionKeep keeps a value whose stamp covers X, else unlinks it.
	ActionKeep
	// ActionDelete unlinks.
	ActionDelete
)

// unlinks reports whether the value goes unread.
func (a Action) unlinks() bool { return a != ActionStale && a != ActionKeep }

// Invalidation is one entry to be forgotten.
type Invalidation struct {
	Name string
	X    change.Position
	// Action counts for exact entries only.
	Action Action
	// Plain says that the entry is, or may be, a raw value: plain classes and
	// keys without a class. Key and ticket are unlinked, unread.
	Plain bool
	// Group is a small number of the caller's, by which Result counts.
	Group int
	// Tell asks for the outcome of this one by itself, in Result.Told. It is
	// not told of exact entries that go unread (ActionDelete).
	Tell bool
}

// Outcome is what became of one entry.
type Outcome byte

// The outcomes of an invalidation, as Counts has them.
const (
	OutcomeAbsent Outcome = iota
	OutcomeDeleted
	OutcomeKept
	OutcomeStale
)

// Told is the outcome of one invalidation.
type Told struct {
	Name    string
	Outcome Outcome
}

// Counts are the outcomes of invalidations.
type Counts struct {
	// Deleted were there and are gone, Absent were not there, Kept reflect X
	// already, Stale became (or were) stale.
	Deleted, Absent, Kept, Stale int
}

// Result is what became of a batch.
type Result struct {
	Counts
	// Groups are the counts by Invalidation.Group.
	Groups []Counts
	// Told are the outcomes that were asked for, in no order. If the batch is
	// a repeated one, what an earlier attempt deleted is absent.
	Told []Told
}

// Purge is the invalidation of everything that is registered under tags.
type Purge struct {
	X    change.Position
	Tags []string
	// All means the entries that have every one of the tags; else any.
	All bool
}

// RaiseRequest raises generations.
type RaiseRequest struct {
	// Cause identifies the raise; each is applied once to a class.
	Cause string
	// Reason is one of change's Reason constants.
	Reason string
	// Classes are names of classes; "*" is the namespace.
	Classes []string
	X       change.Position
	// Bound is change.Bound of the primary's insert LSN: what a standby must
	// have replayed for its values to count.
	Bound change.Position
}

// ClassRecord is the record of a class, or of the namespace.
type ClassRecord struct {
	Generation uint64
	Bound      change.Position
	// Cause is the last one.
	Cause string
}

// ControlState is the control data, read in one script.
type ControlState struct {
	Source change.Source
	// Buckets and Layout are those of the source record.
	Buckets, Layout int
	V, W            change.Position
	// Classes holds the records of the classes asked for, and "*".
	Classes map[string]ClassRecord
	Purges  []Purge
	Named   []string
	// Number and ID are those of the last numbered broadcast, StreamEnd the
	// last id of the stream, Digest the identity of the records as they stand.
	Number    uint64
	ID        string
	StreamEnd string
	Digest    string
}

// Watermark is one worker partition's on one master.
type Watermark struct {
	// Node is the master's address, LeastSlot the least slot it owns.
	Node      string
	LeastSlot int
	// Found says that there is one.
	Found    bool
	Position change.Position
	// RunID is the one it was written under; Current the one that answers.
	RunID, Current string
}

// Lost reports whether the node may have lost what the watermark promises.
func (w Watermark) Lost() bool { return !w.Found || w.RunID != w.Current }

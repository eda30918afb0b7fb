package cdc

import (
	"time"

	"github.com/lethe-cache/lethe/change"
)

// Observer is told what happens, for metrics. Its methods are called from the
// Reader's goroutines, several at a time, on hot paths: they must be quick and
// must not block. Embed NopObserver to stay compatible with methods to come.
type Observer interface {
	// Changes counts changes that were handed on; table is nil for messages.
	Changes(table *change.Table, op change.Op, n int)
	// Snapshot is called after the gate took a snapshot.
	Snapshot(took time.Duration)
	// Held says what the gate holds, whenever it may have changed.
	Held(h Held)
	// Poison counts messages that could not be decoded; table may be empty.
	Poison(table string)
	// Raise counts raises that the reader put into the log.
	Raise(reason string)
	// Slot reports the slot's state, every few seconds.
	Slot(s SlotStats)
	// Heartbeat tells how long a heartbeat took from its emission to the reader.
	Heartbeat(took time.Duration)
	// Phase is called when the Reader's phase changes.
	Phase(p Phase)
}

// Held is what the gate holds.
type Held struct {
	// Commits wait for a snapshot that shows them; Rows and Bytes are those of
	// them that are kept, Forgotten are commits whose rows are not.
	Commits, Rows, Forgotten int
	Bytes                    int64
}

// SlotStats is the replication slot as the server sees it.
type SlotStats struct {
	// LagBytes is WAL that was written and is not confirmed.
	LagBytes int64
	// RetainedBytes is WAL that the slot keeps from being removed.
	RetainedBytes int64
	// SafeWALBytes is how much may be written before the slot is in danger;
	// -1 if there is no limit.
	SafeWALBytes int64
	// WALStatus is reserved, extended, unreserved or lost.
	WALStatus string
}

// NopObserver does nothing.
type NopObserver struct{}

var _ Observer = NopObserver{}

// Changes does nothing.
func (NopObserver) Changes(*change.Table, change.Op, int) {}

// Snapshot does nothing.
func (NopObserver) Snapshot(time.Duration) {}

// Held does nothing.
func (NopObserver) Held(Held) {}

// Poison does nothing.
func (NopObserver) Poison(string) {}

// Raise does nothing.
func (NopObserver) Raise(string) {}

// Slot does nothing.
func (NopObserver) Slot(SlotStats) {}

// Heartbeat does nothing.
func (NopObserver) Heartbeat(time.Duration) {}

// Phase does nothing.
func (NopObserver) Phase(Phase) {}

// observeChanges counts changes in runs, since most neighbours are alike.
func observeChanges(o Observer, changes []change.Change) {
	for i := 0; i < len(changes); {
		j := i + 1
		for j < len(changes) && changes[j].Table == changes[i].Table && changes[j].Op == changes[i].Op {
			j++
		}
		o.Changes(changes[i].Table, changes[i].Op, j-i)
		i = j
	}
}

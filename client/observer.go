package client

import "time"

// Observer is told what a Client does, while it does it: for traces, for logs
// of one's own, for metrics of another make than those of Client.Collector.
//
// Its methods are called by the goroutine that does the work, a reader's more
// often than not, and several at a time: they must not block, must not panic,
// and must not read through the Client. Nothing is locked while they run. Embed
// NopObserver, so that a method that comes later is no error.
type Observer interface {
	// ObserveRead is called at the end of each read.
	ObserveRead(ReadEvent)
	// ObserveLoad is called when a loader has returned.
	ObserveLoad(LoadEvent)
	// ObserveFill is called when a loaded value was stored, or was not.
	ObserveFill(FillEvent)
	// ObserveLease is called when a read has waited for the load of another
	// process, or has taken it over.
	ObserveLease(LeaseEvent)
	// ObserveEviction is called some time after L1 made room.
	ObserveEviction(EvictionEvent)
	// ObserveError is called when Redis did not do what it was asked.
	ObserveError(ErrorEvent)
	// ObserveEvent is called when something becomes of the Client as a whole.
	ObserveEvent(Event)
}

// NopObserver is an Observer that does nothing, for embedding.
type NopObserver struct{}

// ObserveRead does nothing.
func (NopObserver) ObserveRead(ReadEvent) {}

// ObserveLoad does nothing.
func (NopObserver) ObserveLoad(LoadEvent) {}

// ObserveFill does nothing.
func (NopObserver) ObserveFill(FillEvent) {}

// ObserveLease does nothing.
func (NopObserver) ObserveLease(LeaseEvent) {}

// ObserveEviction does nothing.
func (NopObserver) ObserveEviction(EvictionEvent) {}

// ObserveError does nothing.
func (NopObserver) ObserveError(ErrorEvent) {}

// ObserveEvent does nothing.
func (NopObserver) ObserveEvent(Event) {}

var _ Observer = NopObserver{}

// Layer is where the answer of a read came from.
type Layer uint8

// The layers, in the order in which a read asks them.
const (
	// LayerNone: the read failed.
	LayerNone Layer = iota
	// LayerL1 is the process, LayerL2 is Redis.
	LayerL1
	LayerL2
	// LayerLoad is a loader, run for this read or for another that it joined.
	LayerLoad
	// LayerStale is a value that was known to be old, or not known to be
	// current, and that the class prefers to nothing.
	LayerStale
	// LayerDefault is the class's default value.
	LayerDefault
	layerCount
)

var layerNames = [layerCount]string{"none", "l1", "l2", "load", "stale", "default"}

// String is the layer as in the label of metrics: none, l1, l2, load, stale or
// default.
func (l Layer) String() string {
	if l < layerCount {
		return layerNames[l]
	}
	return "unknown"
}

// Result is what the cache was worth to a read.
type Result uint8

// The results. Each layer has one.
const (
	// ResultError: there was neither a value in the cache nor one that could be
	// loaded (LayerNone, LayerDefault).
	ResultError Result = iota
	// ResultHit: a value from the cache (LayerL1, LayerL2, LayerStale).
	ResultHit
	// ResultMiss: a loader had to run (LayerLoad).
	ResultMiss
)

// String is the result as in the label of metrics: hit, miss or error.
func (r Result) String() string {
	switch r {
	case ResultHit:
		return "hit"
	case ResultMiss:
		return "miss"
	}
	return "error"
}

// Result is what an answer of this layer counts as.
func (l Layer) Result() Result {
	switch l {
	case LayerL1, LayerL2, LayerStale:
		return ResultHit
	case LayerLoad:
		return ResultMiss
	}
	return ResultError
}

// ReadEvent is one read of one key.
type ReadEvent struct {
	// Class is the name of the class, Key the key without the namespace.
	Class, Key string
	Layer      Layer
	Result     Result
	// Duration is how long the read took. It is 0 for hits in L1, but for one
	// in 1024 of them: two looks at the clock are dearer than such a hit.
	Duration time.Duration
	// Age is, of LayerStale, how long the value has been old, or has not been
	// known to be current.
	Age time.Duration
	// Err is the error that the read returns, ErrNotFound included.
	Err error
}

// LoadEvent is one run of a loader. Key is the first few keys in words if it was
// given several.
type LoadEvent struct {
	Class, Key string
	// Cost is how long the loader ran, without the time it waited to be let.
	Cost time.Duration
	// Err is what it returned, ErrNotFound included.
	Err error
}

// FillEvent is the end of one value that was loaded.
type FillEvent struct {
	Class string
	// Reason is "" if the value was stored in Redis, else why it was not; see
	// docs/client.md.
	Reason string
}

// LeaseEvent is a read that met the lease of another process.
type LeaseEvent struct {
	Class, Key string
	// TakenOver says that the holder did not fill in time and that this read
	// loads in its place; else it has waited.
	TakenOver bool
	// Waited is how long.
	Waited time.Duration
}

// EvictionEvent is what L1 put out to make room, since the last event.
type EvictionEvent struct {
	Class   string
	Entries uint64
}

// ErrorEvent is a step that Redis did not do.
type ErrorEvent struct {
	// Kind is one of those in docs/client.md: timeout, network, pool, server,
	// node_lost, replica.
	Kind string
	Err  error
}

// EventKind is what became of a Client.
type EventKind uint8

// The kinds of Event.
const (
	// EventState: the State is another.
	EventState EventKind = iota
	// EventEpoch: L1 was forgotten as a whole.
	EventEpoch
	// EventGap: a broadcast did not follow on the one before.
	EventGap
	// EventReplay: the stream is looked at for what was missed.
	EventReplay
)

// Event is a change of the Client as a whole.
type Event struct {
	Kind EventKind
	// From and To are set with EventState.
	From, To State
	// Why is set with EventEpoch.
	Why string
}

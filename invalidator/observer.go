package invalidator

import (
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/rules"
	"github.com/lethe-cache/lethe/stream"
)

// Observer is told of what a worker does, as it does it. Nil fields are
// skipped. The functions are called by the goroutines that apply, several at a
// time where there are several partitions: they must be fast, must not block,
// and must be safe for concurrent use.
type Observer struct {
	// Applied is called for each thing that a change invalidated, after Redis
	// has answered.
	Applied func(Applied)
	// Raised is called when this worker has raised classes.
	Raised func(Raised)
	// DeadLetter is called for each change or record that could not be
	// processed.
	DeadLetter func(stream.DeadLetter)
	// NodeLost is called when the redo of a Redis node is done.
	NodeLost func(node, cause string, raised []string)
}

// Applied is one invalidation of one change.
type Applied struct {
	// Rule is the rule's name, "(message)" for a logical message.
	Rule string
	// Table is schema.name, empty for a logical message; Op what was done.
	Table string
	Op    change.Op
	// Kind says what Names are: a key, a tag, several tags of an intersection,
	// or the name of a class.
	Kind  rules.Kind
	Names []string
	// Action is the rule's; Depth how many edges of the cascade lie behind.
	Action rules.Action
	Depth  int
	X      change.Position
	// Latency is the time since the commit by the database's clock; 0 if its
	// time is unknown.
	Latency time.Duration
}

// Raised is one raise.
type Raised struct {
	Cause, Reason string
	// Classes are those whose generation moved.
	Classes []string
}

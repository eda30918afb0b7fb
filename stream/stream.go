// Package stream is the log between the reader of the database and the workers
// that empty the cache. Two transports stand behind one small interface:
// direct (in the process) and kafka.
//
// Delivery is at least once, and in order within a partition between two
// interruptions. Every step behind the log is idempotent and commutative, so
// what is delivered twice or late does no harm.
package stream

import (
	"context"
	"errors"

	"github.com/lethe-cache/lethe/change"
)

// ErrClosed is returned by a transport that was closed.
var ErrClosed = errors.New("stream closed")

// Batch is what the reader's gate hands on at one time.
type Batch struct {
	// Seq numbers batches from 1, without holes, in the order of hand-on.
	Seq uint64
	// Record holds the changes and raises of the batch, not yet partitioned,
	// and V as it stands behind them. A batch without changes and raises is a
	// mark. The transport owns the record from Append on.
	Record *change.Record
}

// Writer is the reader's end of the log. Append is called by one goroutine;
// the other methods may be called by any.
type Writer interface {
	// Append takes a batch over. It blocks while the log has no room, and
	// returns an error only if ctx ended, the writer was closed, or the log
	// can not take the batch at all; it retries what a retry can cure. A batch
	// that was appended need not be durable yet.
	Append(ctx context.Context, b Batch) error
	// Durable returns the number of the last batch of the unbroken run of
	// batches that are safe: in kafka acknowledged by all in-sync replicas, in
	// direct applied to Redis at least 10 s ago.
	Durable() uint64
	// Advanced returns a channel that receives (without blocking the sender,
	// capacity one) whenever Durable has moved.
	Advanced() <-chan struct{}
	// Close flushes what was appended, within ctx, and releases the writer.
	Close(ctx context.Context) error
}

// Delivery is one record as a worker receives it.
type Delivery struct {
	// Record is nil if it could not be decoded; Err then says why and Raw is
	// what was received.
	Record *change.Record
	Err    error
	Raw    []byte
	// Offset is the record's place in its partition.
	Offset int64
	// Gap says that records before this one are gone: the log was cut. If
	// nothing stands behind the cut yet, an empty record carries the news: its
	// Source and V are zero and say nothing.
	Gap bool
	// First says that nobody has left a place in the log: this is the first that
	// it holds. To a worker that has never been here it is the beginning; to one
	// that has, it is another log (a topic that was deleted, with the group's
	// offsets, and made again), and what the old one held besides is gone.
	First bool
}

// Partition is one ordered part of the log, owned by one worker at a time.
// Its methods are called by one goroutine.
type Partition interface {
	// ID is the partition's number, from 0; Count is how many there are.
	ID() int
	Count() int
	// Fetch blocks until something is there, then returns what is there
	// without waiting for more, up to about max changes.
	Fetch(ctx context.Context, max int) ([]Delivery, error)
	// Ack says that everything up to and including offset has been applied.
	// It must come before the end of the function that Run was given.
	Ack(ctx context.Context, offset int64) error
}

// Consumer is the worker's end of the log.
type Consumer interface {
	// Run calls work for every partition that this worker is given, each in a
	// goroutine of its own, and returns when ctx ended and all of them have
	// returned, or with the first error that a retry can not cure. The ctx of
	// work ends when the partition is taken away.
	Run(ctx context.Context, work func(ctx context.Context, p Partition) error) error
	// Assigned reports how many partitions this worker owns now.
	Assigned() int
}

// DeadLetter is a change or record that could not be processed.
type DeadLetter struct {
	// Reason is a short word for the metric: decode, rule, oversize, message.
	Reason string
	Err    string
	// Partition and Offset say where it stood; Position is empty if unknown.
	Partition int
	Offset    int64
	Position  change.Position
	Table     string
	Payload   []byte
}

// DeadLetters keeps what could not be processed, for people to look at.
type DeadLetters interface {
	Put(ctx context.Context, d DeadLetter) error
}

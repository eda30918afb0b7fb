// Package cdc reads the committed changes of a Postgres database from a
// logical replication slot and hands them on to a stream.Writer.
//
// A change takes this way, each arrow a bounded hand-over:
//
//	socket -> receiver (frames, pgoutput decoder) -> segment
//	       -> gate (is the commit visible?)       -> stream.Batch
//	       -> Writer.Append ... Writer.Durable    -> status to the slot
//
// Three goroutines make a session, and all of them end with it: the receiver
// owns the replication connection, the gate an ordinary connection on which it
// takes snapshots, the keeper another one for whatever may wait (heartbeat, the
// stored position). Their connections live and die together: whatever breaks
// one ends the session, and the Reader begins another from the position that
// the slot has confirmed. Delivery is at least once, and nothing is confirmed
// that is not durable behind the Writer.
//
// The gate is what makes an invalidation exact. The walsender ships a commit
// when its WAL is flushed, which is before the commit is visible to readers (it
// may be long before, behind a synchronous standby). A commit goes on only when
// a snapshot of the primary, taken after the commit was received, shows it. See
// gate.go.
package cdc

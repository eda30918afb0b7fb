// Package history tests the client as a whole, over real servers, by what its
// readers saw: a Postgres primary and a lagging standby, Redis, the program
// "lethe run", and clients in processes of their own and in this one. While
// faults come and go by a seeded schedule, every read and write is recorded
// with the time of its beginning and its end by one clock, and afterwards the
// record is judged.
//
// # What is checked
//
// The versions of a row count up by one with every write of it, a delete
// included, so that a value says how old it is. A read must return
//
//   - nothing older than the greatest version whose invalidation was finished
//     (the watermark in Redis had passed its commit) L1's life of 1.5 s before
//     the read began. This is what the protocol promises of every read: L2 is
//     changed and the broadcast is sent before the watermark moves, and L1 is
//     used for 1.5 s after the last PING whose answer, which stands behind every
//     message sent before it, was handled. While single messages are dropped or
//     reordered on a connection that lives, which only a broken network stack
//     does, it is 2.8 s: a client notices such a gap by the next message or, if
//     there is none, after a second of silence.
//   - under After: no version older than the greatest whose COMMIT had returned
//     to whoever wrote it, anywhere, before the token was asked for.
//   - nothing that nobody had begun to write, and what that version was: absent
//     if it was a delete.
//
// Two things are no faults. A read that a loader has just served from a standby
// is as old as the standby, and no older; what is cached is not excused. And
// after Redis came back with an older state of its data, reads may be stale
// until the workers have redone what was lost (PROTOCOL, section 8).
//
// Reads under a token that was asked for when they began, of keys that every
// loader reads from the primary, are linearizable with the writes; porcupine
// checks that, key by key. (A standby may show a commit before the primary does,
// so that reads of both are not.)
//
// When the faults and the writers have stopped and the watermark has passed the
// last write, every entry in Redis and every read of every client equals the
// database. No read fails, but for a loader whose standby did not catch up with
// a token (ErrBehind).
//
// # Running it
//
// LETHE_HISTORY_SECONDS is how long faults go on (default 10), LETHE_HISTORY_SEED
// the seed, which is printed and which decides on the schedule of faults and on
// what each reader and writer does; how the servers interleave that is theirs.
package history

// Package coherence is the protocol that keeps a cache in Redis true to a
// Postgres database, as far as Redis takes part in it: the header of an entry,
// the table of positions, tickets, fills, registrations under tags,
// invalidations, purges, generations, watermarks, and the sending side of the
// broadcast. It knows neither Kafka nor YAML nor SQL.
//
// Nine words are used throughout:
//
//   - X: the position of the commit that an invalidation follows from.
//   - stamp: the position below which a value contains every commit; a stamp
//     covers X if X lies strictly below it.
//   - ticket: the incarnation of the empty entry that a miss puts under its
//     key before it reads the database. A fill is accepted only while that
//     incarnation is there, and every invalidation takes it away.
//   - table: per bucket of names the greatest X that invalidated one of them.
//     A value read from a standby, and a registration under a tag, must be
//     newer than it.
//   - closed: said of a table without base (or with one of an older era): it
//     has forgotten, so it refuses what it can not judge.
//   - v: every commit below v is visible on the primary and was handed on.
//   - w: everything that commits below w ask for is done.
//   - generation: a counter per class of entries, and one for the namespace
//     ("*"); an entry counts only if its generation is the one that is known.
//   - purge: the invalidation of everything registered under a tag.
//
// The order of calls. A fill: [Store.Begin], read the database,
// [Store.Register] under each tag, [Store.Fill]. An invalidation:
// [Store.Invalidate], [Store.Broadcast], and only then a watermark. A purge:
// [Store.OpenPurge], [Store.Members] with Invalidate, [Store.ClosePurge].
// Every one of them may be repeated, and any two may be reordered as long as
// one of them is repeated whole after an error.
//
// The layout of an entry is in docs/entry.md and on [Header]; the names of all
// keys are on [Layout].
package coherence

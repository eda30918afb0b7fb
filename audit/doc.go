// Package audit asks whether the cache tells the truth: it compares every entry
// of every class that has a loader with the row in the database.
//
// A cache is always a little behind: a commit that is on its way has not
// emptied its entries yet. So a mismatch is only a suspicion. It is looked at
// again when the watermark has passed the place where the primary wrote when
// the mismatch was seen: everything that could explain it has been applied
// then, and an entry that is still there, untouched and different, is stale.
package audit

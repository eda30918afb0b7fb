// Package invalidator takes changes from the log and makes the cache in Redis
// forget what they touched.
//
// One Worker serves all partitions of a process. For each it fetches what is
// there, matches it against the rules, follows the cascade, coalesces, and
// applies the batch:
//
//	raises -> keys -> broadcast of the names -> purges opened
//	       -> sweeps and walks, beside the stream
//	       -> watermark on every master -> offset acknowledged
//
// Every step is idempotent and commutes with every other, so whatever fails is
// repeated whole, whatever is delivered twice does no harm, and a worker may
// die anywhere: what it had not acknowledged is delivered again.
//
// A batch is what Fetch returns: one change when the stream is idle, thousands
// under backlog. While a batch is applied the next one gathers, which is all
// the adaptation there is.
package invalidator

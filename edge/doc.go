// Package edge tells edge caches what was forgotten: the keys and tags that were
// invalidated in Redis are posted to HTTP endpoints, at least once and only
// after Redis has applied them.
//
// A Sink keeps what it is handed in the table lethe.edge_outbox before the log
// may forget it (Keep), and posts it from there (Run). The table, and not the
// log, holds what an endpoint that is away has not been told: the log would keep
// everything of everybody for the sake of one endpoint, and grow on the
// primary's disk. And a table, not Redis: a failover of Redis may lose its last
// writes, just when edges have to be told more. What waits is bounded; beyond
// the bound one row says that everything is forgotten.
//
// Each row is told twice, the second time `again` after the first: an origin
// whose own cache had not heard of the invalidation yet, or that had begun to
// answer before it, may have given the edge an old response behind the first.
package edge

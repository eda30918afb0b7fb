// Package clienttest is a cache for the unit tests of applications: a real
// client.Client, on a Redis in the process and with workers that do what the
// test says, when it says so. No server, no port, no sleep.
//
//	func TestPrice(t *testing.T) {
//		ct := clienttest.New(t)
//		shop := NewShop(ct.Client, fakeDatabase) // the code under test
//		...
//		fakeDatabase.SetPrice(42, "9.99")
//		ct.Invalidate("product:42") // as the workers do after the commit
//		if got := shop.Price(ctx, 42); got != "9.99" {
//
// What the client does is not imitated: entries, tickets, tags, broadcasts and
// L1 are the client's own code and the protocol's own scripts. What is made up
// is the database's log: positions are those of a counter, and every commit is
// one that the test has told of. So a test first changes what its loaders read,
// then calls Invalidate or Commit, in that order, as a database shows a commit
// before Lethe's workers act on it.
//
// A value that was loaded is returned before it is cached. Where a test counts
// loads or hits, Wait lets the fill end first.
//
// # Faults
//
// LoseNextMessage, Blind and RedisDown are for tests of what an application
// does, or serves, while something is broken.
//
// # Time
//
// It works in a bubble of testing/synctest, and that is the way to test what
// depends on time: sleep there, and values expire in L1 and in Redis. Outside
// of one the clocks are the machine's.
//
// # What it is not
//
// Loads through Load.Query, and Client.Wrote, need a Postgres: give the loaders
// a fake, and take tokens from Commit or Token. The Redis is miniredis: it evicts
// nothing and is never full, and one process is all there is; a test of such
// faults wants real servers.
package clienttest

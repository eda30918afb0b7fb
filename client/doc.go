// Package client is the cache that applications use: values in the process
// (L1) and in Redis (L2) in front of a Postgres database, which Lethe's workers
// keep true to it. A value is never left stale: not when a slow reader writes
// back after the invalidation, not when it was read from a lagging standby, not
// when a message is lost.
//
// # Reading
//
// Open makes a Client, one for the process. Entries gives access to a class of
// rules.yaml; keep what it returns.
//
//	c, err := client.Open(ctx, client.Options{Redis: rdb, Namespace: "shop", Database: pool})
//	products := client.Entries[Product](c, "product", client.TTL(time.Hour), client.Jitter(0.1))
//	p, err := products.Get(ctx, "product:42", func(ctx context.Context, l *client.Load) (Product, error) {
//		var p Product
//		err := l.QueryRow(ctx, "select id, category, name from products where id = $1", 42).Scan(&p.ID, &p.Category, &p.Name)
//		l.Tag("category:" + p.Category)
//		return p, err
//	})
//
// The loader runs when the value is cached nowhere. It reads the primary with
// any library, or through its Load, which knows what to do on a standby. It
// says what the value depends on: tags, other keys (DependsOn), and by itself
// every entry that it reads with Get under its context. Keys and tags are
// written without the namespace.
//
// A class may have the loader instead (LoadWith), so that Get(ctx, key) is all.
// GetMany reads many keys at once, with one call of a batch loader (LoadManyWith)
// for all that are cached nowhere.
// With KeyTemplate, products.Key(42) renders the key by the code of the rules,
// and a key of another form is an error.
//
// # What a read costs
//
// A hit in L1 takes no lock and allocates nothing. A hit in Redis is one GET. A
// miss takes a ticket (one round trip), loads, and returns; registering tags
// and filling happen behind the reader's back. Reads of one key that miss at
// the same time share one load, in this process and in others.
//
// # When things fail
//
// A read takes the first of these that there is, and each has its time:
//
//  1. L1. No time.
//  2. Redis: Options.RedisTimeout (100 ms) for each step. After a few failures
//     Redis is given time, and one read at a time tries.
//  3. The loader: HardTimeout (30 s). That includes what it waits for: the
//     lease of another process that loads the same value (10 s for one, in all
//     15 s or half of HardTimeout, the less of the two), and its turn, for at
//     most MaxLoads run at one time: a dead cache must not kill the database.
//     Who waits is served in the order of Priority; when too many wait, the
//     last of the lowest get ErrOverloaded at once. A read that has 4 or 5 to
//     return does so after SoftTimeout, and the load goes on.
//  4. A stale value, until StaleFor after its first invalidation. Without
//     SoftTimeout a read that has one does not wait for 3, which goes on behind
//     its back.
//  5. The class's Default.
//  6. The error.
//
// Nothing of 4 and 5 is cached, nor what a loader makes of it. An entry that can
// not be decoded is a miss.
//
// Before that, StaleWhileRevalidate and EarlyRefresh load values again while
// they are served, one process each value, and only with places among MaxLoads
// that nobody waits for.
//
// A lease lives three times as long as the loads of its class take (200 ms to
// 10 s). Its holder may die: one of those who wait takes over then. It is given
// back when a load fails, and opened to everybody when a value is not to be
// cached. Leases spare the database and decide nothing about what is true, so it
// matters little that their end is a time on the clock of another machine:
// nobody waits longer than 10 s for one, whatever the clocks say.
//
// State says whether the Client hears the broadcast. While it is not Live, L1
// is passed by, and each hit in Redis is checked against the control data;
// StaleWhileNotLive and FailWhileNotLive choose otherwise. What was missed is
// replayed; if that is not possible, L1 forgets everything.
//
// Classes with Plain hold raw values, which programs in any language read with a
// bare GET and fill as docs/protocol.md says.
//
// # After a write
//
// Nothing needs to be done: the workers see the commit. To be sure that a read
// that follows contains it, in this process or another, pass a token on:
//
//	token, err := c.Wrote(ctx, pool) // after COMMIT
//	p, err := products.Get(c.After(ctx, token), "product:42")
//
// The functions Wrote and After do the same where there is no Client at hand.
//
// Barrier waits until the write that a token names has reached every L1 of every
// process, or names those that it has not.
//
// Update writes through: a transaction, COMMIT, and a refresh of the entry that
// includes it. Put stores a value that the application has read anyway, if
// Client.Moment was taken before.
//
// Invalidate and InvalidateTags are for what changes outside of the database.
//
// # What it needs
//
// Workers of Lethe ("lethe run") on the same Redis and namespace: without them
// nothing would be invalidated, so nothing is cached. Loads from a standby need
// lethe.source() (from "lethe migrate") or pg_read_all_stats.
package client

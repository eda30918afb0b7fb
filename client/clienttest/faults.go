package clienttest

import "github.com/lethe-cache/lethe/client"

// LoseNextMessage has the next broadcast reach nobody, as a network or a full
// buffer may lose it. Redis is told all the same. The workers then send no
// heartbeat either, so that a test can look at what is served meanwhile, which
// may be stale from L1; Settle, or a second without heartbeats, has the clients
// notice and replay what they missed.
func (ct *Cache) LoseNextMessage() { ct.server.loseNext() }

// Blind cuts the subscription of every Client, and keeps it cut, while data
// goes on: it returns when they have noticed. They pass L1 by then, or whatever
// the class says.
func (ct *Cache) Blind() {
	ct.t.Helper()
	ct.server.deafen(true)
	ct.untilAll(client.Blind)
}

// Recover ends Blind: it returns when every Client is live again. A Client that
// the test has closed must not be there.
func (ct *Cache) Recover() {
	ct.t.Helper()
	ct.server.deafen(false)
	ct.untilAll(client.Live)
}

// RedisDown cuts every connection to Redis and refuses new ones; what is stored
// stays. It returns when every Client has noticed. Reads go to the loaders.
func (ct *Cache) RedisDown() {
	ct.t.Helper()
	ct.server.setDown(true)
	ct.untilAll(client.Blind)
}

// RedisUp ends RedisDown: the workers apply what was committed meanwhile, and it
// returns when every Client is live again. A Client whose reads met the fault
// may pass Redis by for a few seconds more; see client.
func (ct *Cache) RedisUp() {
	ct.t.Helper()
	ct.server.setDown(false)
	if _, _, err := ct.worker.apply(); err != nil {
		ct.t.Fatalf("clienttest: %v", err)
	}
	ct.untilAll(client.Live)
	ct.apply()
}

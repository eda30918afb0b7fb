package coherence

import "strings"

// Guarantees says what a maxmemory-policy leaves exact once memory is full.
type Guarantees struct {
	// Policy is the one asked about, Known whether it is one of Redis's.
	Policy string
	Known  bool
	// Keys: an entry is never stale by its own key. True of every policy: an
	// evicted entry is a miss, an evicted ticket a refused fill.
	Keys bool
	// Fills: values go on being cached.
	Fills bool
	// Table: the table is never evicted. Where it can be, it fails closed:
	// fills from standbys and registrations are refused until it is seeded.
	Table bool
	// Tags: the index of a tag is never evicted, so a purge finds every
	// member. Where it can be, tags are refused, or a move of evicted_keys
	// raises the classes that use them.
	Tags bool
	// Records: generations, the source record and open purges are never
	// evicted. Where they can be, the same notice rewrites them.
	Records bool
	// Text says it in a sentence, with the remedy if there is one.
	Text string
}

// Exact reports whether nothing is given up but room.
func (g Guarantees) Exact() bool { return g.Known && g.Keys && g.Table && g.Tags && g.Records }

// Policies are the policies that Redis and Valkey have.
func Policies() []string {
	return []string{
		"noeviction", "volatile-lru", "volatile-lfu", "volatile-random", "volatile-ttl",
		"allkeys-lru", "allkeys-lfu", "allkeys-random",
	}
}

// Policy says what stays exact under a maxmemory-policy when memory is full.
// Lethe's own keys (table, tags, records, watermarks) have no time to live;
// entries and tickets have one, unless a class has none.
func Policy(name string) Guarantees {
	g := Guarantees{Policy: name, Keys: true}
	switch {
	case name == "noeviction":
		g.Known, g.Table, g.Tags, g.Records = true, true, true, true
		g.Text = "exact; when memory is full Redis refuses new entries until some expire, and Lethe still forgets"
	case strings.HasPrefix(name, "volatile-") && isPolicy(name):
		g.Known, g.Fills, g.Table, g.Tags, g.Records = true, true, true, true, true
		g.Text = "exact; entries with a time to live make room, Lethe's own keys stay"
	case strings.HasPrefix(name, "allkeys-") && isPolicy(name):
		g.Known, g.Fills = true, true
		g.Text = "keys stay exact; tags do not: the index of a tag can be evicted, so whenever evicted_keys moves the classes " +
			"that use tags are forgotten whole; use a volatile policy or noeviction"
	default:
		// Believe the worst of what is not known.
		g.Text = "unknown policy; treated like allkeys-lru: whenever evicted_keys moves the classes that use tags are forgotten whole"
		g.Fills = true
	}
	return g
}

func isPolicy(name string) bool {
	for _, p := range Policies() {
		if p == name {
			return true
		}
	}
	return false
}

package e2e

import (
	"testing"

	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

// taggedRules are those of entries with a tag of that kind.
func taggedRules(kind string) string {
	return `version: 1
namespace: ` + namespace + `
entries:
  item:
    key: item:{id}
    load: {sql: "SELECT i.id, i.name, o.id AS owner, o.title FROM items i JOIN owners o ON o.id = 1 WHERE i.id = ANY(@id)"}
    tags: ["` + kind + `:{owner}"]
rules:
  - {name: items, table: public.items, keys: ["item:{id}"]}
  - {name: owners, table: public.owners, tags: ["` + kind + `:{id}"]}
warm:
  - {entry: item, sql: SELECT id FROM items}
`
}

// TestWarmWithOlderRules: a process with the rules of before a reload fills
// nothing. What it would fill has the tag that nobody purges any more, and would
// stay as it is whatever happens to its owner.
func TestWarmWithOlderRules(t *testing.T) {
	t.Parallel()
	database := harness.Database(t)
	execute(t, database, itemTable, `INSERT INTO items VALUES (1, 'one')`, `CREATE TABLE owners (id int PRIMARY KEY, title text)`, `INSERT INTO owners VALUES (1, 'a')`)
	env := settingsFor(t, database, taggedRules("before"))
	env["LETHE_REDIS_URL"] = harness.NewRedis(t, servers.RedisConfig{}).URL()
	older := map[string]string{}
	for k, v := range env {
		older[k] = v
	}
	older["LETHE_RULES"] = rulesFile(t, taggedRules("before"))
	l := start(t, env, "run")
	l.ready()
	c := openCache(t, env["LETHE_REDIS_URL"], "item")
	there := func(want bool) {
		t.Helper()
		if _, hit := c.get(itemName); hit != want {
			t.Fatalf("%s is there: %v, want %v", itemName, hit, want)
		}
	}
	wantWithin(t, older, warmEnds, 0, []string{"item   done"}, "warm")
	there(true)
	execute(t, database, `UPDATE owners SET title = 'b'`)
	c.gone(itemName)

	wantWithin(t, older, warmEnds, 0, []string{"item   done"}, "warm")
	rewrite(t, env["LETHE_RULES"], taggedRules("after"))
	l.hup()
	l.waitReloaded("done", 1)
	c.gone(itemName)
	wantWithin(t, older, warmEnds, 1, []string{"the workers do not follow the rules of this process"}, "warm")
	execute(t, database, `UPDATE owners SET title = 'c'`)
	c.gone(itemName)

	wantWithin(t, env, warmEnds, 0, []string{"item   done"}, "warm")
	there(true)
	execute(t, database, `UPDATE owners SET title = 'd'`)
	c.gone(itemName)
	l.stop()
}

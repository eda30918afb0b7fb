package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

// TestDDLWhileRunning: what DDL changes in rows without a word in the log is
// forgotten, and the application's statements go on working through all of it.
func TestDDLWhileRunning(t *testing.T) {
	t.Parallel()
	database := harness.Database(t)
	execute(t, database, itemTable, `INSERT INTO items VALUES (1, 'one')`,
		`CREATE TABLE others (id int PRIMARY KEY)`, `INSERT INTO others VALUES (1)`)
	rdb := harness.NewRedis(t, servers.RedisConfig{})
	env := settingsFor(t, database, strings.Replace(itemRules, "rules:\n", `  other: {key: "other:{id}"}
rules:
  - {name: other, table: public.others, keys: ["other:{id}"]}
`, 1))
	env["LETHE_REDIS_URL"] = rdb.URL()
	l := start(t, env, "run")
	l.ready()
	c := openCache(t, rdb.URL(), "item")
	other := openCache(t, rdb.URL(), "other")
	other.warm("e2e:other:1", "1")

	for _, ddl := range []string{
		`ALTER TABLE items ALTER COLUMN name TYPE varchar(20) USING upper(name)`, // a rewrite: every value is another
		`ALTER TABLE items ALTER COLUMN id TYPE bigint`,
		`ALTER TABLE items REPLICA IDENTITY FULL`,
		`ALTER TABLE items REPLICA IDENTITY NOTHING`,
		`ALTER TABLE items REPLICA IDENTITY DEFAULT`,
		`ALTER TABLE items DROP CONSTRAINT items_pkey`,
		`ALTER TABLE items ADD PRIMARY KEY (id)`,
	} {
		t.Log(ddl)
		rewrite := strings.Contains(ddl, " TYPE ")
		if rewrite {
			c.warmAgain(itemName, "one")
		}
		execute(t, database, ddl) // alone: what it forgets, it forgets by itself
		if rewrite {
			c.gone(itemName)
		}
		// Not a moment later: the guard works in the transaction of the DDL.
		execute(t, database, `UPDATE items SET name = name || '.' WHERE id = 1`)
	}
	c.warmAgain(itemName, "one")
	execute(t, database, `UPDATE items SET name = 'two' WHERE id = 1`)
	c.gone(itemName)
	if got, hit := other.get("e2e:other:1"); !hit || got != "1" {
		t.Errorf("an entry of another table: %q, %v; want it kept", got, hit)
	}
	l.stop()
}

// warmAgain is warm beside raises that may still come.
func (c *cache) warmAgain(name, value string) {
	c.t.Helper()
	harness.Eventually(c.t, 20*time.Second, func() error {
		if reason := c.fill(c.begin(name), value); reason != coherence.Stored {
			return fmt.Errorf("fill %s: refused: %s", name, reason)
		}
		if got, hit := c.get(name); !hit || got != value {
			return fmt.Errorf("get %s = %q, %v after the fill", name, got, hit)
		}
		return nil
	})
}

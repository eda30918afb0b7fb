package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

// TestPublicationGapOutlivesAKill: a table enters the publication while a
// transaction has written it, and the process dies before it could forget what
// that transaction makes stale. The next one finds the publication in step, and
// forgets it nevertheless.
func TestPublicationGapOutlivesAKill(t *testing.T) {
	t.Parallel()
	database := harness.Database(t)
	execute(t, database, itemTable, `INSERT INTO items VALUES (1, 'one')`,
		`CREATE TABLE others (id int PRIMARY KEY, name text)`, `INSERT INTO others VALUES (1, 'old')`)
	rdb := harness.NewRedis(t, servers.RedisConfig{})
	env := settingsFor(t, database, itemRules)
	env["LETHE_REDIS_URL"] = rdb.URL()
	first := start(t, env, "run")
	first.ready()
	first.stop()

	writer := connect(t, database)
	tx, err := writer.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `UPDATE others SET name = 'new' WHERE id = 1`); err != nil {
		t.Fatal(err)
	}
	grown := settingsFor(t, database, strings.Replace(itemRules, "rules:\n", `  other: {key: "other:{id}"}
rules:
  - {name: other, table: public.others, keys: ["other:{id}"]}
`, 1))
	grown["LETHE_REDIS_URL"] = rdb.URL()
	second := start(t, grown, "run")
	conn := connect(t, database)
	harness.Eventually(t, 20*time.Second, harness.True("others is published", func() bool {
		var in bool
		err := conn.QueryRow(t.Context(), `SELECT EXISTS (SELECT FROM pg_publication_tables WHERE tablename = 'others')`).Scan(&in)
		return err == nil && in
	}))
	second.kill()

	c := openCache(t, rdb.URL(), "other")
	c.warm("e2e:other:1", "old") // what every reader still sees
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	third := start(t, grown, "run")
	third.ready()
	c.gone("e2e:other:1")
	third.stop()
}

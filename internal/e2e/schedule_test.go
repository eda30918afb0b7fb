package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

const (
	saleTable = `CREATE TABLE sales (id int PRIMARY KEY, product_id int, ends_at timestamptz)`
	saleRules = `
version: 1
namespace: e2e
entries:
  product: {key: "product:{id}"}
rules:
  - name: sale ends
    table: public.sales
    keys: ["product:{product_id}"]
    at: ends_at
`
)

// saleWorld is a database of sales and a Redis, with what run is started with.
func saleWorld(t *testing.T) (database string, env map[string]string, rdb *servers.Redis) {
	t.Helper()
	database = harness.Database(t)
	execute(t, database, saleTable)
	env = settingsFor(t, database, saleRules)
	rdb = harness.NewRedis(t, servers.RedisConfig{})
	env["LETHE_REDIS_URL"] = rdb.URL()
	return database, env, rdb
}

// TestSaleEnds: the rule of the documentation. Rows from before the rule, a row
// that moves, one that is deleted, and one whose time comes while nobody runs.
func TestSaleEnds(t *testing.T) {
	t.Parallel()
	database, env, rdb := saleWorld(t)
	conn := connect(t, database)
	execute(t, database, `INSERT INTO sales VALUES (1, 1, now() + interval '1 day'), (2, 2, now() - interval '1 day')`)
	l := start(t, env, "run")
	l.ready()
	scheduled := func(want string) {
		t.Helper()
		harness.Eventually(t, 20*time.Second, func() error {
			got := queryText(t, conn, `SELECT coalesce(string_agg(row_key, ' ' ORDER BY row_key), '') FROM lethe.schedules WHERE due_at IS NOT NULL`)
			if got != want {
				return fmt.Errorf("scheduled %q, want %q", got, want)
			}
			return nil
		})
	}
	scheduled(`["1"]`) // it was there before
	c := openCache(t, rdb.URL(), "product")
	c.warm("e2e:product:1", "on sale")
	execute(t, database, `UPDATE sales SET ends_at = clock_timestamp() + interval '700 ms' WHERE id = 1`)
	early := false
	harness.Eventually(t, 20*time.Second, func() error {
		_, hit := c.get("e2e:product:1")
		over := queryText(t, conn, `SELECT (ends_at <= clock_timestamp())::text FROM sales WHERE id = 1`) == "true"
		switch {
		case !hit && !over:
			early = true
			return nil
		case hit:
			return errors.New("still served")
		}
		return nil
	})
	if early {
		t.Error("forgotten before the time")
	}
	scheduled(``)

	// A sale that is called off fires nothing; one whose end is past, at once.
	execute(t, database, `INSERT INTO sales VALUES (3, 3, now() + interval '1 day'), (4, 4, now() + interval '1 day')`)
	scheduled(`["3"] ["4"]`)
	execute(t, database, `DELETE FROM sales WHERE id = 3`, `UPDATE sales SET ends_at = NULL WHERE id = 4`)
	scheduled(``)
	c.warm("e2e:product:5", "on sale")
	execute(t, database, `INSERT INTO sales VALUES (5, 5, now() - interval '1 second')`)
	c.gone("e2e:product:5")

	// Nobody runs when it comes. Where the machine is so slow that it comes before
	// nobody runs, the next sale gets more time.
	for id, ahead := 6, 2*time.Second; ; id, ahead = id+1, 2*ahead {
		over := func() bool {
			return queryText(t, conn, `SELECT (ends_at < clock_timestamp())::text FROM sales WHERE id = $1`, id) == "true"
		}
		name := fmt.Sprint("e2e:product:", id)
		c.warm(name, "on sale")
		execute(t, database, fmt.Sprintf(`INSERT INTO sales VALUES (%[1]d, %[1]d, clock_timestamp() + interval '%[2]d seconds')`, id, ahead/time.Second))
		harness.Eventually(t, 20*time.Second, harness.True("it is scheduled, or was", func() bool {
			return over() || queryText(t, conn, `SELECT coalesce(string_agg(row_key, ' '), '') FROM lethe.schedules WHERE due_at IS NOT NULL`) == fmt.Sprintf(`["%d"]`, id)
		}))
		l.kill()
		if late := over(); late && id < 10 {
			l = start(t, env, "run")
			l.ready()
			scheduled(``)
			continue
		}
		harness.Eventually(t, 20*time.Second, harness.True("the time is over", over))
		if _, hit := c.get(name); !hit {
			t.Error("the entry is gone, and nobody ran")
		}
		l = start(t, env, "run")
		l.ready()
		c.gone(name)
		break
	}
	l.stop()
}

// TestSalesEndOnce: two processes of a group share the schedules, and each is
// fired once, by one of them.
func TestSalesEndOnce(t *testing.T) {
	t.Parallel()
	database, env, rdb := saleWorld(t)
	env["LETHE_KAFKA_BROKERS"] = strings.Join(harness.Kafka(t).Brokers(), ",")
	env["LETHE_KAFKA_TOPIC"] = "sales." + databaseName(t, database)
	env["LETHE_KAFKA_GROUP"] = env["LETHE_KAFKA_TOPIC"]
	a, b := start(t, env, "run"), start(t, env, "run", "--roles", "worker")
	a.ready()
	b.ready()
	conn := connect(t, database)
	slot := "count_" + databaseName(t, database)
	queryText(t, conn, `SELECT pg_create_logical_replication_slot($1, 'pgoutput')::text`, slot)
	t.Cleanup(func() { execute(t, database, `SELECT pg_drop_replication_slot('`+slot+`')`) })
	const sales = 60
	c := openCache(t, rdb.URL(), "product")
	for i := range sales {
		c.warm(fmt.Sprintf("e2e:product:%d", i), "on sale")
	}
	execute(t, database, fmt.Sprintf(`INSERT INTO sales SELECT i, i, clock_timestamp() + interval '3 seconds' FROM generate_series(0, %d) i`, sales-1))
	for i := range sales {
		c.gone(fmt.Sprintf("e2e:product:%d", i))
	}
	// What would fire twice has had its time: every schedule is done.
	harness.Eventually(t, 20*time.Second, harness.True("all are done", func() bool {
		return queryText(t, conn, `SELECT count(*)::text FROM lethe.schedules WHERE due_at IS NOT NULL`) == "0"
	}))
	got := queryText(t, conn, `SELECT count(*)::text FROM pg_logical_slot_peek_binary_changes($1, NULL, NULL, 'proto_version', '1',
		'publication_names', 'lethe', 'messages', 'true') WHERE get_byte(data, 0) = 77 AND position('\x6c6574686500'::bytea IN data) > 0`, slot)
	if got != fmt.Sprint(sales) {
		t.Errorf("%s messages, want %d", got, sales)
	}
	b.stop()
	a.stop()
}

// TestAtWithoutRights: a role that may not keep schedules is told so, instead of
// missing the times.
func TestAtWithoutRights(t *testing.T) {
	t.Parallel()
	pg := harness.NewPostgres(t, servers.PostgresConfig{})
	url := pg.URL("postgres")
	execute(t, url, saleTable, `CREATE ROLE app LOGIN REPLICATION`, `GRANT CREATE ON DATABASE postgres TO app`, `CREATE ROLE owner`, `ALTER TABLE sales OWNER TO owner`, `GRANT owner TO app`)
	env := settingsFor(t, as(url, "app"), saleRules)
	admin := map[string]string{"LETHE_POSTGRES_URL": url, "LETHE_RULES": env["LETHE_RULES"]}
	wantCommand(t, admin, 0, nil, "migrate") // as an administrator who forgets --role
	ended{1, []string{"may not read and write lethe.schedules", "lethe migrate --role"}}.check(t, start(t, env, "run"))
}

// TestInvalidateCommand: what a person wants forgotten is, when the command
// with --wait returns; and what is wrong with a command is said.
func TestInvalidateCommand(t *testing.T) {
	t.Parallel()
	database, env, rdb := saleWorld(t)
	l := start(t, env, "run")
	l.ready()
	c := openCache(t, rdb.URL(), "product")
	names := []string{"e2e:product:1", "e2e:product:2", "e2e:product:3"}
	for _, n := range names {
		c.warm(n, "old")
	}
	gone := func(want ...bool) {
		t.Helper()
		for i, n := range names {
			if _, hit := c.get(n); hit == want[i] {
				t.Errorf("%s: served %v when the command has returned", n, hit)
			}
		}
	}
	wantCommand(t, env, 0, []string{"1 key (delete) in e2e: written to the log at", "applied everywhere after"}, "invalidate", "--key", "product:1", "--wait")
	gone(true, false, false)
	out := wantCommand(t, env, 0, nil, "invalidate", "--key", "product:2", "--tag", "a & b", "--reason", "test", "--wait", "-o", "json")
	var done struct {
		Keys, Tags []string
		Applied    bool
		LSN        string
	}
	if err := json.Unmarshal([]byte(out), &done); err != nil || !done.Applied || len(done.Keys) != 1 || done.Tags[0] != "a & b" || done.LSN == "" {
		t.Errorf("-o json: %v: %s", err, out)
	}
	gone(true, true, false)
	wantCommand(t, env, 0, []string{"every class"}, "invalidate", "--all", "--wait")
	gone(true, true, true)

	// At a time: kept when the command returns, and forgotten then.
	c.warm(names[0], "new")
	wantCommand(t, env, 0, []string{"kept for its time"}, "invalidate", "--key", "product:1", "--at", "1500ms", "--wait")
	conn := connect(t, database)
	if got := queryText(t, conn, `SELECT count(*)::text FROM lethe.schedules WHERE message LIKE '%product:1%' OR rule_id = 0 AND due_at IS NULL`); got != "1" {
		t.Errorf("%s schedules kept, want 1", got)
	}
	c.gone(names[0])

	for _, bad := range []struct {
		code int
		says string
		args []string
	}{
		{2, "nothing to forget", nil},
		{2, `did you mean "product"?`, []string{"--class", "prodct"}},
		{2, "none of delete", []string{"--key", "a", "--action", "drop"}},
		{2, "want a time such as", []string{"--key", "a", "--at", "tomorrow"}},
		{2, "want text or json", []string{"--key", "a", "-o", "yaml"}},
		{1, "server", []string{"--key", "a", "--wait", "--timeout", "5s", "--redis-url", harness.NewRedis(t, servers.RedisConfig{}).URL()}},
		{3, "rules are not valid", []string{"--key", "a", "--rules", rulesFile(t, "version: 2\n")}},
	} {
		if bad.code == 1 {
			bad.says = "no worker has ever run in this namespace"
		}
		wantCommand(t, env, bad.code, []string{bad.says}, append([]string{"invalidate"}, bad.args...)...)
	}
	without := map[string]string{"LETHE_RULES": env["LETHE_RULES"]}
	if os.Getenv("LETHE_POSTGRES_URL") == "" {
		wantCommand(t, without, 2, []string{"LETHE_POSTGRES_URL"}, "invalidate", "--key", "a")
	}
	l.stop()
}

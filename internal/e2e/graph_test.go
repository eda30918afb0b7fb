package e2e

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

// graphRules have two classes that nothing connects.
const graphRules = `version: 1
namespace: e2e
entries:
  item: {key: "item:{id}"}
  page: {key: "page:{id}"}
rules:
  - {name: item, table: public.items, keys: ["item:{id}"]}
`

func itemOf(id int) string { return fmt.Sprint("e2e:item:", id) }
func pageOf(id int) string { return fmt.Sprint("e2e:page:", id) }

// TestDeclaredDependencies: a dependency that is declared while workers run takes
// effect: what was cached before is forgotten, later changes are followed along
// it, in every partition, after a restart and after a reload too; other namespaces
// keep theirs, and one that is taken back has no effect.
func TestDeclaredDependencies(t *testing.T) {
	for _, transport := range []string{"direct", "kafka"} {
		t.Run(transport, func(t *testing.T) {
			t.Parallel()
			database := harness.Database(t)
			execute(t, database, itemTable, `INSERT INTO items SELECT n, 'one' FROM generate_series(1, 40) AS n`)
			rdb := harness.NewRedis(t, servers.RedisConfig{})
			env := settingsFor(t, database, graphRules)
			env["LETHE_REDIS_URL"] = rdb.URL()
			workers := []*lethe{}
			if transport == "kafka" {
				env["LETHE_KAFKA_BROKERS"] = strings.Join(harness.Kafka(t).Brokers(), ",")
				env["LETHE_KAFKA_TOPIC"] = "graph." + databaseName(t, database)
				env["LETHE_KAFKA_GROUP"] = env["LETHE_KAFKA_TOPIC"]
				// Two processes share the partitions.
				workers = append(workers, start(t, env, "run"), start(t, env, "run", "--roles", "worker"))
			} else {
				workers = append(workers, start(t, env, "run"))
			}
			for _, w := range workers {
				w.ready()
			}
			items, pages := openCache(t, rdb.URL(), "item"), openCache(t, rdb.URL(), "page")
			ids := []int{}
			for id := range 40 {
				ids = append(ids, id+1)
			}
			follow := func(when string, followed bool) {
				t.Helper()
				settled(t, env) // no raise is on its way to a worker any more
				for _, id := range ids {
					pages.warmAgain(pageOf(id), when)
					items.warmAgain(itemOf(id), when)
				}
				execute(t, database, `UPDATE items SET name = name || '.'`)
				for _, id := range ids {
					items.gone(itemOf(id))
				}
				for _, id := range ids {
					if _, hit := pages.get(pageOf(id)); hit == followed {
						if followed {
							pages.gone(pageOf(id)) // perhaps in a moment
						} else {
							t.Fatalf("%s: %s is gone, and nothing leads to it", when, pageOf(id))
						}
					}
				}
			}
			follow("before", false)

			pages.warmAgain(pageOf(7), "before")
			wantCommand(t, env, 3, []string{"not declared"}, "graph", "add", "--of", "item:{id}", "--also", "page:{idd}")
			other := maps.Clone(env)
			other["LETHE_RULES"] = rulesFile(t, strings.Replace(graphRules, "namespace: e2e", "namespace: other", 1))
			wantCommand(t, other, 0, nil, "graph", "add", "--of", "item:{id}", "--also", "item:1")
			id := strings.TrimSpace(wantCommand(t, env, 0, nil, "graph", "add", "--of", "item:{id}", "--also", "page:{id}",
				"--when", `op != "insert"`, "--owner", "shop", "--description", "items are on pages"))
			pages.gone(pageOf(7)) // from before the dependency
			follow("declared", true)
			wantCommand(t, env, 0, []string{id, "item:{id}", "page:{id}", "shop", `op != "insert"`}, "graph", "list")
			if text := wantCommand(t, env, 0, nil, "graph", "list"); strings.Contains(text, "item:1") {
				t.Errorf("another namespace's dependency is listed:\n%s", text)
			}
			wantCommand(t, env, 0, []string{"style=dashed"}, "graph", "-o", "dot")
			wantCommand(t, env, 0, []string{"e2e:page:3"}, "explain", "--table", "public.items", "--op", "update", "--old", `{"id": 3}`, "--new", `{"id": 3}`)

			// A reload of the files keeps it.
			rewrite(t, env["LETHE_RULES"], graphRules+"  - {name: more, table: public.items, keys: [\"item:{id}\"], on: [delete]}\n")
			for _, w := range workers {
				w.hup()
				w.waitReloaded("done", 1)
			}
			follow("reloaded", true)

			// So does a restart.
			for i, w := range slices.Backward(workers) {
				w.stop()
				args := []string{"run"}
				if i > 0 {
					args = append(args, "--roles", "worker")
				}
				workers[i] = start(t, env, args...)
			}
			for _, w := range workers {
				w.ready()
			}
			follow("restarted", true)

			// A row that nobody understands stops nothing, and is told of.
			execute(t, database, `INSERT INTO lethe.dependencies (namespace, of, also) VALUES ('e2e', 'item:{id', '{page:1}')`)
			for _, w := range workers {
				harness.Eventually(t, 30*time.Second, harness.True("readyz tells of a row that can not be understood", func() bool {
					_, there := w.readyz().Details["dependencies"]
					return there
				}))
			}
			follow("beside a wrong one", true)
			wantCommand(t, env, 0, []string{"L038"}, "check")

			wantCommand(t, env, 0, nil, "graph", "rm", id)
			wantCommand(t, env, 1, []string{"there is no dependency"}, "graph", "rm", id)
			execute(t, database, `DELETE FROM lethe.dependencies WHERE of = 'item:{id'`)
			for _, w := range workers {
				harness.Eventually(t, 30*time.Second, harness.True("readyz tells of nothing any more", func() bool {
					_, there := w.readyz().Details["dependencies"]
					return !there
				}))
			}
			follow("taken back", false)
			for _, w := range slices.Backward(workers) {
				w.stop()
			}
		})
	}
}

// TestDependencyWithItsData: a dependency, and a change of what it starts from, in
// one transaction or one right after the other, with the dependent cached in
// between.
func TestDependencyWithItsData(t *testing.T) {
	t.Parallel()
	database := harness.Database(t)
	execute(t, database, itemTable, `INSERT INTO items VALUES (1, 'one')`)
	rdb := harness.NewRedis(t, servers.RedisConfig{})
	env := settingsFor(t, database, graphRules)
	env["LETHE_REDIS_URL"] = rdb.URL()
	l := start(t, env, "run")
	l.ready()
	pages := openCache(t, rdb.URL(), "page")
	conn := connect(t, database)
	for i := range 10 {
		page := pageOf(i)
		pages.warmAgain(page, "old")
		err := pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
			if _, err := tx.Exec(t.Context(), `UPDATE items SET name = name || '.'`); err != nil {
				return err
			}
			_, err := tx.Exec(t.Context(), `INSERT INTO lethe.dependencies (namespace, of, also) VALUES ('e2e', 'item:1', ARRAY[$1])`, fmt.Sprint("page:", i))
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		execute(t, database, `UPDATE items SET name = name || '.'`)
		pages.gone(page)
	}
	// All of them are followed.
	for i := range 10 {
		pages.warmAgain(pageOf(i), "new")
	}
	execute(t, database, `UPDATE items SET name = name || '.'`)
	for i := range 10 {
		pages.gone(pageOf(i))
	}
	l.stop()
}

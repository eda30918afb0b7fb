package e2e

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

const namesRules = `version: 1
namespace: e2e
entries:
  item: {key: "item:{id}"}
  rating: {key: "rating:{product_id}", mode: plain}
  best: {key: "best:{id}", mode: plain}
  tagged: {key: "tagged:{id}", mode: plain, tags: ["c:{c}", "d:{d}"]}
rules:
  - {name: items, table: public.items, keys: ["item:{id}", "name:{name}:{note}"]}
  - {name: reviews, table: public.reviews, keys: ["rating:{product_id}"]}
  - {name: bests, table: public.bests, keys: ["best:{id}"], action: stale}
  - {name: logs, table: public.logs, on: [insert], keys: ["log:{id}"]}
  - {name: parts, table: public.parts, keys: ["part:{id}:{region}"]}
  - {name: both, table: public.both_tags, on: [insert], tags: {all: ["c:{c}", "d:{d}"]}}
  - {name: either, table: public.either_tag, on: [insert], tags: {any: ["c:{c}", "d:{d}"]}}
dependencies:
  - {of: "item:{id}", also: ["feed:{id}"]}
  - {of: "feed:{id}", also: ["home:{id}"]}
`

var namesSchema = []string{
	`CREATE TABLE items (id int PRIMARY KEY, name text NOT NULL, note text)`,
	`ALTER TABLE items REPLICA IDENTITY FULL`,
	`CREATE TABLE reviews (id int NOT NULL, product_id int NOT NULL, stars int, UNIQUE (id, product_id))`,
	`ALTER TABLE reviews REPLICA IDENTITY USING INDEX reviews_id_product_id_key`,
	`CREATE TABLE bests (id int PRIMARY KEY, v int)`,
	`CREATE TABLE logs (id int, v int)`,
	`CREATE TABLE parts (id int, region text, v int, PRIMARY KEY (id, region)) PARTITION BY LIST (region)`,
	`CREATE TABLE parts_eu PARTITION OF parts FOR VALUES IN ('eu')`,
	`CREATE TABLE parts_us PARTITION OF parts FOR VALUES IN ('us')`,
	`CREATE TABLE both_tags (c int, d int)`,
	`CREATE TABLE either_tag (c int, d int)`,
}

// nameTest is a running lethe over namesSchema, with the cache that it empties.
type nameTest struct {
	*cache
	conn *pgx.Conn
}

// set stores a value of any kind under each name, as any program may.
func (n *nameTest) set(kind string, list ...string) {
	n.t.Helper()
	for _, name := range list {
		args := map[string][]any{
			"string": {"set", "e2e:" + name, "v"}, "hash": {"hset", "e2e:" + name, "f", "v"}, "list": {"rpush", "e2e:" + name, "v"},
			"set": {"sadd", "e2e:" + name, "v"}, "zset": {"zadd", "e2e:" + name, "1", "v"}, "stream": {"xadd", "e2e:" + name, "*", "f", "v"},
		}[kind]
		if err := n.redis.Do(n.t.Context(), args...).Err(); err != nil {
			n.t.Fatal(err)
		}
	}
}

// change runs SQL and waits until exactly forgotten of the names are gone: a
// last change that is applied after it shows that kept were not touched.
func (n *nameTest) change(sql string, forgotten, kept []string) {
	n.t.Helper()
	n.set("string", "log:0")
	for _, s := range []string{sql, `INSERT INTO logs VALUES (0, 0)`} {
		if _, err := n.conn.Exec(n.t.Context(), s); err != nil {
			n.t.Fatalf("%s: %v", s, err)
		}
	}
	for _, name := range append([]string{"log:0"}, forgotten...) {
		harness.Eventually(n.t, 10*time.Second, func() error {
			if n.exists(name) {
				return fmt.Errorf("%s is still there after %s", name, sql)
			}
			return nil
		})
	}
	for _, name := range kept {
		if !n.exists(name) {
			n.t.Errorf("%s is gone after %s", name, sql)
		}
	}
}

func (n *nameTest) exists(name string) bool {
	n.t.Helper()
	found, err := n.redis.Exists(n.t.Context(), "e2e:"+name).Result()
	if err != nil {
		n.t.Fatal(err)
	}
	return found == 1
}

// register puts a name under tags, as a fill does.
func (n *nameTest) register(member string, tags ...string) {
	n.t.Helper()
	state, err := n.store.Control(n.t.Context())
	if err != nil {
		n.t.Fatal(err)
	}
	for _, tag := range tags {
		reason, err := n.store.Register(n.t.Context(), coherence.RegisterRequest{Name: "e2e:" + tag, Member: "e2e:" + member, Stamp: state.V})
		if err != nil || reason != coherence.Stored {
			n.t.Fatalf("register %s under %s: %v, %v", member, tag, reason, err)
		}
	}
}

// TestNamesThatChangesForget walks through what a rule can name and what a row
// can look like. Values are whatever other programs store: no header, any type.
func TestNamesThatChangesForget(t *testing.T) {
	t.Parallel()
	database := harness.Database(t)
	execute(t, database, namesSchema...)
	rdb := harness.NewRedis(t, servers.RedisConfig{})
	env := settingsFor(t, database, namesRules)
	env["LETHE_REDIS_URL"] = rdb.URL()
	l := start(t, env, "run")
	l.ready()
	n := &nameTest{cache: openCache(t, rdb.URL(), "item"), conn: connect(t, database)}

	n.set("string", "item:1", "item:2", "name:a:x", "name::", "name:a:")
	n.change(`INSERT INTO items VALUES (1, 'a', 'x'), (2, 'a', NULL)`, []string{"item:1", "item:2", "name:a:x"}, []string{"name::", "name:a:"})
	// The old and the new name of a row that moves, and what depends on it.
	n.set("hash", "item:1", "item:3", "feed:1", "home:3", "item:2", "home:2")
	n.set("set", "name:a:x", "name:ü  €:{x}")
	n.change(`UPDATE items SET id = 3, name = 'ü  €', note = '{x}' WHERE id = 1`,
		[]string{"item:1", "item:3", "feed:1", "home:3", "name:a:x", "name:ü  €:{x}"}, []string{"item:2", "home:2"})
	n.set("stream", "item:3")
	n.change(`DELETE FROM items WHERE id = 3`, []string{"item:3"}, []string{"item:2"})

	for _, kind := range []string{"string", "hash", "list", "set", "zset", "stream"} {
		n.set(kind, "rating:7", "rating:8", "rating:9")
		n.change(`INSERT INTO reviews VALUES (1, 7, 5)`, []string{"rating:7"}, []string{"rating:8", "rating:9"})
		n.set(kind, "rating:7")
		n.change(`UPDATE reviews SET product_id = 8`, []string{"rating:7", "rating:8"}, []string{"rating:9"})
		n.set(kind, "rating:8")
		n.change(`DELETE FROM reviews`, []string{"rating:8"}, []string{"rating:9"})
		n.redis.Del(t.Context(), "e2e:rating:9")
	}
	n.set("string", "best:1", "best:2") // a plain value has no stale state
	n.change(`INSERT INTO bests VALUES (1, 1)`, []string{"best:1"}, []string{"best:2"})
	n.set("string", "log:1")
	n.change(`INSERT INTO logs VALUES (1, 1)`, []string{"log:1"}, nil)
	n.set("string", "log:1") // published for inserts only: the application's own statements work
	n.change(`UPDATE logs SET v = 2 WHERE id = 1`, nil, []string{"log:1"})

	n.set("string", "part:1:eu", "part:1:us")
	n.change(`INSERT INTO parts VALUES (1, 'eu', 1)`, []string{"part:1:eu"}, []string{"part:1:us"})
	n.set("string", "part:1:eu")
	n.change(`UPDATE parts SET region = 'us'`, []string{"part:1:eu", "part:1:us"}, nil)

	n.set("string", "tagged:1", "tagged:2", "tagged:3")
	n.register("tagged:1", "c:1")
	n.register("tagged:2", "d:2")
	n.register("tagged:3", "c:1", "d:2")
	n.change(`INSERT INTO both_tags VALUES (1, 2)`, []string{"tagged:3"}, []string{"tagged:1", "tagged:2"})
	n.set("string", "tagged:4")
	n.register("tagged:4", "c:9")
	n.change(`INSERT INTO either_tag VALUES (1, 2)`, []string{"tagged:1", "tagged:2"}, []string{"tagged:4"})

	message := func(transactional bool, text string) string {
		return fmt.Sprintf(`SELECT pg_logical_emit_message(%v, 'lethe', '%s')`, transactional, text)
	}
	n.set("string", "any:1", "any:2", "tagged:4", "best:3", "rating:3")
	n.register("tagged:4", "c:9")
	n.change(message(true, `{"keys": ["any:1"], "tags": ["c:9"], "classes": ["best"]}`),
		[]string{"any:1", "tagged:4", "best:3"}, []string{"any:2", "rating:3"})
	n.change(message(false, `{"keys": ["any:2"]}`), []string{"any:2"}, []string{"rating:3"})
	n.change(`TRUNCATE reviews`, []string{"rating:3"}, nil)

	n.set("string", "part:1:us") // nothing in the log tells of it
	n.change(`TRUNCATE parts_us`, []string{"part:1:us"}, nil)

	n.set("string", "rating:3")
	n.change(message(true, `no json`), []string{"rating:3"}, nil) // it may have meant anything
	settled(t, env)                                               // the letter is written and counted after its raise
	n.deadLetter()
	n.metrics(l)
	l.stop()
}

func (n *nameTest) deadLetter() {
	n.t.Helper()
	if got := queryText(n.t, n.conn, `SELECT string_agg(reason || ' ' || convert_from(payload, 'utf8'), ',') FROM lethe.dead_letters`); got != "message no json" {
		n.t.Errorf("dead letters %q, want the message that was no JSON", got)
	}
}

// metrics looks for the names that dashboards are built on.
func (n *nameTest) metrics(l *lethe) {
	n.t.Helper()
	_, body, err := l.get("/metrics")
	if err != nil {
		n.t.Fatal(err)
	}
	for _, want := range []string{
		`lethe_commit_to_evict_seconds_count{rule="reviews"} `, `lethe_changes_total{op="truncate",table="public.reviews"} 1`,
		`lethe_changes_total{op="update",table="public.items"} 1`, `lethe_invalidations_total{outcome="deleted",rule="reviews"} `,
		`lethe_invalidations_total{outcome="absent",rule="items"} `, `lethe_slot_lag_bytes `, `lethe_slot_retained_bytes `,
		`lethe_watermark_lag_seconds `, `lethe_gate_held 0`, `lethe_dead_letters_total{reason="message"} 1`,
		`lethe_raises_total{cause="truncate",class="rating"} 1`,
	} {
		if !strings.Contains(body, want) {
			n.t.Errorf("metrics lack %s", want)
		}
	}
}

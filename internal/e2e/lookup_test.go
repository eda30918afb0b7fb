package e2e

import (
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

const reviewTables = `CREATE TABLE products (id bigint PRIMARY KEY, category_id bigint);
	CREATE TABLE reviews (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, product_id bigint, score int NOT NULL DEFAULT 5);
	ALTER TABLE products REPLICA IDENTITY FULL; ALTER TABLE reviews REPLICA IDENTITY FULL;
	INSERT INTO products SELECT i, 6 + i FROM generate_series(1, 10) i`

const reviewRule = `
  - name: reviews move the rating
    table: public.reviews
    lookup: {sql: SELECT category_id FROM products WHERE id = @product_id AND 10 / @score::int >= 0}
    keys: ["category:{lookup.category_id}"]
`

const reviewRules = `
version: 1
namespace: e2e
entries:
  category: {key: "category:{id}"}
rules:
  - {name: products move, table: public.products, keys: ["category:{category_id}"]}` + reviewRule

// lookups sums the lookups that the program has made, by what they gave.
func (l *lethe) lookups(result string) (sum float64) {
	_, body, err := l.get("/metrics")
	if err != nil {
		return -1
	}
	for _, m := range regexp.MustCompile(`(?m)^lethe_lookups_total\{[^}]*result="`+result+`"[^}]*\} (\S+)$`).FindAllStringSubmatch(body, -1) {
		n, _ := strconv.ParseFloat(m[1], 64)
		sum += n
	}
	return sum
}

// TestLookup: a rating of a category, which a review names by way of its product
// only. The review comes, moves and goes; its product moves; the database does
// not answer, and refuses.
func TestLookup(t *testing.T) {
	t.Parallel()
	database := harness.Database(t)
	execute(t, database, reviewTables)
	env := settingsFor(t, database, reviewRules)
	rdb := harness.NewRedis(t, servers.RedisConfig{})
	env["LETHE_REDIS_URL"] = rdb.URL()
	wantCommand(t, env, 0, []string{"0 error(s)"}, "check")
	alone := settingsFor(t, database, strings.Replace(reviewRules, `{name: products move, table: public.products, keys: ["category:{category_id}"]}`, `{name: other, table: public.products, keys: ["other:{id}"]}`, 1))
	wantCommand(t, alone, 0, []string{"L035", "looked up in public.products"}, "check")
	wrong := settingsFor(t, database, strings.Replace(reviewRules, "FROM products", "FROM produkts", 1))
	wantCommand(t, wrong, 3, []string{"L017", `relation "produkts" does not exist`}, "check")
	wantCommand(t, env, 0, []string{"delete key e2e:category:9"}, "explain", "--table", "reviews", "--op", "insert", "--new", `{"id": 1, "product_id": 3, "score": 1}`)
	wantCommand(t, env, 0, []string{"delete key e2e:category:77"}, "explain", "--sql", "UPDATE products SET category_id = 77 WHERE id = 3; INSERT INTO reviews (product_id) VALUES (3)")
	wantCommand(t, env, 0, []string{"delete key e2e:category:5"}, "explain", "--lookup", `[{"rows": [{"category_id": 5}]}]`,
		"--table", "reviews", "--op", "insert", "--new", `{"id": 1, "product_id": 3, "score": 1}`)

	l := start(t, env, "run")
	l.ready()
	c := openCache(t, rdb.URL(), "category")
	category := func(id int) string { return namespace + ":category:" + strconv.Itoa(id) }
	warm := func(ids ...int) {
		t.Helper()
		for _, id := range ids {
			c.warmAgain(category(id), "rating")
		}
	}
	stays := func(ids ...int) {
		t.Helper()
		for _, id := range ids {
			if _, hit := c.get(category(id)); !hit {
				t.Errorf("category %d is forgotten for nothing", id)
			}
		}
	}
	warm(7, 8, 9)
	execute(t, database, `INSERT INTO reviews (product_id) VALUES (1)`)
	c.gone(category(7))
	stays(8, 9)
	warm(7)
	execute(t, database, `UPDATE reviews SET product_id = 2`) // leaves one, comes to the other
	c.gone(category(7))
	c.gone(category(8))
	stays(9)
	warm(7, 8)
	execute(t, database, `UPDATE products SET category_id = 9 WHERE id = 2`) // its own rule
	c.gone(category(8))
	c.gone(category(9))
	stays(7)
	warm(8, 9)
	execute(t, database, `DELETE FROM reviews`)
	c.gone(category(9))
	stays(7, 8)

	// One commit of a thousand reviews asks for each product once or, where it is
	// taken in several batches, a few times.
	warm(10)
	before := l.lookups("rows")
	execute(t, database, `INSERT INTO reviews (product_id) SELECT 1 + i % 10 FROM generate_series(1, 1000) i`)
	c.gone(category(10))
	c.gone(category(16))
	if n := l.lookups("rows") - before; n < 10 || n > 100 {
		t.Errorf("%v lookups for 1,000 changes of 10 products", n)
	}

	t.Run("Away", func(t *testing.T) { lookupAway(t, database, c, category(7), warm) })

	// What the database refuses is kept, and raises what it may touch.
	warm(7)
	execute(t, database, `INSERT INTO reviews (product_id, score) VALUES (1, 0)`)
	c.gone(category(7))
	settled(t, env) // the letter is written after its raise
	if got := answerOf(t, database, `SELECT string_agg(DISTINCT reason || ' ' || table_name, ',') FROM lethe.dead_letters`); got != "lookup public.reviews" {
		t.Errorf("dead letters %q", got)
	}
	warm(7, 8)
	execute(t, database, `INSERT INTO reviews (product_id) VALUES (1)`)
	c.gone(category(7))
	stays(8)
	l.stop()
}

// lookupAway cuts the connection of a lookup that waits. It is made again.
func lookupAway(t *testing.T, database string, c *cache, key string, warm func(...int)) {
	warm(7)
	conn, err := pgx.Connect(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(t.Context(), `LOCK TABLE products IN ACCESS EXCLUSIVE MODE`); err != nil {
		t.Fatal(err)
	}
	execute(t, database, `INSERT INTO reviews (product_id) VALUES (1)`)
	for range 2 {
		harness.Eventually(t, 20*time.Second, func() error {
			// From outside of the transaction, in which activity stands still.
			if n := answerOf(t, database, `SELECT count(*)::text FROM (SELECT pg_terminate_backend(pid) FROM pg_stat_activity
				WHERE datname = current_database() AND wait_event_type = 'Lock' AND query LIKE '%AS lookup LIMIT%') x`); n == "0" {
				return errors.New("no lookup waits")
			}
			return nil
		})
		if _, hit := c.get(key); !hit {
			t.Error("forgotten before anybody could know that it is to be")
		}
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.gone(key)
	if got := answerOf(t, database, `SELECT count(*)::text FROM lethe.dead_letters`); got != "0" {
		t.Errorf("%s dead letters for a connection that was cut", got)
	}
}

func answerOf(t *testing.T, database, sql string) string {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	var out *string
	if err := conn.QueryRow(t.Context(), sql).Scan(&out); err != nil {
		t.Fatal(fmt.Errorf("%s: %w", sql, err))
	}
	if out == nil {
		return ""
	}
	return *out
}

package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

// TestServerRunsTheExampleOfTheGrammar: the file that shows the grammar works as
// it stands, its loader too, which leaves out a column that only the tag needs.
func TestServerRunsTheExampleOfTheGrammar(t *testing.T) {
	t.Parallel()
	rules, err := os.ReadFile("testdata/example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	database := harness.Database(t)
	execute(t, database,
		`CREATE TABLE products (id int PRIMARY KEY, name text, price numeric(10,2), slug text, category_id int, views int)`,
		`CREATE TABLE reviews (id int PRIMARY KEY, product_id int, stars int)`,
		`CREATE TABLE sales (id int PRIMARY KEY, product_id int, ends_at timestamptz)`,
		`INSERT INTO products SELECT i, 'product ' || i, i + 0.5, 'slug-' || i, 7, i FROM generate_series(1, 1200) i`)
	env := settingsFor(t, database, string(rules))
	server := harness.NewRedis(t, servers.RedisConfig{})
	env["LETHE_REDIS_URL"] = server.URL()
	check := start(t, env, "check")
	if code := check.wait(60 * time.Second); code != 0 || strings.Contains(check.output.String(), "L046") {
		t.Errorf("check: exit code %d:\n%s", code, check.output.String())
	}
	l := start(t, env, "run")
	l.ready()
	o, err := redis.ParseURL(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	rdb := redis.NewClient(o)
	defer rdb.Close()
	value := func(want string) func() error {
		return func() error {
			raw, err := rdb.Get(t.Context(), "shop:product:1200").Result()
			if err != nil || !strings.HasSuffix(raw, want) {
				return fmt.Errorf("entry: %q, %w, want %s at its end", raw, err, want)
			}
			return nil
		}
	}
	// The hottest 1,000 are there when it is ready, with the columns of the
	// loader and no other, and a purge of their category finds them.
	if err := value(`{"id":1200,"name":"product 1200","price":1200.50}`)(); err != nil {
		t.Error(err)
	}
	if n, err := rdb.Exists(t.Context(), "shop:product:200").Result(); n != 0 || err != nil {
		t.Errorf("the 1,001st: %d, %v", n, err)
	}
	if n, err := rdb.HLen(t.Context(), "lethe:i:{shop:category:7}").Result(); n != 1000 || err != nil {
		t.Errorf("members of the category: %d, %v, want 1000", n, err)
	}
	execute(t, database, `UPDATE products SET price = 9 WHERE id = 1200`)
	harness.Eventually(t, 60*time.Second, value(`{"id":1200,"name":"product 1200","price":9.00}`))
	for _, c := range []struct{ sql, rule, outcome string }{
		{`INSERT INTO reviews VALUES (1, 1200, 5)`, "reviews move the rating", "purged"},
		{`INSERT INTO sales VALUES (1, 1200, now() - interval '1 hour')`, "sale ends", ""},
	} {
		execute(t, database, c.sql)
		harness.Eventually(t, 60*time.Second, func() error {
			_, metrics, err := l.get("/metrics")
			if err != nil {
				return err
			}
			for line := range strings.SplitSeq(metrics, "\n") {
				if strings.HasPrefix(line, "lethe_invalidations_total") && strings.Contains(line, `rule="`+c.rule+`"`) && strings.Contains(line, c.outcome) {
					return nil
				}
			}
			return fmt.Errorf("nothing was invalidated because of %q", c.rule)
		})
	}
	l.stop()
}

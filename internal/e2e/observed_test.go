package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"

	lethec "github.com/lethe-cache/lethe/client"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

// TestCheckObserved: a table that an application reads, and that no rule covers,
// is found by what the application did; with the rule that was missing it is not.
func TestCheckObserved(t *testing.T) {
	t.Parallel()
	database := harness.Database(t)
	execute(t, database, itemTable, `CREATE TABLE prices (id int PRIMARY KEY, item_id int, amount int)`,
		`CREATE VIEW priced AS SELECT i.id, i.name, p.amount FROM items i LEFT JOIN prices p ON p.item_id = i.id`)
	env := settingsFor(t, database, itemRules)
	server := harness.NewRedis(t, servers.RedisConfig{})
	env["LETHE_REDIS_URL"] = server.URL()
	check := func(want int, args ...string) string {
		t.Helper()
		l := start(t, env, append([]string{"check", "--observed"}, args...)...)
		if code := l.wait(30 * time.Second); code != want {
			t.Errorf("lethe check --observed %s: exit code %d, want %d", args, code, want)
		}
		return l.output.String()
	}
	if out := check(0); !strings.Contains(out, "no client has reported") || !strings.Contains(out, "0 warning(s)") {
		t.Errorf("before any report:\n%s", out)
	}

	pool, err := pgxpool.New(t.Context(), database)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr()})
	defer rdb.Close()
	c, err := lethec.Open(t.Context(), lethec.Options{Redis: rdb, Namespace: "e2e", Database: pool, ObserveTables: true})
	if err != nil {
		t.Fatal(err)
	}
	items := lethec.Entries[int](c, "item")
	if _, err := items.Get(t.Context(), "item:1", func(ctx context.Context, l *lethec.Load) (n int, err error) {
		return n, l.QueryRow(ctx, `SELECT count(*) FROM priced WHERE id = $1`, 1).Scan(&n)
	}); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}

	if out := check(0); !strings.Contains(out, `:4:3: entry "item": its loads read public.prices`) ||
		!strings.Contains(out, `fix: add to rules`) || strings.Contains(out, "read public.items") {
		t.Errorf("output:\n%s", out)
	}
	check(3, "--strict")
	var result struct {
		Errors, Warnings int
		Findings         []struct{ Code, Entry, Fix string }
	}
	if out := check(0, "-o", "json"); json.Unmarshal([]byte(out), &result) != nil || result.Warnings != 1 || fmt.Sprint(result.Findings[0].Code) != "L034" {
		t.Errorf("as JSON:\n%s", out)
	}
	env["LETHE_RULES"] = rulesFile(t, itemRules+`  - {name: "prices", table: public.prices, keys: ["item:{item_id}"]}`+"\n")
	if out := check(0); strings.Contains(out, "its loads read") {
		t.Errorf("with the rule:\n%s", out)
	}

	env["LETHE_REDIS_URL"] = "redis://" + harness.Addr(t)
	check(1)
}

package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

// warmRules wait at their start for whoever holds the lock 4711.
// warmEnds is how long a test waits for the end of lethe warm.
const warmEnds = 60 * time.Second

const warmRules = itemRules + `
warm:
  - entry: item
    sql: SELECT id FROM items WHERE (SELECT pg_advisory_lock_shared(4711)::text) = ''
    on_start: true
    deadline: 5m
  - entry: item
    sql: SELECT 1 / (id - id) AS id FROM items
    on_start: true
`

// TestWarmAtTheStart: /readyz is honest while entries are warmed, says of what
// failed that it did, and what was warmed is there; names of hot entries are
// carried to a new Redis, which is filled from the database.
func TestWarmAtTheStart(t *testing.T) {
	t.Parallel()
	database := harness.Database(t)
	execute(t, database, itemTable, `INSERT INTO items SELECT i, 'item ' || i FROM generate_series(1, 3000) i`)
	env := settingsFor(t, database, warmRules)
	env["LETHE_REDIS_URL"] = harness.NewRedis(t, servers.RedisConfig{}).URL()
	env["LETHE_WARM_RATE"] = "-1"
	gate := connect(t, database)
	if _, err := gate.Exec(t.Context(), `SELECT pg_advisory_lock(4711)`); err != nil {
		t.Fatal(err)
	}
	l := start(t, env, "run")
	harness.Eventually(t, 60*time.Second, func() error {
		code, body, err := l.get("/readyz")
		if err != nil {
			return err
		}
		if code != http.StatusServiceUnavailable {
			t.Fatalf("ready before what is to be warmed is warm: %d %s", code, body)
		}
		var state struct{ Reasons []string }
		if err := json.Unmarshal([]byte(body), &state); err != nil {
			return err
		}
		warming := func(r string) bool { return r == "warming item: reading which entries there are" }
		if len(state.Reasons) != 2 || !slices.ContainsFunc(state.Reasons, warming) {
			return fmt.Errorf("reasons: %q", state.Reasons)
		}
		return nil
	})
	if _, err := gate.Exec(t.Context(), `SELECT pg_advisory_unlock(4711)`); err != nil {
		t.Fatal(err)
	}
	l.ready()
	details := fmt.Sprint(l.readyz().Details["warm"])
	if !strings.Contains(details, "division by zero") || strings.Count(details, "entry:item") != 1 {
		t.Errorf("details of the warm-up that failed: %s", details)
	}
	o, err := redis.ParseURL(env["LETHE_REDIS_URL"])
	if err != nil {
		t.Fatal(err)
	}
	rdb := redis.NewClient(o)
	defer rdb.Close()
	raw, err := rdb.Get(t.Context(), "e2e:item:3000").Result()
	if err != nil || !strings.HasSuffix(raw, `{"id":3000,"name":"item 3000"}`) {
		t.Errorf("item 3000: %q, %v", raw, err)
	}
	_, metrics, err := l.get("/metrics")
	for _, want := range []string{`lethe_warm_rows_total{entry="item"} 3000`, `lethe_warm_runs_total{entry="item",result="done"} 1`, `lethe_warm_last_success_timestamp_seconds{entry="item"}`} {
		if err != nil || !strings.Contains(metrics, want) {
			t.Errorf("metrics lack %s, %v", want, err)
		}
	}
	// What is there is found so, and what was lost is filled again.
	if err := rdb.Unlink(t.Context(), "e2e:item:7").Err(); err != nil {
		t.Fatal(err)
	}
	wantWithin(t, env, warmEnds, 1, []string{"item   done    3000  1       2999", "division by zero"}, "warm", "--warm-rate", "-1")
	wantWithin(t, env, warmEnds, 2, []string{"no such entry"}, "warm", "--entry", "nobody")
	wantWithin(t, env, warmEnds, 1, []string{`"rows": 10`, `"present": 10`}, "warm", "--limit", "10", "-o", "json")

	file := filepath.Join(t.TempDir(), "hot")
	wantWithin(t, env, warmEnds, 0, []string{"100 names (100 of item)"}, "warm", "--save", file, "--top", "100")
	l.stop()
	fresh := harness.NewRedis(t, servers.RedisConfig{})
	env["LETHE_REDIS_URL"] = fresh.URL()
	wantWithin(t, env, warmEnds, 1, []string{"no source is recorded", "lethe run"}, "warm", "--load", file)
	env["LETHE_RULES"] = rulesFile(t, itemRules)
	next := start(t, env, "run")
	next.ready()
	execute(t, database, `UPDATE items SET name = 'changed since'`)
	settled(t, env) // else it refuses the fills that it overlaps
	wantWithin(t, env, warmEnds, 0, []string{"item   done   100   100"}, "warm", "--load", file)
	other, err := redis.ParseURL(fresh.URL())
	if err != nil {
		t.Fatal(err)
	}
	rdb2 := redis.NewClient(other)
	defer rdb2.Close()
	keys, err := rdb2.Keys(t.Context(), "e2e:item:*").Result()
	if err != nil || len(keys) != 100 {
		t.Fatalf("%d entries in the new Redis, %v", len(keys), err)
	}
	if raw, err := rdb2.Get(t.Context(), keys[0]).Result(); err != nil || !strings.Contains(raw, "changed since") {
		t.Errorf("%s: %q, %v: values come from the database", keys[0], raw, err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, data[:len(data)-20], 0o600); err != nil {
		t.Fatal(err)
	}
	wantWithin(t, env, warmEnds, 1, []string{"snapshot can not be used"}, "warm", "--load", file)
}

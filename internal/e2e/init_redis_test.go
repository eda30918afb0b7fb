package e2e

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

// TestInitFromRedis: what is in Redis is reported, and the classes proposed for
// it stand the check against the schema.
func TestInitFromRedis(t *testing.T) {
	t.Parallel()
	database := harness.Database(t)
	execute(t, database, itemTable)
	server := harness.NewRedis(t, servers.RedisConfig{})
	rdb := redis.NewClient(&redis.Options{Addr: server.Addr()})
	defer rdb.Close()
	for i := range 30 {
		if err := rdb.Set(t.Context(), fmt.Sprintf("item:%d", i), strings.Repeat("x", 10+i*5000), time.Hour).Err(); err != nil {
			t.Fatal(err)
		}
	}
	out := filepath.Join(t.TempDir(), "rules.yaml")
	env := map[string]string{"LETHE_POSTGRES_URL": database, "LETHE_REDIS_URL": server.URL(), "LETHE_RULES": out}
	text := start(t, env, "init", "--from-redis", "--out", out)
	if code := text.wait(30 * time.Second); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	for _, want := range []string{"30 keys; all were looked at", "item:{number}", "large: item:2"} {
		if !strings.Contains(text.output.String(), want) {
			t.Errorf("output lacks %q:\n%s", want, text.output.String())
		}
	}
	check := start(t, env, "check")
	if code := check.wait(30 * time.Second); code != 0 {
		t.Errorf("check of the proposal: exit code %d, want 0", code)
	}
	again := start(t, env, "init", "--from-redis", "-o", "json")
	if code := again.wait(30 * time.Second); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	var report struct {
		Keys     int
		Complete bool
		Patterns []struct {
			Pattern string
			Keys    int
			TTL     struct{ Max float64 }
			Large   int `json:"above_100kb"`
		}
		Rules string
	}
	if err := json.Unmarshal([]byte(again.output.String()), &report); err != nil {
		t.Fatal(err)
	}
	if !report.Complete || len(report.Patterns) != 1 || report.Patterns[0].Keys != 30 || report.Patterns[0].Large == 0 ||
		report.Patterns[0].TTL.Max <= 0 || !strings.Contains(report.Rules, "table: public.items") {
		t.Errorf("report %+v", report)
	}
	if n, err := rdb.DBSize(t.Context()).Result(); err != nil || n != 30 {
		t.Errorf("%d keys afterwards (%v), want the 30 that there were", n, err)
	}
}

package e2e

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

// TestCommandsBesideARunningProcess: what a person asks while lethe runs.
func TestCommandsBesideARunningProcess(t *testing.T) {
	t.Parallel()
	database := harness.Database(t)
	execute(t, database, itemTable)
	env := settingsFor(t, database, itemRules)
	env["LETHE_REDIS_URL"] = harness.NewRedis(t, servers.RedisConfig{}).URL()

	before := start(t, env, "doctor")
	if code := before.wait(30 * time.Second); code != 0 {
		t.Errorf("doctor before the first run: exit code %d, want 0: what run makes by itself is no failure", code)
	}
	if out := before.output.String(); !strings.Contains(out, "source record: none yet") {
		t.Errorf("doctor before the first run: output lacks that no source is recorded:\n%s", out)
	}
	execute(t, database, `DO $$ BEGIN
		IF EXISTS (SELECT FROM pg_namespace WHERE nspname = 'lethe') OR EXISTS (SELECT FROM pg_publication WHERE pubname = 'lethe')
			OR EXISTS (SELECT FROM pg_replication_slots WHERE database = current_database()) THEN
			RAISE 'doctor has created something';
		END IF;
	END $$`)
	running := start(t, env, "run")
	running.ready()
	env["LETHE_LISTEN"] = running.listen // what status asks
	for _, c := range []struct {
		args []string
		want []string
	}{
		{[]string{"doctor"}, []string{"wal_level", "maxmemory-policy", "0 failed"}},
		{[]string{"status"}, []string{"process   ready", "era 1 of system", "applied"}},
		{[]string{"check"}, []string{"0 error(s)", "the live schema"}},
		{[]string{"migrate"}, []string{"nothing to do"}},
		{[]string{"version"}, []string{"lethe ", "go1."}},
	} {
		l := start(t, env, append(c.args, "--listen", running.listen)...)
		if code := l.wait(30 * time.Second); code != 0 {
			t.Errorf("lethe %s: exit code %d, want 0", c.args, code)
		}
		out := l.output.String()
		for _, w := range c.want {
			if !strings.Contains(out, w) {
				t.Errorf("lethe %s: output lacks %q:\n%s", c.args, w, out)
			}
		}
		if testing.Verbose() {
			t.Logf("lethe %s\n%s", c.args, out)
		}
	}
	running.stop()
	status := start(t, env, "status", "--listen", running.listen)
	if code := status.wait(30 * time.Second); code != 1 {
		t.Errorf("status of a stopped process: exit code %d, want 1", code)
	}
}

// TestCheckExample: the file that everybody copies has nothing wrong with it.
func TestCheckExample(t *testing.T) {
	t.Parallel()
	example, err := filepath.Abs("../../rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	l := start(t, nil, "check", "-o", "json", "--rules", example)
	if code := l.wait(30 * time.Second); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
	var result struct{ Errors, Warnings int }
	if err := json.Unmarshal([]byte(l.output.String()), &result); err != nil {
		t.Fatal(err)
	}
	if result.Errors+result.Warnings != 0 {
		t.Errorf("%+v, want nothing found:\n%s", result, l.output.String())
	}
}

// TestSecondDirectProcessWaits: two processes on one slot, one works, the other
// takes over when it ends.
func TestSecondDirectProcessWaits(t *testing.T) {
	t.Parallel()
	database := harness.Database(t)
	execute(t, database, itemTable, `INSERT INTO items VALUES (1, 'one')`)
	env := settingsFor(t, database, itemRules)
	rdb := harness.NewRedis(t, servers.RedisConfig{})
	env["LETHE_REDIS_URL"] = rdb.URL()
	first := start(t, env, "run")
	first.ready()
	second := start(t, env, "run")
	harness.Eventually(t, 20*time.Second, harness.True("the second waits for the slot", func() bool {
		code, body, err := second.get("/readyz")
		return err == nil && code == 503 && strings.Contains(body, "slot")
	}))
	c := openCache(t, rdb.URL(), "item")
	c.warm(itemName, "one")
	first.kill()
	second.ready()
	if _, hit := c.get(itemName); !hit {
		t.Error("the takeover forgot an entry whose row was not touched")
	}
	execute(t, database, `UPDATE items SET name = 'two' WHERE id = 1`)
	c.gone(itemName)
	second.stop()
}

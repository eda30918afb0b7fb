package e2e

import (
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

// TestRedisAway: while Redis is down lethe runs, is not ready and says why;
// when it is back nothing stale is served.
func TestRedisAway(t *testing.T) {
	t.Parallel()
	database := harness.Database(t)
	execute(t, database, itemTable, `INSERT INTO items VALUES (1, 'one')`)
	rdb := harness.NewRedis(t, servers.RedisConfig{})
	env := settingsFor(t, database, itemRules)
	env["LETHE_REDIS_URL"] = rdb.URL()
	l := start(t, env, "run")
	l.ready()
	c := openCache(t, rdb.URL(), "item")
	c.warm(itemName, "one")
	rdb.Kill()
	harness.Eventually(t, 10*time.Second, harness.True("not ready because of Redis", func() bool {
		code, body, err := l.get("/readyz")
		return err == nil && code == http.StatusServiceUnavailable && strings.Contains(body, "redis does not answer")
	}))
	if code, _, err := l.get("/healthz"); err != nil || code != http.StatusOK {
		t.Errorf("healthz %d, %v while Redis is down; want 200: a restart would cure nothing", code, err)
	}
	execute(t, database, `UPDATE items SET name = 'uno' WHERE id = 1`)
	if err := rdb.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	l.ready()
	c.gone(itemName)
	l.stop()
}

// TestRestartIsQuick: a restart on an existing slot is ready within a second,
// after a clean end and after a kill. One of ten tries has to be, as the machine
// has other things to do; where it has so many that the program needs long to
// print its version, the second is that much longer.
func TestRestartIsQuick(t *testing.T) {
	t.Parallel()
	database := harness.Database(t)
	execute(t, database, itemTable)
	env := settingsFor(t, database, itemRules)
	l := start(t, env, "run")
	l.ready()
	for name, end := range map[string]func(*lethe){"stopped": (*lethe).stop, "killed": (*lethe).kill} {
		best, slow := time.Hour, time.Duration(0)
		quick := func() bool { return best <= time.Second+10*slow }
		for try := 0; try < 10 && !quick(); try++ {
			end(l)
			begun := time.Now()
			l = start(t, env, "run")
			l.ready()
			best = min(best, time.Since(begun))
			begun = time.Now()
			if code := start(t, nil, "version").wait(harness.Patience); code != 0 {
				t.Fatalf("lethe version: exit code %d", code)
			}
			slow = max(slow, time.Since(begun))
		}
		t.Logf("%s: ready after %s, a program that does nothing took %s", name, best, slow)
		if !quick() {
			t.Errorf("%s: ready again after %s at best, want at most 1 s (a program that does nothing took %s)", name, best, slow)
		}
	}
	l.stop()
}

// TestSecondSignalLeavesWhatWasBegun: the first waits for what Redis does not
// take, the second does not; neither loses it.
func TestSecondSignalLeavesWhatWasBegun(t *testing.T) {
	t.Parallel()
	database := harness.Database(t)
	execute(t, database, itemTable, `INSERT INTO items VALUES (1, 'one')`)
	rdb := harness.NewRedis(t, servers.RedisConfig{})
	proxy := harness.Proxy(t, rdb.Addr())
	env := settingsFor(t, database, itemRules)
	env["LETHE_REDIS_URL"] = "redis://" + proxy.Addr() + "/0"
	l := start(t, env, "run")
	l.ready()
	c := openCache(t, rdb.URL(), "item")
	c.warm(itemName, "one")
	proxy.Refuse(true)
	proxy.Cut()
	execute(t, database, `UPDATE items SET name = 'uno' WHERE id = 1`)
	harness.Eventually(t, 10*time.Second, harness.True("the change waits for Redis", func() bool {
		_, body, err := l.get("/metrics")
		return err == nil && strings.Contains(body, `lethe_read_changes_total{op="update",table="public.items"} 1`)
	}))
	if err := l.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, 10*time.Second, harness.True("it stops", func() bool {
		code, body, err := l.get("/readyz")
		return err == nil && code == http.StatusServiceUnavailable && strings.Contains(body, "stopping")
	}))
	if err := l.cmd.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if code := l.wait(harness.Patience); code != 0 {
		t.Errorf("exit code %d after the second signal, want 0", code)
	}
	// Why it has ended says more than when: the first signal waits for 10 s.
	if out := l.output.String(); !strings.Contains(out, "context canceled") || strings.Contains(out, "deadline exceeded") {
		t.Error("the log does not say that the second signal has ended the wait")
	}
	if got, hit := c.get(itemName); !hit {
		t.Fatalf("%q, %v: Redis was not there to forget it", got, hit)
	}
	proxy.Refuse(false)
	next := start(t, env, "run")
	next.ready()
	c.gone(itemName)
	next.stop()
}

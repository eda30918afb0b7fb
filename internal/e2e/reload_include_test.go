package e2e

import (
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

// TestReloadOfAnIncludedFile: nobody touches rules.yaml and nobody signals. A
// file that it includes changes, comes, breaks and goes: the first two take
// effect, a broken one leaves what is in force and shows in /readyz.
func TestReloadOfAnIncludedFile(t *testing.T) {
	t.Parallel()
	database := harness.Database(t)
	execute(t, database, itemTable, `INSERT INTO items VALUES (1, 'one')`, `CREATE TABLE prices (item int PRIMARY KEY, price int)`,
		`INSERT INTO prices VALUES (1, 10)`, `CREATE TABLE stock (item int PRIMARY KEY, n int)`, `INSERT INTO stock VALUES (1, 5)`)
	env := settingsFor(t, database, strings.Replace(itemRules, "version: 1\n", "version: 1\ninclude: teams/*.yaml\n", 1))
	rdb := harness.NewRedis(t, servers.RedisConfig{})
	env["LETHE_REDIS_URL"] = rdb.URL()
	teams := filepath.Join(filepath.Dir(env["LETHE_RULES"]), "teams")
	if err := os.Mkdir(teams, 0o700); err != nil {
		t.Fatal(err)
	}
	team, other := filepath.Join(teams, "a.yaml"), filepath.Join(teams, "b.yaml")
	const prices = "rules:\n  - {name: price, table: public.prices, keys: [\"item:{item}\"]}\n"
	const stock = "rules:\n  - {name: stock, table: public.stock, keys: [\"item:{item}\"]}\n"
	rewrite(t, team, "rules: []\n")
	l := start(t, env, "run")
	l.ready()
	c := openCache(t, rdb.URL(), "item")

	raised := l.metric("lethe_raises_total")
	rewrite(t, team, prices) // the included file alone
	l.waitReloaded("done", 1)
	l.waitRaised(raised)
	for range 2 {
		c.warm(itemName, "one, 10")
		execute(t, database, `UPDATE prices SET price = price + 1`)
		c.gone(itemName)
	}
	if !strings.Contains(l.output.String(), `added="[rule \"price\"]" removed=[]`) {
		t.Error("the log does not say what the reload has changed")
	}

	raised = l.metric("lethe_raises_total")
	rewrite(t, other, stock) // one that the pattern newly finds
	l.waitReloaded("done", 2)
	l.waitRaised(raised)
	for range 2 {
		c.warm(itemName, "one, 12, 5")
		execute(t, database, `UPDATE stock SET n = n - 1`)
		c.gone(itemName)
	}

	for i, bad := range []string{"rules: [", strings.Replace(prices, "{item}", "{itm}", 1), "include: nothing.yaml\n"} {
		rewrite(t, team, bad)
		l.waitReloaded("failed", i+1)
		if code, _, err := l.get("/readyz"); err != nil || code != http.StatusOK {
			t.Errorf("readyz is %d, %v: the rules before are in force", code, err)
		}
		if failed, _ := l.readyz().Details["reload"].(map[string]any); !strings.Contains(stringOf(failed["error"]), "a.yaml") {
			t.Errorf("readyz does not name the included file that is broken: %v", l.readyz().Details)
		}
		c.warm(itemName, "before")
		execute(t, database, `UPDATE prices SET price = price + 1`) // by the rule of the file that is broken now
		c.gone(itemName)
	}

	rewrite(t, team, prices) // as it was: nothing is to be forgotten
	l.waitReloaded("unchanged", 1)
	if failed, there := l.readyz().Details["reload"]; there {
		t.Errorf("readyz still tells of a failed reload: %v", failed)
	}
	if err := os.Remove(other); err != nil {
		t.Fatal(err)
	}
	l.waitReloaded("done", 3)
	if !strings.Contains(l.output.String(), `added=[] removed="[rule \"stock\"]"`) {
		t.Error("the log does not say that the rules of a file are gone")
	}
	l.stop()
}

func stringOf(v any) string {
	s, _ := v.(string)
	return s
}

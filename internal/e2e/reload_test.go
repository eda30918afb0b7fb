package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

// hup asks a process to read its rules again.
func (l *lethe) hup() {
	l.t.Helper()
	if err := l.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		l.t.Fatal(err)
	}
}

// reloaded is how often a reload has ended so, by the metrics.
func (l *lethe) reloaded(result string) int {
	l.t.Helper()
	_, body, err := l.get("/metrics")
	if err != nil {
		l.t.Fatal(err)
	}
	m := regexp.MustCompile(`lethe_rules_reloads_total\{result="` + result + `"\} (\d+)`).FindStringSubmatch(body)
	if m == nil {
		l.t.Fatalf("no metric of reloads in\n%s", body)
	}
	n, _ := strconv.Atoi(m[1])
	return n
}

func (l *lethe) waitReloaded(result string, n int) {
	l.t.Helper()
	harness.Eventually(l.t, 30*time.Second, func() error {
		if got := l.reloaded(result); got < n {
			return fmt.Errorf("%d reloads %s, want %d", got, result, n)
		}
		return nil
	})
}

// waitRaised waits for the raises of a reload that brings in a table, where
// there were so many before: the table is a gap, raised twice, and the rule is
// new to the partition. What is filled between the three goes again.
func (l *lethe) waitRaised(before float64) {
	l.t.Helper()
	harness.Eventually(l.t, 30*time.Second, harness.True("all raises of the reload", func() bool { return l.metric("lethe_raises_total") >= before+3 }))
}

func rewrite(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestReload: new rules take a table in and forget what it may have made stale,
// bad ones change nothing and are told of, a change of the file is enough, and a
// table that no rule names leaves the publication.
func TestReload(t *testing.T) {
	t.Parallel()
	database := harness.Database(t)
	execute(t, database, itemTable, `INSERT INTO items VALUES (1, 'one')`, `CREATE TABLE prices (item int PRIMARY KEY, price int)`,
		`INSERT INTO prices VALUES (1, 10)`)
	env := settingsFor(t, database, itemRules)
	rdb := harness.NewRedis(t, servers.RedisConfig{})
	env["LETHE_REDIS_URL"] = rdb.URL()
	l := start(t, env, "run")
	l.ready()
	c := openCache(t, rdb.URL(), "item")
	c.warm(itemName, "one, 10")
	execute(t, database, `UPDATE prices SET price = 11`) // no rule looks at it

	more := itemRules + "  - {name: price, table: public.prices, keys: [\"item:{item}\"]}\n"
	raised := l.metric("lethe_raises_total") // before: the process may see the file before the signal
	rewrite(t, env["LETHE_RULES"], more)
	l.hup()
	l.waitReloaded("done", 1)
	l.waitRaised(raised)
	c.gone(itemName) // it may be from before the rule
	c.warm(itemName, "one, 11")
	execute(t, database, `UPDATE prices SET price = 12`)
	c.gone(itemName)
	if !strings.Contains(l.output.String(), `added="[rule \"price\"]" removed=[]`) {
		t.Error("the log does not say what the reload has changed")
	}

	c.warm(itemName, "one, 12")
	for i, bad := range []string{"version: 1\nrulez: [\n", strings.Replace(more, "public.prices", "public.pricez", 1), strings.Replace(more, "namespace: e2e", "namespace: other", 1)} {
		rewrite(t, env["LETHE_RULES"], bad)
		l.hup()
		l.waitReloaded("failed", i+1)
		if code, _, err := l.get("/readyz"); err != nil || code != http.StatusOK {
			t.Errorf("readyz is %d, %v after a failed reload: the rules before are in force", code, err)
		}
		if _, there := l.readyz().Details["reload"]; !there {
			t.Errorf("readyz does not tell of the failed reload: %v", l.readyz().Details)
		}
	}
	if value, hit := c.get(itemName); !hit || value != "one, 12" {
		t.Errorf("the entry is %q, %v after failed reloads, want it as it was", value, hit)
	}
	execute(t, database, `UPDATE prices SET price = 13`)
	c.gone(itemName)

	rewrite(t, env["LETHE_RULES"], itemRules) // without a signal
	l.waitReloaded("done", 2)
	if failed, there := l.readyz().Details["reload"]; there {
		t.Errorf("readyz still tells of a failed reload: %v", failed)
	}
	conn := connect(t, database)
	harness.Eventually(t, 10*time.Second, func() error {
		if tables := queryText(t, conn, `SELECT coalesce(string_agg(tablename, ',' ORDER BY tablename), '') FROM pg_publication_tables WHERE pubname LIKE 'lethe%'`); tables != "items" {
			return fmt.Errorf("published: %s", tables)
		}
		return nil
	})
	l.stop()
}

// TestReloadUnderLoad: 100 reloads while pgbench writes and readers fill, every
// second one of a broken file: the process goes on, no change is lost, and each
// time the log says what has changed.
func TestReloadUnderLoad(t *testing.T) {
	pg := harness.NewPostgres(t, servers.PostgresConfig{})
	tool, err := pg.Tool("pgbench")
	if err != nil {
		t.Skipf("left out: pgbench is not here: %v", err)
	}
	rdb := harness.NewRedis(t, servers.RedisConfig{})
	database := pg.URL("postgres")
	runTool(t, tool, "-i", "-q", "-s", "1", database)
	env := settingsFor(t, database, pgbenchRules)
	env["LETHE_REDIS_URL"] = rdb.URL()
	l := start(t, env, "run")
	l.ready()
	pid := l.cmd.Process.Pid
	bank := openBank(t, database, rdb.URL(), env["LETHE_RULES"])
	bank.fillAll()
	load, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for load.Err() == nil {
			runTool(t, tool, "-n", "-c", "2", "-t", "200", database)
		}
	}()
	stopReaders := bank.read()
	without := func(name string) string {
		lines := strings.SplitAfter(pgbenchRules, "\n")
		for i, line := range lines {
			if strings.Contains(line, "{name: "+name+",") {
				lines[i] = ""
			}
		}
		return strings.Join(lines, "")
	}
	good := []string{without("teller"), pgbenchRules, without("account"), without("history"), pgbenchRules}
	for i := range 100 {
		if i%2 == 0 {
			rewrite(t, env["LETHE_RULES"], []string{"rules: [", "version: 2\n", without("teller") + "  - {}\n"}[i/2%3])
			l.hup()
			l.waitReloaded("failed", i/2+1)
		} else {
			rewrite(t, env["LETHE_RULES"], good[i/2%len(good)])
			l.hup()
			l.waitReloaded("done", i/2+1)
		}
	}
	// The last reload has forgotten what it newly touches.
	harness.Eventually(t, 60*time.Second, harness.True("readers have filled the cache again", func() bool { return len(bank.present()) > 500 }))
	stop()
	<-done
	stopReaders()
	l.ready()
	if report := bank.compare(); !report.OK() || report.Checked == 0 {
		t.Errorf("of %d entries %d are stale and %d unsettled: %+v", report.Checked, report.Stale, report.Unsettled, report.Findings[:min(3, len(report.Findings))])
	}
	if l.cmd.Process.Pid != pid || l.cmd.ProcessState != nil {
		t.Error("the process is another one")
	}
	if got := strings.Count(l.output.String(), `msg="rules reloaded"`); got < 50 {
		t.Errorf("the log tells of %d reloads, want 50", got)
	}
	l.stop()
}

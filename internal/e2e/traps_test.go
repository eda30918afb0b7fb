package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

// trap is something that the linter warns of, built on purpose. Its entries are
// filled with what the database says, then the change is made.
type trap struct {
	name string
	// code is the finding's, says a part of its message, subject the rule or
	// entry that it names, empty if it names none.
	code, says, subject string
	schema              []string
	// bad are the blocks of rules.yaml that fall into the trap, good those that
	// do not; empty good says that bad stays, and that the finding's fix is SQL.
	bad, good blocks
	// change is made while bad is in force, again once the fix is.
	change, again string
	// entries are what an application caches. No two traps share a class, so
	// that what one raises does not hide what another leaves.
	entries []cached
}

type blocks struct{ entries, rules, dependencies string }

// cached is an entry of an application.
type cached struct {
	class, key string
	// goodKey is the key with the good rules, where that is another.
	goodKey string
	// truth is what an application would load.
	truth string
	// bad is what is expected of it after the change with the bad rules, good
	// after the one with the good rules.
	bad, good fate
}

// fate is what has become of an entry.
type fate string

const (
	// stale: it is served, and the database says otherwise: the purge that misses.
	stale fate = "stale"
	// lost: it is forgotten, though it was right.
	lost fate = "lost"
	// forgotten: it would be wrong, and is gone.
	forgotten fate = "forgotten"
	// kept: it is right, and served.
	kept fate = "kept"
)

// TestServerTraps falls into each trap that the linter knows: the finding is
// there, the damage that it tells of happens, and with the finding's cure both
// are gone.
func TestServerTraps(t *testing.T) {
	t.Parallel()
	database := harness.Database(t)
	conn := connect(t, database)
	run := func(sql string) {
		t.Helper()
		for _, s := range strings.Split(sql, ";") {
			if _, err := conn.Exec(t.Context(), s); err != nil {
				t.Fatalf("%s: %v", s, err)
			}
		}
	}
	run(`CREATE TABLE fences (id int PRIMARY KEY, n int); INSERT INTO fences VALUES (1, 0)`)
	traps := trapTable()
	for i := range traps {
		for _, s := range traps[i].schema {
			run(s)
		}
	}
	if harness.Postgres(t).VersionNum() >= 180000 {
		for i := range traps { // the log carries generated columns there: the damage is that of older servers
			if traps[i].code == "L032" {
				traps[i].entries[1].bad = kept
			}
		}
	}
	env := settingsFor(t, database, trapRules(traps, func(tr *trap) blocks { return tr.bad }))
	rdb := harness.NewRedis(t, servers.RedisConfig{})
	env["LETHE_REDIS_URL"] = rdb.URL()
	w := &trapWorld{t: t, conn: conn, cache: openCache(t, rdb.URL(), "fence")}

	pages, err := os.ReadFile("../../docs/findings.md")
	if err != nil {
		t.Fatal(err)
	}
	findings := checkJSON(t, env)
	for i := range traps {
		tr := &traps[i]
		_, page, _ := strings.Cut(string(pages), "\n### "+tr.code+"\n")
		if page, _, _ = strings.Cut(page, "\n### "); !strings.Contains(page, `"`+tr.name+`"`) {
			t.Errorf("%s: the page of %s does not name this proof", tr.name, tr.code)
		}
		at := slices.IndexFunc(findings, tr.found)
		if at < 0 {
			t.Errorf("%s: check does not find %s %q about %q:\n%v", tr.name, tr.code, tr.says, tr.subject, findings)
			continue
		}
		t.Logf("%s: %s: %s", tr.name, findings[at].Code, findings[at].Message)
	}
	first := start(t, env, "run")
	first.ready()
	w.fall(traps, func(tr *trap) string { return tr.change }, func(c *cached) (string, fate) { return c.key, c.bad })
	first.stop()

	for i := range traps {
		tr := &traps[i]
		if tr.good == (blocks{}) {
			tr.good = tr.bad
			if at := slices.IndexFunc(findings, tr.found); at >= 0 {
				run(statements(findings[at].Fix))
			}
		}
	}
	env["LETHE_RULES"] = rulesFile(t, trapRules(traps, func(tr *trap) blocks { return tr.good }))
	findings = checkJSON(t, env)
	for i := range traps {
		if at := slices.IndexFunc(findings, traps[i].found); at >= 0 {
			t.Errorf("%s: check still finds %s after the cure: %v", traps[i].name, traps[i].code, findings[at])
		}
	}
	second := start(t, env, "run")
	second.ready()
	w.fall(traps, func(tr *trap) string { return tr.again }, func(c *cached) (string, fate) {
		if c.goodKey != "" {
			return c.goodKey, c.good
		}
		return c.key, c.good
	})
	second.stop()
}

// statements are the SQL of a fix, which may begin with words.
func statements(fix string) string {
	for _, verb := range []string{"ALTER TABLE", "CREATE UNIQUE INDEX"} {
		if at := strings.Index(fix, verb); at >= 0 && !strings.Contains(fix[:at], "CREATE") {
			fix = fix[at:]
		}
	}
	return strings.TrimSuffix(strings.TrimSpace(fix), ";")
}

func (tr *trap) found(f finding) bool {
	return f.Code == tr.code && strings.Contains(f.Message, tr.says) && (f.Rule == tr.subject || f.Entry == tr.subject)
}

// trapRules is one file of the blocks that pick chooses.
func trapRules(traps []trap, pick func(*trap) blocks) string {
	all := blocks{entries: "  fence: {key: \"fence:{id}\"}\n", rules: "  - {name: fence, table: public.fences, keys: [\"fence:{id}\"]}\n"}
	indent := func(s string) (out string) {
		for line := range strings.Lines(s) {
			if strings.TrimSpace(line) != "" {
				out += "  " + strings.TrimSpace(line) + "\n"
			}
		}
		return out
	}
	for i := range traps {
		b := pick(&traps[i])
		all.entries += indent(b.entries)
		all.rules += indent(b.rules)
		all.dependencies += indent(b.dependencies)
	}
	text := "version: 1\nnamespace: " + namespace + "\nlint: {tenant: tenant_id}\nentries:\n" + all.entries + "rules:\n" + all.rules
	if all.dependencies != "" {
		text += "dependencies:\n" + all.dependencies
	}
	return text
}

// finding is one of `lethe check -o json`.
type finding struct{ Code, Rule, Entry, Message, Fix string }

func checkJSON(t *testing.T, env map[string]string) []finding {
	t.Helper()
	out := wantCommand(t, env, 0, []string{`"live": true`}, "check", "-o", "json")
	var result struct{ Findings []finding }
	if err := json.Unmarshal([]byte(out[strings.Index(out, "{"):]), &result); err != nil {
		t.Fatalf("%v in\n%s", err, out)
	}
	return result.Findings
}

// trapWorld is the application's side.
type trapWorld struct {
	t     *testing.T
	conn  *pgx.Conn
	cache *cache
	n     int
}

func (w *trapWorld) of(class string) *cache {
	c := *w.cache
	c.class = class
	return &c
}

// truth is what the database says now.
func (w *trapWorld) truth(e *cached) string { return queryText(w.t, w.conn, e.truth) }

// passed waits until everything that was committed before is applied: the
// second fence is written when the first has fallen, so it is of a later batch.
func (w *trapWorld) passed() {
	w.t.Helper()
	fence := w.of("fence")
	for range 2 {
		w.n++
		fence.warm(namespace+":fence:1", fmt.Sprint(w.n))
		if _, err := w.conn.Exec(w.t.Context(), `UPDATE fences SET n = n + 1`); err != nil {
			w.t.Fatal(err)
		}
		fence.gone(namespace + ":fence:1")
	}
}

// fall fills the entries of all traps, makes the changes, and compares what has
// become of the entries with what was expected.
func (w *trapWorld) fall(traps []trap, change func(*trap) string, expected func(*cached) (key string, want fate)) {
	w.t.Helper()
	w.passed() // what the start, or new rules, have raised
	ctx, cancel := context.WithTimeout(w.t.Context(), time.Minute)
	defer cancel()
	filled := map[*cached]string{}
	for i := range traps {
		for j := range traps[i].entries {
			e := &traps[i].entries[j]
			key, _ := expected(e)
			filled[e] = w.truth(e)
			if c, full := w.of(e.class), namespace+":"+key; !isThere(c, full) { // two rows may share it: that is a trap
				c.warm(full, filled[e])
			}
		}
	}
	for i := range traps {
		if traps[i].code == "" || change(&traps[i]) == "" {
			continue
		}
		for _, s := range strings.Split(change(&traps[i]), ";") {
			if _, err := w.conn.Exec(ctx, s); err != nil {
				w.t.Fatalf("%s: %s: %v", traps[i].name, s, err)
			}
		}
	}
	w.passed()
	for i := range traps {
		for j := range traps[i].entries {
			e := &traps[i].entries[j]
			key, want := expected(e)
			now := w.truth(e)
			served, hit := w.of(e.class).get(namespace + ":" + key)
			got := kept
			switch {
			case hit && served != now:
				got = stale
			case !hit && filled[e] == now:
				got = lost
			case !hit:
				got = forgotten
			}
			if got != want {
				w.t.Errorf("%s: entry %s is %s, want %s (filled with %q, served %q, the database says %q)", traps[i].name, key, got, want, filled[e], served, now)
			}
		}
	}
}

func isThere(c *cache, name string) bool {
	_, hit := c.get(name)
	return hit
}

// pathKey is the key of a page, as an application builds it.
func pathKey(path string) string {
	sum := sha256.Sum256([]byte(path))
	return "page:" + hex.EncodeToString(sum[:8])
}

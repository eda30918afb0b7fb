package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

// wantCommand runs a command to its end and checks exit code and output.
func wantCommand(t *testing.T, env map[string]string, code int, want []string, args ...string) string {
	t.Helper()
	return wantWithin(t, env, 30*time.Second, code, want, args...)
}

// wantWithin is wantCommand for what may take longer.
func wantWithin(t *testing.T, env map[string]string, d time.Duration, code int, want []string, args ...string) string {
	t.Helper()
	l := start(t, env, args...)
	if got := l.wait(d); got != code {
		t.Errorf("lethe %q: exit code %d, want %d\n%s", args, got, code, l.output.String())
	}
	out := l.output.String()
	for _, w := range want {
		if !strings.Contains(out, w) {
			t.Errorf("lethe %q: output lacks %q:\n%s", args, w, out)
		}
	}
	return out
}

// settled returns when all that is in the log now has been applied to the Redis
// of env: changes, and the raises that a reader put before them.
func settled(t *testing.T, env map[string]string) {
	t.Helper()
	wantCommand(t, env, 0, []string{"applied everywhere"}, "invalidate", "--key", "settled", "--wait")
}

// TestExplainCommand: from flags and SQL, and from a slot that is being read,
// which goes on as if nobody had looked.
func TestExplainCommand(t *testing.T) {
	t.Parallel()
	database := harness.Database(t)
	execute(t, database, itemTable, `INSERT INTO items VALUES (1, 'one')`)
	env := settingsFor(t, database, itemRules)
	rdb := harness.NewRedis(t, servers.RedisConfig{})
	env["LETHE_REDIS_URL"] = rdb.URL()
	key := "delete key " + itemName
	wantCommand(t, env, 0, []string{"update public.items", key, `because of rule "item"`},
		"explain", "--table", "items", "--op", "update", "--new", `{"id": 1}`)
	wantCommand(t, env, 0, []string{"update public.items", key}, "explain", "--sql", "UPDATE items SET name = 'two'")
	wantCommand(t, env, 2, []string{"want exactly one of"}, "explain")
	wantCommand(t, env, 2, []string{`no column "nme"`}, "explain", "--table", "items", "--op", "insert", "--new", `{"nme": 1}`)
	wantCommand(t, env, 2, []string{"--lsn"}, "explain", "--lsn", "xyz")
	wantCommand(t, env, 1, []string{"COMMIT"}, "explain", "--sql", "DELETE FROM items; COMMIT")

	l := start(t, env, "run")
	l.ready()
	if err := rdb.Stop(); err != nil { // what is not applied stays in the slot
		t.Fatal(err)
	}
	execute(t, database, `UPDATE items SET name = 'three' WHERE id = 1`)
	wantCommand(t, env, 0, []string{"update public.items", key}, "explain", "--lsn", "..")
	wantCommand(t, env, 0, []string{"no change"}, "explain", "--lsn", "..0/1")
	l.kill()
	wantCommand(t, env, 0, []string{"update public.items", key}, "explain", "--lsn", "..")
}

// TestTestCommand: cases beside the rules.
func TestTestCommand(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	env := map[string]string{"LETHE_RULES": write("shop.yaml", `version: 1
entries:
  item: {key: "item:{id}"}
rules:
  - {name: items, table: public.items, keys: ["item:{id}"], when: 'changed("name") && new.id > 5'}
`)}
	wantCommand(t, env, 2, []string{"shop_test.yaml", "a file of cases"}, "test")
	cases := write("shop_test.yaml", `cases:
  - name: a name
    change: {table: items, op: insert, new: {id: 7, name: x}}
    keys: ["item:7"]
  - name: wrong
    change: {table: items, op: insert, new: {id: 8, name: x}}
    keys: ["item:9"]
`)
	wantCommand(t, env, 1, []string{"shop_test.yaml:5: case \"wrong\" failed", "missing:    key item:9", "unexpected: key item:8", "2 case(s), 1 failed"}, "test")
	wantCommand(t, env, 1, []string{`"case": "wrong"`, `"unexpected"`}, "test", "-o", "json")
	wantCommand(t, env, 0, []string{"updated "}, "test", "--update")
	wantCommand(t, env, 0, []string{"2 case(s), 0 failed", "not tried: new.id > 5 is never false"}, "test", "--coverage", cases)
	wantCommand(t, env, 1, []string{"0 failed"}, "test", "--strict")
	write("shop.yaml", "version: 1\nrules: [{}]\n")
	wantCommand(t, env, 3, []string{"[L003]"}, "test")
}

// TestGraphCommand: the three forms, of the example that everybody copies.
func TestGraphCommand(t *testing.T) {
	t.Parallel()
	example, err := filepath.Abs("../../rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	env := map[string]string{"LETHE_RULES": example}
	wantCommand(t, env, 0, []string{"<svg ", "product page", "public.products"}, "graph")
	wantCommand(t, env, 0, []string{"flowchart LR", "product page"}, "graph", "-o", "mermaid")
	wantCommand(t, env, 0, []string{"digraph", "product page"}, "graph", "-o", "dot")
	wantCommand(t, env, 2, []string{"svg, mermaid or dot"}, "graph", "-o", "png")
	path := filepath.Join(t.TempDir(), "rules.svg")
	wantCommand(t, env, 0, nil, "graph", "--file", path)
	if data, err := os.ReadFile(path); err != nil || !strings.HasPrefix(string(data), "<svg ") {
		t.Errorf("%s: %v, %.20q", path, err, data)
	}
}

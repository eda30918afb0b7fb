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

// as is the URL of a database for another role.
func as(url, role string) string { return strings.Replace(url, "postgres@", role+"@", 1) }

// TestWrongPassword: what a retry can not cure ends at once, and no log line
// holds the password.
func TestWrongPassword(t *testing.T) {
	t.Parallel()
	const secret = "not-the-password"
	pg := harness.NewPostgres(t, servers.PostgresConfig{})
	url := pg.URL("postgres")
	execute(t, url, itemTable, `SET password_encryption = 'scram-sha-256'`, `CREATE ROLE guarded LOGIN REPLICATION PASSWORD 'the-password'`)
	hba := filepath.Join(pg.DataDir(), "pg_hba.conf")
	old, err := os.ReadFile(hba)
	if err != nil {
		t.Fatal(err)
	}
	rules := "host all guarded 127.0.0.1/32 scram-sha-256\nhost replication guarded 127.0.0.1/32 scram-sha-256\n"
	if err := os.WriteFile(hba, append([]byte(rules), old...), 0o600); err != nil {
		t.Fatal(err)
	}
	execute(t, url, `SELECT pg_reload_conf()`)
	env := settingsFor(t, as(url, "guarded:"+secret), itemRules)
	harness.Eventually(t, 10*time.Second, harness.True("the server asks for a password", func() bool {
		l := start(t, env, "check")
		return l.wait(30*time.Second) == 1
	}))
	for _, command := range []string{"run", "doctor", "migrate", "check"} {
		l := start(t, env, command)
		if code := l.wait(30 * time.Second); code != 1 {
			t.Errorf("%s: exit code %d, want 1", command, code)
		}
		if out := l.output.String(); !strings.Contains(out, "28P01") || !strings.Contains(out, "guarded") {
			t.Errorf("%s: output lacks the SQLSTATE 28P01 or the role:\n%s", command, out)
		}
		if strings.Contains(l.output.String(), "trying again") {
			t.Errorf("%s: tried again", command)
		}
		noSecret(t, l, secret, command)
	}
}

// TestMissingPrivileges: each right that is missing is named with what grants
// it, until run has what it needs without being a superuser.
func TestMissingPrivileges(t *testing.T) {
	t.Parallel()
	pg := harness.NewPostgres(t, servers.PostgresConfig{})
	url := pg.URL("postgres")
	execute(t, url, itemTable, `INSERT INTO items VALUES (1, 'one')`, `CREATE ROLE app LOGIN`)
	env := settingsFor(t, as(url, "app"), itemRules)
	rdb := harness.NewRedis(t, servers.RedisConfig{})
	env["LETHE_REDIS_URL"] = rdb.URL()
	admin := map[string]string{"LETHE_POSTGRES_URL": url, "LETHE_RULES": env["LETHE_RULES"]}

	ended{1, []string{"keep publication lethe in step", "permission denied", "CREATE PUBLICATION"}}.check(t, start(t, env, "run"))
	expectMigrate := func(env map[string]string, code int, want string, args ...string) {
		t.Helper()
		l := start(t, env, append([]string{"migrate"}, args...)...)
		if got := l.wait(30 * time.Second); got != code || !strings.Contains(l.output.String(), want) {
			t.Errorf("migrate %v: exit code %d, want %d and %q:\n%s", args, got, code, want, l.output.String())
		}
	}
	expectMigrate(env, 1, "lethe migrate --role app") // nothing could be applied
	expectMigrate(admin, 1, `role "nobody" does not exist`, "--role", "nobody")
	expectMigrate(admin, 0, "granted to app", "--role", "app")

	execute(t, url, `ALTER TABLE items OWNER TO app`, `GRANT CREATE ON DATABASE postgres TO app`)
	ended{1, []string{"REPLICATION"}}.check(t, start(t, env, "run"))
	execute(t, url, `ALTER ROLE app REPLICATION`)
	l := start(t, env, "run")
	l.ready()
	c := openCache(t, rdb.URL(), "item")
	c.warm(itemName, "one")
	execute(t, url, `UPDATE items SET name = 'uno' WHERE id = 1`)
	c.gone(itemName)
	l.stop()
}

// TestMigrateWithoutSuperuser: the guard takes a superuser, and that a service
// has none is no failure.
func TestMigrateWithoutSuperuser(t *testing.T) {
	t.Parallel()
	pg := harness.NewPostgres(t, servers.PostgresConfig{})
	url := pg.URL("postgres")
	execute(t, url, `CREATE ROLE app LOGIN`, `GRANT CREATE ON DATABASE postgres TO app`)
	for range 2 {
		l := start(t, map[string]string{"LETHE_POSTGRES_URL": as(url, "app")}, "migrate")
		if code := l.wait(30 * time.Second); code != 0 || !strings.Contains(l.output.String(), "not applied: 0003_guard") {
			t.Errorf("exit code %d, want 0 and the guard named:\n%s", code, l.output.String())
		}
	}
}

package e2e

import (
	"context"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

// execute runs SQL on a database and fails the test if it can not.
func execute(t *testing.T, database string, statements ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, database)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	for _, s := range statements {
		if _, err := conn.Exec(ctx, s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

const itemRules = `version: 1
namespace: e2e
entries:
  item:
    key: item:{id}
    ttl: 1h
    load: {sql: "SELECT id, name FROM items WHERE id = ANY(@id)"}
rules:
  - name: item
    table: public.items
    keys: ["item:{id}"]
`

const itemTable = `CREATE TABLE items (id int PRIMARY KEY, name text NOT NULL)`

// ended says what a run that can not succeed must print and return.
type ended struct {
	code int
	says []string
}

func (want ended) check(t *testing.T, l *lethe) {
	t.Helper()
	code := l.wait(30 * time.Second)
	out := l.output.String()
	if code != want.code {
		t.Errorf("exit code %d, want %d", code, want.code)
	}
	for _, s := range want.says {
		if !strings.Contains(out, s) {
			t.Errorf("output lacks %q", s)
		}
	}
	if n := strings.Count(out, "Error: "); n != 1 {
		t.Errorf("%d errors printed, want one", n)
	}
	if strings.Contains(out, "panic") || strings.Contains(out, "goroutine ") {
		t.Error("output holds a panic")
	}
}

func settingsFor(t *testing.T, database, rules string) map[string]string {
	t.Helper()
	return map[string]string{
		"LETHE_POSTGRES_URL": database,
		"LETHE_REDIS_URL":    harness.Redis(t).URL(),
		"LETHE_RULES":        rulesFile(t, rules),
		"LETHE_SLOT":         "lethe_" + strings.ReplaceAll(databaseName(t, database), "-", "_"),
	}
}

func databaseName(t *testing.T, database string) string {
	t.Helper()
	u, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	return strings.ToLower(strings.TrimPrefix(u.Path, "/"))
}

func TestBadInputEndsWithOneClearError(t *testing.T) {
	t.Parallel()
	database := harness.Database(t)
	execute(t, database, itemTable)
	cases := map[string]struct {
		args   []string
		change func(env map[string]string)
		want   ended
	}{
		"malformed rules": {
			change: func(env map[string]string) { env["LETHE_RULES"] = rulesFile(t, "version: 1\nrulez: [\n") },
			want:   ended{3, []string{"rules.yaml:"}},
		},
		"unknown field": {
			change: func(env map[string]string) {
				env["LETHE_RULES"] = rulesFile(t, strings.Replace(itemRules, "keys:", "kesy:", 1))
			},
			want: ended{3, []string{"rules.yaml:", `"kesy"`, `"keys"`}},
		},
		"no rules file": {
			change: func(env map[string]string) { env["LETHE_RULES"] = "nowhere.yaml" },
			want:   ended{1, []string{"nowhere.yaml"}},
		},
		"missing table": {
			change: func(env map[string]string) {
				env["LETHE_RULES"] = rulesFile(t, strings.Replace(itemRules, "public.items", "public.itemz", 1))
			},
			want: ended{3, []string{"rules.yaml:", "public.itemz", `did you mean "public.items"`}},
		},
		"missing column": {
			change: func(env map[string]string) {
				env["LETHE_RULES"] = rulesFile(t, strings.Replace(itemRules, `keys: ["item:{id}"]`, `keys: ["item:{idd}"]`, 1))
			},
			want: ended{3, []string{"rules.yaml:", `"idd"`}},
		},
		"wrong user": {
			change: func(env map[string]string) {
				env["LETHE_POSTGRES_URL"] = strings.Replace(env["LETHE_POSTGRES_URL"], "postgres@", "nobody_here@", 1)
			},
			want: ended{1, []string{"nobody_here", "REPLICATION"}},
		},
		"missing database": {
			change: func(env map[string]string) {
				env["LETHE_POSTGRES_URL"] = strings.Replace(env["LETHE_POSTGRES_URL"], databaseName(t, database), "no_such_database", 1)
			},
			want: ended{1, []string{"no_such_database"}},
		},
		"no postgres url": {
			change: func(env map[string]string) { env["LETHE_POSTGRES_URL"] = "" },
			want:   ended{2, []string{"LETHE_POSTGRES_URL"}},
		},
		"bad slot name": {
			change: func(env map[string]string) { env["LETHE_SLOT"] = "Bad-Slot" },
			want:   ended{2, []string{"LETHE_SLOT"}},
		},
		"reader without brokers": {
			args: []string{"run", "--roles", "reader"},
			want: ended{2, []string{"LETHE_KAFKA_BROKERS"}},
		},
		"unknown role": {
			args: []string{"run", "--roles", "reeder"},
			want: ended{2, []string{"reeder"}},
		},
		"unknown command": {args: []string{"rum"}, want: ended{2, []string{"rum"}}},
		"unknown flag":    {args: []string{"run", "--slott", "x"}, want: ended{2, []string{"--slott"}}},
		"redis database that is not there": {
			change: func(env map[string]string) {
				env["LETHE_REDIS_URL"] = strings.TrimSuffix(env["LETHE_REDIS_URL"], "/0") + "/9999"
			},
			want: ended{1, []string{"DB index", "LETHE_REDIS_URL"}},
		},
		"kafka password without a mechanism": {
			change: func(env map[string]string) {
				env["LETHE_KAFKA_BROKERS"], env["LETHE_KAFKA_PASSWORD"] = "127.0.0.1:1", "secret"
			},
			want: ended{2, []string{"LETHE_KAFKA_SASL_MECHANISM"}},
		},
		"bad redis url": {
			change: func(env map[string]string) { env["LETHE_REDIS_URL"] = "http://127.0.0.1" },
			want:   ended{2, []string{"LETHE_REDIS_URL"}},
		},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			env := settingsFor(t, database, itemRules)
			env["LETHE_SLOT"] = "lethe_" + strings.ReplaceAll(strings.ToLower(harness.Namespace(t)), "-", "_")
			if len(env["LETHE_SLOT"]) > 60 {
				env["LETHE_SLOT"] = env["LETHE_SLOT"][:60]
			}
			if c.change != nil {
				c.change(env)
			}
			args := c.args
			if args == nil {
				args = []string{"run"}
			}
			c.want.check(t, start(t, env, args...))
		})
	}
}

func TestBadInputWalLevel(t *testing.T) {
	t.Parallel()
	pg := harness.NewPostgres(t, servers.PostgresConfig{Settings: map[string]string{"wal_level": "replica"}})
	execute(t, pg.URL("postgres"), itemTable)
	l := start(t, settingsFor(t, pg.URL("postgres"), itemRules), "run")
	ended{1, []string{"wal_level", "ALTER SYSTEM SET wal_level = logical"}}.check(t, l)
}

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/internal/harness"
)

// configFile writes a file of settings and returns its path.
func configFile(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "lethe.yaml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestSettingsPrecedence: flag over environment over file, seen in the message
// that names the slot which is no slot.
func TestSettingsPrecedence(t *testing.T) {
	t.Parallel()
	file := configFile(t, "slot: From-File\n")
	for _, c := range []struct {
		name string
		env  string
		args []string
		want string
	}{
		{"file", "", nil, `"From-File"`},
		{"environment", "From-Env", nil, `"From-Env"`},
		{"flag", "From-Env", []string{"--slot", "From-Flag"}, `"From-Flag"`},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			env := map[string]string{"LETHE_CONFIG": file, "LETHE_SLOT": c.env}
			l := start(t, env, append([]string{"check"}, c.args...)...)
			ended{2, []string{"LETHE_SLOT: " + c.want}}.check(t, l)
		})
	}
}

// TestSettingsFileServesEveryCommand: what only some commands take is no
// mistake for the others, and what none takes is one for all.
func TestSettingsFileServesEveryCommand(t *testing.T) {
	t.Parallel()
	rules := rulesFile(t, itemRules)
	good := configFile(t, "rules: ["+rules+"]\nroles: [reader, worker]\nwal-budget: 1000000\nLETHE_LOG: json\n")
	l := start(t, map[string]string{"LETHE_CONFIG": good}, "check")
	if code := l.wait(30 * time.Second); code != 0 {
		t.Errorf("check with a file for run: exit code %d, want 0", code)
	}
	for text, want := range map[string]string{
		"slott: a\n":        `unknown setting "slott"`,
		"help: true\n":      `unknown setting "help"`,
		"config: x.yaml\n":  `unknown setting "config"`,
		"- a\n":             "lethe.yaml: ",
		"kafka_tls: many\n": "--kafka-tls",
	} {
		l := start(t, map[string]string{"LETHE_CONFIG": configFile(t, text)}, "check", "--rules", rules)
		ended{2, []string{want}}.check(t, l)
	}
}

// TestSecretsAreNotPrinted: not those that are well written, and not those in
// what can not be understood.
func TestSecretsAreNotPrinted(t *testing.T) {
	t.Parallel()
	const secret = "s3cr3t"
	rules := rulesFile(t, itemRules)
	redis := harness.Redis(t).Addr()
	for _, c := range []struct {
		code           int
		postgres, text string
	}{
		{1, "postgres://a:" + secret + "@127.0.0.1:1/x", ""},
		{2, "postgres://a:" + secret + "@127.0.0.1:port/x", ""},
		{2, "postgres://a:" + secret + "%zz@127.0.0.1/x", ""},
		{2, "postgres://a:" + secret + "@127.0.0.1:1/x?sslmode=foo", "sslmode is invalid"},
		{2, "postgres://a@127.0.0.1:1/x?sslmode=foo&password=" + secret, "sslmode is invalid"},
		{2, "postgres://a:" + secret + "@127.0.0.1:1/x?pool_max_conns=none", "pool_max_conns"},
		{2, "mysql://a:" + secret + "@127.0.0.1:1/x", "postgres://"},
		{2, "postgres:/a:" + secret + "=1@127.0.0.1/x", "postgres://"},
		{2, "a:" + secret + "=1@127.0.0.1/x", "postgres://"},
		{2, "host=127.0.0.1 password = " + secret + " port=none", "invalid port"},
		{2, "host=127.0.0.1 password='a\\'" + secret + "' port=none", "invalid port"},
		{2, "host=127.0.0.1 port=1 password=" + secret + " more", "keyword/value"},
	} {
		for _, command := range []string{"check", "doctor", "run"} {
			if command == "run" && c.code == 1 {
				continue // it tries again until it is stopped
			}
			l := start(t, map[string]string{"LETHE_POSTGRES_URL": c.postgres, "LETHE_RULES": rules}, command)
			if code := l.wait(30 * time.Second); code != c.code {
				t.Errorf("%s with %s: exit code %d, want %d", command, c.postgres, code, c.code)
			}
			noSecret(t, l, secret, command+" with "+c.postgres)
			if !strings.Contains(l.output.String(), c.text) {
				t.Errorf("%s with %s: output lacks %q:\n%s", command, c.postgres, c.text, l.output.String())
			}
		}
	}
	for _, url := range []string{
		"redis://u:" + secret + "@" + redis + "/0",
		"redis://u:" + secret + "%zz@" + redis,
		"redis://u:" + secret + "@127.0.0.1:1,127.0.0.1:2",
		"redis+sentinel://u:" + secret + "@127.0.0.1:1",
		"redis+sentinel://127.0.0.1:1/m?sentinel_password=" + secret,
		"u:" + secret + "@127.0.0.1",
	} {
		l := start(t, map[string]string{"LETHE_REDIS_URL": url, "LETHE_RULES": rules, "LETHE_LOG_LEVEL": "debug"}, "status")
		l.wait(30 * time.Second)
		noSecret(t, l, secret, "status with "+url)
	}
}

func noSecret(t *testing.T, l *lethe, secret, what string) {
	t.Helper()
	if out := l.output.String(); strings.Contains(out, secret) {
		t.Errorf("%s: output holds the password:\n%s", what, out)
	}
}

package servers

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// fakeApt puts an apt-get on PATH that notes how it was called and whether
// services were forbidden meanwhile.
func fakeApt(t *testing.T, policy, script string) (calls string) {
	t.Helper()
	dir := t.TempDir()
	calls = filepath.Join(dir, "calls")
	text := "#!/bin/sh\necho \"$DEBIAN_FRONTEND $*\" >>" + calls + "\n[ -x " + policy + " ] && echo forbidden >>" + calls + "\n" + script
	if err := os.WriteFile(filepath.Join(dir, "apt-get"), []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":/usr/bin:/bin")
	return calls
}

func TestInstallStartsNoServices(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("left out: installs only as root")
	}
	policy := filepath.Join(t.TempDir(), "policy-rc.d")
	calls := fakeApt(t, policy, "exit 0\n")
	if err := install(t.Context(), []string{"postgresql", "redis-server"}, policy); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(calls)
	if err != nil {
		t.Fatal(err)
	}
	want := "noninteractive update -q\nforbidden\nnoninteractive install -q -y --no-install-recommends postgresql redis-server\nforbidden\n"
	if string(got) != want {
		t.Errorf("calls:\n%swant:\n%s", got, want)
	}
	if _, err := os.Stat(policy); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("services stay forbidden afterwards: %v", err)
	}
}

func TestInstallKeepsThePolicyOfTheMachine(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("left out: installs only as root")
	}
	policy := filepath.Join(t.TempDir(), "policy-rc.d")
	if err := os.WriteFile(policy, []byte("mine"), 0o755); err != nil {
		t.Fatal(err)
	}
	fakeApt(t, policy, "echo 'E: no network'; exit 100\n")
	err := install(t.Context(), []string{"redis-server"}, policy)
	if err == nil || !strings.Contains(err.Error(), "apt-get update") || !strings.Contains(err.Error(), "no network") {
		t.Errorf("install without a network: %v, want apt-get's words", err)
	}
	if got, _ := os.ReadFile(policy); string(got) != "mine" {
		t.Errorf("the machine's policy is now %q", got)
	}
}

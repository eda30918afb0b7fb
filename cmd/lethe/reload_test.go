package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/rules"
)

const reloadRules = "version: 1\nentries:\n  item: {key: \"item:{id}\"}\nrules:\n  - {name: r, table: public.items, keys: [\"item:{id}\"]}\n"

// following is a pipeline that follows a rules file, with no server at all.
func following(t *testing.T, file string, before func()) *pipeline {
	t.Helper()
	s := &settings{Rules: []string{file}}
	seen := rules.Fingerprint(s.Rules...)
	set, err := loadRules(s.Rules)
	if err != nil {
		t.Fatal(err)
	}
	p, err := newPipeline(s, roles{}, set, slog.New(slog.DiscardHandler), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	p.seen = seen
	before()
	ctx, cancel := context.WithCancel(context.Background())
	var wait sync.WaitGroup
	wait.Go(func() { p.followRules(ctx, nil) })
	t.Cleanup(func() { cancel(); wait.Wait() })
	return p
}

func (p *pipeline) waitFailed(t *testing.T, n float64) {
	t.Helper()
	harness.Eventually(t, 30*time.Second, func() error {
		if got := testutil.ToFloat64(p.reloads.count.WithLabelValues("failed")); got < n {
			return fmt.Errorf("%v reloads failed, want %v", got, n)
		}
		return nil
	})
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// A start may wait for its servers as long as it likes: what became of the files
// meanwhile is taken when it is over.
func TestRulesThatChangeDuringTheStart(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "rules.yaml")
	write(t, file, reloadRules)
	p := following(t, file, func() { write(t, file, "version: 1\nrulez: []\n") })
	p.waitFailed(t, 1)
}

// A file that is gone is looked for until it is back, whatever it holds then.
func TestRulesThatVanishAreTriedAgain(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "rules.yaml")
	write(t, file, reloadRules)
	p := following(t, file, func() {
		if err := os.Remove(file); err != nil {
			t.Fatal(err)
		}
	})
	p.waitFailed(t, 2)
}

// Kubernetes changes a mounted ConfigMap by another target of a symlink that
// stands in the middle of the path.
func TestRulesBehindSymlinks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for name, text := range map[string]string{"one": reloadRules, "two": "version: 1\nrulez: []\n"} {
		if err := os.Mkdir(at(name), 0o700); err != nil {
			t.Fatal(err)
		}
		write(t, filepath.Join(at(name), "rules.yaml"), text)
	}
	link := func(target, name string) {
		if err := os.Symlink(target, at(name)); err != nil {
			t.Fatal(err)
		}
	}
	link("one", "..data")
	link(filepath.Join("..data", "rules.yaml"), "rules.yaml")
	p := following(t, at("rules.yaml"), func() {})
	link("two", "..data_tmp")
	if err := os.Rename(at("..data_tmp"), at("..data")); err != nil {
		t.Fatal(err)
	}
	p.waitFailed(t, 1)
}

func TestMain(m *testing.M) { harness.Main(m) }

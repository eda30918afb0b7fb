package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	t.Parallel()
	o, err := parse([]string{"-sizes", "1, 50", "-rounds", "3"}, new(strings.Builder))
	if err != nil || len(o.sizes) != 2 || o.sizes[1] != 50 || o.roundsOf(50) != 3 {
		t.Errorf("parsed %+v (%v)", o, err)
	}
	for _, args := range [][]string{{"-sizes", "0"}, {"-sizes", "x"}, {"more"}} {
		if _, err := parse(args, new(strings.Builder)); err == nil {
			t.Errorf("%v is accepted", args)
		}
	}
	if o.rounds = 0; o.roundsOf(1) <= o.roundsOf(1_000_000) {
		t.Error("large purges are repeated as often as small ones")
	}
}

func TestQuantile(t *testing.T) {
	t.Parallel()
	of := []time.Duration{5, 1, 4, 2, 3}
	for q, want := range map[float64]time.Duration{0: 1, .5: 3, .99: 5, 1: 5} {
		if got := quantile(of, q); got != want {
			t.Errorf("quantile %v of %v: %v, want %v", q, of, got, want)
		}
	}
	if got := quantile(nil, .5); got != 0 {
		t.Errorf("of nothing: %v", got)
	}
}

func TestTableComparesWithTheFirstSize(t *testing.T) {
	t.Parallel()
	r := newReport("servers")
	r.add(1, purged{l1: 2 * time.Millisecond, l2: 2 * time.Millisecond, sweep: time.Millisecond, bytes: 240})
	r.add(1000, purged{l1: 3 * time.Millisecond, l2: time.Millisecond, sweep: 10 * time.Millisecond, bytes: 70_000,
		busy: make([]time.Duration, leastSamples)})
	text := r.table()
	for _, want := range []string{"| 1000 | 1 |", "| 1.50, 0.50 |", "| 100000 | 70 |", "too short, 0.00 ms |"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

func TestReplaceTable(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "tags.md")
	if err := os.WriteFile(path, []byte("a\n"+beginMark+"\nold\n"+endMark+"\nb\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := replaceTable(path, "new\n"); err != nil {
			t.Fatal(err)
		}
	}
	data, err := os.ReadFile(path)
	if want := "a\n" + beginMark + "\nnew\n" + endMark + "\nb\n"; err != nil || string(data) != want {
		t.Errorf("%q (%v), want %q", data, err, want)
	}
	if err := os.WriteFile(path, []byte("nothing"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := replaceTable(path, "new"); err == nil {
		t.Error("a file without a place for the table is accepted")
	}
}

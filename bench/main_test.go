package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestOptions(t *testing.T) {
	t.Parallel()
	o, err := parse([]string{"-quick", "-rounds", "1", "-limit", "10s", "-only", "rss,invalidate"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	s, names, err := o.apply()
	if err != nil {
		t.Fatal(err)
	}
	if s.Mode != "quick" || s.Rounds != 1 || s.LatencyRounds != 1 || s.Limit.Seconds() != 10 {
		t.Errorf("sizes = %+v", s)
	}
	if want := []string{"invalidate_vs_unlink", "rss_mb_1m_rows"}; !slices.Equal(names, want) {
		t.Errorf("names = %v, want %v", names, want)
	}
	if quickSizes.Rounds != 3 {
		t.Errorf("the options changed the sizes for everybody: %+v", quickSizes)
	}
}

func TestCommandLineErrors(t *testing.T) {
	t.Parallel()
	for _, args := range [][]string{{"-nope"}, {"quick"}, {"-only", "speed"}, {"-rounds", "-1"}, {"-limit", "-1s"}} {
		var out, errs bytes.Buffer
		if code := run(args, &out, &errs); code != 2 || errs.Len() == 0 {
			t.Errorf("run(%v) = %d, %q, want 2 and a reason", args, code, errs.String())
		}
	}
	if code := run([]string{"-h"}, io.Discard, io.Discard); code != 0 {
		t.Errorf("run(-h) = %d, want 0", code)
	}
}

func TestAlternate(t *testing.T) {
	t.Parallel()
	e := &env{}
	var order []int
	measure := func(side int) (float64, error) {
		order = append(order, side)
		return float64(10 + side), nil
	}
	for round := range 2 {
		got, err := e.alternate(context.Background(), round, measure)
		if err != nil || got != (Pair{Subject: 10, Baseline: 11}) {
			t.Errorf("round %d = %v, %v", round, got, err)
		}
	}
	if want := []int{0, 1, 1, 0}; !slices.Equal(order, want) {
		t.Errorf("order = %v, want %v: neither always first", order, want)
	}
	broken := errors.New("broken")
	if _, err := e.alternate(context.Background(), 0, func(int) (float64, error) { return 0, broken }); !errors.Is(err, broken) {
		t.Errorf("alternate = %v, want %v", err, broken)
	}
}

func TestMoreRounds(t *testing.T) {
	t.Parallel()
	e := &env{sizes: sizes{Limit: 100 * time.Second}}
	now := time.Now()
	for _, c := range []struct {
		name  string
		round int
		start time.Time
		want  bool
	}{
		{"the first, however late", 0, now.Add(-time.Hour), true},
		{"within its share", 1, now.Add(-5 * time.Second), true},
		{"share used up", 1, now.Add(-11 * time.Second), false},
		{"all done", 3, now, false},
	} {
		if got := e.more(c.round, 3, c.start, 0.1); got != c.want {
			t.Errorf("%s: more = %v, want %v", c.name, got, c.want)
		}
	}
}

func TestStepNamesTheReason(t *testing.T) {
	t.Parallel()
	var logged bytes.Buffer
	e := &env{metrics: newMetrics([]string{"invalidate_vs_unlink"}), log: slog.New(slog.NewTextHandler(&logged, nil))}
	leaves := func(err error) { e.metrics.unmeasured("invalidate_vs_unlink", noWorkload, err) }
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(errLimit)
	e.step(ctx, "invalidate", func(context.Context) error { t.Error("ran after the end"); return nil }, leaves)
	if got := e.metrics.get("invalidate_vs_unlink").Results[noWorkload].Unmeasured; got != errLimit.Error() {
		t.Errorf("reason = %q, want %q", got, errLimit)
	}
	var out bytes.Buffer
	if code := e.finish(time.Now(), thisMachine(), t.TempDir()+"/r.json", &out, io.Discard); code != 1 {
		t.Errorf("exit code with a metric that was not measured = %d, want 1", code)
	}
	if !strings.Contains(out.String(), errLimit.Error()) {
		t.Errorf("output does not say why:\n%s", out.String())
	}
	e.metrics.pairs("invalidate_vs_unlink", noWorkload, []Pair{{1, 2}})
	if code := e.finish(time.Now(), thisMachine(), t.TempDir()+"/r.json", io.Discard, io.Discard); code != 0 {
		t.Errorf("exit code with everything measured, but a bound missed = %d, want 0", code)
	}
}

func TestWithoutSettings(t *testing.T) {
	t.Parallel()
	got := withoutSettings([]string{"PATH=/bin", "LETHE_REDIS_URL=redis://elsewhere", "HOME=/"})
	if want := []string{"PATH=/bin", "HOME=/"}; !slices.Equal(got, want) {
		t.Errorf("environment = %v, want %v", got, want)
	}
}

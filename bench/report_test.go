package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func filled() *metrics {
	m := newMetrics([]string{"reader_vs_pg_recvlogical", "kafka_vs_direct", "commit_to_redis_vs_del_p99", "commit_to_redis_p99_ms"})
	m.pairs("reader_vs_pg_recvlogical", "A", []Pair{{250_000, 300_000}, {290_000, 300_000}, {280_000, 300_000}})
	m.pairs("reader_vs_pg_recvlogical", "B", []Pair{{60_000, 120_000}})
	m.unmeasured("kafka_vs_direct", "A", errors.New("no Kafka on this machine"))
	m.pairs("commit_to_redis_vs_del_p99", noWorkload, []Pair{{0.9, 0.3}, {1.2, 0.3}})
	m.values("commit_to_redis_p99_ms", noWorkload, []float64{0.9, 1.2})
	return m
}

func TestMetricsJudge(t *testing.T) {
	t.Parallel()
	m := filled()
	for _, c := range []struct {
		name, workload string
		want           *bool
	}{
		{"reader_vs_pg_recvlogical", "A", ptr(true)},           // 0.93 of at least 0.9
		{"reader_vs_pg_recvlogical", "B", ptr(false)},          // 0.5
		{"kafka_vs_direct", "A", nil},                          // nothing measured is no verdict
		{"commit_to_redis_vs_del_p99", noWorkload, ptr(false)}, // 3.5 of at most 3
		{"commit_to_redis_p99_ms", noWorkload, (*bool)(nil)},   // no bound
	} {
		got := m.get(c.name).Results[c.workload].Met
		if (got == nil) != (c.want == nil) || got != nil && *got != *c.want {
			t.Errorf("%s %s: met = %s, want %s", c.name, c.workload, answer(got), answer(c.want))
		}
	}
}

func TestMetricsComplete(t *testing.T) {
	t.Parallel()
	m := newMetrics([]string{"commit_to_redis_p50_ms"})
	if m.complete() {
		t.Error("complete with nothing measured")
	}
	m.unmeasured("commit_to_redis_p50_ms", noWorkload, errors.New("Redis is not there"))
	if m.complete() {
		t.Error("complete with a metric that could not be measured")
	}
	m.values("commit_to_redis_p50_ms", noWorkload, []float64{1})
	m.unmeasured("commit_to_redis_p50_ms", noWorkload, errors.New("time is up"))
	if !m.complete() {
		t.Error("not complete, though the first round measured it")
	}
	if got := m.get("commit_to_redis_p50_ms").Results[noWorkload].Note; got != "stopped early: time is up" {
		t.Errorf("note = %q, want why there are no more rounds", got)
	}
	m.values("not_a_metric_of_this_run", noWorkload, []float64{1}) // ignored
	if m.get("not_a_metric_of_this_run") != nil {
		t.Error("a metric appeared that the run does not measure")
	}
}

func TestPrint(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	if err := filled().print(&b); err != nil {
		t.Fatal(err)
	}
	got := squeeze(b.String())
	for _, want := range []string{
		"NAME LOAD VALUE BASELINE RATIO MIN..MAX TARGET MET",
		"reader_vs_pg_recvlogical A 280.0 krows/s 300.0 krows/s 0.93 0.83..0.97 >= 0.9 yes",
		"reader_vs_pg_recvlogical B 60.0 krows/s 120.0 krows/s 0.50 - >= 0.9 no",
		"kafka_vs_direct A not measured >= 0.4",
		"commit_to_redis_vs_del_p99 1.05 ms 0.3 ms 3.50 3.00..4.00 <= 3 no",
		"commit_to_redis_p99_ms 1.05 ms - - 0.90..1.20 - -",
		"kafka_vs_direct A: not measured: no Kafka on this machine",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("output lacks %q:\n%s", want, b.String())
		}
	}
}

func TestReportFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "results", "run.json")
	if err := newReport(time.Now(), quickSizes, Machine{Cores: 2}, filled()).write(path); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Mode    string
		Machine struct{ Cores int }
		Summary map[string]float64
		Metrics map[string]struct {
			Unit    string
			Results map[string]struct {
				Value      struct{ Median float64 }
				Ratio      struct{ Min, Max float64 }
				AtLeast    float64 `json:"at_least"`
				Met        *bool
				Unmeasured string
			}
		}
	}
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	reader := got.Metrics["reader_vs_pg_recvlogical"]
	a := reader.Results["A"]
	if got.Mode != "quick" || got.Machine.Cores != 2 || reader.Unit != "rows/s" || a.Value.Median != 280_000 || a.AtLeast != 0.9 || a.Met == nil || !*a.Met {
		t.Errorf("report = %s", data)
	}
	if r := got.Metrics["kafka_vs_direct"].Results["A"]; r.Unmeasured == "" || r.Met != nil {
		t.Errorf("unmeasured metric = %+v, want the reason and no verdict", r)
	}
	if _, invented := got.Summary["kafka_vs_direct_a"]; invented {
		t.Error("summary has a number for what was not measured")
	}
	if got.Summary["reader_vs_pg_recvlogical_b"] != 0.5 || got.Summary["commit_to_redis_p99_ms"] != 1.05 {
		t.Errorf("summary = %v", got.Summary)
	}
}

// squeeze turns runs of spaces into one, so that column widths do not matter.
func squeeze(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = strings.Join(strings.Fields(lines[i]), " ")
	}
	return strings.Join(lines, "\n")
}

func ptr(b bool) *bool { return &b }

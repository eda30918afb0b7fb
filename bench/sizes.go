package main

import (
	"slices"
	"time"
)

// sizes are how much a run does. Rates do not depend on them much, but short
// drains are noisier, so the full sizes are those that the budgets name.
type sizes struct {
	Mode string `json:"mode"`
	// ATransactions of ARows updated rows each are workload A, BTransactions of
	// one row are workload B.
	ATransactions int `json:"a_transactions"`
	ARows         int `json:"a_rows"`
	BTransactions int `json:"b_transactions"`
	// Rounds of subject and baseline, alternating in which comes first.
	Rounds int `json:"rounds"`
	// KafkaWorkloads are the workloads that the kafka pipeline is measured
	// under.
	KafkaWorkloads []string `json:"kafka_workloads"`
	// Keys that invalidate_vs_unlink removes in a round.
	Keys int `json:"keys"`
	// Latency is how long the commits of one latency round last.
	Latency       time.Duration `json:"latency_ns"`
	LatencyRounds int           `json:"latency_rounds"`
	// MemoryRows is the size of the one large transaction; its metric is
	// MemoryMetric.
	MemoryRows   int    `json:"memory_rows"`
	MemoryMetric string `json:"memory_metric"`
	// DelLimit bounds the drain of the consumer that sends one DEL a change:
	// its rate is steady, and all of it would take most of the run.
	DelLimit time.Duration `json:"del_limit_ns"`
	// Limit bounds the whole run. What is not measured by then is named.
	Limit time.Duration `json:"limit_ns"`
}

var quickSizes = sizes{
	Mode: "quick", ATransactions: 2_000, ARows: 100, BTransactions: 50_000,
	Rounds: 3, KafkaWorkloads: []string{"A"}, Keys: 200_000,
	Latency: 4 * time.Second, LatencyRounds: 2,
	MemoryRows: 1_000_000, MemoryMetric: "rss_mb_1m_rows",
	DelLimit: time.Second, Limit: 150 * time.Second,
}

var fullSizes = sizes{
	Mode: "full", ATransactions: 10_000, ARows: 100, BTransactions: 200_000,
	Rounds: 5, KafkaWorkloads: []string{"A", "B"}, Keys: 1_000_000,
	Latency: 20 * time.Second, LatencyRounds: 3,
	MemoryRows: 10_000_000, MemoryMetric: "rss_mb_10m_rows",
	DelLimit: 5 * time.Second, Limit: 40 * time.Minute,
}

// measured are the names of the metrics of a run of these sizes: those that it
// knows, but for those that a quick run has no time for unless it is asked.
func (s sizes) measured() []string {
	names := s.known()
	if s.Mode == "quick" {
		names = slices.DeleteFunc(names, func(name string) bool { return slices.Contains(l1Metrics, name) })
	}
	return names
}

// known are the names of the metrics that a run of these sizes can measure.
func (s sizes) known() []string {
	var names []string
	for _, d := range definitions {
		if d.name == "rss_mb_1m_rows" || d.name == "rss_mb_10m_rows" {
			if d.name != s.MemoryMetric {
				continue
			}
		}
		names = append(names, d.name)
	}
	return names
}

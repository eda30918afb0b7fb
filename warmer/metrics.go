package warmer

import "github.com/prometheus/client_golang/prometheus"

// Metrics are what a Warmer and a Queue count. Safe for concurrent use.
type Metrics struct {
	fills   *prometheus.CounterVec
	loads   *prometheus.HistogramVec
	rewarms *prometheus.CounterVec
	queued  *prometheus.GaugeVec
	// auto is what action auto has chosen, read and cost what it goes by.
	auto, read, cost *prometheus.GaugeVec
}

// NewMetrics makes the metrics and registers them; nil registers nothing.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		fills: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lethe_fills_total", Help: "Values offered to the cache, by what became of them.",
		}, []string{"class", "result", "reason"}),
		loads: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "lethe_load_seconds", Help: "How long Lethe's own loads took, many entries each.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"class"}),
		rewarms: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lethe_rewarm_total", Help: "Entries that were to be filled again, by what became of them.",
		}, []string{"class", "result"}),
		queued: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lethe_rewarm_queue", Help: "Entries that are to be filled again: waiting, and being loaded.",
		}, []string{"state"}),
		auto: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lethe_rewarm_auto", Help: "1 if action auto fills the entries of a class again at present, 0 if it leaves that to readers.",
		}, []string{"class"}),
		read: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lethe_rewarm_auto_read_ratio", Help: "Share of the entries that are read between two invalidations, as action auto has measured it.",
		}, []string{"class"}),
		cost: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lethe_rewarm_auto_cost_ratio", Help: "What filling an entry again costs, as a share of a reader's miss, as action auto has measured it.",
		}, []string{"class"}),
	}
	if reg != nil {
		reg.MustRegister(m.fills, m.loads, m.rewarms, m.queued, m.auto, m.read, m.cost)
	}
	return m
}

package warmer

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// WarmupMetrics count warm-ups. Safe for concurrent use.
type WarmupMetrics struct {
	read    *prometheus.CounterVec
	entries *prometheus.CounterVec
	runs    *prometheus.CounterVec
	seconds *prometheus.HistogramVec
	success *prometheus.GaugeVec
	pending *prometheus.GaugeVec
}

// NewWarmupMetrics makes the metrics and registers them; nil registers nothing.
func NewWarmupMetrics(reg prometheus.Registerer) *WarmupMetrics {
	entry := []string{"entry"}
	m := &WarmupMetrics{
		read: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lethe_warm_rows_total", Help: "Rows of warm.sql that were dealt with."}, entry),
		entries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lethe_warm_entries_total", Help: "Entries of warm-ups, by what became of them: stored, present, no_row, oversize, refused."}, []string{"entry", "result"}),
		runs: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lethe_warm_runs_total", Help: "Warm-ups, by how they ended: done, deadline, failed, stopped, skipped."}, []string{"entry", "result"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "lethe_warm_seconds", Help: "How long warm-ups ran.", Buckets: prometheus.ExponentialBuckets(0.01, 4, 10)}, entry),
		success: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lethe_warm_last_success_timestamp_seconds", Help: "When a warm-up of the entry was last done whole."}, entry),
		pending: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lethe_warm_pending_rows", Help: "Rows that the run under way has before it; 0 without one."}, entry),
	}
	if reg != nil {
		reg.MustRegister(m.read, m.entries, m.runs, m.seconds, m.success, m.pending)
	}
	return m
}

func (m *WarmupMetrics) began(p *Progress) { m.pending.WithLabelValues(p.Entry).Set(float64(p.Of)) }

func (m *WarmupMetrics) rows(entry string, n int) {
	m.read.WithLabelValues(entry).Add(float64(n))
	m.pending.WithLabelValues(entry).Sub(float64(n))
}

func (m *WarmupMetrics) filled(entry string, r Result) {
	for result, n := range map[string]int{"stored": r.Stored, "present": r.Present, "no_row": r.NoRow, "oversize": r.Oversize, "refused": r.refused()} {
		if n > 0 {
			m.entries.WithLabelValues(entry, result).Add(float64(n))
		}
	}
}

func (m *WarmupMetrics) ended(p *Progress) {
	m.runs.WithLabelValues(p.Entry, p.State).Inc()
	if p.State == "skipped" {
		return
	}
	m.pending.WithLabelValues(p.Entry).Set(0)
	m.seconds.WithLabelValues(p.Entry).Observe(p.Took.Seconds())
	if p.State == "done" {
		m.success.WithLabelValues(p.Entry).Set(float64(time.Now().UnixMilli()) / 1000)
	}
}

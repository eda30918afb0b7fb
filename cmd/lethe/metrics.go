package main

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/lethe-cache/lethe/cdc"
	"github.com/lethe-cache/lethe/change"
)

// metrics are what the reader and the process count; the worker's are its own.
type metrics struct {
	cdc.NopObserver
	read      *prometheus.CounterVec
	snapshots prometheus.Histogram
	heartbeat prometheus.Gauge
	held      prometheus.Gauge
	heldBytes prometheus.Gauge
	poison    *prometheus.CounterVec
	asked     *prometheus.CounterVec
	lag       prometheus.Gauge
	retained  prometheus.Gauge
	safe      prometheus.Gauge
	phase     *prometheus.GaugeVec
}

var _ cdc.Observer = (*metrics)(nil)

func newMetrics(registry *prometheus.Registry) *metrics {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	m := &metrics{
		read: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lethe_read_changes_total", Help: "Changes that the reader handed on."}, []string{"table", "op"}),
		snapshots: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "lethe_gate_snapshot_seconds", Help: "What a snapshot of the gate takes.",
			Buckets: prometheus.ExponentialBuckets(20e-6, 2, 14)}),
		heartbeat: gauge("lethe_heartbeat_seconds", "From the last heartbeat's emission to its arrival at the reader."),
		held:      gauge("lethe_gate_held", "Commits received that are not visible yet."),
		heldBytes: gauge("lethe_gate_held_bytes", "Memory of the changes that the gate holds."),
		poison: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lethe_undecodable_total", Help: "Messages of the log that could not be decoded."}, []string{"table"}),
		asked: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lethe_reader_raises_total", Help: "Raises that the reader put into the log."}, []string{"reason"}),
		lag:      gauge("lethe_slot_lag_bytes", "WAL that was written and is not confirmed by the slot."),
		retained: gauge("lethe_slot_retained_bytes", "WAL that the slot keeps from being removed."),
		safe:     gauge("lethe_slot_safe_bytes", "WAL that may be written before the slot is in danger; -1 without a limit."),
		phase: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lethe_reader_phase", Help: "1 for what the reader is doing."}, []string{"phase"}),
	}
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		m.read, m.snapshots, m.heartbeat, m.held, m.heldBytes, m.poison, m.asked, m.lag, m.retained, m.safe, m.phase)
	return m
}

func (m *metrics) Changes(table *change.Table, op change.Op, n int) {
	name := ""
	if table != nil {
		name = table.QualifiedName()
	}
	m.read.WithLabelValues(name, op.String()).Add(float64(n))
}

func (m *metrics) Snapshot(took time.Duration) { m.snapshots.Observe(took.Seconds()) }

func (m *metrics) Held(h cdc.Held) {
	m.held.Set(float64(h.Commits))
	m.heldBytes.Set(float64(h.Bytes))
}

func (m *metrics) Poison(table string) { m.poison.WithLabelValues(table).Inc() }

func (m *metrics) Raise(reason string) { m.asked.WithLabelValues(reason).Inc() }

func (m *metrics) Slot(s cdc.SlotStats) {
	m.lag.Set(float64(s.LagBytes))
	m.retained.Set(float64(s.RetainedBytes))
	m.safe.Set(float64(s.SafeWALBytes))
}

func (m *metrics) Heartbeat(took time.Duration) { m.heartbeat.Set(took.Seconds()) }

func (m *metrics) Phase(p cdc.Phase) {
	m.phase.Reset()
	m.phase.WithLabelValues(string(p)).Set(1)
}

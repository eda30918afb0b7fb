package schedule

import "github.com/prometheus/client_golang/prometheus"

// Metrics of a Store and its Scanner.
type Metrics struct {
	pending, scansDue                        prometheus.Gauge
	stored, dropped, fired, errors, scanRows prometheus.Counter
	delay                                    prometheus.Histogram
	scans                                    *prometheus.CounterVec
}

// NewMetrics registers them with r, unless it is nil.
func NewMetrics(r prometheus.Registerer) *Metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &Metrics{
		pending: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "lethe_schedules_pending", Help: "Invalidations that wait for their time, up to a million."}),
		scansDue: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "lethe_schedule_scans_due", Help: "Rules with at: whose tables are still to be read."}),
		stored:  counter("lethe_schedules_stored_total", "Schedules that were stored."),
		dropped: counter("lethe_schedules_dropped_total", "Schedules that were taken back, or whose time had come when the change arrived."),
		fired:   counter("lethe_schedules_fired_total", "Schedules that this process has fired."),
		errors:  counter("lethe_schedule_errors_total", "Attempts to fire that failed and were repeated."),
		delay: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "lethe_schedule_fire_delay_seconds", Help: "From the time of a schedule to its message, by the database's clock.",
			Buckets: []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 10, 60, 600, 3600}}),
		scanRows: counter("lethe_schedule_scan_rows_total", "Rows that scans have found with a time to come."),
		scans: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lethe_schedule_scans_total", Help: "Scans of the tables of rules with at:, by result: done, failed."}, []string{"result"}),
	}
	for _, result := range []string{"done", "failed"} {
		m.scans.WithLabelValues(result)
	}
	if r != nil {
		r.MustRegister(m.pending, m.scansDue, m.stored, m.dropped, m.fired, m.errors, m.delay, m.scanRows, m.scans)
	}
	return m
}

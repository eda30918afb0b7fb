package edge

import "github.com/prometheus/client_golang/prometheus"

// Results of requests, as lethe_edge_requests_total counts them.
const (
	resultDone    = "done"    // the endpoint has taken it
	resultError   = "error"   // no answer, or one that says to come again
	resultLimited = "limited" // 429
	resultRefused = "refused" // the endpoint takes nothing from us: a person has to look
	resultUnfit   = "unfit"   // the endpoint does not take these names
)

// Why everything was forgotten, as lethe_edge_everything_total counts it.
const (
	causeNew     = "new"     // the endpoint was not told of what happened before
	causeRaised  = "raised"  // every class was raised
	causePending = "pending" // more waited than may
)

type metrics struct {
	requests    *prometheus.CounterVec
	names       *prometheus.CounterVec
	everything  *prometheus.CounterVec
	deadLetters *prometheus.CounterVec
	waiting     *prometheus.GaugeVec
	age         *prometheus.GaugeVec
	up          *prometheus.GaugeVec
}

func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	gauge := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: help}, []string{"endpoint"})
	}
	m := &metrics{
		requests:    counter("lethe_edge_requests_total", "Requests to edge endpoints, by result: done, error, limited, refused, unfit.", "endpoint", "result"),
		names:       counter("lethe_edge_names_total", "Names that edge endpoints were told, repetitions included.", "endpoint"),
		everything:  counter("lethe_edge_everything_total", "How often an edge endpoint was to forget everything, by cause: new, raised, pending.", "endpoint", "cause"),
		deadLetters: counter("lethe_edge_dead_letters_total", "Names that an edge endpoint does not take, so that it was not told.", "endpoint"),
		waiting:     gauge("lethe_edge_waiting_names", "Names that an edge endpoint was not told yet."),
		age:         gauge("lethe_edge_waiting_seconds", "How long the oldest of them has waited."),
		up:          gauge("lethe_edge_up", "1 if the last request to the endpoint was taken."),
	}
	if reg != nil {
		reg.MustRegister(m.requests, m.names, m.everything, m.deadLetters, m.waiting, m.age, m.up)
	}
	return m
}

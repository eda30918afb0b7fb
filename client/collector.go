package client

import (
	"github.com/prometheus/client_golang/prometheus"
)

// Collector returns the counters of Stats as metrics of Prometheus; there is a
// table of them in docs/client.md. Each look at them is one call of Stats, so
// it waits for no server. It may be asked for more than once, and after Close.
//
// A registry takes one Client. Of several in a process each is registered under
// a label of its own:
//
//	prometheus.WrapRegistererWith(prometheus.Labels{"cache": "shop"}, reg).MustRegister(c.Collector())
func (c *Client) Collector() prometheus.Collector { return collector{stats: c.Stats} }

type collector struct{ stats func() Stats }

// Describe sends what Collect can send.
func (collector) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range clientMetrics {
		ch <- m.desc
	}
	for _, m := range classMetrics {
		ch <- m.desc
	}
	for _, m := range classHistograms {
		ch <- m.desc
	}
}

// Collect sends what Stats say.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	s := c.stats()
	for _, m := range clientMetrics {
		m.read(&s, func(v float64, labels ...string) {
			ch <- prometheus.MustNewConstMetric(m.desc, m.kind, v, labels...)
		})
	}
	for class, t := range s.Classes {
		for _, m := range classMetrics {
			m.read(&t, func(v float64, labels ...string) {
				ch <- prometheus.MustNewConstMetric(m.desc, m.kind, v, append([]string{class}, labels...)...)
			})
		}
		for _, m := range classHistograms {
			m.read(&t, func(h Histogram, labels ...string) {
				buckets := make(map[float64]uint64, len(h.Bounds))
				for i, bound := range h.Bounds {
					buckets[bound.Seconds()] = h.Counts[i]
				}
				ch <- prometheus.MustNewConstHistogram(m.desc, h.Count, h.Sum.Seconds(), buckets, append([]string{class}, labels...)...)
			})
		}
	}
}

// emit sends one sample; labels are the values of those that the metric has,
// without the class.
type emit func(v float64, labels ...string)

// metric reads samples of one name out of Stats, or ClassStats.
type metric[S any] struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	read func(*S, emit)
}

type histogramMetric struct {
	desc *prometheus.Desc
	read func(*ClassStats, func(h Histogram, labels ...string))
}

func newMetric[S any](kind prometheus.ValueType, name, help string, labels []string, read func(*S, emit)) metric[S] {
	return metric[S]{desc: prometheus.NewDesc("lethe_"+name, help, labels, nil), kind: kind, read: read}
}

func counter[S any](name, help string, read func(*S) uint64) metric[S] {
	return newMetric(prometheus.CounterValue, name, help, classLabel[S](), func(s *S, emit emit) { emit(float64(read(s))) })
}

func gauge[S any](name, help string, read func(*S) float64) metric[S] {
	return newMetric(prometheus.GaugeValue, name, help, classLabel[S](), func(s *S, emit emit) { emit(read(s)) })
}

// by is a counter for each word of a tally.
func by[S any](name, help, label string, read func(*S) map[string]uint64) metric[S] {
	return newMetric(prometheus.CounterValue, name, help, append(classLabel[S](), label), func(s *S, emit emit) {
		for word, n := range read(s) {
			emit(float64(n), word)
		}
	})
}

// classLabel is the label that the metrics of classes begin with.
func classLabel[S any]() []string {
	if _, ok := any(new(S)).(*ClassStats); ok {
		return []string{"class"}
	}
	return nil
}

var clientMetrics = []metric[Stats]{
	newMetric(prometheus.GaugeValue, "client_state", "1 for the state that the client is in: live, catching up or blind.", []string{"state"},
		func(s *Stats, emit emit) {
			for _, state := range []State{Blind, CatchingUp, Live} {
				is := 0.0
				if state == s.State {
					is = 1
				}
				emit(is, state.String())
			}
		}),
	newMetric(prometheus.GaugeValue, "client_master_age_seconds", "How old what a Redis master holds may be; below 0 if nobody knows.", []string{"node"},
		func(s *Stats, emit emit) {
			for node, age := range s.MasterAge {
				emit(age.Seconds(), node)
			}
		}),
	counter("client_state_changes_total", "Changes of the client's state.", func(s *Stats) uint64 { return s.StateChanges }),
	gauge("client_flights", "Loads under way, each until its fill is over too.", func(s *Stats) float64 { return float64(s.Flights) }),
	gauge("client_broadcast_number", "Number of the last broadcast that was handled.", func(s *Stats) float64 { return float64(s.Broadcasts) }),
	counter("client_logs_left_out_total", "Log records that were left out as repetitions.", func(s *Stats) uint64 { return s.LogsLeftOut }),
	counter("l1_epochs_total", "Times that L1 was forgotten as a whole.", func(s *Stats) uint64 { return s.Epochs }),
	counter("broadcast_gaps_total", "Broadcasts that did not follow on the one before.", func(s *Stats) uint64 { return s.Gaps }),
	counter("broadcast_replays_total", "Looks at the stream for what was missed.", func(s *Stats) uint64 { return s.Replays }),
	by("redis_errors_total", "Steps that Redis did not do, by kind.", "kind", func(s *Stats) map[string]uint64 { return s.RedisErrorKinds }),
	counter("redis_skipped_total", "Steps for which Redis was not asked, because it did not answer before.", func(s *Stats) uint64 { return s.RedisSkipped }),
	counter("redis_pool_hits_total", "Commands that found a free connection.", func(s *Stats) uint64 { return s.Pool.Hits }),
	counter("redis_pool_misses_total", "Commands that had to make a connection.", func(s *Stats) uint64 { return s.Pool.Misses }),
	counter("redis_pool_timeouts_total", "Commands that got no connection in time.", func(s *Stats) uint64 { return s.Pool.Timeouts }),
	counter("redis_pool_stale_total", "Connections that were thrown away.", func(s *Stats) uint64 { return s.Pool.Stale }),
	gauge("redis_pool_connections", "Connections that there are.", func(s *Stats) float64 { return float64(s.Pool.Total) }),
	gauge("redis_pool_idle_connections", "Connections that nobody uses.", func(s *Stats) float64 { return float64(s.Pool.Idle) }),
}

var classMetrics = []metric[ClassStats]{
	newMetric(prometheus.CounterValue, "cache_requests_total", "Reads, each counted once by where its answer came from.", []string{"class", "layer", "result"},
		func(s *ClassStats, emit emit) {
			for l, n := range [layerCount]uint64{
				LayerNone: s.Failed, LayerL1: s.L1Hits, LayerL2: s.L2Hits, LayerLoad: s.Loaded, LayerStale: s.Stale, LayerDefault: s.Defaults,
			} {
				emit(float64(n), Layer(l).String(), Layer(l).Result().String())
			}
		}),
	by("cache_read_errors_total", "Reads that failed, by kind.", "kind", func(s *ClassStats) map[string]uint64 { return s.ReadErrors }),
	counter("cache_misses_total", "Keys for which a load was due, whoever waited for it.", func(s *ClassStats) uint64 { return s.Misses }),
	counter("cache_coalesced_total", "Reads that shared the load of another in the process.", func(s *ClassStats) uint64 { return s.Coalesced }),
	counter("cache_lease_waits_total", "Reads that waited for the load of another process.", func(s *ClassStats) uint64 { return s.LeaseWaits }),
	gauge("cache_lease_waiting", "Loads that wait for the load of another process.", func(s *ClassStats) float64 { return float64(s.LeaseWaiting) }),
	counter("cache_lease_takeovers_total", "Reads that loaded in the place of another process.", func(s *ClassStats) uint64 { return s.LeaseTakeovers }),
	counter("cache_overloaded_total", "Loads that were turned away.", func(s *ClassStats) uint64 { return s.Overloaded }),
	counter("cache_soft_timeouts_total", "Reads that returned something else, because the load took longer than SoftTimeout.", func(s *ClassStats) uint64 { return s.SoftTimeouts }),
	counter("load_hard_timeouts_total", "Loads that took longer than HardTimeout.", func(s *ClassStats) uint64 { return s.HardTimeouts }),
	counter("cache_refreshes_total", "Loads in the background for a value that was served.", func(s *ClassStats) uint64 { return s.Refreshes }),
	counter("cache_early_refreshes_total", "Refreshes before the value expired.", func(s *ClassStats) uint64 { return s.EarlyRefreshes }),
	counter("cache_refreshes_skipped_total", "Refreshes for which there was no room among the loads.", func(s *ClassStats) uint64 { return s.RefreshesSkipped }),
	counter("cache_untrusted_total", "Entries that were passed by because they may have been older than MaxStale.", func(s *ClassStats) uint64 { return s.Untrusted }),
	counter("cache_undecodable_total", "Entries that could not be decoded and were taken for misses.", func(s *ClassStats) uint64 { return s.Undecodable }),
	counter("cache_oversize_total", "Values that were too large to be stored.", func(s *ClassStats) uint64 { return s.Refused["oversize"] }),
	counter("load_errors_total", "Loads that failed.", func(s *ClassStats) uint64 { return s.LoadErrors }),
	// As the workers' own, of values that they warm.
	newMetric(prometheus.CounterValue, "fills_total", "Values offered to the cache, by what became of them.", []string{"class", "result", "reason"},
		func(s *ClassStats, emit emit) {
			emit(float64(s.Fills), "stored", "")
			for reason, n := range s.Refused {
				emit(float64(n), "refused", reason)
			}
		}),
	gauge("l1_entries", "Entries in L1, about.", func(s *ClassStats) float64 { return float64(s.L1Entries) }),
	gauge("l1_bytes", "Bytes in L1, about, by the length of encoded values.", func(s *ClassStats) float64 { return float64(s.L1Bytes) }),
	counter("l1_evictions_total", "Entries that L1 put out to make room.", func(s *ClassStats) uint64 { return s.L1Evictions }),
}

var classHistograms = []histogramMetric{
	{
		prometheus.NewDesc("lethe_cache_read_seconds", "How long reads took, by layer; of the hits in L1 one in 1024.", []string{"class", "layer"}, nil),
		func(s *ClassStats, emit func(Histogram, ...string)) {
			for l, h := range s.ReadTime {
				emit(h, l.String())
			}
		},
	},
	{
		prometheus.NewDesc("lethe_load_seconds", "How long loaders ran.", []string{"class"}, nil),
		func(s *ClassStats, emit func(Histogram, ...string)) { emit(s.LoadCost) },
	},
	{
		prometheus.NewDesc("lethe_cache_stale_age_seconds", "How old what was served stale was.", []string{"class"}, nil),
		func(s *ClassStats, emit func(Histogram, ...string)) { emit(s.StaleAge) },
	},
}

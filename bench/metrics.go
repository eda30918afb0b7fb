package main

import "slices"

// noWorkload is the key of results that belong to neither workload A nor B.
const noWorkload = "all"

// definition says what a metric compares and what it has to reach.
type definition struct {
	name string
	// what is measured, against what.
	what, against string
	// unit of value and baseline.
	unit string
	// bounds by workload: at least, or at most if ceiling.
	bounds  map[string]float64
	ceiling bool
	// absolute says that the bound, if any, is for the value; otherwise it is
	// for the ratio.
	absolute bool
}

// definitions are the metrics in the order in which they are printed. The
// bounds are the budgets of the design.
var definitions = []definition{
	{
		name: "reader_vs_pg_recvlogical", unit: "rows/s",
		what: "reader without a sink, over TCP", against: "pg_recvlogical over the unix socket",
		bounds: map[string]float64{"A": 0.9, "B": 0.9},
	},
	{
		name: "direct_vs_plain_unlink", unit: "rows/s",
		what: "lethe run, direct", against: "consumer by hand, pipelines of 1000 UNLINK",
		bounds: map[string]float64{"A": 1, "B": 1.2},
	},
	{
		name: "direct_vs_plain_unlink_same_stream", unit: "rows/s",
		what: "lethe run, direct", against: "the same consumer, on the publication that lethe made",
	},
	{
		name: "direct_vs_plain_del", unit: "rows/s",
		what: "lethe run, direct", against: "consumer by hand, one DEL a change",
		bounds: map[string]float64{"A": 10, "B": 4},
	},
	{
		name: "kafka_vs_direct", unit: "rows/s",
		what: "lethe run, kafka", against: "lethe run, direct",
		bounds: map[string]float64{"A": 0.4, "B": 0.4},
	},
	{
		name: "invalidate_vs_unlink", unit: "keys/s",
		what: "Store.Invalidate of 1000 keys", against: "variadic UNLINK of 1000 keys",
		bounds: map[string]float64{noWorkload: 0.6},
	},
	{
		name: "commit_to_redis_vs_del_p50", unit: "ms", ceiling: true,
		what: "commit to key gone, direct", against: "consumer by hand, one DEL a change",
		bounds: map[string]float64{noWorkload: 3},
	},
	{
		name: "commit_to_redis_vs_del_p99", unit: "ms", ceiling: true,
		what: "commit to key gone, direct", against: "consumer by hand, one DEL a change",
		bounds: map[string]float64{noWorkload: 3},
	},
	{name: "commit_to_redis_p50_ms", unit: "ms", what: "commit to key gone, direct", absolute: true},
	{name: "commit_to_redis_p99_ms", unit: "ms", what: "commit to key gone, direct", absolute: true},
	{
		name: "commit_to_l1_p50_ms", unit: "ms", what: "commit to gone from a client's L1, kafka",
		bounds: map[string]float64{noWorkload: 5}, ceiling: true, absolute: true,
	},
	{
		name: "commit_to_l1_p99_ms", unit: "ms", what: "commit to gone from a client's L1, kafka",
		bounds: map[string]float64{noWorkload: 25}, ceiling: true, absolute: true,
	},
	{
		name: "rss_mb_1m_rows", unit: "MB", what: "reader, transaction of 1 million rows",
		bounds: map[string]float64{noWorkload: 64}, ceiling: true, absolute: true,
	},
	{
		name: "rss_mb_10m_rows", unit: "MB", what: "reader, transaction of 10 million rows",
		bounds: map[string]float64{noWorkload: 64}, ceiling: true, absolute: true,
	},
}

// Result is one metric under one workload.
type Result struct {
	Value    *Summary `json:"value,omitempty"`
	Baseline *Summary `json:"baseline,omitempty"`
	// Ratio is value over baseline, pair by pair.
	Ratio   *Summary `json:"ratio,omitempty"`
	AtLeast *float64 `json:"at_least,omitempty"`
	AtMost  *float64 `json:"at_most,omitempty"`
	// Met is absent if there is no bound, or nothing was measured.
	Met *bool `json:"met,omitempty"`
	// Unmeasured is the reason why there are no numbers.
	Unmeasured string `json:"unmeasured,omitempty"`
	Note       string `json:"note,omitempty"`
}

// Metric is what is known of one definition after a run.
type Metric struct {
	What    string             `json:"what"`
	Against string             `json:"against,omitempty"`
	Unit    string             `json:"unit"`
	Results map[string]*Result `json:"results"`

	definition definition
}

// metrics are those of one run, in the order of definitions.
type metrics struct {
	list []*Metric
}

// newMetrics returns the metrics that a run is to measure, by name.
func newMetrics(names []string) *metrics {
	m := &metrics{}
	for _, d := range definitions {
		if slices.Contains(names, d.name) {
			m.list = append(m.list, &Metric{What: d.what, Against: d.against, Unit: d.unit, Results: map[string]*Result{}, definition: d})
		}
	}
	return m
}

// wants reports whether the run is to measure any of names.
func (m *metrics) wants(names ...string) bool {
	return slices.ContainsFunc(names, func(n string) bool { return m.get(n) != nil })
}

func (m *metrics) get(name string) *Metric {
	i := slices.IndexFunc(m.list, func(x *Metric) bool { return x.definition.name == name })
	if i < 0 {
		return nil
	}
	return m.list[i]
}

// pairs records rounds of subject and baseline. A metric that this run does not
// measure is ignored.
func (m *metrics) pairs(name, workload string, pairs []Pair) {
	metric := m.get(name)
	if metric == nil || len(pairs) == 0 {
		return
	}
	subjects, baselines := split(pairs)
	r := metric.result(workload)
	r.Value, r.Baseline, r.Ratio = summarize(subjects), summarize(baselines), summarize(ratios(pairs))
	r.judge(metric.definition, workload)
}

// values records rounds of something that has no baseline.
func (m *metrics) values(name, workload string, values []float64) {
	metric := m.get(name)
	if metric == nil || len(values) == 0 {
		return
	}
	r := metric.result(workload)
	r.Value = summarize(values)
	r.judge(metric.definition, workload)
}

// unmeasured records why there is nothing to record. What was measured in
// earlier rounds stands, with the reason why there are not more of them.
func (m *metrics) unmeasured(name, workload string, err error) {
	metric := m.get(name)
	if metric == nil {
		return
	}
	r := metric.result(workload)
	if r.Value != nil {
		r.note("stopped early: " + err.Error())
		return
	}
	r.Unmeasured = err.Error()
}

// note adds a remark that belongs beside the number.
func (m *metrics) note(name, workload, text string) {
	if metric := m.get(name); metric != nil {
		metric.result(workload).note(text)
	}
}

// complete reports whether every metric has its numbers.
func (m *metrics) complete() bool {
	for _, metric := range m.list {
		if len(metric.Results) == 0 {
			return false
		}
		for _, r := range metric.Results {
			if r.Value == nil {
				return false
			}
		}
	}
	return true
}

func (m *Metric) result(workload string) *Result {
	r := m.Results[workload]
	if r == nil {
		r = &Result{}
		m.Results[workload] = r
	}
	return r
}

func (r *Result) note(text string) {
	if r.Note != "" {
		r.Note += "; "
	}
	r.Note += text
}

// headline is the number that the bound is for.
func (r *Result) headline(absolute bool) *Summary {
	if absolute {
		return r.Value
	}
	return r.Ratio
}

// judge compares the median with the bound.
func (r *Result) judge(d definition, workload string) {
	bound, ok := d.bounds[workload]
	got := r.headline(d.absolute)
	if !ok || got == nil {
		return
	}
	met := got.Median >= bound
	if r.AtLeast = &bound; d.ceiling {
		met = got.Median <= bound
		r.AtLeast, r.AtMost = nil, &bound
	}
	r.Met = &met
}

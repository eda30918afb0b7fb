package invalidator

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/rules"
)

// The outcomes of an invalidation, as lethe_invalidations_total counts them.
const (
	// OutcomeDeleted: the entry was unlinked.
	OutcomeDeleted = "deleted"
	// OutcomeKept: its stamp covers the commit, so it stayed.
	OutcomeKept = "kept"
	// OutcomeStale: the entry was marked stale.
	OutcomeStale = "stale"
	// OutcomeAbsent: there was no entry.
	OutcomeAbsent = "absent"
	// OutcomeCoalesced: another invalidation of the same batch did it.
	OutcomeCoalesced = "coalesced"
	// OutcomeBelowWatermark: it had been applied before, so nothing was done.
	OutcomeBelowWatermark = "below_watermark"
	// OutcomePurged: a tag, or an intersection of tags, was purged.
	OutcomePurged = "purged"
	// OutcomeRaised: a class was raised.
	OutcomeRaised = "raised"
)

// ruleMessage is the rule label of logical messages, which no rule causes.
const ruleMessage = "(message)"

// Metrics are what the workers of a process count. Make them with NewMetrics;
// all methods are safe for concurrent use.
type Metrics struct {
	commitToEvict *prometheus.HistogramVec
	changes       *prometheus.CounterVec
	invalidations *prometheus.CounterVec
	watermarkLag  prometheus.Gauge
	deadLetters   *prometheus.CounterVec
	raises        *prometheus.CounterVec
	oldUnknown    *prometheus.CounterVec
	newUnknown    *prometheus.CounterVec
	condUnknown   *prometheus.CounterVec
	cascades      *prometheus.CounterVec
	retries       *prometheus.CounterVec
	nodesLost     prometheus.Counter
	batchChanges  prometheus.Histogram
	pending       *prometheus.GaugeVec
	swept         prometheus.Counter
	walked        prometheus.Counter
	pruned        prometheus.Counter
	openPurges    prometheus.Gauge
	sweepLeft     prometheus.Gauge
	indexNames    prometheus.Gauge
	indexMembers  prometheus.Gauge
	indexBytes    prometheus.Gauge
	indexGarbage  prometheus.Gauge
	coalesced     prometheus.Counter
	lookups       *prometheus.CounterVec
	lookupSeconds prometheus.Histogram
}

// NewMetrics makes the metrics and registers them; nil registers nothing. It
// panics if the registerer has metrics of these names, which is a programmer's
// mistake: one process has one set.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: name, Help: help})
	}
	m := &Metrics{
		commitToEvict: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "lethe_commit_to_evict_seconds",
			Help:    "From the commit, by the database's clock, to the reply of Redis that the entry is gone.",
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 300},
		}, []string{"rule"}),
		changes:       counter("lethe_changes_total", "Changes that workers took from the log.", "table", "op"),
		invalidations: counter("lethe_invalidations_total", "What rules asked for, by what became of it.", "rule", "outcome"),
		watermarkLag: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "lethe_watermark_lag_seconds",
			Help: "How long the least watermark has stood below the visibility position; 0 when all is applied.",
		}),
		deadLetters:  counter("lethe_dead_letters_total", "Changes and records that could not be processed.", "reason"),
		raises:       counter("lethe_raises_total", "Generations raised by this process.", "class", "cause"),
		oldUnknown:   counter("lethe_old_value_unknown_total", "Names rendered from the new row only, because the log does not carry the old value.", "rule"),
		newUnknown:   counter("lethe_new_value_unknown_total", "Classes raised because the log does not carry a value that a name needs.", "rule"),
		condUnknown:  counter("lethe_condition_unknown_total", "Conditions that met NULL or an error and counted as true.", "rule"),
		cascades:     counter("lethe_cascade_limits_total", "Cascades that exceeded a limit, so that classes were raised.", "limit"),
		retries:      counter("lethe_apply_retries_total", "Calls that were repeated after an error, by what was called.", "call"),
		nodesLost:    prometheus.NewCounter(prometheus.CounterOpts{Name: "lethe_nodes_lost_total", Help: "Redis nodes that may have lost writes and were redone."}),
		batchChanges: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "lethe_batch_changes", Help: "Changes applied together.", Buckets: prometheus.ExponentialBuckets(1, 4, 9)}),
		pending: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lethe_pending_work", Help: "Sweeps of tags, windows of debounced sweeps and walks of plain classes that the watermark waits for.",
		}, []string{"kind"}),
		swept:  prometheus.NewCounter(prometheus.CounterOpts{Name: "lethe_swept_members_total", Help: "Members of purged tags that were invalidated."}),
		walked: prometheus.NewCounter(prometheus.CounterOpts{Name: "lethe_walked_keys_total", Help: "Keys of plain classes that walks unlinked."}),
		pruned: prometheus.NewCounter(prometheus.CounterOpts{Name: "lethe_index_pruned_total",
			Help: "Members whose entry was gone and that were removed from the index, by the pruner and behind sweeps."}),
		openPurges:   gauge("lethe_open_purges", "Purges of names that this process sweeps."),
		sweepLeft:    gauge("lethe_sweep_remaining_members", "Members that these sweeps have not come to."),
		indexNames:   gauge("lethe_index_names", "Names with members in the index, as the pruner's last round counted them; 0 where another process prunes."),
		indexMembers: gauge("lethe_index_members", "Members in the index, the dead included."),
		indexBytes:   gauge("lethe_index_bytes", "Memory of the index as Redis estimates it, from a sample of the names."),
		indexGarbage: gauge("lethe_index_garbage_ratio", "Share of the members whose entry was gone when the pruner came to them."),
		coalesced: prometheus.NewCounter(prometheus.CounterOpts{Name: "lethe_sweeps_coalesced_total",
			Help: "Sweeps that were not made because a batch's purges joined one that waited for the end of its debounce."}),
		lookups: counter("lethe_lookups_total", "Lookups of rules, each set of parameters once in a batch, by result: rows, no_row, too_many, failed.", "rule", "result"),
		lookupSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "lethe_lookup_seconds", Help: "How long the lookups of a batch took, repetitions included.", Buckets: prometheus.ExponentialBuckets(.0005, 4, 9)}),
	}
	if reg != nil {
		reg.MustRegister(m.commitToEvict, m.changes, m.invalidations, m.watermarkLag, m.deadLetters, m.raises, m.oldUnknown,
			m.newUnknown, m.condUnknown, m.cascades, m.retries, m.nodesLost, m.batchChanges, m.pending, m.swept, m.walked,
			m.pruned, m.openPurges, m.sweepLeft, m.indexNames, m.indexMembers, m.indexBytes, m.indexGarbage,
			m.coalesced, m.lookups, m.lookupSeconds)
	}
	return m
}

// index sets the gauges of the index after a round of the pruner.
func (m *Metrics) index(p Pruned) {
	m.indexNames.Set(float64(p.Names))
	m.indexMembers.Set(float64(p.Members))
	m.indexBytes.Set(float64(p.Bytes))
	m.indexGarbage.Set(p.Ratio())
}

// ruleObserver counts what matchers have to guess.
func (m *Metrics) ruleObserver() rules.Observer {
	return rules.Observer{
		OldValueUnknown:  func(r *rules.Rule) { m.oldUnknown.WithLabelValues(r.Name).Inc() },
		NewValueUnknown:  func(r *rules.Rule) { m.newUnknown.WithLabelValues(r.Name).Inc() },
		ConditionUnknown: func(r *rules.Rule, _ error) { m.condUnknown.WithLabelValues(r.Name).Inc() },
	}
}

// edgeObserver counts conditions of dependencies that could not be decided, under
// what the dependency starts from.
func (m *Metrics) edgeObserver() func(*rules.Dependency, error) {
	return func(d *rules.Dependency, _ error) {
		from := "dependency of " + d.Of.String()
		if d.ID != 0 {
			from = "lethe.dependencies" // as many as there are rows would be too many
		}
		m.condUnknown.WithLabelValues(from).Inc()
	}
}

// ruleHandles are the resolved children of one rule: looking labels up for
// every change would cost more than matching it.
type ruleHandles struct {
	name     string
	latency  prometheus.Observer
	outcomes map[string]prometheus.Counter
}

// handles caches children for one goroutine. It is not safe for concurrent use.
type handles struct {
	m     *Metrics
	rules map[*rules.Rule]*ruleHandles
	ops   map[*change.Table]*[256]prometheus.Counter
}

func newHandles(m *Metrics) *handles {
	return &handles{m: m, rules: map[*rules.Rule]*ruleHandles{}, ops: map[*change.Table]*[256]prometheus.Counter{}}
}

// handlesKept bounds the caches: tables are replaced whenever a relation
// changes, rules at every reload.
const handlesKept = 4096

func (h *handles) rule(r *rules.Rule) *ruleHandles {
	if rh := h.rules[r]; rh != nil {
		return rh
	}
	if len(h.rules) >= handlesKept {
		clear(h.rules)
	}
	name := ruleMessage
	if r != nil {
		name = r.Name
	}
	rh := &ruleHandles{name: name, latency: h.m.commitToEvict.WithLabelValues(name), outcomes: map[string]prometheus.Counter{}}
	h.rules[r] = rh
	return rh
}

func (h *handles) outcome(rh *ruleHandles, outcome string) { h.outcomeN(rh, outcome, 1) }

func (h *handles) outcomeN(rh *ruleHandles, outcome string, n int) {
	c := rh.outcomes[outcome]
	if c == nil {
		c = h.m.invalidations.WithLabelValues(rh.name, outcome)
		rh.outcomes[outcome] = c
	}
	c.Add(float64(n))
}

// counts adds the outcomes of one rule's keys.
func (h *handles) counts(rh *ruleHandles, c coherence.Counts) {
	for _, o := range [...]struct {
		outcome string
		n       int
	}{{OutcomeDeleted, c.Deleted}, {OutcomeKept, c.Kept}, {OutcomeStale, c.Stale}, {OutcomeAbsent, c.Absent}} {
		if o.n > 0 {
			h.outcomeN(rh, o.outcome, o.n)
		}
	}
}

// observe observes the time since the commit. The database's clock may be
// ahead of ours: what would be negative counts as nothing.
func (rh *ruleHandles) observe(now, commit time.Time) time.Duration {
	if commit.IsZero() {
		return 0
	}
	d := max(now.Sub(commit), 0)
	rh.latency.Observe(d.Seconds())
	return d
}

func (h *handles) change(c *change.Change) {
	ops := h.ops[c.Table]
	if ops == nil {
		if len(h.ops) >= handlesKept {
			clear(h.ops)
		}
		ops = new([256]prometheus.Counter)
		h.ops[c.Table] = ops
	}
	if ops[c.Op] == nil {
		table := ""
		if c.Table != nil {
			table = c.Table.QualifiedName()
		}
		ops[c.Op] = h.m.changes.WithLabelValues(table, c.Op.String())
	}
	ops[c.Op].Inc()
}

package invalidator

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/depgraph"
	"github.com/lethe-cache/lethe/rules"
	"github.com/lethe-cache/lethe/stream"
)

// Defaults of Config.
const (
	BatchMaxDefault       = 4096
	SweepBatchDefault     = 1000
	SweepRewarmsDefault   = 10_000
	SweepsDefault         = 4
	UnsettledMaxDefault   = 256
	HeartbeatEveryDefault = 100 * time.Millisecond
	CheckEveryDefault     = time.Second
	DrainTimeoutDefault   = 5 * time.Second
	DeadLetterWaitDefault = 5 * time.Second
	HistoryDefault        = 10 * time.Second
	HistoryBytesDefault   = 16 << 20
)

// Rules are what changes are matched against. Both come from one rule set.
type Rules struct {
	Plan  *rules.Plan
	Graph *depgraph.Graph
	// Limits of the cascade; zero fields take depgraph's defaults.
	Limits depgraph.Limits
}

// NewRules compiles a set for workers.
func NewRules(set *rules.Set) (*Rules, error) {
	plan, err := set.Compile()
	if err != nil {
		return nil, err
	}
	return &Rules{Plan: plan, Graph: depgraph.New(set)}, nil
}

// Config holds what a Worker needs. Store, Rules, DeadLetters and InsertLSN
// must be set.
type Config struct {
	Store *coherence.Store
	// Rules returns the rules in force. It is called for every batch and must
	// be fast; a reload takes effect with the next batch.
	Rules func() *Rules
	// Dependencies is called before a batch is worked on in which the log says
	// that the table of dependencies changed, or in which something was lost that
	// might have said so. When it returns, Rules must hold every dependency whose
	// commit is visible. cause is the same in every partition. It is repeated
	// until it succeeds, and the partition waits. nil: there is no such table.
	Dependencies func(ctx context.Context, cause string) error
	// DeadLetters keeps what could not be processed.
	DeadLetters stream.DeadLetters
	// InsertLSN returns pg_current_wal_insert_lsn() of the primary that the
	// log comes from, over an ordinary connection. It must err rather than
	// answer for a server in recovery or of another source: bounds and bases
	// are made of it, and the positions of records that have none of their own
	// (change.Record.InsertLSN). The greatest LSN there is, returned for want
	// of a true one, closes the tables for good.
	InsertLSN func(ctx context.Context) (change.LSN, error)
	// Lookup makes the lookups of rules and answers each in its place. It must
	// read a snapshot of the primary that was taken after the call, and err for
	// a server in recovery or one that is not of the source (the zero SystemID is
	// any; a later timeline than its is fine). An error of all of them is
	// repeated until it is over, and holds the partition; that of one answer is
	// final. Several partitions may call at a time. Optional: without it changes
	// that need a lookup are dead letters.
	Lookup func(ctx context.Context, of change.Source, requests []rules.LookupRequest) ([]rules.LookupAnswer, error)

	// Beyond, if set, returns who keeps what is forgotten for caches beyond
	// Redis, or nil while there is nobody. It is called for every batch and
	// must be fast. A batch is told when everything that it brings is done in
	// Redis, and acknowledged when it was told: neither readers nor the
	// watermark wait for it, the log does.
	Beyond func() Beyond

	// Schedules keeps what is due at a time; nil where that is not possible: a
	// change that asks for it is a dead letter then.
	Schedules Schedules

	// Logger, nil discards. Metrics, nil counts into nothing. Observer is told
	// of what happens; its functions may be nil.
	Logger   *slog.Logger
	Metrics  *Metrics
	Observer Observer
	// Rewarmer fills entries again; nil forgets them only.
	Rewarmer Rewarmer

	// BatchMax is the most changes that are fetched at once (about).
	BatchMax int
	// SweepBatch is the most members of a tag that are invalidated in one
	// call, Sweeps how many sweeps and walks of a process run at a time.
	SweepBatch, Sweeps int
	// SweepRewarms is how many members of one purge are filled again at most;
	// the others are forgotten.
	SweepRewarms int
	// UnsettledMax is how many batches may wait for sweeps and walks before
	// the stream waits too.
	UnsettledMax int
	// PruneRate is how many keys and members Worker.Prune looks at in a second
	// on each master; negative: it does nothing.
	PruneRate int
	// HeartbeatEvery is the period of the heartbeat, which the owner of
	// partition 0 sends; it bounds how long a client believes itself live.
	HeartbeatEvery time.Duration
	// CheckEvery is the period of the question who every master is and
	// whether it evicts.
	CheckEvery time.Duration
	// DrainTimeout bounds how long Work, its context ended, goes on to finish
	// what was fetched. What is not finished then is delivered again.
	DrainTimeout time.Duration
	// DeadLetterWait bounds how long a dead letter that can not be stored
	// holds the stream: afterwards it is logged whole instead, and those behind
	// it in the batch are tried shortly. The raise that comes with it is never
	// given up.
	DeadLetterWait time.Duration
	// History is how long what was applied is remembered for the redo of a
	// node that lost writes, HistoryBytes the memory for it, for each
	// partition. A node whose watermark is not within it costs a raise of
	// everything.
	History      time.Duration
	HistoryBytes int
}

func (c Config) withDefaults() Config {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Metrics == nil {
		c.Metrics = NewMetrics(nil)
	}
	ints := []struct {
		field *int
		value int
	}{
		{&c.BatchMax, BatchMaxDefault}, {&c.SweepBatch, SweepBatchDefault}, {&c.SweepRewarms, SweepRewarmsDefault}, {&c.Sweeps, SweepsDefault},
		{&c.UnsettledMax, UnsettledMaxDefault}, {&c.HistoryBytes, HistoryBytesDefault},
	}
	if c.PruneRate == 0 {
		c.PruneRate = PruneRateDefault
	}
	for _, i := range ints {
		if *i.field <= 0 {
			*i.field = i.value
		}
	}
	durations := []struct {
		field *time.Duration
		value time.Duration
	}{
		{&c.HeartbeatEvery, HeartbeatEveryDefault}, {&c.CheckEvery, CheckEveryDefault}, {&c.DrainTimeout, DrainTimeoutDefault},
		{&c.DeadLetterWait, DeadLetterWaitDefault}, {&c.History, HistoryDefault},
	}
	for _, d := range durations {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	return c
}

func (c Config) validate() error {
	var errs []error
	if c.Store == nil {
		errs = append(errs, errors.New("invalidator: Config.Store is nil"))
	}
	if c.Rules == nil {
		errs = append(errs, errors.New("invalidator: Config.Rules is nil"))
	}
	if c.DeadLetters == nil {
		errs = append(errs, errors.New("invalidator: Config.DeadLetters is nil"))
	}
	if c.InsertLSN == nil {
		errs = append(errs, errors.New("invalidator: Config.InsertLSN is nil"))
	}
	return errors.Join(errs...)
}

package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/pflag"

	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/rules"
	"github.com/lethe-cache/lethe/warmer"
)

// warmSettings are what bounds Lethe's own loads.
type warmSettings struct {
	URL         string
	Rate        float64
	Concurrency int
	Hot         int
}

func (s *warmSettings) addFlags(fs *pflag.FlagSet) {
	fs.StringVar(&s.URL, "warm-url", "", "standby to load entries from, while it is not too far behind (default: the primary)")
	fs.Float64Var(&s.Rate, "warm-rate", warmer.RateDefault, "entries that are loaded in a second at most (-1: no limit)")
	fs.IntVar(&s.Hot, "warm-hot", warmer.HotWarmDefault, "keys of each class, of those that clients read most, that are kept warm (0: none)")
	fs.IntVar(&s.Concurrency, "warm-concurrency", warmer.ConcurrencyDefault, "loads that run at a time at most")
}

func (s *warmSettings) validate() error {
	var errs []error
	if s.URL != "" {
		if err := checkPostgresURL(s.URL); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", envName("warm-url"), err))
		}
	}
	if s.Rate != -1 && !(s.Rate > 0) {
		errs = append(errs, fmt.Errorf("%s: %v: want a number above zero, or -1 for no limit", envName("warm-rate"), s.Rate))
	}
	if s.Concurrency < 1 || s.Concurrency > 1000 {
		errs = append(errs, fmt.Errorf("%s: %d: want 1 to 1000", envName("warm-concurrency"), s.Concurrency))
	}
	if s.Hot < 0 || s.Hot > coherence.HotMax {
		errs = append(errs, fmt.Errorf("%s: %d: want 0 to %d", envName("warm-hot"), s.Hot, coherence.HotMax))
	}
	if len(errs) > 0 {
		return usagef("%w", errors.Join(errs...))
	}
	return nil
}

// warming is what fills entries: on invalidation by the queue, and for whoever
// else calls the warmer. All loads share one limiter.
type warming struct {
	loader *warmer.Loader
	warmer *warmer.Warmer
	queue  *warmer.Queue
	// warmups fill entries at the start and by schedules, hot those that are
	// read most.
	warmups *warmer.Warmups
	hot     *warmer.HotKeys
}

// openWarming makes it. Nothing connects yet.
func (p *pipeline) openWarming() (*warming, error) {
	s := &p.settings.Warm
	loader, err := warmer.OpenLoader(context.Background(), warmer.LoaderConfig{
		URL: p.settings.PostgresURL, StandbyURL: s.URL, Concurrency: s.Concurrency,
	})
	if err != nil {
		return nil, usagef("%w", err)
	}
	w := &warming{loader: loader}
	w.warmer, err = warmer.New(warmer.Config{
		Store: p.up.store, Loader: loader, Rules: func() *rules.Plan { return p.rules.Load().compiled.Plan },
		Limiter: warmer.NewLimiter(warmer.LimiterConfig{Rate: s.Rate, Concurrency: s.Concurrency}),
		Logger:  p.log, Metrics: warmer.NewMetrics(p.registry),
	})
	if err == nil {
		w.hot, err = warmer.NewHotKeys(warmer.HotConfig{Warmer: w.warmer, Warm: orNone(s.Hot), Logger: p.log, Registry: p.registry})
	}
	if err == nil {
		w.queue, err = warmer.NewQueue(warmer.QueueConfig{Warmer: w.warmer, Hot: w.hot, Logger: p.log})
	}
	if err == nil {
		w.warmups, err = p.openWarmups(w.warmer)
	}
	if err != nil {
		loader.Close()
		return nil, fmt.Errorf("make the warmer: %w", err)
	}
	return w, nil
}

func (w *warming) close() {
	if w != nil {
		w.loader.Close()
	}
}

// orNone is a number of which 0 means none, for what takes 0 for its default.
func orNone(n int) int {
	if n == 0 {
		return -1
	}
	return n
}

package warmer

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/rules"
)

// Defaults of HotConfig.
const (
	HotEveryDefault = 5 * time.Second
	HotWarmDefault  = 200
	HotAheadDefault = 0.1
	// hotRise is how far ahead the trend of a key is followed, in times of what
	// the short rate has over the long one.
	hotRise = 2
)

// HotConfig are the settings of HotKeys. Warmer must be set.
type HotConfig struct {
	Warmer *Warmer
	// Every is how often the reports of clients are looked at.
	Every time.Duration
	// Warm is how many keys of a class are kept warm. Negative: none.
	Warm int
	// Ahead is the last share of an entry's life in which it is loaded anew, so
	// that it does not expire under its readers.
	Ahead    float64
	Logger   *slog.Logger
	Registry prometheus.Registerer
}

// HotKeys knows which keys clients read most, and keeps them warm: what of them
// is absent is filled, what is about to expire is filled anew, and with them what
// their class prefetches. It implements Hot.
//
// They are ranked by rate and by growth: by where the rate is going to be if it
// goes on as it does. So a key that rises is warm before it is at the top, and
// one that falls makes room.
type HotKeys struct {
	cfg   HotConfig
	known atomic.Pointer[map[string]map[string]bool] // by class, full names

	ranked *prometheus.GaugeVec
	fills  *prometheus.CounterVec
	failed bool
}

// NewHotKeys makes HotKeys; nothing is known until Run.
func NewHotKeys(cfg HotConfig) (*HotKeys, error) {
	if cfg.Warmer == nil {
		return nil, errors.New("warmer: HotConfig.Warmer is nil")
	}
	if cfg.Every <= 0 {
		cfg.Every = HotEveryDefault
	}
	if cfg.Warm == 0 {
		cfg.Warm = HotWarmDefault
	}
	if cfg.Ahead == 0 {
		cfg.Ahead = HotAheadDefault
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	h := &HotKeys{cfg: cfg,
		ranked: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "lethe_hot_keys", Help: "Keys that clients report as hot."}, []string{"class"}),
		fills: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lethe_hot_fills_total", Help: "Hot entries that were filled before they were missed."}, []string{"class"}),
	}
	h.known.Store(&map[string]map[string]bool{})
	if cfg.Registry != nil {
		cfg.Registry.MustRegister(h.ranked, h.fills)
	}
	return h, nil
}

// Hot reports whether clients have named the entry of that full name among those
// that they read most. It takes no lock.
func (h *HotKeys) Hot(class, name string) bool { return (*h.known.Load())[class][name] }

// Run looks, and fills, until ctx ends.
func (h *HotKeys) Run(ctx context.Context) error {
	for sleep(ctx, h.cfg.Every) == nil {
		err := h.look(ctx)
		if ctx.Err() != nil {
			break
		}
		if err != nil && !h.failed { // once for each time that it begins
			h.cfg.Logger.Warn("hot keys are not kept warm", "error", err)
		}
		h.failed = err != nil
	}
	return ctx.Err()
}

// look reads what is hot, and fills what of it is not warm.
func (h *HotKeys) look(ctx context.Context) error {
	set := h.cfg.Warmer.cfg.Rules().Set()
	known := map[string]map[string]bool{}
	lists := map[*rules.Class][]string{}
	for _, class := range set.Entries {
		keys, err := h.cfg.Warmer.cfg.Store.Hot(ctx, class.Name, coherence.HotMax)
		if err != nil {
			return err
		}
		names := ranked(class, keys)
		h.ranked.WithLabelValues(class.Name).Set(float64(len(names)))
		if len(names) == 0 {
			continue
		}
		known[class.Name] = make(map[string]bool, len(names))
		for _, n := range names {
			known[class.Name][n] = true
		}
		lists[class] = names[:min(len(names), max(h.cfg.Warm, 0))]
	}
	h.known.Store(&known)
	var errs []error
	for class, names := range lists {
		if len(names) == 0 || !h.cfg.Warmer.cfg.Loader.Loads(class) {
			continue
		}
		r, err := h.cfg.Warmer.Fill(ctx, class.Name, names, Options{IfAbsent: true, Ahead: h.cfg.Ahead, Prefetch: true})
		h.fills.WithLabelValues(class.Name).Add(float64(r.Stored))
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// ranked are the names that are of the class, the one first that is going to be
// read most. What clients name is looked at as what it is: text from outside.
func ranked(class *rules.Class, keys []coherence.HotKey) []string {
	heat := func(k coherence.HotKey) float64 { return k.PerMinute + hotRise*max(0, k.PerMinute-k.Before) }
	slices.SortStableFunc(keys, func(a, b coherence.HotKey) int {
		return cmp.Or(cmp.Compare(heat(b), heat(a)), cmp.Compare(a.Name, b.Name))
	})
	names := make([]string, 0, len(keys))
	for _, k := range keys {
		if fillable(class, k.Name) {
			names = append(names, k.Name)
		}
	}
	return names
}

// fillable reports whether a name from outside is one of the class's entries,
// and no longer than names are. That of a version is none: it would be filled as
// an entry of its own, with versions of its own, which no rule names.
func fillable(class *rules.Class, full string) bool {
	name := []byte(full)
	_, ok := class.Captures(name)
	return ok && len(name) <= coherence.MaxNameLen && len(class.Unversioned(name)) == len(name)
}

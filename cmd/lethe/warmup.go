package main

import (
	"context"
	"fmt"
	"net/url"
	"slices"
	"strings"
	_ "time/tzdata" // the zones of warm-ups, wherever the program runs

	"github.com/lethe-cache/lethe/warmer"
)

// cacheName is what tells one Redis and namespace from another, without what is
// secret of the URL.
func cacheName(redisURL, namespace string) string {
	var hosts []string
	for part := range strings.SplitSeq(redisURL, ",") {
		if u, err := url.Parse(strings.TrimSpace(part)); err == nil && u.Host != "" {
			part = u.Host + u.Path
		}
		hosts = append(hosts, strings.TrimSpace(part))
	}
	slices.Sort(hosts)
	return namespace + "\x00" + strings.Join(hosts, ",")
}

// openWarmups makes what fills entries before they are asked for.
func (p *pipeline) openWarmups(w *warmer.Warmer) (*warmer.Warmups, error) {
	return warmer.NewWarmups(warmer.WarmupConfig{
		Warmer: w, Cache: cacheName(p.settings.RedisURL, p.namespace()),
		Ready: func() bool {
			ctx, cancel := context.WithTimeout(context.Background(), answerTimeout)
			defer cancel()
			return p.upAndRunning(ctx).Ready
		},
		Logger: p.log, Metrics: warmer.NewWarmupMetrics(p.registry),
	})
}

// serveWarmups runs them, and shows those of the start to who looks.
func (p *pipeline) serveWarmups(ctx context.Context) error {
	defer p.terminal.follow(p.up.warm.warmups)()
	return p.up.warm.warmups.Serve(ctx)
}

// warmReadiness adds what of the start's warm-ups is not over to the reasons.
// What is over and was not done whole is a detail: readers fill it.
func (r *readiness) warm(u *warmer.Warmups) {
	list, over := u.Starting()
	var ended []map[string]any
	for _, p := range list {
		switch {
		case p.State == "waiting" || p.State == "running":
			r.Reasons = append(r.Reasons, "warming "+p.String())
		case p.State != "done":
			ended = append(ended, map[string]any{"entry": p.Entry, "state": p.State, "rows": p.Rows, "of": max(p.Of, 0), "error": p.Error})
		}
	}
	if len(ended) > 0 {
		r.Details["warm"] = ended
	}
	if !over && len(r.Reasons) == 0 {
		r.Reasons = append(r.Reasons, "warming has not begun")
	}
	if p, ok := u.Running(); ok {
		r.Details["warming"] = fmt.Sprint(p)
	}
	r.Ready = len(r.Reasons) == 0
}

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/lethe-cache/lethe/cdc"
	"github.com/lethe-cache/lethe/invalidator"
	"github.com/lethe-cache/lethe/rules"
)

// lookEvery is how often the rules' files are looked at. A change is taken when
// two looks agree: an editor may be half-way through writing.
const lookEvery = 500 * time.Millisecond

// ruleset is the rules in force, in the forms that the rooms need.
type ruleset struct {
	// files is what the files say; set has the declared dependencies as well, and
	// compiled is made of it.
	files, set *rules.Set
	compiled   *invalidator.Rules
	// problems are what can not be understood of those, which are the ones of
	// reading number read (edges.read).
	problems []rules.EdgeProblem
	read     uint64
}

func newRuleset(files *rules.Set, declared []rules.Edge) (*ruleset, error) {
	set, problems := files.WithEdges(declared)
	compiled, err := invalidator.NewRules(set)
	if err != nil {
		return nil, err
	}
	return &ruleset{files: files, set: set, compiled: compiled, problems: problems}, nil
}

// reloads is what came of the last reload, for readiness and metrics.
type reloads struct {
	mu     sync.Mutex
	at     time.Time
	err    error
	count  *prometheus.CounterVec
	loaded prometheus.Gauge
	failed prometheus.Gauge
}

func newReloads(registry prometheus.Registerer) *reloads {
	r := &reloads{
		count: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "lethe_rules_reloads_total", Help: "Reloads of the rules, by result: done, unchanged, failed."}, []string{"result"}),
		loaded: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "lethe_rules_loaded_timestamp_seconds", Help: "When the rules in force were loaded."}),
		failed: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "lethe_rules_reload_failed", Help: "1 while the last reload has failed and the rules before it are in force."}),
	}
	for _, result := range []string{"done", "unchanged", "failed"} {
		r.count.WithLabelValues(result)
	}
	r.loaded.SetToCurrentTime()
	registry.MustRegister(r.count, r.loaded, r.failed)
	return r
}

// note keeps the outcome of a reload; news is false if it failed as the last
// one did.
func (r *reloads) note(result string, err error) (news bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	news = err == nil || r.err == nil || r.err.Error() != err.Error()
	r.at, r.err = time.Now(), err
	r.count.WithLabelValues(result).Inc()
	r.failed.Set(0)
	switch result {
	case "done":
		r.loaded.SetToCurrentTime()
	case "failed":
		r.failed.Set(1)
	}
	return news
}

// details tells of a failed reload; a process that has one is ready all the
// same, by the rules before it.
func (r *reloads) details() map[string]any {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == nil {
		return nil
	}
	return map[string]any{"failed_at": r.at.UTC().Format(time.RFC3339), "error": r.err.Error()}
}

// followRules reloads the rules when asked to and when their files change,
// until ctx ends. One reload runs at a time; one that failed for a reason that
// time may cure is tried again.
func (p *pipeline) followRules(ctx context.Context, asked <-chan struct{}) {
	if len(p.settings.Rules) == 0 { // they come from no file
		return
	}
	ticker := time.NewTicker(lookEvery)
	defer ticker.Stop()
	tried, last, again := p.seen, p.seen, false
	for {
		why := "asked for"
		select {
		case <-ctx.Done():
			return
		case <-asked:
		case <-ticker.C:
			now := rules.Fingerprint(p.settings.Rules...)
			settled := now == last
			last = now
			switch {
			case !settled || now == tried && !again:
				continue
			case now == tried:
				why = "tried again"
			default:
				why = "the files have changed"
			}
		}
		tried = rules.Fingerprint(p.settings.Rules...)
		last = tried
		again = p.reload(ctx, why)
	}
}

// reload takes the rules of the files into force, all of them or none: what is
// wrong with them leaves the old ones as they are.
//
// First the publications get what either of the two needs, then the workers
// take the new rules, and with their next batch raise what these newly touch;
// then the publications lose what nobody needs any more. So no change of a
// table that the rules name goes by unseen.
//
// again is true if it failed for a reason that time may cure.
func (p *pipeline) reload(ctx context.Context, why string) (again bool) {
	var next *ruleset
	var err error
	if p.up.worker != nil { // whoever asks may mean that table, too
		err = p.learn(ctx, "")
	}
	before := p.rules.Load()
	if err == nil {
		next, err = p.loadNext(ctx, before.set)
	}
	if err == nil {
		added, removed := rules.Difference(before.set, next.set)
		if len(added)+len(removed) == 0 {
			// Names, owners, places and loaders may still be others.
			p.inForce(next)
			p.reloads.note("unchanged", nil)
			p.log.Info("rules reloaded, what they invalidate is the same", "why", why, "rules", len(next.set.Rules))
			return false
		}
		if err = p.publish(ctx, append(before.set.Tables(), next.set.Tables()...)); err == nil {
			p.inForce(next)
			p.reloads.note("done", nil)
			p.log.Info("rules reloaded", "why", why, "added", added, "removed", removed, "rules", len(next.set.Rules))
			if err := p.publish(ctx, next.set.Tables()); err != nil {
				p.log.Warn("take tables out of the publications that no rule names any more; the watch tries again", "error", err)
				p.up.database.watchFor(next.set.Tables())
			}
			return false
		}
	}
	if ctx.Err() != nil {
		return false
	}
	if p.reloads.note("failed", err) {
		p.log.Error("rules not reloaded, those before stay in force", "why", why, "error", err)
	}
	// A file that could not be read may be on its way: between two looks nobody
	// would see that it was gone.
	var unread *fs.PathError
	return !permanent(err) || errors.As(err, &unread)
}

// loadNext reads, checks and compiles the files.
func (p *pipeline) loadNext(ctx context.Context, before *rules.Set) (*ruleset, error) {
	set, err := loadRules(p.settings.Rules)
	if err != nil {
		return nil, err
	}
	if set.Namespace != before.Namespace {
		return nil, fmt.Errorf("the namespace %q became %q: that needs a restart", before.Namespace, set.Namespace)
	}
	var schema rules.Schema
	err = p.up.database.withConn(ctx, func(conn *pgx.Conn) (err error) {
		schema, err = readSchema(ctx, conn, set)
		return err
	})
	if err != nil {
		return nil, err
	}
	if p.roles.worker {
		if err := p.schedulesFor(ctx, set); err != nil {
			return nil, err
		}
	}
	findings := set.Check(schema)
	for _, f := range findings.Warnings() {
		p.log.Warn("rules", "code", f.Code, "finding", f.String(), "fix", f.Fix)
	}
	if errs := findings.Errors(); len(errs) > 0 {
		return nil, errs
	}
	if p.up.edge != nil {
		if err := p.up.edge.Check(set.EdgeCaches); err != nil {
			return nil, err
		}
	}
	return p.withEdges(set)
}

// publish brings the publications in step with uses. While another process has
// the slot they are its own.
func (p *pipeline) publish(ctx context.Context, uses []rules.TableUse) error {
	if p.up.reader == nil {
		return nil
	}
	if p.up.reader.State().Phase == cdc.PhaseWaitingForSlot {
		p.up.database.watchFor(uses)
		return nil
	}
	changes, err := p.up.database.syncPublications(ctx, p.settings.Publication, rules.MergeTables(uses))
	raiseGaps(p.up.reader, changes)
	return errors.Join(err, p.up.database.raiseDue(ctx, p.up.reader, p.settings.Slot))
}

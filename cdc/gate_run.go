package cdc

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/stream"
)

// primary is what the gate asks of the server whose slot is read.
type primary interface {
	// snapshot takes a snapshot now: it begins after the call does.
	snapshot(ctx context.Context) (Snapshot, error)
	// gap begins to wait for everything that runs now.
	gap(ctx context.Context) (*Gap, error)
	// insertLSN returns where WAL is written.
	insertLSN(ctx context.Context) (change.LSN, error)
}

// gateRunner drives a gate for one session: it takes segments, snapshots and
// raises, and appends batches to the Writer. One goroutine runs it.
type gateRunner struct {
	gate    *gate
	in      <-chan *segment
	primary primary
	source  change.Source
	// log is what outlives the session: numbers of batches, raises.
	log    *appender
	raises *raiser
	// kick wakes the runner for a raise.
	kick <-chan struct{}

	markInterval time.Duration
	dead         stream.DeadLetters
	observer     Observer
	logger       *slog.Logger
	nap          func(time.Duration)

	segs     []*segment
	polls    int       // snapshots in a row that released nothing
	lastMark time.Time // when v was last told
	told     change.LSN
	gapCheck time.Time
	stuck    stuckCommit
}

const (
	// A commit that is flushed is visible 0.1 to 0.3 ms later if nothing is
	// wrong: look again at once a few times, then less and less often.
	quickPolls   = 6
	quickPoll    = 50 * time.Microsecond
	slowPollMin  = 500 * time.Microsecond
	slowPollMax  = 50 * time.Millisecond
	gapPoll      = 100 * time.Millisecond
	drainMax     = 16
	stuckAfter   = 10 * time.Second
	deadLetterIn = 5 * time.Second
)

// stuckCommit is the oldest commit that is held, for the log line about it.
type stuckCommit struct {
	lsn    change.LSN
	since  time.Time
	warned bool
}

// run ends with ctx or with an error of the connection or the Writer. Batches
// are appended under appendCtx, which outlives the session: an Append that is
// given up half-way would leave open whether its batch counts.
func (g *gateRunner) run(ctx, appendCtx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		g.segs = g.segs[:0]
		if !g.quick() {
			// A timer that nothing waits for would be set, and perhaps wake a
			// thread, for every commit.
			var due <-chan time.Time
			if d, ok := g.wait(time.Now()); ok {
				timer.Reset(d)
				due = timer.C
			}
			in := g.in
			if g.gate.full() {
				in = nil // the receiver blocks, and goes on sending statuses
			}
			select {
			case seg := <-in:
				g.segs = append(g.segs, seg)
			case <-due:
			case <-g.kick:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		g.drain()
		if err := g.step(ctx, appendCtx); err != nil {
			return err
		}
	}
}

// quick naps for a moment if a commit was held just now.
func (g *gateRunner) quick() bool {
	if !g.gate.waiting() || g.polls >= quickPolls || g.gate.full() {
		return false
	}
	if g.polls > 0 {
		g.nap(quickPoll)
	}
	return true
}

// wait is how long to sleep if nothing comes; ok is false if only what comes
// can bring work.
func (g *gateRunner) wait(now time.Time) (d time.Duration, ok bool) {
	sooner := func(other time.Duration) {
		if other = max(0, other); !ok || other < d {
			d, ok = other, true
		}
	}
	if g.gate.waiting() {
		sooner(min(slowPollMax, slowPollMin<<min(max(0, g.polls-quickPolls), 10)))
	}
	if g.raises.pending() {
		sooner(g.gapCheck.Sub(now))
	}
	if g.gate.v > g.told {
		sooner(g.lastMark.Add(g.markInterval).Sub(now))
	}
	return d, ok
}

func (g *gateRunner) drain() {
	for len(g.segs) < drainMax && !g.gate.full() {
		select {
		case seg := <-g.in:
			g.segs = append(g.segs, seg)
		default:
			return
		}
	}
}

// step judges what is there. The snapshot comes after everything that it
// judges was received: one taken before could miss a commit that has become
// visible, which costs time, but could also be older than the xid's epoch.
func (g *gateRunner) step(ctx, appendCtx context.Context) error {
	now := time.Now()
	gaps := g.raises.pending() && !now.Before(g.gapCheck)
	need := g.gate.waiting() || gaps || slices.ContainsFunc(g.segs, g.gate.needsSnapshot)
	var snap *Snapshot
	if need {
		s, err := g.primary.snapshot(ctx)
		if err != nil {
			return fmt.Errorf("take snapshot: %w", err)
		}
		g.observer.Snapshot(time.Since(now))
		snap = &s
	}
	// Raises first: what is forgotten by a new era must be so before anything of
	// the new era is cached.
	if err := g.raise(ctx, appendCtx, snap, gaps); err != nil {
		return err
	}
	if g.gate.waiting() {
		before := g.gate.v
		out := g.gate.release(snap, nil)
		g.polls++
		for i, h := range out {
			g.polls = 0
			v := before
			if i == len(out)-1 {
				v = g.gate.v
			}
			if err := g.handOn(appendCtx, h, v); err != nil {
				return err
			}
		}
	}
	held := g.gate.held
	for i, seg := range g.segs {
		h := g.gate.admit(seg, snap)
		g.segs[i] = nil
		if err := g.handOn(appendCtx, h, g.gate.v); err != nil {
			return err
		}
	}
	if g.gate.held > held {
		g.polls = 0
	}
	g.observeHeld(now)
	return g.mark(appendCtx)
}

// handOn appends what the gate let go on.
func (g *gateRunner) handOn(ctx context.Context, h handed, v change.LSN) error {
	rec := h.rec
	if h.all || len(h.tables) > 0 {
		g.logger.Warn("a commit that was too large to be held is visible now, its tables are raised",
			"lsn", h.x, "tables", len(h.tables))
		r := change.Raise{Reason: change.ReasonOverflow, X: change.Position{Era: g.source.Era, LSN: h.x}}
		for t := range h.tables {
			r.Tables = append(r.Tables, t.QualifiedName())
		}
		slices.Sort(r.Tables)
		r.Tables = slices.Compact(r.Tables)
		if h.all {
			r.Classes, r.Tables = []string{"*"}, nil
		}
		if err := g.addRaise(ctx, rec, r); err != nil {
			return err
		}
	}
	for _, p := range h.poison {
		x := change.Position{Era: g.source.Era, LSN: p.x}
		r := change.Raise{Reason: change.ReasonDDL, X: x}
		switch {
		case p.edges:
			r.Reason = change.ReasonDependencies
		case !p.ddl:
			g.bury(ctx, p, x)
			r.Reason = change.ReasonDeadLetter
		}
		switch {
		case p.edges: // what of the classes, those say that know the rules
		case p.table == "":
			r.Classes = []string{"*"}
		default:
			r.Tables = []string{p.table}
		}
		if err := g.addRaise(ctx, rec, r); err != nil {
			return err
		}
	}
	if len(rec.Changes) == 0 && len(rec.Raises) == 0 {
		return nil
	}
	observeChanges(g.observer, rec.Changes)
	return g.append(ctx, rec, v, true)
}

// bury puts an undecodable message where people can look at it. The raise that
// goes with it is what keeps the cache true; the letter may be lost.
func (g *gateRunner) bury(ctx context.Context, p poisoned, x change.Position) {
	g.logger.Error("a message could not be decoded, its table is raised", "position", x, "table", p.table, "error", p.err)
	g.observer.Poison(p.table)
	if g.dead == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, deadLetterIn)
	defer cancel()
	err := g.dead.Put(ctx, stream.DeadLetter{
		Reason: "decode", Err: p.err.Error(), Partition: -1, Offset: -1, Position: x, Table: p.table, Payload: p.payload,
	})
	if err != nil {
		g.logger.Error("dead letter lost", "position", x, "error", err)
	}
}

// addRaise adds a raise to rec, with its cause and bound.
func (g *gateRunner) addRaise(ctx context.Context, rec *change.Record, r change.Raise) error {
	if r.Cause == "" {
		r.Cause = g.log.cause(r.Reason)
	}
	if r.Bound.IsZero() {
		lsn, err := g.primary.insertLSN(ctx)
		if err != nil {
			return fmt.Errorf("read insert LSN for a raise: %w", err)
		}
		r.Bound = change.Position{Era: g.source.Era, LSN: change.Bound(lsn)}
	}
	rec.Raises = append(rec.Raises, r)
	g.observer.Raise(r.Reason)
	return nil
}

// raise appends the raises that were asked for and are due.
func (g *gateRunner) raise(ctx, appendCtx context.Context, snap *Snapshot, gaps bool) error {
	if gaps {
		g.gapCheck = time.Now().Add(gapPoll)
	}
	if !gaps {
		snap = nil
	}
	due, err := g.raises.due(snap, func() (*Gap, error) { return g.primary.gap(ctx) })
	if err != nil {
		return fmt.Errorf("take snapshot for a raise: %w", err)
	}
	if len(due) == 0 {
		return nil
	}
	rec := &change.Record{}
	for _, d := range due {
		if err := g.addRaise(ctx, rec, d.raise); err != nil {
			return err
		}
	}
	if err := g.append(appendCtx, rec, g.gate.v, true); err != nil {
		return err
	}
	g.raises.appended(due, g.log.seq)
	return nil
}

// mark tells v where no change does, not more often than the interval.
func (g *gateRunner) mark(ctx context.Context) error {
	if g.gate.v <= g.told {
		return nil
	}
	g.log.confirm.idle(g.gate.v)
	if now := time.Now(); now.Sub(g.lastMark) < g.markInterval {
		return nil
	}
	return g.append(ctx, &change.Record{}, g.gate.v, false)
}

func (g *gateRunner) append(ctx context.Context, rec *change.Record, v change.LSN, data bool) error {
	rec.Source, rec.V = g.source, v
	if err := g.log.append(ctx, rec, data); err != nil {
		return err
	}
	if v > g.told {
		g.told, g.lastMark = v, time.Now()
	}
	return nil
}

func (g *gateRunner) observeHeld(now time.Time) {
	g.observer.Held(Held{Commits: g.gate.held, Rows: g.gate.rows, Bytes: g.gate.bytes, Forgotten: g.gate.forgotten})
	g.log.held.Store(int64(g.gate.held))
	g.log.v.Store(uint64(g.gate.v))
	if !g.gate.waiting() {
		g.stuck = stuckCommit{}
		return
	}
	i := slices.IndexFunc(g.gate.entries, func(e *entry) bool { return !e.passed })
	if oldest := g.gate.entries[i]; oldest.lsn != g.stuck.lsn {
		g.stuck = stuckCommit{lsn: oldest.lsn, since: now}
	} else if !g.stuck.warned && now.Sub(g.stuck.since) > stuckAfter {
		g.stuck.warned = true
		g.logger.Warn("a commit stays invisible, is a synchronous standby missing?",
			"lsn", oldest.lsn, "xid", oldest.xid, "held", g.gate.held)
	}
}

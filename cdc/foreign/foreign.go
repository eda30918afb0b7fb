// Package foreign gives the changes that another reader has put into the log
// (Debezium) what Lethe's own reader gives to its own: a gate, a position and an
// era. Workers put it between their consumer and themselves; records of Lethe's
// reader pass untouched.
//
// A foreign record does not say where its commit begins, nor whether it is
// visible yet. So a record waits until a snapshot of the primary, taken after it
// was received, shows its transaction, and gets as X the insert LSN that is read
// then, an upper bound. What can not be given is what only the owner of the slot
// knows: V (values are not stamped), and that the slot was lost.
package foreign

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"

	"github.com/lethe-cache/lethe/cdc"
	"github.com/lethe-cache/lethe/cdc/source"
	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/stream"
)

// Config holds what a Gate needs. Conn and Tracker must be set.
type Config struct {
	// Conn reaches the primary that the changes come from; a pool.
	Conn source.Conn
	// Tracker keeps era and instance, under a name of its own.
	Tracker *source.Tracker
	// Hints tells what the cache remembers of the source. Optional.
	Hints func(ctx context.Context) (source.Hints, error)
	// Logger discards if it is nil.
	Logger *slog.Logger
}

// Gate is a stream.Consumer around another one. It is safe for concurrent use.
type Gate struct {
	cfg  Config
	next stream.Consumer

	mu       sync.Mutex
	instance source.Instance
	source   change.Source
	// due is put before the next foreign record; unsafe, set while a raise was
	// handed on and is not known to be applied, is where.
	due    []change.Raise
	unsafe *place
}

// place is a record of a partition.
type place struct {
	partition int
	offset    int64
}

var _ stream.Consumer = (*Gate)(nil)

// New puts a gate before next.
func New(next stream.Consumer, cfg Config) *Gate {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return &Gate{cfg: cfg, next: next}
}

// Assigned implements stream.Consumer.
func (g *Gate) Assigned() int { return g.next.Assigned() }

// Run implements stream.Consumer.
func (g *Gate) Run(ctx context.Context, work func(context.Context, stream.Partition) error) error {
	return g.next.Run(ctx, func(ctx context.Context, p stream.Partition) error {
		return work(ctx, &partition{Partition: p, gate: g})
	})
}

// partition gates what is fetched from one partition.
type partition struct {
	stream.Partition
	gate *Gate
}

func (p *partition) Fetch(ctx context.Context, most int) ([]stream.Delivery, error) {
	deliveries, err := p.Partition.Fetch(ctx, most)
	if err != nil {
		return nil, err
	}
	if err := p.gate.admit(ctx, p.ID(), deliveries); err != nil {
		return nil, fmt.Errorf("gate foreign changes: %w", err)
	}
	return deliveries, nil
}

func (p *partition) Ack(ctx context.Context, offset int64) error {
	if err := p.Partition.Ack(ctx, offset); err != nil {
		return err
	}
	p.gate.applied(ctx, p.ID(), offset)
	return nil
}

// admit waits until every foreign record of the deliveries is visible, and
// completes them. It retries until ctx ends: the database may be away.
func (g *Gate) admit(ctx context.Context, partition int, deliveries []stream.Delivery) error {
	var xids []uint64
	first := -1
	for i := range deliveries {
		r := deliveries[i].Record
		if r == nil || !r.InsertLSN {
			continue
		}
		if first < 0 {
			first = i
		}
		for j := range r.Changes {
			if xid := r.Changes[j].Commit.XID; xid != 0 {
				xids = append(xids, xid)
			}
		}
	}
	if first < 0 {
		return nil
	}
	policy := backoff.NewExponentialBackOff(backoff.WithInitialInterval(20*time.Millisecond),
		backoff.WithMaxInterval(2*time.Second), backoff.WithMaxElapsedTime(0))
	var lsn change.LSN
	var src change.Source
	attempt := func() (err error) {
		if err := g.visible(ctx, xids); err != nil {
			return err
		}
		src, lsn, err = g.position(ctx)
		var refused *source.RefusedError
		if errors.As(err, &refused) && refused.Permanent() {
			return backoff.Permanent(err)
		}
		return err
	}
	err := backoff.RetryNotify(attempt, backoff.WithContext(policy, ctx), func(err error, wait time.Duration) {
		g.cfg.Logger.Warn("foreign changes wait for the primary", "error", err, "retry_in", wait)
	})
	if err != nil {
		return err
	}
	for i := range deliveries {
		if r := deliveries[i].Record; r != nil && r.InsertLSN {
			complete(r, src, lsn)
		}
	}
	g.attach(partition, &deliveries[first])
	return nil
}

// complete gives a record what its log does not say. All that is fetched together
// gets one position, and what came later comes later in it: the number of a change
// inside of its own transaction, which Debezium may tell, says nothing beside
// another's there.
func complete(r *change.Record, src change.Source, lsn change.LSN) {
	r.InsertLSN, r.Source, r.V = false, src, 0
	for i := range r.Changes {
		r.Changes[i].Ordinal = 0
		if c := r.Changes[i].Commit; c.LSN == 0 {
			c.LSN = lsn
		}
	}
}

// attach puts what is due before the first foreign record, in its own record:
// there it can not be lost without the record being delivered again.
func (g *Gate) attach(partition int, d *stream.Delivery) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.due) == 0 {
		return
	}
	d.Record.Raises = append(g.due, d.Record.Raises...)
	g.due, g.unsafe = nil, &place{partition, d.Offset}
}

// applied notes that a partition was applied up to offset, and with it perhaps
// the raise that began the era.
func (g *Gate) applied(ctx context.Context, partition int, offset int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.unsafe == nil || g.unsafe.partition != partition || offset < g.unsafe.offset {
		return
	}
	if err := g.cfg.Tracker.Raised(ctx, g.cfg.Conn); err != nil {
		g.cfg.Logger.Warn("the raise of this era is not noted and will be done again", "error", err)
		return
	}
	g.unsafe = nil
}

const (
	pollMin   = 200 * time.Microsecond
	pollMax   = 50 * time.Millisecond
	warnAfter = 10 * time.Second
)

// visible returns when a snapshot that was taken after the call shows every
// transaction to be over.
func (g *Gate) visible(ctx context.Context, xids []uint64) error {
	if len(xids) == 0 {
		return nil
	}
	began, wait, warned := time.Now(), pollMin, false
	timer := time.NewTimer(0)
	defer timer.Stop()
	<-timer.C
	for {
		var text string
		if err := g.cfg.Conn.QueryRow(ctx, `SELECT pg_catalog.pg_current_snapshot()::text`).Scan(&text); err != nil {
			return fmt.Errorf("take snapshot: %w", err)
		}
		snapshot, err := cdc.ParseSnapshot(text)
		if err != nil {
			return err
		}
		held := xids[:0]
		for _, xid := range xids {
			// Debezium passes on the 32 bits of the log.
			if !snapshot.Over(snapshot.Widen(uint32(xid))) {
				held = append(held, xid)
			}
		}
		if xids = held; len(xids) == 0 {
			return nil
		}
		if time.Since(began) > warnAfter && !warned {
			warned = true
			g.cfg.Logger.Warn("foreign changes wait for commits that are not visible", "commits", len(xids), "first_xid", xids[0])
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		wait = min(2*wait, pollMax)
	}
}

// position reads who the primary is and where it writes. Another instance than
// before begins an era, and what that makes due is kept for the next record.
func (g *Gate) position(ctx context.Context) (change.Source, change.LSN, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	in, err := source.Read(ctx, g.cfg.Conn)
	if err != nil {
		return change.Source{}, 0, err
	}
	if !in.Same(g.instance) || in.InRecovery {
		var hints source.Hints
		if g.cfg.Hints != nil {
			if hints, err = g.cfg.Hints(ctx); err != nil {
				return change.Source{}, 0, err
			}
		}
		src, due, err := g.cfg.Tracker.Open(ctx, g.cfg.Conn, hints)
		if err != nil {
			return change.Source{}, 0, err
		}
		// One raise each, not two: what runs now comes through the other
		// reader's slot, of which nothing is known to be lost.
		for _, d := range due {
			g.due = append(g.due, d.Raise)
		}
		g.source, g.instance = src, in
	}
	return g.source, in.Insert, nil
}

package cdc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lethe-cache/lethe/change"
)

// keeper does what may wait, on an ordinary connection of its own so that the
// gate never waits with it: it stores the position before that is confirmed,
// emits heartbeats, and watches the slot. One goroutine runs it.
type keeper struct {
	cfg    *Config
	conn   *pgx.Conn
	log    *appender
	raises *raiser
	// received is how far the receiver has come.
	received func() change.LSN
	version  int
	logger   *slog.Logger
	onStats  func(SlotStats)

	// stored is what may be confirmed; read by the receiver.
	stored   atomic.Uint64
	storedAt time.Time
	data     uint64 // the last batch that stored stands for
	raised   bool   // the tracker knows that its raises are durable
	last     change.LSN
	muted    bool // heartbeats are not permitted
}

const (
	slotStatsInterval = 5 * time.Second
	// idleSlack and idleStore: storing a position writes WAL, which moves the
	// position. With nothing but that going on it is not worth storing.
	idleSlack = 16 << 10
	idleStore = time.Minute
)

// run ends with ctx or when the connection is gone.
func (k *keeper) run(ctx context.Context) error {
	store := time.NewTicker(k.cfg.StoreInterval)
	defer store.Stop()
	stats := time.NewTicker(slotStatsInterval)
	defer stats.Stop()
	var beat <-chan time.Time
	if k.cfg.Heartbeat > 0 {
		t := time.NewTicker(k.cfg.Heartbeat)
		defer t.Stop()
		beat = t.C
	}
	if err := k.stats(ctx); err != nil {
		return err
	}
	for {
		var err error
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-k.log.writer.Advanced():
			k.raises.durable(k.log.writer.Durable())
			if !k.raised {
				err = k.settle(ctx)
			}
		case <-store.C:
			k.raises.durable(k.log.writer.Durable())
			err = k.store(ctx, false)
		case <-beat:
			err = k.heartbeat(ctx)
		case <-stats.C:
			err = k.stats(ctx)
		}
		if err != nil {
			return err
		}
	}
}

// survives turns an error into one that ends the session, or a line in the log
// if the connection still serves: a lock that was not had, a timeout.
func (k *keeper) survives(what string, err error) error {
	if err == nil {
		return nil
	}
	if k.conn.IsClosed() || errors.Is(err, errSlotUnusable) {
		return fmt.Errorf("%s: %w", what, err)
	}
	k.logger.Warn("an ordinary statement did not succeed, it is tried again", "statement", what, "error", err)
	return nil
}

// settle tells the tracker that its raises are durable, once they are.
func (k *keeper) settle(ctx context.Context) error {
	if k.cfg.Source == nil || k.raised || k.raises.tracked() {
		return nil
	}
	if err := k.cfg.Source.Raised(ctx, k.conn); err != nil {
		return k.survives("note that the raises are done", err)
	}
	k.raised = true
	return nil
}

// store stores how far the slot may be confirmed, and so lets the receiver
// confirm it. It comes before the confirmation: a slot that stands above the
// stored position was then moved by somebody else.
//
// Nothing is stored while a raise that the tracker asked for is not durable:
// the stored position is what makes it ask again after a crash.
func (k *keeper) store(ctx context.Context, last bool) error {
	if k.cfg.Source == nil {
		return nil
	}
	if err := k.settle(ctx); err != nil || !k.raised {
		return err
	}
	data := k.log.confirm.data()
	pos := k.log.position()
	stored := change.LSN(k.stored.Load())
	if pos <= stored {
		return nil
	}
	if !last && data == k.data && pos-stored < idleSlack && time.Since(k.storedAt) < idleStore {
		return nil
	}
	if err := k.cfg.Source.StoreConfirmed(ctx, k.conn, pos); err != nil {
		return k.survives("store the confirmed position", err)
	}
	k.stored.Store(uint64(pos))
	k.storedAt = time.Now()
	if data <= k.log.writer.Durable() {
		k.data = data
	}
	return nil
}

// heartbeat looks whether the stream follows what is written. If it has not
// moved since the last look and something was written, a message is emitted:
// it shows how long the way through the log is, and wakes a server that keeps
// what it has. An idle database is not written to, so it stays idle.
func (k *keeper) heartbeat(ctx context.Context) error {
	received := k.received()
	moved := received != k.last
	k.last = received
	if moved || k.muted {
		return nil
	}
	var s string
	if err := k.conn.QueryRow(ctx, `SELECT pg_catalog.pg_current_wal_flush_lsn()::text`).Scan(&s); err != nil {
		return k.survives("read the flush LSN", err)
	}
	flushed, err := change.ParseLSN(s)
	if err != nil {
		return err
	}
	if flushed <= received {
		return nil
	}
	// Transactional, so that its commit has it flushed; from 17 on a message can
	// be flushed without costing an xid.
	sql := `SELECT pg_catalog.pg_logical_emit_message(true, $1, $2::text)`
	if k.version >= 170000 {
		sql = `SELECT pg_catalog.pg_logical_emit_message(false, $1, $2::text, true)`
	}
	content := k.log.id + " " + strconv.FormatInt(time.Now().UnixMicro(), 10)
	if _, err := k.conn.Exec(ctx, sql, heartbeatPrefix, content); err != nil {
		if sqlState(err) == codePrivilege {
			k.muted = true
			k.logger.Warn("heartbeats are not permitted", "error", err)
			return nil
		}
		return k.survives("emit a heartbeat", err)
	}
	return nil
}

// heartbeatArrived is the other end of heartbeat; the receiver calls it.
func heartbeatArrived(id string, content []byte, now time.Time) (time.Duration, bool) {
	sent, ok := strings.CutPrefix(string(content), id+" ")
	if !ok {
		return 0, false
	}
	us, err := strconv.ParseInt(sent, 10, 64)
	if err != nil {
		return 0, false
	}
	return now.Sub(time.UnixMicro(us)), true
}

// stats reads the slot's state and enforces the WAL budget.
func (k *keeper) stats(ctx context.Context) error {
	s, err := readSlotStats(ctx, k.conn, k.cfg.Slot)
	if err != nil {
		return k.survives("read the slot's state", err)
	}
	k.onStats(s)
	if b := k.cfg.WALBudget; b > 0 && s.RetainedBytes > b {
		return fmt.Errorf("slot %s keeps %d bytes of WAL, its budget is %d: %w", k.cfg.Slot, s.RetainedBytes, b, errSlotUnusable)
	}
	if s.WALStatus == "lost" {
		return fmt.Errorf("slot %s is lost: %w", k.cfg.Slot, errSlotUnusable)
	}
	return nil
}

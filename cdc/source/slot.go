package source

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/lethe-cache/lethe/change"
)

// Slot is the state of the replication slot, as pg_replication_slots has it.
type Slot struct {
	// Exists is false if there is no slot of that name.
	Exists bool
	// Lost says that the server has thrown WAL away that the slot needs; it
	// must be dropped and made anew.
	Lost bool
	// Active is true while some walsender streams it.
	Active bool
	// Plugin is pgoutput for a slot of ours, Database where it was made.
	Plugin, Database string
	// Confirmed is confirmed_flush_lsn.
	Confirmed change.LSN
	// Advanced says that Confirmed lies above everything that was ever
	// confirmed by us: somebody recreated or advanced the slot, and what lies
	// between never came.
	Advanced bool
}

// CheckSlot compares the slot with the stored position. It is called after Open
// and before the slot is streamed.
//
// The raise is due if the slot is missing, lost, or not where it was left. A
// caller that makes the slot anew does so first and asks for the raise then:
// its second half waits for the transactions of a snapshot that is taken after
// the new slot's start. The raise stays due until a position is stored by
// StoreConfirmed, which therefore comes after it.
func (t *Tracker) CheckSlot(ctx context.Context, conn Conn) (Slot, []Due, error) {
	var (
		s         Slot
		confirmed *string
	)
	err := conn.QueryRow(ctx, `SELECT coalesce(wal_status = 'lost', false), active, coalesce(plugin, ''), coalesce(database, ''), confirmed_flush_lsn::text
		FROM pg_catalog.pg_replication_slots WHERE slot_name = $1`, t.slot).
		Scan(&s.Lost, &s.Active, &s.Plugin, &s.Database, &confirmed)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
	case err != nil:
		return Slot{}, nil, fmt.Errorf("read slot %s: %w", t.slot, err)
	default:
		s.Exists = true
		if s.Confirmed, err = lsn(confirmed); err != nil {
			return Slot{}, nil, err
		}
	}
	if s.Exists && !s.Lost {
		t.slotAt = s.Confirmed
	}
	s.Advanced = s.Exists && !s.Lost && t.confirmed != 0 && s.Confirmed > t.confirmed
	if s.Exists && !s.Lost && !s.Advanced {
		return s, nil, nil
	}
	return s, []Due{t.SlotLost()}, nil
}

// SlotLost is the raise of a slot that is new, was lost or is not where it was
// left, asked for now.
func (t *Tracker) SlotLost() Due {
	return Due{Raise: t.raise("slot/"+t.slot+"/"+nonce(), change.ReasonSlotLost), Again: true}
}

// StoreConfirmed stores a position, and must have returned before the position
// is sent to the slot: then a slot above the stored position was moved by
// somebody else. It writes only what is greater than before. Each call that
// writes makes a little WAL, so call it no oftener than the slot is confirmed
// in earnest (seconds). Without a table that can be written it does nothing.
//
// The write is not flushed: if it is lost the server has crashed, and a new era
// begins anyway.
func (t *Tracker) StoreConfirmed(ctx context.Context, conn Conn, confirmed change.LSN) error {
	if t.era == 0 || confirmed <= t.confirmed {
		return nil
	}
	if err := t.update(ctx, conn, "off", `confirmed = $3::text::pg_lsn`, confirmed.String()); err != nil {
		return fmt.Errorf("store position %s of slot %s: %w", confirmed, t.slot, err)
	}
	t.confirmed = confirmed
	return nil
}

// errMoved says that another process has written the slot's row meanwhile.
var errMoved = errors.New("another process has begun a later era: is a second reader running on the same slot?")

// update sets columns of the slot's row, if it is still of our era.
func (t *Tracker) update(ctx context.Context, conn Conn, synchronous, set string, args ...any) error {
	tx, err := begin(ctx, conn, synchronous)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	tag, err := tx.Exec(ctx, `UPDATE lethe.source SET `+set+`, updated_at = now() WHERE slot = $1 AND era = $2`,
		append([]any{t.slot, int(t.era)}, args...)...)
	if err != nil {
		return err
	}
	if tag.RowsAffected() == 0 {
		return errMoved
	}
	return tx.Commit(ctx)
}

package source

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lethe-cache/lethe/change"
)

// Hints are what others remember of the source, so that an era is never used
// twice and an old primary is known as one although its own table does not
// say so. Zero where nothing is known.
type Hints struct {
	// Log is the source of the last record in the log; Redis that of the
	// source record, the greatest era if there are several.
	Log, Redis change.Source
}

// Due is a raise that must be applied before positions of the source are used.
type Due struct {
	change.Raise
	// Again asks for a second one, when every transaction is over that ran in
	// a snapshot taken after the first (PROTOCOL H5).
	Again bool
}

// Tracker keeps era and instance of one slot in the table lethe.source. Its
// methods are called by one goroutine at a time; they block for the round trips
// to the database, and for a lock no longer than LockTimeout.
type Tracker struct {
	slot   string
	logger *slog.Logger

	// era of the last Open, 0 while it is not known; confirmed is what the
	// table holds, so that nothing is written twice.
	era       uint16
	confirmed change.LSN
	insert    change.LSN
	slotAt    change.LSN // where CheckSlot has seen the slot
	pending   bool       // the table says that the raise is due
	// forgot is the instance for which everything was forgotten although no era
	// could be stored: within this process that need not be done again.
	forgot, asked Instance
}

// LockTimeout bounds how long a method of Tracker waits for the row that
// another process holds.
const LockTimeout = 2 * time.Second

// New makes a Tracker of the named slot. It does nothing until Open.
func New(slot string, logger *slog.Logger) *Tracker {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return &Tracker{slot: slot, logger: logger}
}

// Open is called at every connect, before the slot is streamed. It compares
// the server with what is known of it and returns the source that positions
// belong to from now on, with the raises that are due before they are used.
//
// The same instance as before: nothing is due. Another one: a new era, stored,
// and "*" is raised. A raise stays due, over restarts, until Raised is called.
// Where the table can not be written the era is 0 (stamps are not used) and "*"
// is raised once by every process and for every instance. The error is a *RefusedError for a server that must
// not be read, else one of the connection, which may be tried again.
func (t *Tracker) Open(ctx context.Context, conn Conn, hints Hints) (change.Source, []Due, error) {
	t.era, t.confirmed, t.slotAt, t.pending = 0, 0, 0, false
	in, err := Read(ctx, conn)
	if err != nil {
		return change.Source{}, nil, err
	}
	if in.InRecovery {
		return change.Source{}, nil, standbyError()
	}
	t.insert = in.Insert
	for _, h := range []change.Source{hints.Log, hints.Redis} {
		if h.SystemID == in.SystemID && h.Timeline > in.Timeline {
			return change.Source{}, nil, oldTimelineError(in.Timeline, h.Timeline)
		}
	}
	src := in.Source()
	due, err := t.store(ctx, conn, in, hints)
	switch {
	case errors.Is(err, errExhausted) || cannotWrite(err):
		t.era = 0
		if t.forgot.Same(in) {
			return src, nil, nil
		}
		t.asked = in
		t.logger.Warn("the era can not be stored: everything cached is forgotten at every start, and stamps are not used",
			"slot", t.slot, "error", err, "fix", "run `lethe migrate` with the rights that `lethe doctor` names")
		raise := t.raise("unknown_era/"+t.slot+"/"+nonce(), change.ReasonUnknownEra)
		return src, []Due{{Raise: raise, Again: true}}, nil
	case err != nil:
		return change.Source{}, nil, fmt.Errorf("compare the server with lethe.source: %w", err)
	}
	src.Era = t.era
	return src, due, nil
}

// errExhausted says that no era is left to count to.
var errExhausted = errors.New("all 65535 eras are used up: change LETHE_SLOT and empty Redis to begin again")

// row is what lethe.source holds of a slot.
type row struct {
	era int
	Instance
	confirmed change.LSN
	raiseDue  bool
}

// store brings the table in step with the instance.
func (t *Tracker) store(ctx context.Context, conn Conn, in Instance, hints Hints) ([]Due, error) {
	tx, err := begin(ctx, conn, "local")
	if err != nil {
		return nil, err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	known, err := read(ctx, tx, t.slot)
	if err != nil {
		return nil, err
	}
	if known.era != 0 && known.SystemID == in.SystemID && known.Timeline > in.Timeline {
		return nil, oldTimelineError(in.Timeline, known.Timeline)
	}
	if known.era != 0 && known.Same(in) && agrees(hints, change.Source{Era: uint16(known.era), SystemID: in.SystemID, Timeline: in.Timeline}) {
		t.era, t.confirmed, t.pending = uint16(known.era), known.confirmed, known.raiseDue
		if !known.raiseDue {
			return nil, nil
		}
		return []Due{t.sourceDue(in)}, nil
	}
	era := max(known.era, int(hints.Log.Era), int(hints.Redis.Era)) + 1
	if era > math.MaxUint16 {
		return nil, errExhausted
	}
	_, err = tx.Exec(ctx, `INSERT INTO lethe.source (slot, era, system_id, timeline, postmaster_start, checkpointer_start, confirmed, raise_due, updated_at)
		VALUES ($1, $2, $3, $4, $5, $6, NULL, true, now())
		ON CONFLICT (slot) DO UPDATE SET (era, system_id, timeline, postmaster_start, checkpointer_start, confirmed, raise_due, updated_at)
		= (excluded.era, excluded.system_id, excluded.timeline, excluded.postmaster_start, excluded.checkpointer_start, NULL, true, now())`,
		t.slot, era, int64(in.SystemID), int32(in.Timeline), in.PostmasterStart, nullTime(in.CheckpointerStart))
	if err != nil {
		return nil, err
	}
	if err := tx.Commit(ctx); err != nil {
		return nil, err
	}
	t.era, t.confirmed, t.pending = uint16(era), 0, true
	t.logger.Info("a new era begins: everything cached is forgotten", "slot", t.slot, "era", era,
		"system_id", in.SystemID, "timeline", in.Timeline, "known_era", known.era, "known_timeline", known.Timeline)
	return []Due{t.sourceDue(in)}, nil
}

// agrees reports whether what others remember is no later than, and no
// different from, the source that the table holds.
func agrees(hints Hints, known change.Source) bool {
	for _, h := range []change.Source{hints.Log, hints.Redis} {
		if h.Era > known.Era || h.Era == known.Era && h != known {
			return false
		}
	}
	return true
}

// sourceDue is the raise of a new era. Its cause is the same each time until it
// is known to be durable, so that it is applied once; it names the instance,
// because a table that was lost begins to count again.
func (t *Tracker) sourceDue(in Instance) Due {
	run := nonce()
	if !in.CheckpointerStart.IsZero() {
		run = hex(uint64(in.CheckpointerStart.UnixMicro()))
	}
	cause := strings.Join([]string{"source", t.slot, hex(uint64(t.era)), hex(in.SystemID), hex(uint64(in.Timeline)), run}, "/")
	return Due{Raise: t.raise(cause, change.ReasonSource), Again: true}
}

func (t *Tracker) raise(cause, reason string) change.Raise {
	return change.Raise{
		Cause:   cause,
		Reason:  reason,
		Classes: []string{"*"},
		Bound:   change.Position{Era: t.era, LSN: change.Bound(t.insert)},
	}
}

// Raised says that what Open and CheckSlot asked for can not be lost any more:
// it was applied, or stands in the log. Until then a restart asks again.
func (t *Tracker) Raised(ctx context.Context, conn Conn) error {
	t.forgot = t.asked
	if !t.pending || t.era == 0 {
		return nil
	}
	// Where no position is stored yet, the slot's own is from now on what a slot
	// that is made anew is known by.
	at := sql.NullString{String: t.slotAt.String(), Valid: t.slotAt != 0}
	if err := t.update(ctx, conn, "local", `raise_due = false, confirmed = coalesce(confirmed, $3::text::pg_lsn)`, at); err != nil {
		return fmt.Errorf("note the raise of era %d in lethe.source: %w", t.era, err)
	}
	if t.confirmed == 0 {
		t.confirmed = t.slotAt
	}
	t.pending = false
	return nil
}

// begin starts a transaction that neither waits long for a lock nor at all for
// a synchronous standby.
func begin(ctx context.Context, conn Conn, synchronous string) (pgx.Tx, error) {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return nil, err
	}
	_, err = tx.Exec(ctx, `SELECT set_config('lock_timeout', $1, true), set_config('statement_timeout', '10s', true), set_config('synchronous_commit', $2, true)`,
		fmt.Sprintf("%dms", LockTimeout.Milliseconds()), synchronous)
	if err != nil {
		_ = tx.Rollback(context.WithoutCancel(ctx))
		return nil, err
	}
	return tx, nil
}

func read(ctx context.Context, tx pgx.Tx, slot string) (row, error) {
	var (
		r            row
		system       int64
		timeline     int32
		checkpointer *time.Time
		confirmed    *string
	)
	err := tx.QueryRow(ctx, `SELECT era, system_id, timeline, postmaster_start, checkpointer_start, confirmed::text, raise_due
		FROM lethe.source WHERE slot = $1 FOR UPDATE`, slot).
		Scan(&r.era, &system, &timeline, &r.PostmasterStart, &checkpointer, &confirmed, &r.raiseDue)
	if errors.Is(err, pgx.ErrNoRows) {
		return row{}, nil
	}
	if err != nil {
		return row{}, err
	}
	r.SystemID, r.Timeline = uint64(system), uint32(timeline)
	if checkpointer != nil {
		r.CheckpointerStart = *checkpointer
	}
	r.confirmed, err = lsn(confirmed)
	return r, err
}

func nullTime(at time.Time) *time.Time {
	if at.IsZero() {
		return nil
	}
	return &at
}

func nonce() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return fmt.Sprintf("%x", b)
}

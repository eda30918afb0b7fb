package cdc

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lethe-cache/lethe/cdc/source"
	"github.com/lethe-cache/lethe/change"
)

// ensureSlot finds the slot or makes it, and reports whether it made it.
//
// A slot that is lost is dropped and made anew. What lies between is a gap that
// no retry brings back; the raises that the caller asks for heal it, and
// reading on from the new slot is safe.
func (s *session) ensureSlot(ctx context.Context) (created bool, err error) {
	r, conn := s.reader, s.keeper
	for {
		var plugin, database, kind string
		var lost, temporary bool
		err := conn.QueryRow(ctx, `SELECT coalesce(plugin, ''), coalesce(database, ''), slot_type, temporary, coalesce(wal_status = 'lost', false)
			FROM pg_catalog.pg_replication_slots WHERE slot_name = $1`, r.cfg.Slot).Scan(&plugin, &database, &kind, &temporary, &lost)
		switch {
		case errors.Is(err, pgx.ErrNoRows):
			r.broken = false
			err := s.createSlot(ctx)
			if sqlState(err) == codeDuplicateObject {
				continue // another process was quicker
			}
			return err == nil, err
		case err != nil:
			return false, Classify("look for slot "+r.cfg.Slot, err)
		}
		if kind != "logical" || plugin != "pgoutput" || temporary || database != conn.Config().Database {
			return false, &Error{
				Op:   "use slot " + r.cfg.Slot,
				Err:  fmt.Errorf("it belongs to somebody else: %s, plugin %q, database %q", kind, plugin, database),
				Hint: "choose another name in LETHE_SLOT",
			}
		}
		if !lost && !r.broken {
			return false, nil
		}
		r.cfg.Logger.Error("the slot has lost WAL that it needed: it is made anew and everything cached is forgotten", "slot", r.cfg.Slot)
		if _, err := conn.Exec(ctx, `SELECT pg_catalog.pg_drop_replication_slot($1)`, r.cfg.Slot); err != nil && sqlState(err) != codeUndefinedObject {
			return false, Classify("drop slot "+r.cfg.Slot, err)
		}
		r.broken = false
	}
}

// createSlot makes the slot by SQL, since the replication command does not know
// failover slots. The server waits for every transaction that is running to
// end; that can take long, and no timeout helps. What is cached is stale all
// the while, so it is forgotten in the meantime too.
func (s *session) createSlot(ctx context.Context) (err error) {
	r, conn, version := s.reader, s.keeper, s.id.version
	r.setPhase(PhaseCreatingSlot, nil)
	created := make(chan struct{})
	var wg sync.WaitGroup
	var raised error
	wg.Go(func() {
		due := time.NewTimer(raiseEarly)
		defer due.Stop()
		for raised == nil {
			select {
			case <-due.C:
				raised = s.raiseEarly(ctx)
				due.Reset(raiseAgain)
			case <-created:
				return
			}
		}
	})
	defer func() {
		close(created)
		wg.Wait()
		if err == nil {
			err = raised
		}
	}()
	op := "create slot " + r.cfg.Slot
	// transaction_timeout exists from 17 on.
	if _, err := conn.Exec(ctx, `SELECT set_config(name, '0', false) FROM pg_catalog.pg_settings
		WHERE name IN ('statement_timeout', 'lock_timeout', 'transaction_timeout')`); err != nil {
		return Classify(op, err)
	}
	sql := `SELECT lsn::text FROM pg_catalog.pg_create_logical_replication_slot($1, 'pgoutput', false, false)`
	if version >= 170000 {
		sql = `SELECT lsn::text FROM pg_catalog.pg_create_logical_replication_slot($1, 'pgoutput', false, false, failover => true)`
	}
	var at string
	if err := conn.QueryRow(ctx, sql, r.cfg.Slot).Scan(&at); err != nil {
		if sqlState(err) == codeDuplicateObject {
			return err
		}
		return Classify(op, err)
	}
	p := ordinaryParams()
	if _, err := conn.Exec(ctx, `SELECT set_config('statement_timeout', $1, false), set_config('lock_timeout', $2, false)`,
		p["statement_timeout"], p["lock_timeout"]); err != nil {
		return Classify(op, err)
	}
	r.cfg.Logger.Info("slot created", "slot", r.cfg.Slot, "lsn", at, "failover", version >= 170000)
	return nil
}

// raiseEarly is how long the making of a slot may take before what is cached is
// forgotten without waiting for it. What is cached after that may be stale as
// well, so it is forgotten again and again: raiseAgain bounds for how long.
const (
	raiseEarly = 200 * time.Millisecond
	raiseAgain = 10 * time.Second
)

// raiseEarly puts a raise into the log while no slot is read. It replaces none
// of the two that follow when there is one.
func (s *session) raiseEarly(ctx context.Context) error {
	r := s.reader
	src := change.Source{SystemID: s.id.systemID, Timeline: s.id.timeline}
	if t := r.cfg.Source; t != nil {
		var hints source.Hints
		var err error
		if r.cfg.Hints != nil {
			if hints, err = r.cfg.Hints(ctx); err != nil {
				return fmt.Errorf("ask what is remembered of the source: %w", err)
			}
		}
		if src, _, err = t.Open(ctx, s.gate, hints); err != nil {
			return openError(err)
		}
	}
	at, err := (&pgPrimary{conn: s.gate}).insertLSN(ctx)
	if err != nil {
		return fmt.Errorf("read insert LSN for a raise: %w", err)
	}
	r.cfg.Observer.Raise(change.ReasonSlotLost)
	return r.log.append(ctx, &change.Record{Source: src, Raises: []change.Raise{{
		Cause: r.log.cause(change.ReasonSlotLost), Reason: change.ReasonSlotLost, Classes: []string{"*"},
		Bound: change.Position{Era: src.Era, LSN: change.Bound(at)},
	}}}, true)
}

// checkPublications refuses to stream publications that do not exist: the
// server would say so with the first change only, and each time again. One that
// was there before was dropped under our hands, and comes back when whoever
// keeps it in step with the rules has noticed: that is waited for.
func (r *Reader) checkPublications(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, `SELECT n FROM unnest($1::text[]) AS n
		WHERE NOT EXISTS (SELECT FROM pg_catalog.pg_publication WHERE pubname = n)`, r.cfg.Publications)
	if err != nil {
		return Classify("look for publications", err)
	}
	missing, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return Classify("look for publications", err)
	}
	if len(missing) == 0 {
		return nil
	}
	err = fmt.Errorf("publication %s does not exist", strings.Join(missing, ", "))
	if r.last != (identity{}) {
		return fmt.Errorf("look for publications: %w (any more)", err)
	}
	return &Error{
		Op: "look for publications", Code: codeUndefinedObject, Err: err,
		Hint: "`lethe run` makes it where the role may; see `lethe doctor`",
	}
}

// startSQL asks for the stream from where the slot is confirmed: the server
// knows that better than anything of ours, and a row's LSN is no cursor.
func (r *Reader) startSQL() string {
	names := make([]string, len(r.cfg.Publications))
	for i, p := range r.cfg.Publications {
		names[i] = `"` + p + `"` // validated: nothing in it needs to be escaped
	}
	return fmt.Sprintf(`START_REPLICATION SLOT "%s" LOGICAL 0/0 (proto_version '1', publication_names '%s', messages 'true')`,
		r.cfg.Slot, strings.Join(names, ","))
}

// confirmedFlush reads where the slot stands.
func (r *Reader) confirmedFlush(ctx context.Context, conn *pgx.Conn) (change.LSN, error) {
	var s string
	err := conn.QueryRow(ctx, `SELECT confirmed_flush_lsn::text FROM pg_catalog.pg_replication_slots WHERE slot_name = $1`, r.cfg.Slot).Scan(&s)
	if err != nil {
		return 0, Classify("read slot "+r.cfg.Slot, err)
	}
	return change.ParseLSN(s)
}

// readSlotStats reads what the server says about the slot.
func readSlotStats(ctx context.Context, conn *pgx.Conn, slot string) (SlotStats, error) {
	var s SlotStats
	err := conn.QueryRow(ctx, `SELECT
		coalesce(pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), confirmed_flush_lsn), 0)::bigint,
		coalesce(pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), restart_lsn), 0)::bigint,
		coalesce(safe_wal_size, -1), coalesce(wal_status, '')
		FROM pg_catalog.pg_replication_slots WHERE slot_name = $1`, slot).
		Scan(&s.LagBytes, &s.RetainedBytes, &s.SafeWALBytes, &s.WALStatus)
	if err != nil {
		return SlotStats{}, fmt.Errorf("read slot %s: %w", slot, err)
	}
	return s, nil
}

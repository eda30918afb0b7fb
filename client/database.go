package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lethe-cache/lethe/change"
)

// Errors of the load's own reads.
var (
	// ErrNoDatabase: Options.Database is nil.
	ErrNoDatabase = errors.New("the client has no database")
	// ErrBehind: the standby has not replayed, within Options.TokenWait, the
	// write that the token of After names.
	ErrBehind = errors.New("the standby has not replayed the write yet")
)

// Every read through a load is one pipeline with one Sync: who answers and how
// far it is, the statement, and again who answered. Behind a pooler one Sync is
// one server; the two answers prove it.
const (
	hasFunctionSQL = `SELECT coalesce(bool_or(has_function_privilege(f.oid, 'EXECUTE') AND has_schema_privilege(n.oid, 'USAGE')), false)
FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_proc f ON f.pronamespace = n.oid
WHERE n.nspname = 'lethe' AND f.proname = 'source' AND f.pronargs = 0`

	headColumns = `SELECT pg_catalog.pg_backend_pid(), pg_catalog.pg_postmaster_start_time(), pg_catalog.current_setting('transaction_isolation'), `

	// A standby's position is read first, by lethe.source() itself: what is
	// replayed later than it does not count.
	headFunctionSQL = headColumns + `s.in_recovery, s.system_id, coalesce(s.timeline, 0), s.replay_lsn::text FROM lethe.source() s`
	headPiecesSQL   = headColumns + `r.r, (SELECT system_identifier FROM pg_catalog.pg_control_system()),
	coalesce(CASE WHEN r.r THEN (SELECT received_tli FROM pg_catalog.pg_stat_wal_receiver)
	     ELSE ('x' || substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int END, 0),
	r.p::text FROM (SELECT pg_catalog.pg_is_in_recovery() AS r, pg_catalog.pg_last_wal_replay_lsn() AS p) r`
	// A backend that has once not been in recovery is a primary for life.
	headPrimarySQL = headColumns + `pg_catalog.pg_is_in_recovery(), NULL::bigint, NULL::int, NULL::text`

	tailSQL = `SELECT pg_catalog.pg_backend_pid(), pg_catalog.pg_postmaster_start_time(), pg_catalog.pg_current_xact_id_if_assigned() IS NOT NULL`
)

// identity is what a connection is known to be; it stays with the connection.
type identity struct {
	function bool
	// pid and start are those of the primary that answered; 0 if none did.
	pid      int32
	start    time.Time
	systemID uint64
	timeline uint32
}

const identityKey = "lethe.identity"

// head is the first answer of a pipeline.
type head struct {
	pid       int32
	start     time.Time
	isolation string
	recovery  bool
	systemID  *int64
	timeline  *int32
	replay    *string
}

// QueryRow reads one row from Options.Database, as a pgx.Row: an error, and
// pgx.ErrNoRows, come from Scan.
func (l *Load) QueryRow(ctx context.Context, sql string, args ...any) pgx.Row {
	rows, err := l.Query(ctx, sql, args...)
	return &row{rows: rows, err: err}
}

// row is the first of rows.
type row struct {
	rows pgx.Rows
	err  error
}

// Scan reads the row and ends the query.
func (r *row) Scan(dest ...any) error {
	if r.err != nil {
		return r.err
	}
	defer r.rows.Close()
	if !r.rows.Next() {
		r.rows.Close()
		if err := r.rows.Err(); err != nil {
			return err
		}
		return pgx.ErrNoRows
	}
	if err := r.rows.Scan(dest...); err != nil {
		return err
	}
	r.rows.Close()
	return r.rows.Err()
}

// Query reads rows from Options.Database, primary or standby, in one round
// trip. The rows must be closed (reading them to the end does) before the
// loader returns; else the value is not cached. Each call has a snapshot of its
// own.
//
// The value is returned and not cached if the statement writes, if the default
// isolation of the connection is another than read committed, or if the server
// is not the one that the invalidations come from.
func (l *Load) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	pool := l.c.opts.Database
	if pool == nil {
		return nil, ErrNoDatabase
	}
	var deadline time.Time
	for {
		rows, behind, err := l.query(ctx, pool, sql, args)
		if err != nil || !behind {
			return rows, err
		}
		if deadline.IsZero() {
			deadline = time.Now().Add(l.c.opts.TokenWait)
		} else if time.Now().After(deadline) {
			return nil, ErrBehind
		}
		select {
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (l *Load) query(ctx context.Context, pool *pgxpool.Pool, sql string, args []any) (rows pgx.Rows, behind bool, err error) {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return nil, false, err
	}
	inTx := conn.Conn().PgConn().TxStatus() != 'I'
	id, err := identify(ctx, conn)
	if err != nil {
		conn.Release()
		return nil, false, err
	}
	// Behind a pooler the backend is another one from pipeline to pipeline.
	known := id.pid != 0 && uint32(id.pid) == conn.Conn().PgConn().PID()
	b := &pgx.Batch{}
	switch {
	case known:
		b.Queue(headPrimarySQL)
	case id.function:
		b.Queue(headFunctionSQL)
	default:
		b.Queue(headPiecesSQL)
	}
	b.Queue(sql, args...)
	b.Queue(tailSQL)
	l.mu.Lock()
	l.open++
	l.mu.Unlock()
	q := &checkedRows{l: l, sql: sql, args: args, conn: conn, results: conn.SendBatch(ctx, b)}
	if err := q.results.QueryRow().Scan(&q.head.pid, &q.head.start, &q.head.isolation, &q.head.recovery, &q.head.systemID, &q.head.timeline, &q.head.replay); err != nil {
		q.abandon()
		return nil, false, err
	}
	stamp, reason := l.check(&q.head, id, known)
	if reason == "" && inTx {
		reason = "transaction"
	}
	if q.head.recovery && !l.bound.IsZero() && !stamp.Covers(l.bound) {
		q.abandon()
		return nil, true, nil
	}
	q.stamp, q.reason = stamp, reason
	q.Rows, err = q.results.Query()
	if err != nil {
		q.abandon()
		return nil, false, err
	}
	return q, false, nil
}

// identify asks a new connection whether lethe.source() is there: a statement
// that names a function which is not fails as a whole.
func identify(ctx context.Context, conn *pgxpool.Conn) (*identity, error) {
	data := conn.Conn().PgConn().CustomData()
	if id, ok := data[identityKey].(*identity); ok {
		return id, nil
	}
	id := &identity{}
	if err := conn.QueryRow(ctx, hasFunctionSQL).Scan(&id.function); err != nil {
		return nil, fmt.Errorf("look for lethe.source(): %w", err)
	}
	data[identityKey] = id
	return id, nil
}

// check compares the server that answers with the source record, and says how
// far the data that follows reaches; a primary has no position of its own.
func (l *Load) check(h *head, id *identity, known bool) (stamp change.Position, reason string) {
	if known {
		if h.recovery || h.pid != id.pid || !h.start.Equal(id.start) {
			return stamp, "backend"
		}
	} else {
		if h.systemID == nil || h.timeline == nil {
			return stamp, "source"
		}
		id.systemID, id.timeline = uint64(*h.systemID), uint32(*h.timeline)
		id.pid = 0
		if !h.recovery {
			id.pid, id.start = h.pid, h.start
		}
	}
	src := l.known.Source
	if v := l.c.view.Load(); src.Era == 0 && v != nil {
		src = v.control.Source // without a ticket; After still has to know
	}
	if h.recovery && h.replay != nil {
		if lsn, err := change.ParseLSN(*h.replay); err == nil {
			stamp = change.Position{Era: src.Era, LSN: lsn}
		}
	}
	switch {
	case src.Era == 0 || src.SystemID == 0:
		if h.recovery {
			return stamp, "source"
		}
	case id.systemID != src.SystemID || id.timeline != src.Timeline:
		return stamp, "source"
	}
	if h.recovery && stamp.LSN == 0 {
		return stamp, "source"
	}
	if h.isolation != "read committed" {
		// One snapshot for all three statements: on a standby it is older than
		// the position read in it.
		return stamp, "isolation"
	}
	return stamp, ""
}

// checkedRows is the middle of a pipeline. Its end is read with Close.
type checkedRows struct {
	pgx.Rows
	l       *Load
	sql     string
	args    []any
	conn    *pgxpool.Conn
	results pgx.BatchResults
	head    head
	stamp   change.Position
	reason  string
	closed  bool
	err     error
}

// Next is pgx's; at the end it closes.
func (q *checkedRows) Next() bool {
	if q.Rows.Next() {
		return true
	}
	q.Close()
	return false
}

// Err is the first error, the pipeline's included.
func (q *checkedRows) Err() error {
	if err := q.Rows.Err(); err != nil {
		return err
	}
	return q.err
}

// Close reads the end of the pipeline and gives the connection back.
func (q *checkedRows) Close() {
	if q.closed {
		return
	}
	q.closed = true
	q.Rows.Close()
	var (
		pid   int32
		start time.Time
		xid   bool
	)
	reason := q.reason
	if q.Rows.Err() != nil {
		reason = "error"
	} else if err := q.results.QueryRow().Scan(&pid, &start, &xid); err != nil {
		q.err, reason = err, "error"
	}
	switch {
	case reason != "":
	case pid != q.head.pid || !start.Equal(q.head.start):
		reason = "backend"
	case xid:
		reason = "own_xid"
	}
	if err := q.results.Close(); err != nil && q.err == nil && q.Rows.Err() == nil {
		q.err, reason = err, "error"
	}
	q.conn.Release()
	if reason != "error" {
		q.l.c.observed.add(q.l.class, q.sql, q.args)
	}
	q.l.read(q.head.recovery, q.stamp, reason)
}

// abandon ends a pipeline whose data nobody sees.
func (q *checkedRows) abandon() {
	q.closed = true
	_ = q.results.Close()
	q.conn.Release()
	q.l.mu.Lock()
	q.l.open--
	q.l.mu.Unlock()
}

// read takes what one query of the load has shown.
func (l *Load) read(standby bool, stamp change.Position, reason string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if l.over {
		return
	}
	if reason != "" {
		l.refuseLocked(reason)
		return
	}
	if standby {
		l.standby = true
		l.own.add(stamp)
	} else {
		l.primary = true
	}
}

// Package source tells which Postgres is being read, whether it is still the
// one that was read before, and which era its positions belong to.
//
// LSNs are comparable within one run of one server only: a promotion repeats
// them, and so does a crash (what was not flushed is written again, otherwise).
// Each time that may have happened a new era begins and everything cached is
// forgotten. An instance that is the same as the stored one means that nothing
// which was visible has been lost, whatever became of the connection or of
// Lethe (PROTOCOL fact 9): nothing is forgotten then.
package source

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lethe-cache/lethe/change"
)

// Conn is an ordinary connection to the server, or a pool of them.
type Conn interface {
	Begin(ctx context.Context) (pgx.Tx, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// Instance is one run of one server, as it answered at one moment.
type Instance struct {
	SystemID uint64
	// Timeline is 0 if it could not be read: in recovery without a WAL
	// receiver, or as an ordinary role without lethe.source().
	Timeline   uint32
	InRecovery bool
	// PostmasterStart changes with every start of the server.
	PostmasterStart time.Time
	// CheckpointerStart changes with every start and every crash restart. Zero
	// if neither it nor a substitute could be read.
	CheckpointerStart time.Time
	// Insert is the insert LSN; 0 in recovery. Replay is the replay LSN; 0 on a
	// primary.
	Insert, Replay change.LSN
	// Function says that lethe.source() answered.
	Function bool
}

// Source names the instance's log, without an era.
func (i Instance) Source() change.Source {
	return change.Source{SystemID: i.SystemID, Timeline: i.Timeline}
}

// Same reports whether i and o are surely the same run: no crash, no
// promotion and no restart between them.
func (i Instance) Same(o Instance) bool {
	return i.SystemID == o.SystemID && i.Timeline == o.Timeline && i.Timeline != 0 &&
		i.PostmasterStart.Equal(o.PostmasterStart) &&
		!i.CheckpointerStart.IsZero() && i.CheckpointerStart.Equal(o.CheckpointerStart)
}

// Which of the two ways to ask is open is asked first: a statement that names
// a function which is not there fails as a whole.
const hasFunctionSQL = `SELECT coalesce(has_function_privilege(f.oid, 'EXECUTE'), false) AND has_schema_privilege(n.oid, 'USAGE')
FROM pg_catalog.pg_namespace n JOIN pg_catalog.pg_proc f ON f.pronamespace = n.oid
WHERE n.nspname = 'lethe' AND f.proname = 'source' AND f.pronargs = 0`

// The start of the checkpointer is hidden from an ordinary role without
// lethe.source(). A crash also throws the cumulative statistics away, and the
// time of their reset is there for everybody to read; somebody who resets them
// by hand costs one raise too many.
const substituteSQL = `(SELECT stats_reset FROM pg_catalog.pg_stat_archiver)`

const functionSQL = `SELECT in_recovery, system_id, coalesce(timeline, 0), postmaster_start,
	coalesce(checkpointer_start, ` + substituteSQL + `), insert_lsn::text, replay_lsn::text FROM lethe.source()`

const piecesSQL = `SELECT r.r, (SELECT system_identifier FROM pg_catalog.pg_control_system()),
	coalesce(CASE WHEN r.r THEN (SELECT received_tli FROM pg_catalog.pg_stat_wal_receiver)
	     ELSE ('x' || substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int END, 0),
	pg_catalog.pg_postmaster_start_time(),
	coalesce((SELECT backend_start FROM pg_catalog.pg_stat_activity WHERE backend_type = 'checkpointer'), ` + substituteSQL + `),
	CASE WHEN NOT r.r THEN pg_catalog.pg_current_wal_insert_lsn() END::text,
	CASE WHEN r.r THEN pg_catalog.pg_last_wal_replay_lsn() END::text
	FROM (SELECT pg_catalog.pg_is_in_recovery() AS r) AS r`

// Read asks the server who it is. It works for every role; what the role may
// not see and lethe.source() does not tell is zero.
func Read(ctx context.Context, conn Conn) (Instance, error) {
	var in Instance
	err := conn.QueryRow(ctx, hasFunctionSQL).Scan(&in.Function)
	if err != nil && err != pgx.ErrNoRows {
		return Instance{}, fmt.Errorf("look for lethe.source(): %w", err)
	}
	sql := piecesSQL
	if in.Function {
		sql = functionSQL
	}
	var (
		system         int64
		timeline       int32
		checkpointer   *time.Time
		insert, replay *string
	)
	if err := conn.QueryRow(ctx, sql).Scan(&in.InRecovery, &system, &timeline, &in.PostmasterStart, &checkpointer, &insert, &replay); err != nil {
		return Instance{}, fmt.Errorf("read the server's identity: %w", err)
	}
	in.SystemID, in.Timeline = uint64(system), uint32(timeline)
	if checkpointer != nil {
		in.CheckpointerStart = *checkpointer
	}
	if in.Insert, err = lsn(insert); err != nil {
		return Instance{}, err
	}
	in.Replay, err = lsn(replay)
	return in, err
}

func lsn(s *string) (change.LSN, error) {
	if s == nil {
		return 0, nil
	}
	return change.ParseLSN(*s)
}

func hex(n uint64) string { return strconv.FormatUint(n, 16) }

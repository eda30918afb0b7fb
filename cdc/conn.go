package cdc

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// identity tells one run of one server from any other, as one connection sees
// it.
type identity struct {
	systemID   uint64
	timeline   uint32
	recovery   bool
	postmaster string
	version    int
	walLevel   string
	// senderTimeout is wal_sender_timeout; 0: none.
	senderTimeout time.Duration
}

// identitySQL runs on the walsender too, which knows simple queries only. Right
// after a promotion pg_control_checkpoint() still has the old timeline; the
// name of the WAL file has the new one.
const identitySQL = `SELECT (SELECT system_identifier FROM pg_catalog.pg_control_system())::text,
	CASE WHEN pg_catalog.pg_is_in_recovery() THEN '0'
		ELSE substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 1, 8) END,
	pg_catalog.pg_is_in_recovery()::text,
	extract(epoch FROM pg_catalog.pg_postmaster_start_time())::text,
	current_setting('server_version_num'), current_setting('wal_level'),
	(SELECT setting FROM pg_catalog.pg_settings WHERE name = 'wal_sender_timeout')`

func readIdentity(ctx context.Context, conn *pgconn.PgConn) (identity, error) {
	results, err := conn.Exec(ctx, identitySQL).ReadAll()
	if err != nil {
		return identity{}, Classify("read the server's identity", err)
	}
	if len(results) != 1 || len(results[0].Rows) != 1 {
		return identity{}, errors.New("read the server's identity: no row")
	}
	row := results[0].Rows[0]
	var errs [4]error
	var id identity
	var timeline uint64
	var timeout int
	id.systemID, errs[0] = strconv.ParseUint(string(row[0]), 10, 64)
	timeline, errs[1] = strconv.ParseUint(string(row[1]), 16, 32)
	id.recovery = string(row[2]) == "true"
	id.postmaster = string(row[3])
	id.version, errs[2] = strconv.Atoi(string(row[4]))
	id.walLevel = string(row[5])
	timeout, errs[3] = strconv.Atoi(string(row[6]))
	id.timeline, id.senderTimeout = uint32(timeline), time.Duration(timeout)*time.Millisecond
	if err := errors.Join(errs[:]...); err != nil {
		return identity{}, fmt.Errorf("read the server's identity: %w", err)
	}
	return id, nil
}

// check refuses a server whose snapshots say nothing about the slot's commits.
func (id identity) check() error {
	if id.recovery {
		// A retry may find it promoted, or another server at the address.
		return errors.New("refuse the server: it is in recovery, and a standby's snapshots do not tell which commits are visible" +
			" (let LETHE_POSTGRES_URL name the primary, for instance with target_session_attrs=read-write)")
	}
	if id.walLevel != "logical" {
		return &Error{
			Op: "check the server", Err: fmt.Errorf("wal_level is %s", id.walLevel),
			Hint: "ALTER SYSTEM SET wal_level = logical, then restart Postgres",
		}
	}
	return nil
}

// sameRun reports whether two connections lead to the same run of one server.
func (id identity) sameRun(o identity) bool {
	return id.systemID == o.systemID && id.timeline == o.timeline && id.recovery == o.recovery && id.postmaster == o.postmaster
}

// follows refuses a server on a lower timeline than the one before: somebody
// was promoted, and this is the old primary. Going on there would hand on
// commits that the new primary never had.
func (id identity) follows(last identity) error {
	if last.systemID == id.systemID && id.timeline < last.timeline {
		return &Error{
			Op:   "check the server",
			Err:  fmt.Errorf("it is on timeline %d, and timeline %d of the same system was read before: it is an old primary", id.timeline, last.timeline),
			Hint: "point LETHE_POSTGRES_URL at the present primary and shut this server down",
		}
	}
	return nil
}

// ordinaryParams are the settings of every ordinary connection. A wait for a
// synchronous standby would hang behind a dead one; nothing that Lethe writes
// here needs it.
func ordinaryParams() map[string]string {
	return map[string]string{
		"application_name":   "lethe",
		"synchronous_commit": "local",
		"statement_timeout":  "10s",
		"lock_timeout":       "1s",
		// They idle when the database does, whatever the role's own limit is.
		"idle_session_timeout": "0",
	}
}

// replicationParams make the text form of every value canonical: the same row
// renders to the same key whatever the server's or the role's settings are.
func replicationParams() map[string]string {
	return map[string]string{
		"application_name":   "lethe",
		"replication":        "database",
		"client_encoding":    "UTF8",
		"TimeZone":           "UTC",
		"DateStyle":          "ISO",
		"IntervalStyle":      "postgres",
		"bytea_output":       "hex",
		"extra_float_digits": "1",
		"statement_timeout":  "0",
	}
}

func (c *Config) dialOrdinary(ctx context.Context) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(c.URL)
	if err != nil {
		return nil, Classify("read the database's URL", err)
	}
	c.prepare(&cfg.Config, ordinaryParams())
	conn, err := pgx.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, Classify("connect to Postgres", err)
	}
	return conn, nil
}

func (c *Config) dialReplication(ctx context.Context) (*pgconn.PgConn, error) {
	cfg, err := pgconn.ParseConfig(c.URL)
	if err != nil {
		return nil, Classify("read the database's URL", err)
	}
	c.prepare(cfg, replicationParams())
	conn, err := pgconn.ConnectConfig(ctx, cfg)
	if err != nil {
		return nil, Classify("connect to Postgres for replication", err)
	}
	return conn, nil
}

func (c *Config) prepare(cfg *pgconn.Config, params map[string]string) {
	cfg.ConnectTimeout = c.ConnectTimeout
	if c.Dial != nil {
		cfg.DialFunc = c.Dial
		cfg.LookupFunc = func(_ context.Context, host string) ([]string, error) { return []string{host}, nil }
	}
	for k, v := range params {
		cfg.RuntimeParams[k] = v
	}
}

// takeWire turns a replication connection into frames, before the stream
// begins: afterwards pgconn's buffer may hold a part of it.
func takeWire(ctx context.Context, conn *pgconn.PgConn) (*wire, error) {
	if err := conn.SyncConn(ctx); err != nil {
		return nil, fmt.Errorf("take over the replication connection: %w", err)
	}
	h, err := conn.Hijack()
	if err != nil {
		return nil, fmt.Errorf("take over the replication connection: %w", err)
	}
	if err := h.Conn.SetDeadline(time.Time{}); err != nil {
		return nil, fmt.Errorf("take over the replication connection: %w", err)
	}
	return newWire(h.Conn), nil
}

// identifySystem asks the walsender itself which system it streams.
func identifySystem(ctx context.Context, conn *pgconn.PgConn) (uint64, uint32, error) {
	sys, err := pglogrepl.IdentifySystem(ctx, conn)
	if err != nil {
		return 0, 0, Classify("identify system", err)
	}
	id, err := strconv.ParseUint(sys.SystemID, 10, 64)
	if err != nil {
		return 0, 0, fmt.Errorf("identify system: %w", err)
	}
	return id, uint32(sys.Timeline), nil
}

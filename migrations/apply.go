package migrations

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Defaults of Options.
const (
	LockTimeoutDefault = 2 * time.Second
	AttemptsDefault    = 5
)

// Options of Apply.
type Options struct {
	// Role is granted what `lethe run` needs of the tables in the schema lethe,
	// for an administrator who migrates on behalf of an ordinary role; empty:
	// nothing is granted.
	Role string
	// LockTimeout bounds the wait for each lock; 0 is LockTimeoutDefault.
	LockTimeout time.Duration
	// Attempts is how often a migration that met a lock is tried; 0 is
	// AttemptsDefault.
	Attempts int
}

func (o Options) withDefaults() Options {
	if o.LockTimeout <= 0 {
		o.LockTimeout = LockTimeoutDefault
	}
	if o.Attempts <= 0 {
		o.Attempts = AttemptsDefault
	}
	return o
}

// Result of Apply.
type Result struct {
	// Applied are the names of the migrations that were applied now.
	Applied []string
	// Degraded are sentences, one for each migration that the role may not
	// apply: what is lost, and what to run.
	Degraded []string
}

// SQLSTATEs that are told apart here.
const (
	codeLockNotAvailable      = "55P03"
	codeDeadlock              = "40P01"
	codeInsufficientPrivilege = "42501"
)

// Apply applies every pending migration, each in a transaction of its own
// under a lock_timeout, and tries again what met a lock. It may run in several
// processes at once. The error is about the connection or about SQL that does
// not run on this server; a missing right is no error, see Result.
func Apply(ctx context.Context, conn *pgx.Conn, opts Options) (Result, error) {
	opts = opts.withDefaults()
	var res Result
	pending, err := pendingOf(ctx, conn)
	if err != nil {
		return res, err
	}
	for _, m := range pending {
		applied, err := applyRetrying(ctx, conn, m, opts)
		if denied := new(pgconn.PgError); errors.As(err, &denied) && denied.Code == codeInsufficientPrivilege {
			res.Degraded = append(res.Degraded, degraded(ctx, conn, m, denied))
			continue
		}
		if err != nil {
			return res, err
		}
		if applied {
			res.Applied = append(res.Applied, m.name())
		}
	}
	if opts.Role != "" {
		if err := grant(ctx, conn, opts); err != nil {
			return res, err
		}
	}
	return res, nil
}

// Pending returns the names of the migrations that were not applied yet. It
// writes nothing.
func Pending(ctx context.Context, conn *pgx.Conn) ([]string, error) {
	pending, err := pendingOf(ctx, conn)
	names := make([]string, len(pending))
	for i, m := range pending {
		names[i] = m.name()
	}
	return names, err
}

// Lost returns what Lethe does without the named migration, a full sentence;
// empty if there is no such migration.
func Lost(name string) string {
	for _, m := range all {
		if m.name() == name {
			return m.lost
		}
	}
	return ""
}

func pendingOf(ctx context.Context, conn *pgx.Conn) ([]migration, error) {
	done, err := applied(ctx, conn)
	if err != nil {
		return nil, err
	}
	var pending []migration
	for _, m := range all {
		if !done[m.version] {
			pending = append(pending, m)
		}
	}
	return pending, nil
}

func applied(ctx context.Context, conn *pgx.Conn) (map[int]bool, error) {
	done := make(map[int]bool)
	// to_regclass says nothing of a schema that one may not use: a role without
	// rights meets the same as a database without Lethe.
	var exists bool
	err := conn.QueryRow(ctx, `SELECT coalesce(has_table_privilege(to_regclass('lethe.migrations'), 'SELECT'), false)`).Scan(&exists)
	if err != nil {
		return nil, fmt.Errorf("look for lethe.migrations: %w", err)
	}
	if !exists {
		return done, nil
	}
	rows, err := conn.Query(ctx, `SELECT version FROM lethe.migrations`)
	if err != nil {
		return nil, fmt.Errorf("read lethe.migrations: %w", err)
	}
	versions, err := pgx.CollectRows(rows, pgx.RowTo[int])
	if err != nil {
		return nil, fmt.Errorf("read lethe.migrations: %w", err)
	}
	for _, v := range versions {
		done[v] = true
	}
	return done, nil
}

// applyRetrying tries a migration until it meets no lock, up to opts.Attempts.
func applyRetrying(ctx context.Context, conn *pgx.Conn, m migration, opts Options) (bool, error) {
	var done bool
	wait := backoff.NewExponentialBackOff(backoff.WithInitialInterval(50*time.Millisecond),
		backoff.WithMaxInterval(time.Second), backoff.WithMaxElapsedTime(0))
	err := backoff.Retry(func() (err error) {
		done, err = applyOnce(ctx, conn, m, opts)
		var pgErr *pgconn.PgError
		if errors.As(err, &pgErr) && (pgErr.Code == codeLockNotAvailable || pgErr.Code == codeDeadlock) {
			return err
		}
		if err != nil {
			return backoff.Permanent(err)
		}
		return nil
	}, backoff.WithContext(backoff.WithMaxRetries(wait, uint64(opts.Attempts-1)), ctx))
	if err != nil {
		return false, fmt.Errorf("apply migration %s: %w", m.name(), err)
	}
	return done, nil
}

// advisoryKey keeps two processes from applying the same migration: "lethe" in
// ASCII.
const advisoryKey = 0x6c65746865

func applyOnce(ctx context.Context, conn *pgx.Conn, m migration, opts Options) (bool, error) {
	text, err := m.sql()
	if err != nil {
		return false, err
	}
	tx, err := begin(ctx, conn, opts)
	if err != nil {
		return false, err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, int64(advisoryKey)); err != nil {
		return false, err
	}
	if err := bootstrap(ctx, tx); err != nil {
		return false, err
	}
	// Under the lock: another process may have been here first.
	var done bool
	if err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM lethe.migrations WHERE version = $1)`, m.version).Scan(&done); err != nil {
		return false, err
	}
	if done {
		return false, nil
	}
	// Without arguments pgx sends it as one simple query of many statements.
	if _, err := tx.Conn().PgConn().Exec(ctx, text).ReadAll(); err != nil {
		return false, err
	}
	if _, err := tx.Exec(ctx, `INSERT INTO lethe.migrations (version, name) VALUES ($1, $2)`, m.version, m.name()); err != nil {
		return false, err
	}
	return true, tx.Commit(ctx)
}

// begin starts a transaction that waits neither for a lock nor for a
// synchronous standby longer than it should, and in which no name is looked up
// where somebody else may create things.
func begin(ctx context.Context, conn *pgx.Conn, opts Options) (pgx.Tx, error) {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return nil, err
	}
	_, err = tx.Exec(ctx, `SELECT set_config('lock_timeout', $1, true), set_config('statement_timeout', '60s', true),
		set_config('synchronous_commit', 'local', true), set_config('search_path', 'pg_catalog, pg_temp', true)`,
		fmt.Sprintf("%dms", opts.LockTimeout.Milliseconds()))
	if err != nil {
		_ = tx.Rollback(context.WithoutCancel(ctx))
		return nil, err
	}
	return tx, nil
}

// bootstrap makes the schema and the table of migrations. It asks first, because
// IF NOT EXISTS asks for the right to create even where there is nothing to do.
func bootstrap(ctx context.Context, tx pgx.Tx) error {
	var schema, table bool
	err := tx.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'lethe'),
		EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		        WHERE n.nspname = 'lethe' AND c.relname = 'migrations')`).Scan(&schema, &table)
	if err != nil {
		return err
	}
	if !schema {
		// Whoever reads through the cache calls lethe.source().
		if _, err := tx.Exec(ctx, `CREATE SCHEMA lethe; GRANT USAGE ON SCHEMA lethe TO PUBLIC;
			COMMENT ON SCHEMA lethe IS 'Lethe: keeps caches true to this database'`); err != nil {
			return err
		}
	}
	if !table {
		if _, err := tx.Exec(ctx, `CREATE TABLE lethe.migrations (version int PRIMARY KEY, name text NOT NULL,
			applied_at timestamptz NOT NULL DEFAULT now(), applied_by name NOT NULL DEFAULT current_user);
			GRANT SELECT ON lethe.migrations TO PUBLIC;
			COMMENT ON TABLE lethe.migrations IS 'Lethe: migrations that were applied'`); err != nil {
			return err
		}
	}
	return nil
}

package client

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Errors of Update.
var (
	// ErrUnknownOutcome: the connection was lost at COMMIT. The transaction may
	// have been committed or not; nobody has told.
	ErrUnknownOutcome = errors.New("the outcome of COMMIT is unknown")
	// ErrStandby: Options.Database is a standby, which can not be written to.
	ErrStandby = errors.New("the database is a standby")
)

// Update writes through: it runs fn in a transaction on Options.Database, which
// must be the primary, commits, and then refreshes the entry of the key with a
// read by the class's loader that includes the commit, as Refresh under After
// does. So it blocks for up to Options.TokenWait and a load longer than the
// transaction.
//
// It returns what fn returned. What is cached is what the loader read: the row
// as it stands, with everybody else's writes, triggers and defaults. If the
// refresh does not succeed, or the class has no loader, the entry is left to
// the invalidation that follows every commit, and Update succeeds all the same.
// In rules.yaml `keep: true` in the entry lets the refreshed value stay when
// that invalidation comes; without it the value is forgotten once more.
//
// After an error nothing was cached. If fn errs (or panics) the transaction is
// rolled back and its error returned, wrapped. An error that matches
// ErrUnknownOutcome says that the connection, or ctx, ended while COMMIT was
// under way; after any other error the transaction was not committed. The
// entries of other keys that the transaction changes are forgotten by their
// invalidations. Update is not for use within a loader.
func (e *Class[T]) Update(ctx context.Context, key string, fn func(ctx context.Context, tx pgx.Tx) (T, error)) (T, error) {
	var zero T
	s := scopeOf(ctx)
	err := e.err
	switch {
	case err != nil:
	case fn == nil:
		err = errors.New("fn is nil")
	case e.c.opts.Database == nil:
		err = ErrNoDatabase
	case s != nil && s.load != nil:
		err = errors.New("a loader must not write")
	default:
		err = e.checkKey(key)
	}
	if err != nil {
		return zero, fmt.Errorf("update %q: %w", key, err)
	}
	v, token, err := e.write(ctx, fn)
	if err != nil {
		return zero, fmt.Errorf("update %q: %w", key, err)
	}
	if token == "" || !e.loads() {
		return v, nil
	}
	if _, err := e.Refresh(e.c.After(ctx, token), key); err != nil {
		e.c.logger.Info("an update was committed, its entry not refreshed", "key", key, "err", err)
	}
	return v, nil
}

// write commits and returns the token of the commit; "" if it is committed and
// there is none.
func (e *Class[T]) write(ctx context.Context, fn func(context.Context, pgx.Tx) (T, error)) (v T, token string, err error) {
	var zero T
	conn, err := e.c.opts.Database.Acquire(ctx)
	if err != nil {
		return zero, "", err
	}
	defer conn.Release()
	tx, err := conn.Begin(ctx)
	if err != nil {
		return zero, "", err
	}
	// For errors and panics; after COMMIT it does nothing. It must be sent even
	// if ctx has ended, else the pool throws the connection away.
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	var standby bool
	if err := tx.QueryRow(ctx, `SELECT pg_catalog.pg_is_in_recovery()`).Scan(&standby); err != nil {
		return zero, "", err
	}
	if standby {
		return zero, "", ErrStandby
	}
	if v, err = fn(ctx, tx); err != nil {
		return zero, "", err
	}
	// What fails up to here was not committed.
	if ctx.Err() != nil {
		return zero, "", context.Cause(ctx)
	}
	if conn.Conn().IsClosed() {
		return zero, "", errors.New("the connection was lost before COMMIT")
	}
	if err := tx.Commit(ctx); err != nil {
		return zero, "", commitError(err)
	}
	if token, err = e.c.Wrote(ctx, conn); err != nil {
		return v, "", nil // it is committed
	}
	return v, token, nil
}

// commitError tells a COMMIT that failed from one of which nobody knows. An
// answer of the server with severity ERROR means that it rolled back; one that
// ends the connection may come after the commit record (a backend that is
// terminated while it waits for a synchronous standby), and so may silence.
// pgconn.SafeToRetry is not asked: pgx calls a connection that breaks under
// COMMIT safe too ("conn closed", from the look at it that follows).
func commitError(err error) error {
	var answer *pgconn.PgError
	switch {
	case errors.Is(err, pgx.ErrTxCommitRollback):
		return err
	case errors.Is(err, pgx.ErrTxClosed):
		return fmt.Errorf("%w: fn has ended the transaction by itself", ErrUnknownOutcome)
	case errors.As(err, &answer):
		// 40003 is statement_completion_unknown.
		if (answer.SeverityUnlocalized == "ERROR" || answer.SeverityUnlocalized == "" && answer.Severity == "ERROR") && answer.Code != "40003" {
			return err
		}
	}
	return fmt.Errorf("%w: %w", ErrUnknownOutcome, err)
}

// loads reports whether the class has a loader.
func (e *Class[T]) loads() bool { return e.cl.load != nil || e.cl.loadMany != nil }

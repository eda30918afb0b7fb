package client

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/lethe-cache/lethe/change"
)

// Queryer is a connection or pool of pgx.
type Queryer interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// unknownToken is beyond every position: nothing cached is sure to contain the
// write.
var unknownToken = change.Position{Era: 1<<16 - 1, LSN: 1<<64 - 1}

// wroteSQL runs on the primary that was written to.
const wroteSQL = `SELECT pg_catalog.pg_current_wal_insert_lsn()::text, pg_catalog.pg_current_xact_id_if_assigned() IS NOT NULL,
	(SELECT system_identifier FROM pg_catalog.pg_control_system()),
	('x' || substr(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int`

// Wrote returns a token for everything that was committed on conn's server
// before the call: call it after COMMIT has returned. Reads under After with
// that token contain it, in this process and in every other. The token is short
// text without spaces.
//
// If the cache can not tell where the write stands (no worker has run, another
// server), reads under the token go to the database. It errs if the server does
// not answer, or if conn is in a transaction that has written.
func (c *Client) Wrote(ctx context.Context, conn Queryer) (string, error) {
	var (
		text     string
		writing  bool
		system   int64
		timeline int32
	)
	if err := conn.QueryRow(ctx, wroteSQL).Scan(&text, &writing, &system, &timeline); err != nil {
		return "", fmt.Errorf("read the position of a write: %w", err)
	}
	if writing {
		return "", errors.New("read the position of a write: it has not been committed")
	}
	insert, err := change.ParseLSN(text)
	if err != nil {
		return "", fmt.Errorf("read the position of a write: %w", err)
	}
	v := c.view.Load()
	if v == nil {
		if v, err = c.control(ctx, nil); err != nil {
			return unknownToken.String(), nil //nolint:nilerr // the write stands; only the cache is not asked
		}
	}
	src := v.control.Source
	if src.Era == 0 || src.SystemID != uint64(system) || src.Timeline != uint32(timeline) {
		return unknownToken.String(), nil
	}
	return change.Position{Era: src.Era, LSN: insert}.String(), nil
}

// After returns a context under which Get serves only what contains the write
// that a token of Wrote names: from the cache if that is sure to contain it, if
// need be after a wait of up to Options.TokenWait, else from the database. A
// token that can not be read asks for the database.
func (c *Client) After(ctx context.Context, token string) context.Context {
	p, err := change.ParsePosition(token)
	if err != nil || p.Era == 0 {
		p = unknownToken
	}
	if p != unknownToken {
		// A commit that returned before the insert position was read starts
		// below its bound.
		p.LSN = change.Bound(p.LSN)
	}
	s := scope{bound: p}
	if outer := scopeOf(ctx); outer != nil {
		s.load, s.bound = outer.load, p.Max(outer.bound)
	}
	return context.WithValue(ctx, scopeKey{}, &s)
}

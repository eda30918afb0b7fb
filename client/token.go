package client

import (
	"context"
	"errors"
	"fmt"
	"strconv"

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

// place is where a write stands in the log of its server, which has no era: only
// Redis knows that.
type place struct {
	system   uint64
	timeline uint32
	insert   change.LSN
}

// readPlace reads how far the server of conn has written.
func readPlace(ctx context.Context, conn Queryer) (place, error) {
	var (
		text     string
		writing  bool
		system   int64
		timeline int32
	)
	if err := conn.QueryRow(ctx, wroteSQL).Scan(&text, &writing, &system, &timeline); err != nil {
		return place{}, fmt.Errorf("read the position of a write: %w", err)
	}
	if writing {
		return place{}, errors.New("read the position of a write: it has not been committed")
	}
	insert, err := change.ParseLSN(text)
	if err != nil {
		return place{}, fmt.Errorf("read the position of a write: %w", err)
	}
	return place{system: uint64(system), timeline: uint32(timeline), insert: insert}, nil
}

// placeDigits are those of the three parts of a place's text.
const placeDigits = 16 + 8 + 16

func (p place) String() string {
	return fmt.Sprintf("%016x%08x%016x", p.system, p.timeline, uint64(p.insert))
}

func parsePlace(token string) (p place, ok bool) {
	if len(token) != placeDigits {
		return p, false
	}
	system, err1 := strconv.ParseUint(token[:16], 16, 64)
	timeline, err2 := strconv.ParseUint(token[16:24], 16, 32)
	insert, err3 := strconv.ParseUint(token[24:], 16, 64)
	return place{system: system, timeline: uint32(timeline), insert: change.LSN(insert)}, errors.Join(err1, err2, err3) == nil
}

// Wrote is Client.Wrote for where there is no Client: a service that writes and
// caches nothing. Its token is somewhat longer, and good for the same.
func Wrote(ctx context.Context, conn Queryer) (string, error) {
	p, err := readPlace(ctx, conn)
	if err != nil {
		return "", err
	}
	return p.String(), nil
}

// After is Client.After for where there is no Client at hand: it holds for every
// Client that reads under the context.
func After(ctx context.Context, token string) context.Context {
	s := scope{token: token}
	if token == "" {
		s.token = "none" // as any other that can not be read
	}
	return s.within(ctx)
}

// within puts a scope of After into a context, inside of what that has already.
func (s scope) within(ctx context.Context) context.Context {
	if outer := scopeOf(ctx); outer != nil {
		s.load, s.bound, s.outer = outer.load, s.bound.Max(outer.bound), outer
	}
	return context.WithValue(ctx, scopeKey{}, &s)
}

// scopeOf is the scope of a context, with the tokens of After understood.
func (c *Client) scopeOf(ctx context.Context) *scope {
	s := scopeOf(ctx)
	if s == nil || s.token == "" && s.outer == nil {
		return s
	}
	out := scope{load: s.load, bound: s.bound}
	for ; s != nil; s = s.outer {
		if s.token != "" {
			out.bound = out.bound.Max(c.boundOf(ctx, s.token))
		}
	}
	return &out
}

// boundOf is what a value must reach to contain the write that a token names.
func (c *Client) boundOf(ctx context.Context, token string) change.Position {
	p, err := change.ParsePosition(token)
	if at, ok := parsePlace(token); ok {
		p, err = c.positionOf(ctx, at), nil
	}
	if err != nil || p.Era == 0 || p == unknownToken {
		return unknownToken
	}
	// A commit that returned before the insert position was read starts
	// below its bound.
	p.LSN = change.Bound(p.LSN)
	return p
}

// positionOf puts the era to a place: that of the recorded source, if it is of
// that source.
//
// The era may be a later one than at the write, for one server begins an era
// whenever it was restarted. Its log goes on where it had ended then, and a write
// that is still in it stands below: what has reached that position in this era
// contains the write.
func (c *Client) positionOf(ctx context.Context, at place) change.Position {
	v := c.view.Load()
	if v == nil {
		var err error
		if v, err = c.control(ctx, nil); err != nil {
			return unknownToken // the write stands; only the cache is not asked
		}
	}
	src := v.control.Source
	if src.Era == 0 || src.SystemID != at.system || src.Timeline != at.timeline {
		return unknownToken
	}
	return change.Position{Era: src.Era, LSN: at.insert}
}

// Wrote returns a token for everything that was committed on conn's server
// before the call: call it after COMMIT has returned. Reads under After with
// that token contain it, in this process and in every other. The token is short
// text without spaces.
//
// If the cache can not tell where the write stands (no worker has run, another
// server), reads under the token go to the database. It errs if the server does
// not answer, or if conn is in a transaction that has written.
func (c *Client) Wrote(ctx context.Context, conn Queryer) (string, error) {
	at, err := readPlace(ctx, conn)
	if err != nil {
		return "", err
	}
	return c.positionOf(ctx, at).String(), nil
}

// After returns a context under which Get serves only what contains the write
// that a token of Wrote names: from the cache if that is sure to contain it, if
// it has a value that may turn out to after a wait of up to Options.TokenWait,
// else from the database, and at once if the cache has none. A token that can
// not be read asks for the database.
func (c *Client) After(ctx context.Context, token string) context.Context {
	return scope{bound: c.boundOf(ctx, token)}.within(ctx)
}

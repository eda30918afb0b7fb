package cdc

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lethe-cache/lethe/change"
)

// PeekRange says which commits Peek returns.
type PeekRange struct {
	// From and To bound the start of the commit record: From <= LSN < To; zero
	// is no bound.
	From, To change.LSN
	// Limit bounds how many changes the server decodes; zero is 10,000. It ends
	// at the end of a transaction, so there may be more.
	Limit int
}

const (
	peekLimit   = 10_000
	sqlInUse    = "55006" // object_in_use
	peekedWhole = `SELECT data FROM pg_catalog.pg_logical_slot_peek_binary_changes($1, $2::pg_lsn, $3, 'proto_version', '1', 'publication_names', $4, 'messages', 'true')`
)

// Peek returns changes that a slot has still to hand on, decoded as a Reader
// does, and consumes nothing. A slot that is being read is copied into a
// temporary one, which ends with the connection at the latest. more is true if
// Limit ended it. A message that can not be decoded is an error.
//
// It needs an ordinary connection with the REPLICATION attribute. The server
// reads the log from where the slot has to, so it may take long.
func Peek(ctx context.Context, conn *pgx.Conn, slot string, publications []string, r PeekRange) (changes []*change.Change, more bool, err error) {
	if r.Limit <= 0 {
		r.Limit = peekLimit
	}
	r.Limit = min(r.Limit, math.MaxInt32)
	changes, read, err := peekSlot(ctx, conn, slot, publications, r)
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Code == sqlInUse {
		changes, read, err = peekCopy(ctx, conn, slot, publications, r)
	}
	if err != nil {
		return nil, false, fmt.Errorf("peek slot %s: %w", slot, err)
	}
	return changes, read >= r.Limit, nil
}

func peekCopy(ctx context.Context, conn *pgx.Conn, slot string, publications []string, r PeekRange) (_ []*change.Change, read int, err error) {
	name := fmt.Sprintf("lethe_peek_%d", conn.PgConn().PID())
	if _, err := conn.Exec(ctx, "SELECT pg_catalog.pg_copy_logical_replication_slot($1, $2, true)", slot, name); err != nil {
		return nil, 0, fmt.Errorf("copy the slot, which is being read: %w", err)
	}
	defer func() {
		if _, derr := conn.Exec(context.WithoutCancel(ctx), "SELECT pg_catalog.pg_drop_replication_slot($1)", name); derr != nil && err == nil {
			err = fmt.Errorf("drop the copy %s: %w", name, derr)
		}
	}()
	return peekSlot(ctx, conn, name, publications, r)
}

func peekSlot(ctx context.Context, conn *pgx.Conn, slot string, publications []string, r PeekRange) (changes []*change.Change, read int, err error) {
	var to *string
	if r.To != 0 {
		text := r.To.String()
		to = &text
	}
	rows, err := conn.Query(ctx, peekedWhole, slot, to, r.Limit, strings.Join(publications, ","))
	if err != nil {
		return nil, 0, err
	}
	defer rows.Close()
	d := newDecoder(nil)
	for rows.Next() {
		var data []byte
		if err := rows.Scan(&data); err != nil {
			return nil, read, err
		}
		read++
		// A segment for each message: what it holds is kept as it is.
		seg := newSegment()
		if err := d.decode(seg, 0, data); err != nil {
			return nil, read, err
		}
		for _, p := range seg.parts {
			for _, bad := range p.poison {
				if !bad.ddl && !bad.edges { // what a DDL changed is not in the log at all
					return nil, read, fmt.Errorf("a message of %q can not be decoded: %w", bad.table, bad.err)
				}
			}
		}
		for i := range seg.rec.Changes {
			c := &seg.rec.Changes[i]
			if c.Commit.LSN >= r.From && (r.To == 0 || c.Commit.LSN < r.To) {
				changes = append(changes, c)
			}
		}
	}
	return changes, read, rows.Err()
}

package warmer

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lethe-cache/lethe/cdc/source"
	"github.com/lethe-cache/lethe/rules"
)

// cursor walks the rows of a warm.sql. It is WITH HOLD: the server runs the
// query once, in a short transaction, and keeps the result in its own temporary
// space. So neither side holds millions of keys in memory, and no snapshot is
// held for as long as the run takes, which would keep VACUUM from its work.
type cursor struct {
	conn *pgx.Conn
	// total is how many rows there are.
	total int
}

const cursorName = "lethe_warm"

// openCursor runs the query; timeout bounds it on the server's side.
func openCursor(ctx context.Context, conn *pgx.Conn, sql string, timeout time.Duration) (*cursor, error) {
	in, err := source.Read(ctx, conn)
	if err == nil && in.InRecovery {
		err = ErrNotPrimary
	}
	if err != nil {
		return nil, err
	}
	err = pgx.BeginTxFunc(ctx, conn, pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		// It counts for COMMIT too, which is what runs the query.
		if _, err := tx.Exec(ctx, "SET LOCAL statement_timeout = "+strconv.FormatInt(max(1, timeout.Milliseconds()), 10)); err != nil {
			return err
		}
		// The extended protocol takes one statement, whatever stands in sql.
		return tx.Conn().PgConn().ExecParams(ctx, "DECLARE "+cursorName+" SCROLL CURSOR WITH HOLD FOR "+sql, nil, nil, nil, nil).Read().Err
	})
	if err != nil {
		return nil, err
	}
	// Walking over all of it to count it takes its time, too.
	if _, err := conn.Exec(ctx, "SET statement_timeout = "+strconv.FormatInt(max(1, timeout.Milliseconds()), 10)); err != nil {
		return nil, err
	}
	tag, err := conn.Exec(ctx, "MOVE FORWARD ALL IN "+cursorName)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Exec(ctx, "MOVE ABSOLUTE 0 IN "+cursorName); err != nil {
		return nil, err
	}
	return &cursor{conn: conn, total: int(tag.RowsAffected())}, nil
}

// fetch returns the full names of the next n rows, each name once, and how many
// rows they were; none at the end. A row with a NULL placeholder names nothing.
func (c *cursor) fetch(ctx context.Context, n int, set *rules.Set, class *rules.Class) (names []string, read int, err error) {
	rows, err := c.conn.Query(ctx, "FETCH FORWARD "+strconv.Itoa(n)+" FROM "+cursorName, pgx.QueryExecModeExec, pgx.QueryResultFormats{pgx.TextFormatCode})
	if err != nil {
		return nil, 0, err
	}
	defer rows.Close()
	var columns []string
	for _, f := range rows.FieldDescriptions() {
		columns = append(columns, f.Name)
	}
	seen := make(map[string]bool, n)
	for rows.Next() {
		if len(columns) == 0 { // they are known from the first row on
			for _, f := range rows.FieldDescriptions() {
				columns = append(columns, f.Name)
			}
		}
		for _, p := range class.Key.Placeholders() {
			if !slices.Contains(columns, p) {
				return nil, 0, fmt.Errorf("warm.sql returns no column %q, which the key %q needs: %w", p, class.Key, errWarmSQL)
			}
		}
		raw := rows.RawValues()
		read++
		name, ok, err := class.Key.Render(func(column string) (any, bool) {
			i := slices.Index(columns, column)
			if i < 0 {
				return nil, false
			}
			if raw[i] == nil {
				return nil, true
			}
			return string(raw[i]), true
		})
		if err != nil {
			return nil, 0, fmt.Errorf("render key %q: %w", class.Key, err)
		}
		if full := set.FullName(name); ok && !seen[full] {
			seen[strings.Clone(full)] = true
			names = append(names, full)
		}
	}
	return names, read, rows.Err()
}

// errWarmSQL: the statement of a warm-up is not one.
var errWarmSQL = errors.New("the statement can not be used")

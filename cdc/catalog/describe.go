package catalog

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lethe-cache/lethe/rules"
)

// Describe asks the server what statements would return, without running them.
// What the server does not take has its words in the answer; an error is of
// the connection. It takes no lock that outlives it.
func Describe(ctx context.Context, conn *pgx.Conn, statements []string) (map[string]rules.StatementInfo, error) {
	out := make(map[string]rules.StatementInfo, len(statements))
	for _, sql := range statements {
		if _, twice := out[sql]; twice {
			continue
		}
		described, err := conn.PgConn().Prepare(ctx, "", sql, nil)
		var refused *pgconn.PgError
		switch {
		case errors.As(err, &refused) && ofTheStatement(refused.Code):
			out[sql] = rules.StatementInfo{Error: refused.Message}
			continue
		case err != nil:
			return nil, fmt.Errorf("describe a statement: %w", err)
		}
		out[sql] = rules.StatementInfo{Columns: columnsOf(described)}
	}
	return out, nil
}

// ofTheStatement reports whether an error is one that the statement brings
// about wherever and whenever it is asked: syntax and names, data, and what the
// server does not have. A lock that was not granted is none.
func ofTheStatement(code string) bool {
	for _, class := range []string{"42", "22", "0A", "3F", "2F"} {
		if strings.HasPrefix(code, class) {
			return true
		}
	}
	return false
}

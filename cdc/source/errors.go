package source

import (
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgconn"
)

// RefusedError says that the server may not be read as the primary.
type RefusedError struct {
	// Reason says what is wrong with it, and Hint what to do.
	Reason, Hint string
	permanent    bool
}

func (e *RefusedError) Error() string {
	return fmt.Sprintf("refuse the server: %s (%s)", e.Reason, e.Hint)
}

// Permanent reports whether asking the same server again is of no use: it is an
// old primary. A standby may be promoted, or the address may move.
func (e *RefusedError) Permanent() bool { return e.permanent }

func standbyError() error {
	return &RefusedError{
		Reason: "it is in recovery: a standby shows commits in another order than the log, and its snapshots tell nothing",
		Hint:   "let LETHE_POSTGRES_URL name the primary, for instance with target_session_attrs=read-write",
	}
}

func oldTimelineError(is, known uint32) error {
	return &RefusedError{
		Reason:    fmt.Sprintf("it is on timeline %d, and timeline %d of the same system has been read before: it is an old primary", is, known),
		Hint:      "point LETHE_POSTGRES_URL at the present primary and shut this server down",
		permanent: true,
	}
}

// cannotWrite tells errors that say that this role, or this database, has no
// lethe.source to write to.
func cannotWrite(err error) bool {
	var e *pgconn.PgError
	if !errors.As(err, &e) {
		return false
	}
	switch e.Code {
	case "42501", // insufficient_privilege
		"42P01", // undefined_table
		"3F000", // invalid_schema_name
		"25006": // read_only_sql_transaction
		return true
	}
	return false
}

package cdc

import (
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgconn"
)

// Error is a failure that trying again does not cure: Reader.Run returns it.
type Error struct {
	// Op is what was attempted, a verb phrase.
	Op string
	// Code is the SQLSTATE, empty where Postgres did not answer with one.
	Code string
	// Hint says what a person can do about it.
	Hint string
	Err  error
}

func (e *Error) Error() string {
	msg := e.Op + ": " + e.Err.Error()
	if e.Hint != "" {
		msg += " (" + e.Hint + ")"
	}
	return msg
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// IsPermanent reports whether err is, or wraps, an *Error.
func IsPermanent(err error) bool {
	var e *Error
	return errors.As(err, &e)
}

var (
	// errSlotUnusable ends a session whose slot can not serve any longer: the
	// next session drops it, makes a new one and declares the gap.
	errSlotUnusable = errors.New("slot can not be used any longer")
	// errSilent ends a session whose server has not said anything for
	// Config.ReceiveTimeout, although it was asked to.
	errSilent = errors.New("nothing received from the server, the connection may be half open")
	// errReplay ends a session at the wish of Reader.Replay.
	errReplay = errors.New("replay from the confirmed position")
)

// SQLSTATE codes that decide what is to be done.
const (
	codeObjectInUse        = "55006"
	codeNotInPrerequisite  = "55000"
	codeUndefinedObject    = "42704"
	codeDuplicateObject    = "42710"
	codeInvalidPassword    = "28P01"
	codeInvalidAuth        = "28000"
	codePrivilege          = "42501"
	codeUndefinedDatabase  = "3D000"
	codeConfigurationLimit = "53400"
	codeFeature            = "0A000"
	codeUndefinedFile      = "58P01"
)

func sqlState(err error) string {
	var pe *pgconn.PgError
	if errors.As(err, &pe) {
		return pe.Code
	}
	return ""
}

// Classify adds op to err, and wraps it in an *Error if a retry can not cure
// it. What connects to the same database beside a Reader judges as it does.
func Classify(op string, err error) error {
	if err == nil || IsPermanent(err) {
		return err
	}
	var parse *pgconn.ParseConfigError
	if errors.As(err, &parse) {
		return &Error{Op: op, Hint: "see the form of LETHE_POSTGRES_URL", Err: err}
	}
	code := sqlState(err)
	if hint := permanentHint(code, err); hint != "" {
		return &Error{Op: op, Code: code, Hint: hint, Err: err}
	}
	return fmt.Errorf("%s: %w", op, err)
}

func permanentHint(code string, err error) string {
	switch code {
	case codeInvalidPassword:
		return "the password is wrong"
	case codeInvalidAuth:
		return "the role may not log in this way: the role, its REPLICATION attribute and pg_hba.conf decide"
	case codeUndefinedDatabase:
		return "create the database, or name another one in LETHE_POSTGRES_URL"
	case codePrivilege:
		return "the role needs LOGIN and REPLICATION: ALTER ROLE ... REPLICATION"
	case codeConfigurationLimit:
		return "raise max_replication_slots, or drop a slot that nobody reads"
	case codeFeature:
		return "the server does not support logical replication with pgoutput"
	case codeUndefinedFile:
		if slotUnusable(err) {
			return "" // WAL that is gone: a new slot helps
		}
		return "the server lacks the output plugin pgoutput"
	case codeNotInPrerequisite:
		if strings.Contains(err.Error(), "wal_level") {
			return "ALTER SYSTEM SET wal_level = logical, then restart Postgres"
		}
	}
	return ""
}

// slotUnusable recognises what the server says of a slot that it has
// invalidated, or whose history predates its publication: only a new slot
// helps, and what lies between is a gap.
func slotUnusable(err error) bool {
	switch sqlState(err) {
	case codeNotInPrerequisite:
		s := err.Error()
		return strings.Contains(s, "can no longer get changes") || strings.Contains(s, "can no longer access replication slot") ||
			strings.Contains(s, "invalidated")
	case codeUndefinedObject:
		return strings.Contains(err.Error(), "publication")
	case codeUndefinedFile:
		return strings.Contains(err.Error(), "WAL segment")
	}
	return false
}

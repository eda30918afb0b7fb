// Package publication keeps two publications in step with the rules, without
// ever breaking what the application does to the published tables.
//
// The main one publishes everything. The other, NAME_inserts, publishes inserts
// and truncates only: Postgres refuses an UPDATE of a table that a publication
// of updates contains and that has no replica identity, so such tables, and
// those whose rules need no more, are kept there. A table is in one of them.
//
// Three things about the way it is done matter:
//
//   - Every change of one table is one transaction, so no snapshot sees a table
//     that moves in neither or in both.
//   - Inside that transaction, under the lock that ALTER PUBLICATION has taken,
//     the table is looked at again. A DDL that came between the first look and
//     the lock makes us start over; one that comes later waits for us.
//   - That lock (SHARE UPDATE EXCLUSIVE) stands in no row writer's way, held or
//     waited for. Other DDL may queue behind it, for LockTimeout at most.
//
// Column lists are used only where the guard is installed (package migrations),
// because without it they make DDL and later updates of the application fail.
package publication

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Conn is an ordinary connection to the primary, or a pool.
type Conn interface {
	Begin(ctx context.Context) (pgx.Tx, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Defaults of Config.
const (
	LockTimeoutDefault = 2 * time.Second
	AttemptsDefault    = 5
)

// Config says which publications, and how patient to be.
type Config struct {
	// Name of the main publication; the other is Name + "_inserts".
	Name string
	// LockTimeout bounds each wait for a lock; 0 is LockTimeoutDefault.
	LockTimeout time.Duration
	// Attempts is how often a table that met a lock, or a concurrent DDL, is
	// tried; 0 is AttemptsDefault.
	Attempts int
	// WholeRows turns column lists off.
	WholeRows bool
}

func (c Config) withDefaults() Config {
	if c.LockTimeout <= 0 {
		c.LockTimeout = LockTimeoutDefault
	}
	if c.Attempts <= 0 {
		c.Attempts = AttemptsDefault
	}
	return c
}

// InsertsSuffix makes the name of the second publication.
const InsertsSuffix = "_inserts"

// Inserts is the name of the second publication.
func (c Config) Inserts() string { return c.Name + InsertsSuffix }

// Names are both, in the order in which a slot is asked for them.
func (c Config) Names() []string { return []string{c.Name, c.Inserts()} }

// Lower case only: the names also go into the replication command and into
// settings, where nothing folds or quotes them. 63 bytes with the suffix.
var validName = regexp.MustCompile(`^[a-z_][a-z0-9_]{0,54}$`)

// Validate reports a name that can not be used.
func (c Config) Validate() error {
	if !validName.MatchString(c.Name) {
		return fmt.Errorf("publication name %q: want lower-case letters, digits and underscores, not a digit first, at most 55", c.Name)
	}
	return nil
}

// Changes is what Sync did and found. Names are schema.name.
type Changes struct {
	// Created are publications that were made.
	Created []string
	// Entered are tables that were not published before, and Grew those of
	// which more is published now (columns that rules read, or updates). Each
	// is a gap for the classes of its rules: raise them at once, and again when
	// every transaction that runs in a snapshot taken after Sync is over
	// (PROTOCOL H5). A Watcher also names what somebody else has published
	// otherwise since the last check.
	Entered, Grew []string
	// Moved are tables that went to the inserts publication, Left those that no
	// rule names any more. Nothing is due for them.
	Moved, Left []string
	// Altered are tables that a DDL has changed since the last check: rewritten,
	// truncated partition by partition, columns or partitions that came or went.
	// The log said nothing of it: raise their classes, once. Set by Watcher.
	Altered []string
	// Blind are tables whose rules need updates or deletes and which have no
	// replica identity: none will come. Raise their classes at each check for
	// as long as it lasts, and say so.
	Blind []string
	// Missing are tables that do not exist or can not be published (views,
	// foreign, unlogged and temporary tables); MissingColumns, schema.name.column,
	// are columns that rules read and that are gone.
	Missing, MissingColumns []string
	// Guarded says that the guard is at work, so that column lists are used.
	Guarded bool
	// Stored says that Entered, Grew and Altered are stored in the database:
	// Due returns them until their raises are durable. If not, they are lost
	// with the process.
	Stored bool

	touched []string // tables that were published otherwise before
	loose   bool     // something that was added is not stored
}

// Add adds what another call did, which a repeated one does not report again.
func (c *Changes) Add(o Changes) {
	for _, l := range []struct {
		to   *[]string
		from []string
	}{
		{&c.Created, o.Created}, {&c.Entered, o.Entered}, {&c.Grew, o.Grew}, {&c.Moved, o.Moved}, {&c.Left, o.Left},
		{&c.Altered, o.Altered}, {&c.Blind, o.Blind}, {&c.Missing, o.Missing}, {&c.MissingColumns, o.MissingColumns},
	} {
		*l.to = append(*l.to, l.from...)
		slices.Sort(*l.to)
		*l.to = slices.Compact(*l.to)
	}
	c.Guarded = o.Guarded
	c.loose = c.loose || !o.Stored && len(o.Entered)+len(o.Grew)+len(o.Altered) > 0
	c.Stored = o.Stored && !c.loose
}

// Any reports whether anything was changed in the database.
func (c *Changes) Any() bool {
	return len(c.Created)+len(c.Entered)+len(c.Grew)+len(c.Moved)+len(c.Left) > 0
}

// DeniedError says that the role may not do what the rules need of the
// publications. Trying again does not cure it.
type DeniedError struct {
	// Statements are what somebody who may has to run.
	Statements []string
	Err        error
}

func (e *DeniedError) Error() string {
	return fmt.Sprintf("%v (let the owner of the publication and of the tables run: %s)", e.Err, strings.Join(e.Statements, " "))
}

// Unwrap returns what Postgres answered.
func (e *DeniedError) Unwrap() error { return e.Err }

// UnusableError says that a publication of that name exists and is of a kind
// that can not be kept in step with rules.
type UnusableError struct{ Name, Reason string }

func (e *UnusableError) Error() string {
	return fmt.Sprintf("publication %s %s: drop it, or let LETHE_PUBLICATION name another", e.Name, e.Reason)
}

const (
	codeLockNotAvailable      = "55P03"
	codeDeadlock              = "40P01"
	codeSerialization         = "40001"
	codeInsufficientPrivilege = "42501"
	codeUndefinedTable        = "42P01"
	codeUndefinedObject       = "42704"
	codeUndefinedColumn       = "42703"
	codeDuplicateObject       = "42710"
	codeInternal              = "XX000" // "tuple concurrently updated", before 15
)

func hasCode(err error, codes ...string) bool {
	var e *pgconn.PgError
	if !errors.As(err, &e) {
		return false
	}
	for _, c := range codes {
		if e.Code == c {
			return true
		}
	}
	return false
}

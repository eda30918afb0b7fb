package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lethe-cache/lethe/cdc"
	"github.com/lethe-cache/lethe/cdc/publication"
	"github.com/lethe-cache/lethe/cdc/source"
	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/rules"
)

// database is the ordinary connections to the primary, all that the process
// has beside the reader's own.
type database struct {
	pool *pgxpool.Pool
	log  *slog.Logger
	// mu is held while the publications are looked at or brought in step: by
	// the watch, and by a reload.
	mu    sync.Mutex
	watch *publication.Watcher
	cfg   publication.Config
	// raising are the stored gaps whose raises are on their way.
	raising []raising
	// unseen is what logUnseen has told last.
	unseen string
}

// raising is a raise that was asked for because of stored gaps.
type raising struct {
	gaps []publication.Gap
	done <-chan struct{}
}

// What bounds a statement of ours: the application never waits long for a lock
// that we hold or wait for, and none of ours hangs behind a dead synchronous
// standby.
const (
	statementTimeout = "30s"
	lockTimeout      = "2s"
	connectTimeout   = 5 * time.Second
)

func openDatabase(url string, log *slog.Logger) (*database, error) {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, usagef("LETHE_POSTGRES_URL: %w", err)
	}
	config.MaxConns = 4
	config.ConnConfig.ConnectTimeout = connectTimeout
	for name, value := range map[string]string{
		"application_name": "lethe", "synchronous_commit": "local",
		"statement_timeout": statementTimeout, "lock_timeout": lockTimeout,
	} {
		config.ConnConfig.RuntimeParams[name] = value
	}
	pool, err := pgxpool.NewWithConfig(context.Background(), config)
	if err != nil {
		return nil, err
	}
	return &database{pool: pool, log: log}, nil
}

func (d *database) close() { d.pool.Close() }

// instance asks the server who it is and where its log ends.
func (d *database) instance(ctx context.Context) (source.Instance, error) {
	return source.Read(ctx, d.pool)
}

// withConn runs f on one connection.
func (d *database) withConn(ctx context.Context, f func(*pgx.Conn) error) error {
	conn, err := d.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	return f(conn.Conn())
}

// checkWALLevel refuses a server that writes no logical log, with the cure.
func (d *database) checkWALLevel(ctx context.Context) error {
	var level string
	if err := d.pool.QueryRow(ctx, "SELECT current_setting('wal_level')").Scan(&level); err != nil {
		return err
	}
	if level != "logical" {
		return &exitError{
			code: exitFailed, err: fmt.Errorf("wal_level is %s, logical replication needs logical", level),
			hint: "ALTER SYSTEM SET wal_level = logical, then restart Postgres",
		}
	}
	return nil
}

// syncPublications makes the publications and brings them in step with the
// rules. What entered is returned, beside an error too: a gap for the classes of
// its rules.
func (d *database) syncPublications(ctx context.Context, name string, uses []rules.TableUse) (publication.Changes, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cfg = publication.Config{Name: name}
	changes, err := publication.Sync(ctx, d.pool, d.cfg, uses)
	if err != nil {
		return changes, fmt.Errorf("keep publication %s in step with the rules: %w", name, err)
	}
	d.watch = publication.NewWatcher(d.cfg, uses)
	checked, err := d.watch.Check(ctx, d.pool) // what later checks compare with
	changes.Add(checked)
	d.logPublications(changes)
	return changes, err
}

// watchFor makes the watch look at these tables from now on.
func (d *database) watchFor(uses []rules.TableUse) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.watch = publication.NewWatcher(d.cfg, rules.MergeTables(uses))
}

// raiser is the part of the reader that gaps are told to.
type raiser interface {
	Raise(r change.Raise, twice bool) <-chan struct{}
	State() cdc.State
}

var _ raiser = (*cdc.Reader)(nil)

// raiseGaps asks for the raises that changes of the publications make due, as
// far as raiseDue does not.
func raiseGaps(r raiser, changes publication.Changes) {
	once := changes.Blind
	if !changes.Stored {
		once = slices.Concat(once, changes.Altered)
		if gap := slices.Concat(changes.Entered, changes.Grew); len(gap) > 0 {
			r.Raise(change.Raise{Cause: uniqueCause("publication"), Reason: change.ReasonPublication, Tables: gap}, true)
		}
	}
	if len(once) > 0 {
		r.Raise(change.Raise{Cause: uniqueCause("publication"), Reason: change.ReasonPublication, Tables: once}, false)
	}
}

// raiseDue asks for the raises of stored gaps, those of earlier processes too,
// and notes which have become durable. Until that is noted they are due again
// at the next start.
func (d *database) raiseDue(ctx context.Context, r raiser, slot string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.raiseDueLocked(ctx, r, slot)
}

func (d *database) raiseDueLocked(ctx context.Context, r raiser, slot string) error {
	waiting := d.raising[:0]
	for _, x := range d.raising {
		select {
		case <-x.done:
			if err := publication.Told(ctx, d.pool, d.cfg, slot, x.gaps); err != nil {
				// Raised again once the database answers: too much, not too little.
				d.log.Warn("note that a raise is done", "error", err)
			}
		default:
			waiting = append(waiting, x)
		}
	}
	d.raising = waiting
	due, err := publication.Due(ctx, d.pool, d.cfg, slot)
	if err != nil {
		return err
	}
	due = slices.DeleteFunc(due, func(g publication.Gap) bool {
		return slices.ContainsFunc(d.raising, func(x raising) bool { return slices.Contains(x.gaps, g) })
	})
	for _, twice := range []bool{true, false} {
		raise := change.Raise{Reason: change.ReasonPublication}
		var gaps []publication.Gap
		for _, g := range due {
			if g.Twice == twice {
				gaps, raise.Tables = append(gaps, g), append(raise.Tables, g.Table)
			}
		}
		if len(gaps) > 0 {
			raise.Cause = publication.Cause(gaps)
			d.raising = append(d.raising, raising{gaps, r.Raise(raise, twice)})
		}
	}
	return nil
}

// watchPublication looks every second at what DDL has done to the tables of the
// rules, mends the publications, and raises what the log said nothing of. While
// another process has the slot the publications are its own: two that follow
// different rules, as in a rolling update, would mend each other's for ever.
func (d *database) watchPublication(ctx context.Context, r raiser, slot string) {
	ticker := time.NewTicker(publication.WatchInterval)
	defer ticker.Stop()
	failing := false
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if r.State().Phase == cdc.PhaseWaitingForSlot {
			continue
		}
		err := d.checkPublications(ctx, r, slot)
		if ctx.Err() != nil {
			return
		}
		if err != nil && !failing {
			d.log.Warn("check publications", "error", err)
		}
		failing = err != nil
	}
}

func (d *database) checkPublications(ctx context.Context, r raiser, slot string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	changes, err := d.watch.Check(ctx, d.pool)
	raiseGaps(r, changes)
	if ctx.Err() != nil {
		return err
	}
	d.logPublications(changes)
	if err != nil {
		return err
	}
	return d.raiseDueLocked(ctx, r, slot)
}

func (d *database) logPublications(c publication.Changes) {
	if c.Any() || len(c.Altered) > 0 {
		d.log.Info("publications in step with the rules", "created", c.Created, "entered", c.Entered, "grew", c.Grew,
			"moved", c.Moved, "left", c.Left, "altered", c.Altered)
	}
	d.logUnseen(c)
}

// logUnseen tells of tables whose changes do not reach the log, once for as long
// as they stay the same: the watch finds them every second.
func (d *database) logUnseen(c publication.Changes) {
	now := fmt.Sprint(c.Blind, c.Missing, c.MissingColumns)
	if now == d.unseen || d.unseen == "" && len(c.Blind)+len(c.Missing)+len(c.MissingColumns) == 0 {
		return
	}
	d.unseen = now
	if len(c.Blind) > 0 {
		d.log.Warn("updates and deletes of tables without replica identity can not be seen; the classes of their rules are forgotten every second while this lasts",
			"tables", c.Blind)
	}
	if len(c.Missing)+len(c.MissingColumns) > 0 {
		d.log.Warn("rules name what is not there or can not be published; nothing is forgotten because of it",
			"tables", c.Missing, "columns", c.MissingColumns)
	}
	if len(c.Blind)+len(c.Missing)+len(c.MissingColumns) == 0 {
		d.log.Info("changes of all tables of the rules can be seen again")
	}
}

// uniqueCause names a raise that is asked for once.
func uniqueCause(what string) string {
	var random [8]byte
	_, _ = rand.Read(random[:]) // never fails, by its documentation
	return what + "/" + hex.EncodeToString(random[:])
}

// Package schedule keeps invalidations that are due at a time in the table
// lethe.schedules, and emits them when it has come.
//
// A worker stores what a batch of changes schedules before the batch is
// acknowledged (Store.Put). When the time has come by the database's clock, one
// of the workers of the deployment emits a logical message in the transaction
// that takes the schedule away (Store.Run): it returns through the log as an
// ordinary commit, so that keys, tags, L1 and replays are as exact as for any
// other, and it can neither be lost nor come twice. Rows that were there before
// their rule, or whose changes the log did not tell, are read from their table
// (Scanner).
//
// # Why no schedule is lost
//
// Each schedule carries the place of its change in the log, and only a place
// that is not lower replaces it: batches may be put twice and in any order. A
// schedule that was fired or taken back leaves its place behind for the same
// reason; what is pruned is so old that only a message too many could follow.
//
// What is due is decided once, by one reading of the database's clock: an item
// that was past when its change was committed is the caller's, who invalidates
// at the place of the change; every other is stored and fired, at once if its
// time came while the change was on its way (invalidator.ScheduleItem.Committed
// says why that can not be done at the place of the change).
//
// A rule that is new to the deployment, and every raise that stands for changes
// which the log did not tell, asks for a scan in the same Put, before the raise:
// what was due until then the raise has forgotten, what is due after it the scan
// finds. It looks at rows with a position below which every commit is visible in
// its snapshot, so that any change it did not see has a higher one.
package schedule

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/invalidator"
)

// Config holds what a Store needs. Pool and Owner must be set.
type Config struct {
	// Pool reaches the primary that the log comes from.
	Pool *pgxpool.Pool
	// Namespace is that of the rules: what is due in it is fired by any of its
	// deployments on the database, as the message reaches all of them.
	Namespace string
	// Owner names the deployment: its namespace and the log that it follows.
	// Positions of different logs do not compare, so that one must not replace
	// what another has stored.
	Owner string
	// Logger, nil discards; Metrics, nil counts into nothing.
	Logger  *slog.Logger
	Metrics *Metrics
	// Poll is how often a Store looks for what other processes have stored; 0 is
	// PollDefault. What this process stores wakes it.
	Poll time.Duration
}

// PollDefault is Config.Poll where it is not set.
const PollDefault = 500 * time.Millisecond

// Store is the schedules of one deployment. It is safe for concurrent use.
type Store struct {
	cfg  Config
	wake chan struct{} // something is due earlier than Run may think
	read chan struct{} // a scan was asked for
}

var _ invalidator.Schedules = (*Store)(nil)

// New makes a Store.
func New(cfg Config) (*Store, error) {
	if cfg.Pool == nil || cfg.Owner == "" {
		return nil, errors.New("schedule: Config.Pool and Config.Owner must be set")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Metrics == nil {
		cfg.Metrics = NewMetrics(nil)
	}
	if cfg.Poll <= 0 {
		cfg.Poll = PollDefault
	}
	cfg.Owner = ascii(cfg.Owner)
	return &Store{cfg: cfg, wake: make(chan struct{}, 1), read: make(chan struct{}, 1)}, nil
}

// MissingError says that this role can not use the tables.
type MissingError struct{ What string }

func (e *MissingError) Error() string { return "schedules: " + e.What }

// Hint is what to do about it.
func (e *MissingError) Hint() string {
	return "let an administrator run `lethe migrate --role <role>`, which makes lethe.schedules and grants what is needed, or take `at:` out of the rules"
}

// Usable returns a *MissingError if the role of the connection may not use
// lethe.schedules or lethe.source: without the latter eras are not kept, and
// positions from before a failover could pass for later ones.
func Usable(ctx context.Context, conn *pgx.Conn) error {
	for _, table := range []string{"lethe.schedules", "lethe.schedule_scans", "lethe.source"} {
		var exists, may bool
		err := conn.QueryRow(ctx, `SELECT to_regclass($1) IS NOT NULL,
			coalesce(has_table_privilege(to_regclass($1), 'SELECT') AND has_table_privilege(to_regclass($1), 'INSERT')
				AND has_table_privilege(to_regclass($1), 'UPDATE') AND has_table_privilege(to_regclass($1), 'DELETE'), false)`, table).Scan(&exists, &may)
		var denied *pgconn.PgError
		switch {
		case errors.As(err, &denied) && denied.Code == "42501":
			return &MissingError{"the schema lethe may not be used by this role"}
		case err != nil:
			return fmt.Errorf("look for %s: %w", table, err)
		case !exists:
			return &MissingError{"the table " + table + " is missing"}
		case !may:
			return &MissingError{"this role may not read and write " + table}
		}
	}
	return nil
}

// messagesOf is the owner of a namespace's messages: each has a key of its own,
// so that there is nothing to replace, and it is due whatever becomes of the
// deployment that has stored it.
func messagesOf(namespace string) string { return namespace + " messages" }

// ascii keeps names that are for people out of the way of a database whose
// encoding does not have their characters.
func ascii(name string) string {
	quoted := strconv.QuoteToASCII(name)
	return quoted[1 : len(quoted)-1]
}

// place is the order of a row's changes, as text that compares like it.
func place(x change.Position, ordinal uint32) string { return fmt.Sprintf("%s%08x", x, ordinal) }

const upsert = `
INSERT INTO lethe.schedules AS s (namespace, owner, rule_id, row_key, position, due_at, message, rule, updated_at)
SELECT $8, CASE WHEN i.rule_id = 0 THEN $9 ELSE $1 END, i.rule_id, i.row_key, i.position, i.due_at, i.message, i.rule, clock_timestamp()
FROM unnest($2::int8[], $3::text[], $4::text[], $5::timestamptz[], $6::text[], $7::text[]) AS i(rule_id, row_key, position, due_at, message, rule)
ON CONFLICT (owner, rule_id, row_key) DO UPDATE
SET position = excluded.position, due_at = excluded.due_at, message = excluded.message, rule = excluded.rule, updated_at = excluded.updated_at
WHERE excluded.position >= s.position`

const dropAll = `
UPDATE lethe.schedules SET position = $3, due_at = NULL, message = NULL, updated_at = clock_timestamp()
WHERE owner = $1 AND rule_id = $2 AND position < $3`

// A scan that is due already keeps the time from which on rows matter to it.
const wantScan = `
INSERT INTO lethe.schedule_scans AS s (owner, rule_id, rule, wanted_from)
SELECT $1, i.rule_id, i.rule, $4 FROM unnest($2::int8[], $3::text[]) AS i(rule_id, rule)
ON CONFLICT (owner, rule_id) DO UPDATE
SET wanted = s.wanted + 1, rule = excluded.rule, updated_at = clock_timestamp(),
    wanted_from = CASE WHEN s.wanted > s.done THEN s.wanted_from ELSE excluded.wanted_from END`

const knowScan = `
INSERT INTO lethe.schedule_scans (owner, rule_id, rule, wanted_from)
SELECT $1, i.rule_id, i.rule, $4 FROM unnest($2::int8[], $3::text[]) AS i(rule_id, rule)
ON CONFLICT (owner, rule_id) DO NOTHING`

// Put implements invalidator.Schedules.
func (s *Store) Put(ctx context.Context, b invalidator.ScheduleBatch) (due []bool, err error) {
	var now time.Time
	if err := s.cfg.Pool.QueryRow(ctx, `SELECT clock_timestamp()`).Scan(&now); err != nil {
		return nil, fmt.Errorf("read the database's clock: %w", err)
	}
	due = make([]bool, len(b.Items))
	for i := range b.Items {
		it := &b.Items[i]
		due[i] = it.Message != nil && !it.At.After(now) && !it.At.After(it.Committed)
	}
	if err := s.put(ctx, b, now, due); err != nil {
		return nil, fmt.Errorf("store schedules: %w", err)
	}
	return due, nil
}

// put stores a batch in one transaction. What is due is stored as done.
func (s *Store) put(ctx context.Context, b invalidator.ScheduleBatch, now time.Time, due []bool) error {
	last := latest(b.Items)
	var cols columns
	var next time.Time
	for _, i := range last {
		it := &b.Items[i]
		cols.add(it, due != nil && due[i])
		if it.Message != nil && (next.IsZero() || it.At.Before(next)) {
			next = it.At
		}
	}
	batch := &pgx.Batch{}
	if len(last) > 0 {
		batch.Queue(upsert, s.cfg.Owner, cols.rules, cols.keys, cols.places, cols.due, cols.messages, cols.names,
			s.cfg.Namespace, messagesOf(s.cfg.Namespace))
	}
	for i := range b.Gone {
		batch.Queue(dropAll, s.cfg.Owner, int64(b.Gone[i].Rule.ID), place(b.Gone[i].X, b.Gone[i].Ordinal))
	}
	for sql, rules := range map[string][]invalidator.ScheduleRule{wantScan: b.Read, knowScan: b.Known} {
		if len(rules) > 0 {
			ids, names := split(rules)
			batch.Queue(sql, s.cfg.Owner, ids, names, now)
		}
	}
	// One batch is one transaction.
	if err := s.cfg.Pool.SendBatch(ctx, batch).Close(); err != nil {
		return err
	}
	s.cfg.Metrics.stored.Add(float64(cols.pending))
	s.cfg.Metrics.dropped.Add(float64(len(last) - cols.pending))
	if len(b.Read)+len(b.Known) > 0 {
		kick(s.read)
	}
	if !next.IsZero() && beforeLook(next.Sub(now), s.cfg.Poll) {
		kick(s.wake)
	}
	return nil
}

// latest returns the last item of each row, sorted, so that two batches take
// their locks in one order.
func latest(items []invalidator.ScheduleItem) []int {
	type row struct {
		rule uint64
		key  string
	}
	at := make(map[row]int, len(items))
	for i := range items {
		k := row{items[i].Rule.ID, items[i].Key}
		if j, ok := at[k]; ok && place(items[j].X, items[j].Ordinal) > place(items[i].X, items[i].Ordinal) {
			continue
		}
		at[k] = i
	}
	out := make([]int, 0, len(at))
	for _, i := range at {
		out = append(out, i)
	}
	slices.SortFunc(out, func(a, b int) int {
		x, y := &items[a], &items[b]
		if x.Rule.ID != y.Rule.ID {
			if x.Rule.ID < y.Rule.ID {
				return -1
			}
			return 1
		}
		return strings.Compare(x.Key, y.Key)
	})
	return out
}

// columns are the arrays of an upsert.
type columns struct {
	rules               []int64
	keys, places, names []string
	due                 []*time.Time
	messages            []*string
	pending             int
}

func (c *columns) add(it *invalidator.ScheduleItem, done bool) {
	c.rules = append(c.rules, int64(it.Rule.ID))
	c.keys = append(c.keys, it.Key)
	c.places = append(c.places, place(it.X, it.Ordinal))
	c.names = append(c.names, ascii(it.Rule.Name))
	if done || it.Message == nil {
		c.due, c.messages = append(c.due, nil), append(c.messages, nil)
		return
	}
	text := string(it.Message)
	c.due, c.messages = append(c.due, &it.At), append(c.messages, &text)
	c.pending++
}

func split(rules []invalidator.ScheduleRule) (ids []int64, names []string) {
	for _, r := range rules {
		if slices.Contains(ids, int64(r.ID)) {
			continue // two rules that say the same
		}
		ids, names = append(ids, int64(r.ID)), append(names, ascii(r.Name))
	}
	return ids, names
}

// beforeLook reports whether what is due so soon may be due before a Store looks
// again by itself.
func beforeLook(until, poll time.Duration) bool { return until < poll }

func kick(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

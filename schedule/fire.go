package schedule

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/jackc/pgx/v5"

	"github.com/lethe-cache/lethe/change"
)

// fireBatch is the most schedules that one transaction fires.
const fireBatch = 500

// The message and the end of the schedule are one statement, hence one
// transaction: it is fired once or, if that transaction fails, again. A row
// that another worker has in hand is left to it.
const fire = `
WITH due AS MATERIALIZED (
    SELECT s.owner, s.rule_id, s.row_key, s.due_at, s.message FROM lethe.schedules s
    WHERE s.namespace = $1 AND s.due_at <= clock_timestamp()
    ORDER BY s.due_at LIMIT $2 FOR UPDATE SKIP LOCKED
), fired AS (
    UPDATE lethe.schedules s SET due_at = NULL, message = NULL, updated_at = clock_timestamp() FROM due d
    WHERE s.owner = d.owner AND s.rule_id = d.rule_id AND s.row_key = d.row_key
    RETURNING d.due_at, d.message
)
SELECT extract(epoch FROM clock_timestamp() - f.due_at)::float8, pg_logical_emit_message(true, 'lethe', f.message)::text FROM fired f`

// Fire emits what is due, at most fireBatch at once, and returns how many.
func (s *Store) Fire(ctx context.Context) (int, error) {
	rows, err := s.cfg.Pool.Query(ctx, fire, s.cfg.Namespace, fireBatch)
	if err != nil {
		return 0, fmt.Errorf("fire schedules: %w", err)
	}
	var late float64
	var lsn string
	var delays []float64
	if _, err := pgx.ForEachRow(rows, []any{&late, &lsn}, func() error {
		delays = append(delays, late)
		return nil
	}); err != nil {
		return 0, fmt.Errorf("fire schedules: %w", err)
	}
	for _, d := range delays {
		s.cfg.Metrics.delay.Observe(d)
	}
	s.cfg.Metrics.fired.Add(float64(len(delays)))
	return len(delays), nil
}

// First returns how long it is until something is due, of what is due within the
// hour; found is false if nothing is.
func (s *Store) First(ctx context.Context) (until time.Duration, found bool, err error) {
	var seconds *float64
	err = s.cfg.Pool.QueryRow(ctx, `SELECT extract(epoch FROM min(due_at) - clock_timestamp())::float8
		FROM lethe.schedules WHERE namespace = $1 AND due_at IS NOT NULL AND due_at < clock_timestamp() + interval '1 hour'`, s.cfg.Namespace).Scan(&seconds)
	if err != nil {
		return 0, false, fmt.Errorf("look for what is due next: %w", err)
	}
	if seconds == nil {
		return 0, false, nil
	}
	return time.Duration(*seconds * float64(time.Second)), true, nil
}

const (
	nextMin    = 2 * time.Millisecond
	pruneEvery = time.Minute
	countEvery = 10 * time.Second
	countMost  = 1_000_000
	// retryMost bounds the pause after an error: an outage of the database must
	// not make what is due later than it need be.
	retryMost = 500 * time.Millisecond
)

// Run fires what is due until ctx ends. An error is one that a retry does not
// cure; the database being away is none. below returns the position below which
// nothing is delivered again; optional.
func (s *Store) Run(ctx context.Context, below func(context.Context) (change.Position, error)) error {
	var chores sync.WaitGroup
	defer chores.Wait()
	// Beside the firing: what prunes asks Redis, which may be away, and deletes
	// as much as there is, while the next schedule is due.
	chores.Go(func() { s.chores(ctx, below) })
	fireDue(ctx, s, s.cfg.Poll, s.wake, s.failed)
	return nil
}

// failed tells of what is tried again.
func (s *Store) failed(ctx context.Context, err error) {
	s.cfg.Logger.WarnContext(ctx, "schedules wait for the database", "error", err)
	s.cfg.Metrics.errors.Inc()
}

// chores looks after the table until ctx ends.
func (s *Store) chores(ctx context.Context, below func(context.Context) (change.Position, error)) {
	var pruned time.Time
	for ctx.Err() == nil {
		err := s.count(ctx)
		if err == nil && below != nil && (pruned.IsZero() || time.Since(pruned) >= pruneEvery) {
			if err = s.prune(ctx, below); err == nil {
				pruned = time.Now()
			}
		}
		if err != nil && ctx.Err() == nil {
			s.failed(ctx, err)
		}
		sleep(ctx, countEvery)
	}
}

func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}

// dueList is what fireDue fires from: a Store, or what a test takes for one.
type dueList interface {
	// Fire fires what is due, at most fireBatch at once, and returns how many.
	Fire(ctx context.Context) (int, error)
	// First returns how long it is until something is due.
	First(ctx context.Context) (until time.Duration, found bool, err error)
}

// fireDue fires what is due until ctx ends. What was stored within its own process
// it is told of, if that is due before the next look; what others store it sees
// by looking. So nothing is fired later than a look after it was stored and due,
// and after an outage no later than retryMost and half of that.
func fireDue(ctx context.Context, list dueList, poll time.Duration, wake <-chan struct{}, failed func(context.Context, error)) {
	wait := backoff.NewExponentialBackOff(backoff.WithInitialInterval(20*time.Millisecond),
		backoff.WithMaxInterval(retryMost), backoff.WithMaxElapsedTime(0))
	for {
		pause, err := step(ctx, list, poll)
		if ctx.Err() != nil {
			return // told to stop: what failed then is the next one's
		}
		told := wake
		if err != nil {
			failed(ctx, err)
			pause = wait.NextBackOff()
			told = nil // what is stored meanwhile does not make the database answer
		} else {
			wait.Reset()
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-told:
		}
		timer.Stop()
	}
}

// step fires all that is due, and says how long to wait.
func step(ctx context.Context, list dueList, poll time.Duration) (time.Duration, error) {
	for {
		n, err := list.Fire(ctx)
		if err != nil {
			return 0, err
		}
		if n == fireBatch {
			continue
		}
		until, found, err := list.First(ctx)
		if err != nil || !found {
			return poll, err
		}
		// Not at once, although it is due: another worker has it in hand.
		return min(max(until, nextMin), poll), nil
	}
}

// tombstoneMin is how long what was fired or taken back stays at least,
// tombstoneMost how long at most.
const (
	tombstoneMin  = 10 * time.Minute
	tombstoneMost = 7 * 24 * time.Hour
	pruneBatch    = 10_000
)

// Prune removes the places of what was fired or taken back where no older
// change can be delivered any more: what lies below w was acknowledged, or is
// known to be applied when it comes again. A worker that was cut off and does
// not know it yet has ten minutes to end. Should an older change come after all,
// its schedule fires once too often: nothing is stale by it.
func (s *Store) Prune(ctx context.Context, w change.Position) (int64, error) {
	var total int64
	for {
		tag, err := s.cfg.Pool.Exec(ctx, `DELETE FROM lethe.schedules WHERE ctid = ANY (ARRAY(
			SELECT ctid FROM lethe.schedules WHERE namespace = $1 AND due_at IS NULL AND
				(updated_at < now() - $3::interval AND position < $2 OR updated_at < now() - $4::interval)
			LIMIT $5 FOR UPDATE SKIP LOCKED)) AND due_at IS NULL`, s.cfg.Namespace, place(w, 0), tombstoneMin, tombstoneMost, pruneBatch)
		if err != nil {
			return total, fmt.Errorf("prune schedules: %w", err)
		}
		total += tag.RowsAffected()
		if tag.RowsAffected() < pruneBatch {
			return total, nil
		}
	}
}

func (s *Store) prune(ctx context.Context, below func(context.Context) (change.Position, error)) error {
	w, err := below(ctx)
	if err != nil {
		if errors.Is(err, context.Canceled) {
			return err
		}
		s.cfg.Logger.DebugContext(ctx, "schedules are not pruned", "error", err) // Redis is away: later
		return nil
	}
	_, err = s.Prune(ctx, w)
	return err
}

// count sets the gauges.
func (s *Store) count(ctx context.Context) error {
	var pending, scans float64
	err := s.cfg.Pool.QueryRow(ctx, `SELECT
		(SELECT count(*) FROM (SELECT FROM lethe.schedules WHERE namespace = $1 AND due_at IS NOT NULL LIMIT $2) AS x),
		(SELECT count(*) FROM lethe.schedule_scans WHERE owner = $3 AND wanted > done)`, s.cfg.Namespace, countMost, s.cfg.Owner).Scan(&pending, &scans)
	if err != nil {
		return fmt.Errorf("count schedules: %w", err)
	}
	s.cfg.Metrics.pending.Set(pending)
	s.cfg.Metrics.scansDue.Set(scans)
	return nil
}

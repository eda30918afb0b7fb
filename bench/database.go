package main

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lethe-cache/lethe/internal/servers"
)

// publication is what the baselines and the bare reader follow: whole rows of
// the bench table, as somebody writes it who reads only the manual.
const publication = "bench_plain"

// database is the Postgres under measurement and one connection to it for
// everything that is not measured. It is used by one goroutine at a time.
type database struct {
	server *servers.Postgres
	conn   *pgx.Conn
	// slots are those made and not dropped yet.
	slots map[string]bool
}

// benchSettings keep the server from doing work of its own in the middle of a
// round, and give it the memory that any tuned server has. The walsender must
// not give up on a consumer that is held back before its round.
var benchSettings = map[string]string{
	"autovacuum":         "off",
	"checkpoint_timeout": "1h",
	"max_wal_size":       "64GB",
	"shared_buffers":     "512MB",
	"synchronous_commit": "on",
	"wal_sender_timeout": "0",
}

// openDatabase starts a server with the bench table in it.
func openDatabase(ctx context.Context, rows int) (*database, error) {
	server, err := servers.StartPostgres(ctx, servers.PostgresConfig{Settings: benchSettings})
	if err != nil {
		return nil, err
	}
	db := &database{server: server, slots: map[string]bool{}}
	if db.conn, err = pgx.Connect(ctx, server.URL("postgres")); err != nil {
		return nil, errors.Join(fmt.Errorf("connect to the bench database: %w", err), server.Close())
	}
	if err := db.createTable(ctx, rows); err != nil {
		return nil, errors.Join(err, db.close())
	}
	return db, nil
}

// close stops the server; its data goes with it.
func (db *database) close() error {
	if db.conn != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = db.conn.Close(ctx) // the server goes next; there is nothing to save
	}
	return db.server.Close()
}

// createTable makes the table of five columns and the procedure that writes the
// workloads. A procedure, because it commits inside the server: 200,000
// transactions would otherwise be 200,000 round trips of a client that nobody
// wants to measure.
func (db *database) createTable(ctx context.Context, rows int) error {
	for _, sql := range []string{
		`CREATE TABLE bench (
			id       bigint PRIMARY KEY,
			category integer NOT NULL,
			amount   integer NOT NULL,
			body     text NOT NULL,
			changed  timestamptz NOT NULL
		) WITH (fillfactor = 45)`,
		`CREATE PROCEDURE bench_update(first bigint, transactions integer, rows integer) LANGUAGE plpgsql AS $$
		BEGIN
			FOR t IN 0 .. transactions - 1 LOOP
				UPDATE bench SET amount = amount + 1, changed = clock_timestamp()
				WHERE id >= first + t::bigint * rows AND id < first + (t + 1)::bigint * rows;
				COMMIT;
			END LOOP;
		END $$`,
		fmt.Sprintf(`INSERT INTO bench SELECT i, i %% 100, 0, repeat(md5(i::text), 6) || left(md5((-i)::text), 8), now()
			FROM generate_series(1, %d) i`, rows),
		`VACUUM (FREEZE, ANALYZE) bench`,
		`CREATE PUBLICATION ` + publication + ` FOR TABLE bench`,
	} {
		if _, err := db.conn.Exec(ctx, sql); err != nil {
			return fmt.Errorf("make the bench table: %w", err)
		}
	}
	return nil
}

// update writes transactions of rows updated rows each, from row first on.
func (db *database) update(ctx context.Context, first int64, transactions, rows int) error {
	if _, err := db.conn.Exec(ctx, "CALL bench_update($1, $2, $3)", first, transactions, rows); err != nil {
		return fmt.Errorf("write %d transactions of %d rows: %w", transactions, rows, err)
	}
	return nil
}

// createSlot makes a slot of pgoutput at the current end of the log.
func (db *database) createSlot(ctx context.Context, name string) error {
	if _, err := db.conn.Exec(ctx, "SELECT pg_create_logical_replication_slot($1, 'pgoutput')", name); err != nil {
		return fmt.Errorf("create slot %s: %w", name, err)
	}
	db.slots[name] = true
	return nil
}

// copySlot makes a slot that stands where from stands: every drain of one
// workload begins at the same byte.
func (db *database) copySlot(ctx context.Context, from, name string) error {
	if _, err := db.conn.Exec(ctx, "SELECT pg_copy_logical_replication_slot($1, $2)", from, name); err != nil {
		return fmt.Errorf("copy slot %s to %s: %w", from, name, err)
	}
	db.slots[name] = true
	return nil
}

// dropSlot drops a slot, and the walsender that may still have it.
func (db *database) dropSlot(ctx context.Context, name string) error {
	defer delete(db.slots, name)
	return poll(ctx, 10*time.Second, 10*time.Millisecond, "drop slot "+name, func() (bool, error) {
		// The two in one statement: a walsender that is gone when it is looked
		// for can not come back, as its client has been stopped.
		_, err := db.conn.Exec(ctx, `SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots
			WHERE slot_name = $1 AND active_pid IS NOT NULL`, name)
		if err != nil {
			return false, err
		}
		var left int
		err = db.conn.QueryRow(ctx, `SELECT count(pg_drop_replication_slot(slot_name)) FROM pg_replication_slots
			WHERE slot_name = $1 AND active_pid IS NULL`, name).Scan(&left)
		if err != nil {
			return false, err
		}
		err = db.conn.QueryRow(ctx, "SELECT count(*) FROM pg_replication_slots WHERE slot_name = $1", name).Scan(&left)
		return left == 0, err
	})
}

// held is a walsender that has been stopped as soon as it had its slot, so that
// its consumer can finish whatever it does at its start before its clock runs.
type held struct{ pid int }

// hold waits until slot has a walsender and stops that. failed ends the wait:
// the consumer that should have come is gone.
func (db *database) hold(ctx context.Context, slot string, failed <-chan error) (held, error) {
	var pid *int
	err := poll(ctx, 30*time.Second, time.Millisecond, "wait for a consumer of slot "+slot, func() (bool, error) {
		select {
		case err := <-failed:
			return false, fmt.Errorf("consumer of slot %s ended before it began: %w", slot, err)
		default:
		}
		err := db.conn.QueryRow(ctx, "SELECT active_pid FROM pg_replication_slots WHERE slot_name = $1", slot).Scan(&pid)
		if errors.Is(err, pgx.ErrNoRows) {
			return false, nil // the consumer makes it itself
		}
		return pid != nil, err
	})
	if err != nil {
		return held{}, err
	}
	if err := syscall.Kill(*pid, syscall.SIGSTOP); err != nil {
		return held{}, fmt.Errorf("stop walsender %d: %w", *pid, err)
	}
	return held{pid: *pid}, nil
}

// ahead returns which part of the workload, 0 to 1, the walsender had read when
// it was stopped. On a quiet machine it is next to nothing; on a busy one the
// walsender gets some way before anybody sees that it is there.
func (h held) ahead(ctx context.Context, db *database, w *workload) (float64, error) {
	var part float64
	// sent_lsn is NULL until the walsender has begun; least() ignores NULLs.
	err := db.conn.QueryRow(ctx, `SELECT greatest(0, least(1, (coalesce(sent_lsn, $2::pg_lsn) - $2::pg_lsn) / greatest(1, $3::pg_lsn - $2::pg_lsn)))::float8
		FROM pg_stat_replication WHERE pid = $1`, h.pid, w.begin, w.end).Scan(&part)
	if err != nil {
		return 0, fmt.Errorf("read how far walsender %d has come: %w", h.pid, err)
	}
	return part, nil
}

// release lets the walsender run and returns the moment at which it did.
func (h held) release() (time.Time, error) {
	now := time.Now()
	if err := syscall.Kill(h.pid, syscall.SIGCONT); err != nil {
		return now, fmt.Errorf("continue walsender %d: %w", h.pid, err)
	}
	return now, nil
}

// poll calls done every interval until it is true, fails, or limit has passed.
func poll(ctx context.Context, limit, interval time.Duration, what string, done func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		ok, err := done()
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: not within %v: %w", what, limit, ctx.Err())
		case <-ticker.C:
		}
	}
}

// pause waits, or returns early with the context's error.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

package explain

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/rules"
)

// LockTimeoutDefault bounds how long Run waits for the lock of a table.
const LockTimeoutDefault = 500 * time.Millisecond

// statementTimeout bounds the statement itself.
const statementTimeout = 30 * time.Second

// Run executes statements in a transaction that is rolled back, and returns the
// changes of the tables of uses that they would have made, in their order:
// changes by triggers and foreign keys included. schema describes the tables.
//
// A transaction that is rolled back is never decoded, so the rows are captured
// by triggers made inside of it. Making one takes a lock that other writers of
// the table wait for until Run is over, so it is given up after lockTimeout
// (zero: LockTimeoutDefault), and so is what the statements themselves wait
// for; readers never wait. Nothing is left behind: no
// row, trigger, function or lock. What sequences have counted stays counted, as
// after every rollback, and what the statements do outside of the database
// (dblink, NOTIFY is not among it) is done.
//
// The connection's role must own the tables or have their TRIGGER privilege,
// and the right to make temporary tables. The connection is as before, except
// for settings that the statements themselves set for the session.
func Run(ctx context.Context, conn *pgx.Conn, schema *rules.Schema, uses []rules.TableUse, sql string, lockTimeout time.Duration) ([]*change.Change, error) {
	var out []*change.Change
	err := RunAnd(ctx, conn, schema, uses, sql, lockTimeout, func(_ pgx.Tx, changes []*change.Change) error {
		out = changes
		return nil
	})
	return out, err
}

// RunAnd is Run that hands the changes to inside before it rolls back: what is
// read in the transaction is what the statements have made of the database.
func RunAnd(ctx context.Context, conn *pgx.Conn, schema *rules.Schema, uses []rules.TableUse, sql string, lockTimeout time.Duration,
	inside func(tx pgx.Tx, changes []*change.Change) error) (err error) {
	if lockTimeout <= 0 {
		lockTimeout = LockTimeoutDefault
	}
	tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted})
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	defer func() {
		// Also when ctx has ended: locks must not wait for the pool.
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		if rerr := tx.Rollback(end); rerr != nil && err == nil && !errors.Is(rerr, pgx.ErrTxClosed) {
			err = fmt.Errorf("roll back: %w", rerr)
		}
	}()
	c := capture{tx: tx, schema: schema}
	if err := c.install(ctx, uses, lockTimeout); err != nil {
		return err
	}
	if err := c.execute(ctx, sql); err != nil {
		return err
	}
	changes, err := c.read(ctx)
	if err != nil {
		return err
	}
	// As a connection finds it that is new.
	if _, err := tx.Exec(ctx, "SET LOCAL search_path TO DEFAULT"); err != nil {
		return fmt.Errorf("read the captured rows: %w", err)
	}
	return inside(tx, changes)
}

// capture is the triggers of one transaction, and what they have seen.
type capture struct {
	tx     pgx.Tx
	schema *rules.Schema
	tables []*rules.TableInfo
}

const captureSetup = `
SET LOCAL synchronous_commit = local;
CREATE TEMP SEQUENCE lethe_explain_seq;
CREATE FUNCTION pg_temp.lethe_explain() RETURNS trigger LANGUAGE plpgsql AS $f$
BEGIN -- arguments: the table to write to, and the type of its rows: a partition's are cast to its root's
	IF TG_OP = 'TRUNCATE' THEN
		EXECUTE format('INSERT INTO pg_temp.%I (op) VALUES (''TRUNCATE'')', TG_ARGV[0]);
	ELSIF TG_OP = 'INSERT' THEN
		EXECUTE format('INSERT INTO pg_temp.%I (op, new) VALUES (''INSERT'', $1::%s)', TG_ARGV[0], TG_ARGV[1]) USING NEW;
	ELSIF TG_OP = 'UPDATE' THEN
		EXECUTE format('INSERT INTO pg_temp.%I (op, old, new) VALUES (''UPDATE'', $1::%s, $2::%2$s)', TG_ARGV[0], TG_ARGV[1]) USING OLD, NEW;
	ELSE
		EXECUTE format('INSERT INTO pg_temp.%I (op, old) VALUES (''DELETE'', $1::%s)', TG_ARGV[0], TG_ARGV[1]) USING OLD;
	END IF;
	RETURN NULL;
END $f$;`

// install makes a trigger for each table that rules name, in one order, so that
// two explanations at one time can not wait for each other in a circle.
func (c *capture) install(ctx context.Context, uses []rules.TableUse, lockTimeout time.Duration) error {
	if _, err := c.tx.Exec(ctx, fmt.Sprintf("SET LOCAL lock_timeout = %d; SET LOCAL statement_timeout = %d;%s",
		lockTimeout.Milliseconds(), statementTimeout.Milliseconds(), captureSetup)); err != nil {
		return fmt.Errorf("prepare the capture of rows: %w", err)
	}
	for _, u := range uses {
		info := c.schema.Table(u.QualifiedName())
		if info == nil {
			return fmt.Errorf("capture rows: there is no table %s", u.QualifiedName())
		}
		n := len(c.tables)
		c.tables = append(c.tables, info)
		table := pgx.Identifier{info.Schema, info.Name}.Sanitize()
		// The triggers fire before others of their kind, by their names: a change
		// is seen before those that follow from it, as in the log.
		statements := fmt.Sprintf(`CREATE TEMP TABLE lethe_explain_%[1]d (seq bigint DEFAULT nextval('pg_temp.lethe_explain_seq'), op text, old %[2]s, new %[2]s) ON COMMIT DROP;
CREATE TRIGGER "!lethe_rows" AFTER INSERT OR UPDATE OR DELETE ON %[2]s FOR EACH ROW EXECUTE FUNCTION pg_temp.lethe_explain('lethe_explain_%[1]d', %[3]s);
CREATE TRIGGER "!lethe_truncate" AFTER TRUNCATE ON %[2]s FOR EACH STATEMENT EXECUTE FUNCTION pg_temp.lethe_explain('lethe_explain_%[1]d', %[3]s);`,
			n, table, "'"+strings.ReplaceAll(table, "'", "''")+"'")
		if _, err := c.tx.Exec(ctx, statements); err != nil {
			return fmt.Errorf("capture the rows of %s: %w", info.QualifiedName(), err)
		}
	}
	// lockTimeout goes on for the statements: while they wait for somebody, others
	// wait for the locks that the triggers took.
	return nil
}

// execute runs the statements inside of a function, where COMMIT and ROLLBACK
// are refused: what is explained must not stay. Then it checks what is deferred.
func (c *capture) execute(ctx context.Context, sql string) error {
	var do string
	if err := c.tx.QueryRow(ctx, "SELECT format('DO %L', format('BEGIN EXECUTE %L; END', $1::text))", sql).Scan(&do); err != nil {
		return fmt.Errorf("execute: %w", err)
	}
	for _, statement := range []string{do, "SET CONSTRAINTS ALL IMMEDIATE"} {
		_, err := c.tx.Exec(ctx, statement)
		var pgErr *pgconn.PgError
		if errors.As(err, &pgErr) && (pgErr.Code == "0A000" && strings.Contains(pgErr.Message, "transaction") || pgErr.Code == "2D000") {
			return fmt.Errorf("execute: %w (it is rolled back: leave BEGIN, COMMIT and ROLLBACK out)", err)
		}
		if err != nil {
			return fmt.Errorf("execute: %w", err)
		}
	}
	return c.watched(ctx)
}

// watched errs where the statements took away what sees the rows: an explanation
// that lacks what the log would have had is worse than none.
func (c *capture) watched(ctx context.Context) error {
	var replica bool
	var triggers int
	err := c.tx.QueryRow(ctx, `SELECT pg_catalog.current_setting('session_replication_role') = 'replica', (SELECT pg_catalog.count(*) FROM pg_catalog.pg_trigger
		WHERE tgname IN ('!lethe_rows', '!lethe_truncate') AND tgparentid = 0 AND tgenabled = 'O')`).Scan(&replica, &triggers)
	switch {
	case err != nil:
		return fmt.Errorf("look for the triggers: %w", err)
	case replica || triggers < 2*len(c.tables):
		return errors.New("execute: the statements switch triggers off, or drop a table of the rules: the rows are seen by triggers, so this can not be explained")
	}
	return nil
}

// read returns what the triggers saw. Values are printed by the output
// functions of their types, with the settings that the reader of the log has.
func (c *capture) read(ctx context.Context) ([]*change.Change, error) {
	const settings = `SET LOCAL DateStyle = 'ISO'; SET LOCAL IntervalStyle = 'postgres'; SET LOCAL TimeZone = 'UTC';
SET LOCAL extra_float_digits = 3; SET LOCAL bytea_output = 'hex'; SET LOCAL search_path = pg_catalog, pg_temp`
	if _, err := c.tx.Exec(ctx, settings); err != nil {
		return nil, fmt.Errorf("read the captured rows: %w", err)
	}
	var all []captured
	for n, info := range c.tables {
		seen, err := c.readTable(ctx, n, info)
		if err != nil {
			return nil, fmt.Errorf("read the captured rows of %s: %w", info.QualifiedName(), err)
		}
		all = append(all, seen...)
	}
	slices.SortFunc(all, func(a, b captured) int { return cmp.Compare(a.seq, b.seq) })
	out := make([]*change.Change, len(all))
	for i, c := range all {
		c.Ordinal = uint32(i)
		out[i] = c.Change
	}
	return out, nil
}

// captured is a change and its place among all.
type captured struct {
	seq int64
	*change.Change
}

func (c *capture) readTable(ctx context.Context, n int, info *rules.TableInfo) ([]captured, error) {
	t := TableOf(info)
	var columns []string
	for _, side := range []string{"old", "new"} {
		for _, col := range t.Columns {
			name := fmt.Sprintf("(%s).%s", side, pgx.Identifier{col.Name}.Sanitize())
			columns = append(columns, fmt.Sprintf("CASE WHEN %[1]s IS DISTINCT FROM NULL THEN pg_catalog.format('%%s', %[1]s) END", name))
		}
	}
	rows, err := c.tx.Query(ctx, fmt.Sprintf("SELECT seq, op, %s FROM pg_temp.lethe_explain_%d ORDER BY seq", strings.Join(columns, ", "), n))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []captured
	for rows.Next() {
		var seq int64
		var op string
		values := make([]*string, len(columns))
		dest := []any{&seq, &op}
		for i := range values {
			dest = append(dest, &values[i])
		}
		if err := rows.Scan(dest...); err != nil {
			return nil, err
		}
		out = append(out, captured{seq, capturedChange(t, op, values)})
	}
	return out, rows.Err()
}

func capturedChange(t *change.Table, op string, values []*string) *change.Change {
	c := &change.Change{Table: t, Commit: &change.Commit{XID: 1, LSN: 1, Time: time.Unix(0, 0).UTC()}}
	side := func(values []*string) change.Row {
		r := make(change.Row, len(values))
		for i, v := range values {
			r[i] = change.Value{Kind: change.Null}
			if v != nil {
				r[i] = change.Value{Kind: change.Text, Bytes: []byte(*v)}
			}
		}
		return r
	}
	before, after := values[:len(t.Columns)], values[len(t.Columns):]
	switch op {
	case "INSERT":
		c.Op, c.New = change.Insert, side(after)
	case "UPDATE":
		c.Op, c.Old, c.New = change.Update, side(before), side(after)
	case "DELETE":
		c.Op, c.Old = change.Delete, side(before)
	default:
		c.Op = change.Truncate
	}
	asLogged(c)
	return c
}

package edge

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
)

// row is one row of the outbox, or what is to become one.
type row struct {
	id         int64
	told       int
	everything bool
	keys, tags [][]byte
	classes    []string
	position   string
}

func (r *row) names() int { return len(r.keys) + len(r.tags) + len(r.classes) }

// outbox is the table of what is still to be told. Every statement is safe to
// repeat, and several processes may use it: a row that was taken is nobody
// else's until its lease is over, by the clock of the database.
type outbox struct {
	db    DB
	owner string
}

const putSQL = `INSERT INTO lethe.edge_outbox (owner, endpoint, everything, keys, tags, classes, names, position)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`

// put keeps rows, one for each endpoint, all or none.
func (o *outbox) put(ctx context.Context, rows map[string]*row) error {
	tx, err := o.db.Begin(ctx)
	if err != nil {
		return fmt.Errorf("keep for edges: %w", err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	for endpoint, r := range rows {
		if _, err := tx.Exec(ctx, putSQL, o.args(endpoint, r)...); err != nil {
			return fmt.Errorf("keep for edge %q: %w", endpoint, err)
		}
	}
	if err := tx.Commit(ctx); err != nil {
		return fmt.Errorf("keep for edges: %w", err)
	}
	return nil
}

func (o *outbox) args(endpoint string, r *row) []any {
	bytes := func(b [][]byte) [][]byte { // NULL is none of ours
		if b == nil {
			return [][]byte{}
		}
		return b
	}
	classes := r.classes
	if classes == nil {
		classes = []string{}
	}
	return []any{o.owner, endpoint, r.everything, bytes(r.keys), bytes(r.tags), classes, r.names(), r.position}
}

// takeMost is how many rows are told together.
const takeMost = 200

// take returns rows that are due, and leases them.
func (o *outbox) take(ctx context.Context, endpoint string, lease time.Duration) ([]row, error) {
	rows, err := o.db.Query(ctx, `UPDATE lethe.edge_outbox SET due_at = clock_timestamp() + $3::interval WHERE id IN (
		SELECT id FROM lethe.edge_outbox WHERE owner = $1 AND endpoint = $2 AND due_at <= clock_timestamp()
		ORDER BY due_at, id LIMIT $4 FOR UPDATE SKIP LOCKED)
		RETURNING id, told, everything, keys, tags, classes, position`, o.owner, endpoint, lease, takeMost)
	if err != nil {
		return nil, fmt.Errorf("take from the outbox of edge %q: %w", endpoint, err)
	}
	out, err := pgx.CollectRows(rows, func(r pgx.CollectableRow) (row, error) {
		var x row
		err := r.Scan(&x.id, &x.told, &x.everything, &x.keys, &x.tags, &x.classes, &x.position)
		return x, err
	})
	if err != nil {
		return nil, fmt.Errorf("take from the outbox of edge %q: %w", endpoint, err)
	}
	return out, nil
}

// renew leases rows for longer and reports whether any is left: all may have
// become one that says everything.
func (o *outbox) renew(ctx context.Context, ids []int64, lease time.Duration) (left bool, err error) {
	tag, err := o.db.Exec(ctx, `UPDATE lethe.edge_outbox SET due_at = clock_timestamp() + $2::interval WHERE id = ANY($1)`, ids, lease)
	if err != nil {
		return false, fmt.Errorf("renew a lease of the outbox: %w", err)
	}
	return tag.RowsAffected() > 0, nil
}

// told notes that rows were told: those of the first time come again, the others
// are over. Who took a row for the first time never ends it, though its lease was
// over meanwhile and another has told it too: the second time must come later.
func (o *outbox) told(ctx context.Context, first, second []int64, again time.Duration) error {
	_, err := o.db.Exec(ctx, `WITH over AS (DELETE FROM lethe.edge_outbox WHERE id = ANY($2))
		UPDATE lethe.edge_outbox SET told = 1, due_at = clock_timestamp() + $3::interval WHERE id = ANY($1) AND told = 0`, first, second, again)
	if err != nil {
		return fmt.Errorf("note what was told: %w", err)
	}
	return nil
}

// bound makes one row that says everything of all that an endpoint was never
// told, if that is more than pending names. It returns how many there were.
func (o *outbox) bound(ctx context.Context, endpoint string, pending int) (names int64, err error) {
	err = o.db.QueryRow(ctx, `SELECT coalesce(sum(names), 0) FROM lethe.edge_outbox WHERE owner = $1 AND endpoint = $2 AND told = 0`,
		o.owner, endpoint).Scan(&names)
	if err != nil {
		return 0, fmt.Errorf("count the outbox of edge %q: %w", endpoint, err)
	}
	if names <= int64(pending) {
		return 0, nil
	}
	// One statement, so that there is no moment at which neither stands.
	_, err = o.db.Exec(ctx, `WITH gone AS (DELETE FROM lethe.edge_outbox WHERE owner = $1 AND endpoint = $2 RETURNING 1)
		INSERT INTO lethe.edge_outbox (owner, endpoint, everything) VALUES ($1, $2, true)`, o.owner, endpoint)
	if err != nil {
		return 0, fmt.Errorf("bound the outbox of edge %q: %w", endpoint, err)
	}
	return names, nil
}

// register notes which endpoints are told, and of what. One that is new, or is
// told more than before, was not told of what happened earlier: everything. One
// that is gone is forgotten, with what waits for it; should it come back, it is
// new. It returns those that were new.
//
// Gone are those of left, which this process told before. Another that it does
// not know may be told by a process with newer rules, in a deployment that is half
// done: what waits for that one is not this one's to throw away. It becomes one
// row that says everything, which goes when nobody has taken it for a day.
func (o *outbox) register(ctx context.Context, scopes map[string]string, left []string) ([]string, error) {
	names := make([]string, 0, len(scopes))
	for name := range scopes {
		names = append(names, name)
	}
	tx, err := o.db.Begin(ctx)
	if err != nil {
		return nil, fmt.Errorf("register edges: %w", err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	if left == nil {
		left = []string{} // NULL is none of them
	}
	for _, sql := range []struct {
		text  string
		names []string
	}{
		{`DELETE FROM lethe.edge_endpoints WHERE owner = $1 AND NOT endpoint = ANY($2)`, names},
		{`DELETE FROM lethe.edge_outbox WHERE owner = $1 AND endpoint = ANY($2)`, left},
		{`WITH gone AS (DELETE FROM lethe.edge_outbox WHERE owner = $1 AND NOT endpoint = ANY($2) RETURNING endpoint, at)
			INSERT INTO lethe.edge_outbox (owner, endpoint, everything, at)
			SELECT $1::text, endpoint, true, max(at) FROM gone GROUP BY endpoint HAVING max(at) > clock_timestamp() - interval '1 day'`, names},
	} {
		if _, err := tx.Exec(ctx, sql.text, o.owner, sql.names); err != nil {
			return nil, fmt.Errorf("register edges: %w", err)
		}
	}
	var fresh []string
	for name, scope := range scopes {
		tag, err := tx.Exec(ctx, `INSERT INTO lethe.edge_endpoints AS e (owner, endpoint, scope) VALUES ($1, $2, $3)
			ON CONFLICT (owner, endpoint) DO UPDATE SET scope = excluded.scope, since = now() WHERE e.scope <> excluded.scope`, o.owner, name, scope)
		if err == nil && tag.RowsAffected() > 0 {
			fresh = append(fresh, name)
			_, err = tx.Exec(ctx, putSQL, o.args(name, &row{everything: true})...)
		}
		if err != nil {
			return nil, fmt.Errorf("register edge %q: %w", name, err)
		}
	}
	if err := tx.Commit(ctx); err != nil {
		return nil, fmt.Errorf("register edges: %w", err)
	}
	return fresh, nil
}

// takeOver ends the leases of an earlier process.
func (o *outbox) takeOver(ctx context.Context) error {
	_, err := o.db.Exec(ctx, `UPDATE lethe.edge_outbox SET due_at = clock_timestamp() WHERE owner = $1`, o.owner)
	if err != nil {
		return fmt.Errorf("take over the outbox of edges: %w", err)
	}
	return nil
}

// waiting returns how many names an endpoint was never told, and how long the
// first of them has waited.
func (o *outbox) waiting(ctx context.Context, endpoint string) (names int64, age time.Duration, err error) {
	var seconds float64
	err = o.db.QueryRow(ctx, `SELECT coalesce(sum(greatest(names, 1)), 0), coalesce(extract(epoch FROM clock_timestamp() - min(at)), 0)::float8
		FROM lethe.edge_outbox WHERE owner = $1 AND endpoint = $2 AND told = 0`, o.owner, endpoint).Scan(&names, &seconds)
	return names, time.Duration(seconds * float64(time.Second)), err
}

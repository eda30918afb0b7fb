package publication

import (
	"context"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"

	"github.com/jackc/pgx/v5"
)

// Gap is a table whose changes were not published for a time, or that a DDL
// changed without a row in the log. The classes of its rules are to be raised.
type Gap struct {
	// Table is schema.name.
	Table string
	// Twice asks for a second raise, when every transaction is over that runs
	// in a snapshot taken after the first was asked for (PROTOCOL H5).
	Twice bool

	id, at int64
}

// Cause names the raises of gaps: the same for the same gaps, so that a process
// that asks again for what an earlier one has asked for does not forget again
// what was forgotten.
func Cause(gaps []Gap) string {
	h := fnv.New64a()
	for _, g := range gaps {
		fmt.Fprintf(h, "%q %d %d\n", g.Table, g.id, g.at)
	}
	return fmt.Sprintf("publication/%016x", h.Sum64())
}

// Due returns the gaps of the publication that the reader of the slot has not
// raised yet, also those of earlier processes and of other readers. Once the
// raises are durable, call Told; until then a gap stays due. Without the tables
// in the schema lethe (Changes.Stored) nothing is due.
func Due(ctx context.Context, conn Conn, cfg Config, slot string) ([]Gap, error) {
	stored, err := storable(ctx, conn)
	if err != nil || !stored {
		return nil, err
	}
	rows, err := conn.Query(ctx, `SELECT g.table_name, g.twice, g.id, (extract(epoch FROM g.at) * 1000000)::bigint FROM lethe.gaps g
		LEFT JOIN lethe.gaps_told t ON t.slot = $1 AND t.publication = g.publication AND t.table_name = g.table_name
		WHERE g.publication = $2 AND g.id > coalesce(t.id, 0) ORDER BY g.id`, slot, cfg.Name)
	if err != nil {
		return nil, fmt.Errorf("read the gaps of publication %s: %w", cfg.Name, err)
	}
	gaps, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (g Gap, err error) {
		err = row.Scan(&g.Table, &g.Twice, &g.id, &g.at)
		return g, err
	})
	if err != nil {
		return nil, fmt.Errorf("read the gaps of publication %s: %w", cfg.Name, err)
	}
	return gaps, nil
}

// Told notes that the raises of these gaps are durable in the log of the slot.
// A gap of the same table that came since then stays due.
func Told(ctx context.Context, conn Conn, cfg Config, slot string, gaps []Gap) error {
	cfg = cfg.withDefaults()
	err := inTx(ctx, conn, cfg, func(tx pgx.Tx) error {
		for _, g := range gaps {
			_, err := tx.Exec(ctx, `INSERT INTO lethe.gaps_told AS t VALUES ($1, $2, $3, $4)
				ON CONFLICT (slot, publication, table_name) DO UPDATE SET id = greatest(t.id, excluded.id)`, slot, cfg.Name, g.Table, g.id)
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("note that the gaps of publication %s are raised: %w", cfg.Name, err)
	}
	return nil
}

// storable reports whether the tables for gaps are there and may be written.
func storable(ctx context.Context, conn querier) (bool, error) {
	var ok bool
	err := conn.QueryRow(ctx, `SELECT bool_and(coalesce(has_table_privilege(to_regclass(t), p), false))
		FROM unnest(ARRAY['lethe.gaps', 'lethe.gaps_told', 'lethe.fingerprints']) AS t, unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE']) AS p`).Scan(&ok)
	if err != nil {
		return false, fmt.Errorf("look for lethe.gaps: %w", err)
	}
	return ok, nil
}

// record stores gaps in the transaction that makes them. A table that has once
// wanted a second raise keeps that wish: its last gap may still be due somewhere.
func record(ctx context.Context, tx pgx.Tx, publication string, tables []string, twice bool) error {
	for _, name := range slices.Sorted(slices.Values(tables)) { // one order of locks for all
		_, err := tx.Exec(ctx, `INSERT INTO lethe.gaps AS g (publication, table_name, twice) VALUES ($1, $2, $3)
			ON CONFLICT (publication, table_name) DO UPDATE SET id = DEFAULT, twice = g.twice OR excluded.twice, at = now()`,
			publication, name, twice)
		if err != nil {
			return err
		}
	}
	return nil
}

// readSeen returns the stored fingerprints; nil if there are none.
func readSeen(ctx context.Context, conn querier, publication string) (map[string]look, error) {
	rows, err := conn.Query(ctx, `SELECT table_name, fingerprint FROM lethe.fingerprints WHERE publication = $1`, publication)
	if err != nil {
		return nil, fmt.Errorf("read the fingerprints of published tables: %w", err)
	}
	var seen map[string]look
	var name, fingerprint string
	_, err = pgx.ForEachRow(rows, []any{&name, &fingerprint}, func() error {
		if seen == nil {
			seen = make(map[string]look)
		}
		seen[name] = parseLook(fingerprint)
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the fingerprints of published tables: %w", err)
	}
	return seen, nil
}

// storeSeen replaces the stored fingerprints, and stores the gaps that they
// have shown, in one transaction.
func storeSeen(ctx context.Context, conn Conn, cfg Config, before, now map[string]look, once, twice []string) error {
	cfg = cfg.withDefaults()
	err := inTx(ctx, conn, cfg, func(tx pgx.Tx) error {
		if err := record(ctx, tx, cfg.Name, twice, true); err != nil {
			return err
		}
		if err := record(ctx, tx, cfg.Name, once, false); err != nil {
			return err
		}
		for _, name := range slices.Sorted(maps.Keys(now)) {
			if before[name] == now[name] {
				continue
			}
			_, err := tx.Exec(ctx, `INSERT INTO lethe.fingerprints VALUES ($1, $2, $3)
				ON CONFLICT (publication, table_name) DO UPDATE SET fingerprint = excluded.fingerprint`, cfg.Name, name, now[name].String())
			if err != nil {
				return err
			}
		}
		_, err := tx.Exec(ctx, `DELETE FROM lethe.fingerprints WHERE publication = $1 AND table_name <> ALL ($2)`,
			cfg.Name, slices.Collect(maps.Keys(now)))
		return err
	})
	if err != nil {
		return fmt.Errorf("store the fingerprints of published tables: %w", err)
	}
	return nil
}

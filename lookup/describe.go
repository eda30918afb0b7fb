package lookup

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lethe-cache/lethe/rules"
)

// Describe asks the database what it makes of the lookups of a set, by the names
// of their rules. It prepares and explains the statements, and executes none. An
// error is one of the connection; what is wrong with a lookup is its Refusal.
func Describe(ctx context.Context, conn *pgx.Conn, set *rules.Set) (map[string]rules.LookupInfo, error) {
	out := map[string]rules.LookupInfo{}
	for _, r := range set.Rules {
		if r.Lookup == nil {
			continue
		}
		info, err := describe(ctx, conn, r.Lookup)
		var pgErr *pgconn.PgError
		if errors.As(err, &pgErr) && verdict(err) != passing {
			info, err = rules.LookupInfo{Refusal: fmt.Sprintf("%s (%s)", pgErr.Message, pgErr.Code)}, nil
		}
		if err != nil {
			return nil, fmt.Errorf("describe the lookup of rule %q: %w", r.Name, err)
		}
		out[r.Name] = info
	}
	return out, nil
}

// The plan has to show every table that the statement can read, whatever its
// parameters: so it is a generic one, in which no partition is left out.
const (
	describeBegin = `BEGIN READ ONLY; SET LOCAL statement_timeout = '5s'; SET LOCAL lock_timeout = '1s';
SET LOCAL row_security = off; SET LOCAL plan_cache_mode = force_generic_plan; SET LOCAL enable_partition_pruning = off; SET LOCAL constraint_exclusion = off`
	describeTypes = `SELECT pg_catalog.format_type(t.type, t.mod) FROM ROWS FROM (pg_catalog.unnest($1::oid[]), pg_catalog.unnest($2::int4[])) AS t(type, mod)`
	// describeRoots puts the root in the place of a partition, as rules do.
	describeRoots = `SELECT DISTINCT coalesce(rn.nspname || '.' || r.relname, n.nspname || '.' || c.relname) AS name
FROM ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[])) AS t(schema, name)
JOIN pg_catalog.pg_namespace n ON n.nspname = t.schema JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = t.name
LEFT JOIN pg_catalog.pg_class r ON c.relispartition AND r.oid = pg_catalog.pg_partition_root(c.oid)
LEFT JOIN pg_catalog.pg_namespace rn ON rn.oid = r.relnamespace ORDER BY name`
)

func describe(ctx context.Context, conn *pgx.Conn, l *rules.Lookup) (info rules.LookupInfo, err error) {
	if _, err := conn.Exec(ctx, describeBegin); err != nil {
		return info, err
	}
	defer func() {
		end := context.WithoutCancel(ctx)
		_, rollback := conn.Exec(end, `ROLLBACK`)
		if end := errors.Join(rollback, conn.PgConn().Deallocate(end, "lethe_lookup")); err == nil {
			err = end
		}
	}()
	sd, err := conn.PgConn().Prepare(ctx, "lethe_lookup", l.Description(), nil)
	if err != nil {
		return info, err
	}
	oids, mods := make([]uint32, len(sd.Fields)), make([]int32, len(sd.Fields))
	for i, f := range sd.Fields {
		oids[i], mods[i] = f.DataTypeOID, f.TypeModifier
	}
	names, err := texts(ctx, conn, describeTypes, oids, mods)
	if err != nil {
		return info, err
	}
	for i, f := range sd.Fields {
		info.Columns = append(info.Columns, rules.ColumnInfo{Name: f.Name, Type: f.DataTypeOID, TypeName: names[i]})
	}
	info.Tables, err = tables(ctx, conn, len(sd.ParamOIDs))
	return info, err
}

func texts(ctx context.Context, conn *pgx.Conn, sql string, args ...any) ([]string, error) {
	rows, err := conn.Query(ctx, sql, append([]any{pgx.QueryExecModeExec}, args...)...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// tables are those that the prepared statement reads.
func tables(ctx context.Context, conn *pgx.Conn, parameters int) ([]string, error) {
	explain := `EXPLAIN (FORMAT JSON, VERBOSE, COSTS OFF) EXECUTE lethe_lookup`
	if parameters > 0 {
		explain += "(NULL" + strings.Repeat(", NULL", parameters-1) + ")"
	}
	var text string
	if err := conn.QueryRow(ctx, explain, pgx.QueryExecModeSimpleProtocol).Scan(&text); err != nil {
		return nil, err
	}
	var plans []planNode
	if err := json.Unmarshal([]byte(text), &plans); err != nil {
		return nil, fmt.Errorf("read a plan: %w", err)
	}
	var schemas, names []string
	for i := range plans {
		plans[i].relations(&schemas, &names)
	}
	if len(names) == 0 {
		return nil, nil
	}
	return texts(ctx, conn, describeRoots, schemas, names)
}

// planNode is what matters of a node of EXPLAIN's JSON, and of the object
// around the first.
type planNode struct {
	Plan     *planNode  `json:"Plan"`
	Plans    []planNode `json:"Plans"`
	Schema   string     `json:"Schema"`
	Relation string     `json:"Relation Name"`
}

// relations appends the tables below a node; Postgres's own have no rules.
func (n *planNode) relations(schemas, names *[]string) {
	if n.Plan != nil {
		n.Plan.relations(schemas, names)
	}
	if n.Relation != "" && !strings.HasPrefix(n.Schema, "pg_") && n.Schema != "information_schema" {
		*schemas, *names = append(*schemas, n.Schema), append(*names, n.Relation)
	}
	for i := range n.Plans {
		n.Plans[i].relations(schemas, names)
	}
}

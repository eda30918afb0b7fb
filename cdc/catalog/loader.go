package catalog

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lethe-cache/lethe/rules"
)

// Load is a load.sql as the server takes it.
type Load struct {
	// SQL has $n for the n-th of the loader's Params, an array in Postgres's
	// text form.
	SQL string
	// Columns of its rows. The last Hidden of them are no part of the value:
	// tags need them, and the loader does not select them.
	Columns []rules.ColumnInfo
	Hidden  int
}

// DescribeLoad asks the server how the load.sql of a class is to be run, without
// running it. Two things it finds out by itself:
//
// The types of parameters that the statement leaves open. Of `= ANY(@id)` the
// server sees what @id must be; of `unnest(@a, @b)` it does not.
//
// Columns that tags are made of and the loader does not select. Where the
// columns of the key are those of a table, and of a unique index of it, a row of
// the result is a row of that table; so the others of its columns are read with
// it, in the same statement and thereby in the same snapshot. What can not be
// found so is left out, and is for the caller to miss.
//
// What the server does not take comes as *pgconn.PgError.
func DescribeLoad(ctx context.Context, conn *pgx.Conn, class *rules.Class) (Load, error) {
	sql, described, err := typedLoad(ctx, conn, class.Load)
	if err != nil {
		return Load{}, fmt.Errorf("describe load.sql: %w", err)
	}
	l := Load{SQL: sql, Columns: columnsOf(described)}
	wide, hidden, err := withTagColumns(ctx, conn, class, sql, described.Fields)
	if err != nil || hidden == 0 {
		return l, err
	}
	described, err = conn.PgConn().Prepare(ctx, "", wide, nil)
	var refused *pgconn.PgError
	switch {
	case errors.As(err, &refused) && ofTheStatement(refused.Code):
		return l, nil // no right to read the column, say
	case err != nil:
		return Load{}, fmt.Errorf("describe load.sql with the columns of its tags: %w", err)
	}
	return Load{SQL: wide, Columns: columnsOf(described), Hidden: hidden}, nil
}

func columnsOf(d *pgconn.StatementDescription) []rules.ColumnInfo {
	columns := make([]rules.ColumnInfo, len(d.Fields))
	for i, f := range d.Fields {
		columns[i] = rules.ColumnInfo{Name: f.Name, Type: f.DataTypeOID}
	}
	return columns
}

// arrayTypes are tried for parameters whose type the server does not see, the
// ones that compare with the fewest others first: text is not equal to any
// number, while a number is to several. The type of the column that carries the
// placeholder's name decides in the end.
var arrayTypes = []string{"text", "uuid", "bigint", "boolean", "date", "timestamptz", "numeric"}

// maxTypeTries bounds how many combinations are tried, one round trip each.
const maxTypeTries = 400

// typedLoad prepares load.sql, with types for its parameters if it needs them.
func typedLoad(ctx context.Context, conn *pgx.Conn, load *rules.Loader) (string, *pgconn.StatementDescription, error) {
	sql := load.Statement()
	described, err := conn.PgConn().Prepare(ctx, "", sql, nil)
	if err == nil || !leavesTypesOpen(err) {
		return sql, described, err
	}
	refused := err // what the author is told if nothing fits
	choice := make([]int, len(load.Params))
	types := make([]string, len(load.Params))
	for range maxTypeTries {
		for i, c := range choice {
			types[i] = arrayTypes[c]
		}
		try := load.Typed(types)
		described, err = conn.PgConn().Prepare(ctx, "", try, nil)
		if err == nil {
			return ownTypes(ctx, conn, load, types, try, described)
		}
		var pgErr *pgconn.PgError
		if !errors.As(err, &pgErr) || !ofTheStatement(pgErr.Code) {
			return "", nil, err
		}
		if !nextChoice(choice) {
			break
		}
	}
	return sql, nil, refused
}

// nextChoice counts on, in the base of arrayTypes; false at the end.
func nextChoice(choice []int) bool {
	for i := range choice {
		if choice[i]++; choice[i] < len(arrayTypes) {
			return true
		}
		choice[i] = 0
	}
	return false
}

// leavesTypesOpen reports whether the server could not tell the type of a
// parameter: ambiguous_function (several unnest), indeterminate_datatype.
func leavesTypesOpen(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && (pgErr.Code == "42725" || pgErr.Code == "42P18")
}

// ownTypes takes for each parameter the type of the result's column of that
// name, where the statement is good with it: an index of that column serves
// then, and no value is cut down to what another type can hold.
func ownTypes(ctx context.Context, conn *pgx.Conn, load *rules.Loader, types []string, sql string, described *pgconn.StatementDescription) (string, *pgconn.StatementDescription, error) {
	own := slices.Clone(types)
	for i, p := range load.Params {
		at := slices.IndexFunc(described.Fields, func(f pgconn.FieldDescription) bool { return f.Name == p })
		if at < 0 {
			continue
		}
		var name string
		err := conn.QueryRow(ctx, `SELECT pg_catalog.format_type(oid, NULL) FROM pg_catalog.pg_type WHERE oid = $1 AND typarray <> 0`, described.Fields[at].DataTypeOID).Scan(&name)
		switch {
		case errors.Is(err, pgx.ErrNoRows): // a type without arrays
		case err != nil:
			return "", nil, err
		default:
			own[i] = name
		}
	}
	if slices.Equal(own, types) {
		return sql, described, nil
	}
	better := load.Typed(own)
	again, err := conn.PgConn().Prepare(ctx, "", better, nil)
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && ofTheStatement(pgErr.Code) {
		return sql, described, nil
	}
	return better, again, err
}

// withTagColumns returns sql with the columns behind its own that tags need and
// it does not select, and how many they are; 0 if there are none, or none that
// could be found.
func withTagColumns(ctx context.Context, conn *pgx.Conn, class *rules.Class, sql string, fields []pgconn.FieldDescription) (string, int, error) {
	var missing []string
	for _, t := range class.Tags {
		for _, c := range t.Columns() {
			if !slices.Contains(missing, c) && !slices.ContainsFunc(fields, func(f pgconn.FieldDescription) bool { return f.Name == c }) {
				missing = append(missing, c)
			}
		}
	}
	var (
		table   uint32
		columns []string
		numbers []int16
	)
	for _, p := range class.Key.Columns() {
		found := 0
		for _, f := range fields {
			if f.Name != p {
				continue
			}
			found++
			if f.TableOID == 0 || (table != 0 && f.TableOID != table) {
				return "", 0, nil // computed, or of several tables
			}
			table, numbers = f.TableOID, append(numbers, int16(f.TableAttributeNumber))
		}
		if found != 1 {
			return "", 0, nil
		}
		columns = append(columns, p)
	}
	if len(missing) == 0 || table == 0 {
		return "", 0, nil
	}
	var (
		name string
		base []string
	)
	err := conn.QueryRow(ctx, rowTableSQL, table, numbers, missing).Scan(&name, &base)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", 0, nil
	}
	if err != nil {
		return "", 0, fmt.Errorf("look for the columns of tags: %w", err)
	}
	return joinRow(sql, name, columns, base, missing), len(missing), nil
}

// rowTableSQL tells the name of a table of which columns $2 are unique and which
// has the columns $3, and the names of $2. A deferred constraint does not make
// them unique in the middle of its transaction, a partial index only some rows.
const rowTableSQL = `SELECT pg_catalog.format('%I.%I', n.nspname, c.relname),
	ARRAY(SELECT a.attname::text FROM ROWS FROM (pg_catalog.unnest($2::int2[])) WITH ORDINALITY AS k(num, ord)
		JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.num ORDER BY k.ord)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE c.oid = $1 AND c.relkind IN ('r', 'p')
	AND EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND i.indisunique AND i.indimmediate AND i.indisvalid
		AND i.indpred IS NULL AND i.indexprs IS NULL AND (i.indkey::int2[])[0:i.indnkeyatts - 1] <@ $2::int2[])
	AND (SELECT count(*) FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
		AND a.attname = ANY($3::text[])) = pg_catalog.cardinality($3::text[])`

// joinRow joins each row of sql with the row of the table that it is. One that is
// not there (it can only be one of another snapshot) is no row at all: nothing is
// stored of which a tag might be missing.
func joinRow(sql, table string, columns, base, missing []string) string {
	var b strings.Builder
	b.WriteString("SELECT lethe_load.*")
	for _, c := range missing {
		b.WriteString(", lethe_row." + pgx.Identifier{c}.Sanitize())
	}
	b.WriteString(" FROM (\n" + strings.TrimRight(sql, "; \t\r\n") + "\n) AS lethe_load JOIN " + table + " AS lethe_row ON true")
	for i, c := range columns {
		b.WriteString(" AND lethe_row." + pgx.Identifier{base[i]}.Sanitize() + " = lethe_load." + pgx.Identifier{c}.Sanitize())
	}
	return b.String()
}

// DescribeSet describes the statements of a set: what warm-ups run, and
// load.sql as DescribeLoad finds that it is to be run.
func DescribeSet(ctx context.Context, conn *pgx.Conn, set *rules.Set) (map[string]rules.StatementInfo, error) {
	out, err := Describe(ctx, conn, set.Statements())
	if err != nil {
		return nil, err
	}
	for _, class := range set.Entries {
		if class.Load == nil || class.Load.SQL == "" {
			continue
		}
		l, err := DescribeLoad(ctx, conn, class)
		var refused *pgconn.PgError
		switch {
		case errors.As(err, &refused) && ofTheStatement(refused.Code):
			out[class.Load.Statement()] = rules.StatementInfo{Error: refused.Message}
		case err != nil:
			return nil, err
		default:
			out[class.Load.Statement()] = rules.StatementInfo{Columns: l.Columns}
		}
	}
	return out, nil
}

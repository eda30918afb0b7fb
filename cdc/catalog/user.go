package catalog

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// UserTable is one table of the database's users.
type UserTable struct {
	Schema, Name string
	// Rows is how many the server believes there are, -1 where it has never
	// counted. Of a partition root it is the sum of its partitions.
	Rows int64
}

// QualifiedName is schema.name, unquoted.
func (t UserTable) QualifiedName() string { return t.Schema + "." + t.Name }

// UserTables returns the tables that rules could name, sorted: ordinary tables
// and partition roots, unlogged ones too. Partitions are left out, and so are
// views, temporary tables, and what belongs to Postgres, to Lethe or to an
// extension. It writes nothing.
func UserTables(ctx context.Context, conn Conn) ([]UserTable, error) {
	var tables []UserTable
	err := each(ctx, conn, `SELECT n.nspname, c.relname, CASE c.relkind WHEN 'r' THEN c.reltuples::bigint ELSE
			coalesce((SELECT sum(m.reltuples)::bigint FROM pg_catalog.pg_partition_tree(c.oid) AS l JOIN pg_catalog.pg_class m ON m.oid = l.relid
			          WHERE l.isleaf AND m.reltuples >= 0), -1) END
		FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND NOT c.relispartition
		  AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\_%' AND n.nspname <> 'lethe'
		  AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
		ORDER BY n.nspname COLLATE "C", c.relname COLLATE "C"`,
		nil, func(rows pgx.Rows) error {
			var t UserTable
			if err := rows.Scan(&t.Schema, &t.Name, &t.Rows); err != nil {
				return err
			}
			tables = append(tables, t)
			return nil
		})
	if err != nil {
		return nil, fmt.Errorf("read tables from the catalog: %w", err)
	}
	return tables, nil
}

// Package catalog reads what a live database says of the tables that rules
// name, for the checks that package rules makes.
package catalog

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/rules"
)

// Conn is an ordinary connection or a pool.
type Conn interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// Read describes the named tables (schema.name, unquoted). Tables that do not
// exist are left out; Names holds every table that the role may see the name
// of, for suggestions. It writes nothing and takes no lock that anybody could
// wait for. The statements run one after another, so a DDL between them may
// leave a table with less than there is: the caller reads again after a DDL.
func Read(ctx context.Context, conn Conn, tables []string) (rules.Schema, error) {
	var s rules.Schema
	for _, step := range []struct {
		what string
		read func(context.Context, Conn, []string, *rules.Schema) error
	}{
		{"tables", readTables},
		{"columns", readColumns},
		{"indexes", readIndexes},
		{"partitions", readPartitions},
		{"foreign keys", readForeignKeys},
		{"names", readNames},
	} {
		if err := step.read(ctx, conn, tables, &s); err != nil {
			return rules.Schema{}, fmt.Errorf("read %s from the catalog: %w", step.what, err)
		}
	}
	return s, nil
}

// Enums returns the labels of every enum type that a column of the tables has,
// in their order, by the OID of the type.
func Enums(ctx context.Context, conn Conn, s *rules.Schema) (map[uint32][]string, error) {
	var oids []uint32
	for i := range s.Tables {
		for j := range s.Tables[i].Columns {
			oids = append(oids, s.Tables[i].Columns[j].Type)
		}
	}
	enums := make(map[uint32][]string)
	err := each(ctx, conn, `SELECT enumtypid, enumlabel FROM pg_catalog.pg_enum WHERE enumtypid = ANY ($1) ORDER BY enumtypid, enumsortorder`,
		[]any{oids}, func(rows pgx.Rows) error {
			var oid uint32
			var label string
			if err := rows.Scan(&oid, &label); err != nil {
				return err
			}
			enums[oid] = append(enums[oid], label)
			return nil
		})
	if err != nil {
		return nil, fmt.Errorf("read enums from the catalog: %w", err)
	}
	return enums, nil
}

func each(ctx context.Context, conn Conn, sql string, args []any, scan func(pgx.Rows) error) error {
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := scan(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

func readTables(ctx context.Context, conn Conn, tables []string, s *rules.Schema) error {
	return each(ctx, conn, `SELECT n.nspname, c.relname, c.relkind::text, c.relpersistence::text, c.relreplident::text,
			coalesce((SELECT rn.nspname || '.' || r.relname FROM pg_catalog.pg_partition_root(c.oid) AS root(oid)
			          JOIN pg_catalog.pg_class r ON r.oid = root.oid JOIN pg_catalog.pg_namespace rn ON rn.oid = r.relnamespace
			          WHERE c.relispartition), '')
		FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE n.nspname || '.' || c.relname = ANY ($1) AND c.relkind IN ('r', 'p', 'v', 'm', 'f') ORDER BY 1, 2`,
		[]any{tables}, func(rows pgx.Rows) error {
			var t rules.TableInfo
			var kind, persistence, identity string
			if err := rows.Scan(&t.Schema, &t.Name, &kind, &persistence, &identity, &t.PartitionOf); err != nil {
				return err
			}
			t.Kind, t.Persistence, t.Identity = kind[0], persistence[0], change.Identity(identity[0])
			s.Tables = append(s.Tables, t)
			return nil
		})
}

func readColumns(ctx context.Context, conn Conn, tables []string, s *rules.Schema) error {
	return each(ctx, conn, `SELECT n.nspname || '.' || c.relname, a.attname, a.atttypid, pg_catalog.format_type(a.atttypid, a.atttypmod),
			a.attnotnull, a.attstorage <> 'p', a.attgenerated::text
		FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
		WHERE n.nspname || '.' || c.relname = ANY ($1) AND c.relkind IN ('r', 'p', 'v', 'm', 'f') ORDER BY c.oid, a.attnum`,
		[]any{tables}, func(rows pgx.Rows) error {
			var table, generated string
			var c rules.ColumnInfo
			if err := rows.Scan(&table, &c.Name, &c.Type, &c.TypeName, &c.NotNull, &c.Toastable, &generated); err != nil {
				return err
			}
			if generated != "" {
				c.Generated = generated[0]
			}
			if t := s.Table(table); t != nil {
				t.Columns = append(t.Columns, c)
			}
			return nil
		})
}

// readIndexes also finds the primary key and the identity's columns.
func readIndexes(ctx context.Context, conn Conn, tables []string, s *rules.Schema) error {
	err := each(ctx, conn, `SELECT n.nspname || '.' || c.relname, x.relname, i.indisunique, i.indpred IS NOT NULL, NOT i.indimmediate,
			i.indexprs IS NOT NULL, i.indisvalid, i.indisprimary, i.indisreplident,
			ARRAY(SELECT a.attname::text FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k(attnum, ord)
			      JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
			      WHERE k.ord <= i.indnkeyatts ORDER BY k.ord)
		FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		JOIN pg_catalog.pg_index i ON i.indrelid = c.oid JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid
		WHERE n.nspname || '.' || c.relname = ANY ($1) AND i.indisunique ORDER BY c.oid, x.relname`,
		[]any{tables}, func(rows pgx.Rows) error {
			var table string
			var x rules.IndexInfo
			var valid, primary, identity bool
			if err := rows.Scan(&table, &x.Name, &x.Unique, &x.Partial, &x.Deferrable, &x.Expressions, &valid, &primary, &identity, &x.Columns); err != nil {
				return err
			}
			t := s.Table(table)
			if t == nil {
				return nil
			}
			if primary {
				t.PrimaryKey = x.Columns
			}
			// An index that is being built, or whose build failed, identifies
			// nothing; Postgres also passes over what is not immediate.
			if !valid {
				return nil
			}
			t.Indexes = append(t.Indexes, x)
			usable := !x.Partial && !x.Deferrable
			if usable && (primary && t.Identity == change.IdentityDefault || identity && t.Identity == change.IdentityIndex) {
				t.IdentityColumns = x.Columns
			}
			return nil
		})
	for i := range s.Tables {
		if s.Tables[i].Identity == change.IdentityFull {
			s.Tables[i].IdentityColumns = columnNames(&s.Tables[i])
		}
	}
	return err
}

func columnNames(t *rules.TableInfo) []string {
	names := make([]string, len(t.Columns))
	for i := range t.Columns {
		names[i] = t.Columns[i].Name
	}
	return names
}

// readPartitions corrects the identity of partition roots: a row belongs to a
// leaf, and the log carries of its old values what the leaf's identity says.
// So the root has in effect what all of its leaves have.
func readPartitions(ctx context.Context, conn Conn, _ []string, s *rules.Schema) error {
	var roots []string
	for i := range s.Tables {
		if s.Tables[i].Kind == 'p' {
			roots = append(roots, s.Tables[i].QualifiedName())
		}
	}
	if len(roots) == 0 {
		return nil
	}
	common := make(map[string][]string)
	full := make(map[string]bool)
	err := each(ctx, conn, `SELECT n.nspname || '.' || c.relname, mn.nspname, m.relname, m.relreplident = 'f',
			ARRAY(SELECT a.attname::text FROM pg_catalog.pg_attribute a
			      WHERE a.attrelid = m.oid AND a.attnum > 0 AND NOT a.attisdropped AND (m.relreplident = 'f' OR a.attnum = ANY (
			          SELECT unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) FROM pg_catalog.pg_index i WHERE i.indrelid = m.oid AND i.indisvalid AND i.indisunique
			              AND i.indimmediate AND i.indpred IS NULL
			              AND CASE m.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END))
			      ORDER BY a.attnum)
		FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace,
		     pg_catalog.pg_partition_tree(c.oid) AS l JOIN pg_catalog.pg_class m ON m.oid = l.relid
		     JOIN pg_catalog.pg_namespace mn ON mn.oid = m.relnamespace
		WHERE n.nspname || '.' || c.relname = ANY ($1) AND l.isleaf AND m.relkind = 'r' AND m.relpersistence = 'p' ORDER BY c.oid, 2, 3`,
		[]any{roots}, func(rows pgx.Rows) error {
			var root string
			var leaf rules.TableName
			var isFull bool
			var columns []string
			if err := rows.Scan(&root, &leaf.Schema, &leaf.Name, &isFull, &columns); err != nil {
				return err
			}
			if t := s.Table(root); t != nil {
				t.Leaves = append(t.Leaves, leaf)
			}
			if have, seen := common[root]; seen {
				columns = slices.DeleteFunc(slices.Clone(have), func(c string) bool { return !slices.Contains(columns, c) })
				isFull = isFull && full[root]
			}
			common[root], full[root] = columns, isFull
			return nil
		})
	for i := range s.Tables {
		t := &s.Tables[i]
		columns, leaves := common[t.QualifiedName()]
		if t.Kind != 'p' || !leaves {
			continue
		}
		t.IdentityColumns = columns
		switch {
		case full[t.QualifiedName()]:
			t.Identity = change.IdentityFull
		case len(columns) == 0:
			t.Identity = change.IdentityNothing
		case t.Identity == change.IdentityFull, t.Identity == change.IdentityNothing:
			t.Identity = change.IdentityIndex
		}
	}
	return err
}

func readForeignKeys(ctx context.Context, conn Conn, tables []string, s *rules.Schema) error {
	return each(ctx, conn, `SELECT k.conname, fn.nspname || '.' || f.relname, tn.nspname || '.' || t.relname, k.confdeltype::text, k.confupdtype::text,
			ARRAY(SELECT a.attname::text FROM unnest(k.conkey) WITH ORDINALITY AS c(num, ord)
			      JOIN pg_catalog.pg_attribute a ON a.attrelid = f.oid AND a.attnum = c.num ORDER BY c.ord),
			ARRAY(SELECT a.attname::text FROM unnest(k.confkey) WITH ORDINALITY AS c(num, ord)
			      JOIN pg_catalog.pg_attribute a ON a.attrelid = t.oid AND a.attnum = c.num ORDER BY c.ord)
		FROM pg_catalog.pg_constraint k
		JOIN pg_catalog.pg_class f ON f.oid = k.conrelid JOIN pg_catalog.pg_namespace fn ON fn.oid = f.relnamespace
		JOIN pg_catalog.pg_class t ON t.oid = k.confrelid JOIN pg_catalog.pg_namespace tn ON tn.oid = t.relnamespace
		WHERE k.contype = 'f' AND k.conparentid = 0
		  AND (fn.nspname || '.' || f.relname = ANY ($1) OR tn.nspname || '.' || t.relname = ANY ($1)) ORDER BY 2, 1`,
		[]any{tables}, func(rows pgx.Rows) error {
			var k rules.ForeignKey
			var onDelete, onUpdate string
			if err := rows.Scan(&k.Name, &k.Table, &k.RefTable, &onDelete, &onUpdate, &k.Columns, &k.RefColumns); err != nil {
				return err
			}
			k.OnDelete, k.OnUpdate = onDelete[0], onUpdate[0]
			s.ForeignKeys = append(s.ForeignKeys, k)
			return nil
		})
}

func readNames(ctx context.Context, conn Conn, _ []string, s *rules.Schema) error {
	return each(ctx, conn, `SELECT n.nspname || '.' || c.relname FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' AND n.nspname <> 'information_schema' AND n.nspname NOT LIKE 'pg\_%'
		  AND n.nspname <> 'lethe' ORDER BY 1 LIMIT 10000`,
		nil, func(rows pgx.Rows) error {
			var name string
			if err := rows.Scan(&name); err != nil {
				return err
			}
			s.Names = append(s.Names, name)
			return nil
		})
}

// Tables returns the qualified names in uses, for Read.
func Tables(uses []rules.TableUse) []string {
	names := make([]string, len(uses))
	for i, u := range uses {
		names[i] = u.QualifiedName()
	}
	slices.SortFunc(names, strings.Compare)
	return slices.Compact(names)
}

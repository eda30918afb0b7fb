package publication

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
)

// version15 is the first server version with column lists, version18 the first
// that publishes stored generated columns.
const (
	version15 = 150000
	version18 = 180000
)

// state is what the catalog says, read in one statement for all tables so that
// it is of one moment.
type state struct {
	version int
	guarded bool
	pubs    map[string]*pub
	tables  []*table
}

// pub is a publication of ours.
type pub struct {
	allTables, schemas               bool
	insert, update, delete, truncate bool
	viaRoot                          bool
	generated                        bool // stored generated columns are published
}

// table is one table that is published or that a rule names.
type table struct {
	oid         uint32
	schema      string
	name        string
	kind        string // pg_class.relkind
	persistence string
	typed       bool
	columns     []column
	members     []member
	// in is by publication: the column list, nil for whole rows.
	in map[string][]string
}

type column struct {
	Name      string `json:"name"`
	Generated string `json:"generated"`
}

// member is what rows of the table belong to: the table itself, or a leaf of a
// partitioned one. Each has a replica identity of its own.
type member struct {
	OID      uint32   `json:"oid"`
	File     uint32   `json:"file"`
	Identity string   `json:"identity"`
	Usable   bool     `json:"usable"`
	Key      []string `json:"key"`
}

func (t *table) qualified() string { return t.schema + "." + t.name }

func (t *table) sql() string { return pgx.Identifier{t.schema, t.name}.Sanitize() }

// publishable is what Postgres itself lets into a publication.
func (t *table) publishable() bool {
	return (t.kind == "r" || t.kind == "p") && t.persistence == "p"
}

func (t *table) generated(name string) (kind string, exists bool) {
	for _, c := range t.columns {
		if c.Name == name {
			return c.Generated, true
		}
	}
	return "", false
}

// The guard works if all of its triggers are on and if their owner may alter
// publication and tables. Triggers can be switched off as a whole from 17 on.
const guardSQL = `SELECT count(*) = 3 AND coalesce(bool_and(e.evtenabled IN ('A', 'O')
		AND (o.rolsuper OR pg_has_role(o.oid, coalesce((SELECT pubowner FROM pg_publication WHERE pubname = $1), o.oid), 'USAGE')
		     AND NOT EXISTS (SELECT FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid JOIN pg_class c ON c.oid = r.prrelid
		                     WHERE p.pubname IN ($1, $1 || '_inserts') AND NOT pg_has_role(o.oid, c.relowner, 'USAGE')))), false)
	AND coalesce(current_setting('event_triggers', true), 'on') = 'on'
	FROM pg_catalog.pg_event_trigger e JOIN pg_catalog.pg_proc f ON f.oid = e.evtfoid
	JOIN pg_catalog.pg_namespace n ON n.oid = f.pronamespace JOIN pg_catalog.pg_roles o ON o.oid = f.proowner
	WHERE n.nspname = 'lethe' AND f.proname IN ('guard_before', 'guard_after', 'guard_dropped')`

// Guarded reports whether the guard is installed and at work for the
// publication of that name.
func Guarded(ctx context.Context, conn Conn, name string) (bool, error) {
	var installed bool
	if err := conn.QueryRow(ctx, guardSQL, name).Scan(&installed); err != nil {
		return false, fmt.Errorf("look for the guard: %w", err)
	}
	if !installed {
		return false, nil
	}
	var known bool
	err := conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM lethe.publications WHERE name = $1)`, name).Scan(&known)
	if err != nil {
		return false, fmt.Errorf("look whether the guard knows publication %s: %w", name, err)
	}
	return known, nil
}

// to_jsonb instead of names of columns that older versions lack.
const publicationsSQL = `SELECT p.pubname, p.puballtables, p.pubinsert, p.pubupdate, p.pubdelete, p.pubtruncate, p.pubviaroot,
		coalesce(to_jsonb(p) ->> 'pubgencols' = 's', false), current_setting('server_version_num')::int
	FROM pg_catalog.pg_publication p WHERE p.pubname = ANY ($1)`

const tablesSQL = `SELECT c.oid, n.nspname, c.relname, c.relkind::text, c.relpersistence::text, c.reloftype <> 0,
		(SELECT jsonb_agg(jsonb_build_object('name', a.attname, 'generated', a.attgenerated::text) ORDER BY a.attnum)
		 FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
		(SELECT jsonb_agg(jsonb_build_object('oid', m.oid::bigint, 'file', m.relfilenode::bigint, 'identity', m.relreplident::text,
		     'usable', m.relreplident = 'f' OR i.indexrelid IS NOT NULL,
		     'key', (SELECT coalesce(jsonb_agg(a.attname), '[]') FROM pg_catalog.pg_attribute a
		             WHERE a.attrelid = m.oid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]))) ORDER BY m.oid)
		 FROM pg_catalog.pg_class m
		 LEFT JOIN pg_catalog.pg_index i ON i.indrelid = m.oid AND i.indisvalid AND i.indisunique AND i.indimmediate AND i.indpred IS NULL
		     AND CASE m.relreplident WHEN 'd' THEN i.indisprimary WHEN 'i' THEN i.indisreplident ELSE false END
		 WHERE m.relkind = 'r' AND m.relpersistence = 'p' AND (m.oid = c.oid
		     OR c.relkind = 'p' AND m.oid IN (SELECT l.relid FROM pg_catalog.pg_partition_tree(c.oid) AS l WHERE l.isleaf))),
		(SELECT jsonb_object_agg(p.pubname, (
		     SELECT jsonb_agg(a.attname ORDER BY a.attname) FROM pg_catalog.pg_attribute a
		     WHERE a.attrelid = c.oid AND a.attnum::text = ANY (regexp_split_to_array(
		         regexp_replace(coalesce(to_jsonb(r) ->> 'prattrs', ''), '[^0-9]+', ' ', 'g'), ' '))))
		 FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid
		 WHERE r.prrelid = c.oid AND p.pubname = ANY ($1))
	FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
	WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND (n.nspname || '.' || c.relname = ANY ($2)
	      OR c.oid IN (SELECT r.prrelid FROM pg_catalog.pg_publication_rel r JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid
	                   WHERE p.pubname = ANY ($1)))
	ORDER BY 2, 3`

type querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// readTables reads the named tables and those that are published.
func readTables(ctx context.Context, q querier, cfg Config, names []string) ([]*table, error) {
	rows, err := q.Query(ctx, tablesSQL, cfg.Names(), names)
	if err != nil {
		return nil, fmt.Errorf("read published tables: %w", err)
	}
	tables, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (*table, error) {
		t := new(table)
		err := row.Scan(&t.oid, &t.schema, &t.name, &t.kind, &t.persistence, &t.typed, &t.columns, &t.members, &t.in)
		return t, err
	})
	if err != nil {
		return nil, fmt.Errorf("read published tables: %w", err)
	}
	return tables, nil
}

func readPublications(ctx context.Context, q querier, cfg Config, s *state) error {
	rows, err := q.Query(ctx, publicationsSQL, cfg.Names())
	if err != nil {
		return fmt.Errorf("read publications: %w", err)
	}
	defer rows.Close()
	s.pubs = make(map[string]*pub)
	for rows.Next() {
		var name string
		p := new(pub)
		if err := rows.Scan(&name, &p.allTables, &p.insert, &p.update, &p.delete, &p.truncate, &p.viaRoot, &p.generated, &s.version); err != nil {
			return fmt.Errorf("read publications: %w", err)
		}
		s.pubs[name] = p
	}
	if err := rows.Err(); err != nil {
		return fmt.Errorf("read publications: %w", err)
	}
	rows.Close()
	if s.version == 0 { // no publication yet
		if err := q.QueryRow(ctx, `SELECT current_setting('server_version_num')::int`).Scan(&s.version); err != nil {
			return fmt.Errorf("read the server's version: %w", err)
		}
	}
	if s.version < version15 {
		return nil
	}
	rows, err = q.Query(ctx, `SELECT DISTINCT p.pubname FROM pg_catalog.pg_publication_namespace n
		JOIN pg_catalog.pg_publication p ON p.oid = n.pnpubid WHERE p.pubname = ANY ($1)`, cfg.Names())
	if err != nil {
		return fmt.Errorf("read schemas of publications: %w", err)
	}
	names, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("read schemas of publications: %w", err)
	}
	for _, name := range names {
		s.pubs[name].schemas = true
	}
	return nil
}

// read reads everything that decides what is to be done.
func read(ctx context.Context, conn Conn, cfg Config, names []string) (*state, error) {
	s := new(state)
	if err := readPublications(ctx, conn, cfg, s); err != nil {
		return nil, err
	}
	for _, name := range cfg.Names() {
		switch p := s.pubs[name]; {
		case p == nil:
		case p.allTables:
			return nil, &UnusableError{name, "is FOR ALL TABLES, which makes updates of tables without replica identity fail"}
		case p.schemas:
			return nil, &UnusableError{name, "is FOR TABLES IN SCHEMA, which makes updates of tables without replica identity fail"}
		}
	}
	guarded, err := Guarded(ctx, conn, cfg.Name)
	if err != nil {
		// A role that may not read the guard's table: without it, then.
		if !hasCode(err, codeInsufficientPrivilege, codeUndefinedTable) {
			return nil, err
		}
		guarded = false
	}
	s.guarded = guarded
	s.tables, err = readTables(ctx, conn, cfg, names)
	return s, err
}

var errChanged = errors.New("the table was changed by a DDL meanwhile")

func (s *state) table(qualified string) *table {
	i := slices.IndexFunc(s.tables, func(t *table) bool { return t.qualified() == qualified })
	if i < 0 {
		return nil
	}
	return s.tables[i]
}

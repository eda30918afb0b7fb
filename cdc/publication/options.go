package publication

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// options are the parameters of the main or of the inserts publication.
//
// publish_via_partition_root gives changes of a partition the name of its root,
// which is what rules name. The price: Postgres does not publish a TRUNCATE of
// a single partition then; the Watcher notices it.
func options(version int, inserts bool) string {
	publish := "insert, update, delete, truncate"
	if inserts {
		publish = "insert, truncate"
	}
	o := []string{"publish = '" + publish + "'", "publish_via_partition_root = true"}
	if version >= version18 {
		// Rules may read them, and an identity may contain them.
		o = append(o, "publish_generated_columns = stored")
	}
	return "(" + strings.Join(o, ", ") + ")"
}

func (p *pub) inOrder(version int, inserts bool) bool {
	return p.insert && p.truncate && p.update == !inserts && p.delete == !inserts && p.viaRoot && (p.generated || version < version18)
}

// before makes what is missing, empty, and narrows the inserts publication
// before tables without replica identity may go there. The main one is widened
// after everything else, when none of its tables lacks an identity any more.
func (y *syncer) before(ctx context.Context) error {
	for _, name := range y.cfg.Names() {
		inserts := name == y.cfg.Inserts()
		p := y.state.pubs[name]
		var statement string
		switch {
		case p == nil:
			statement = fmt.Sprintf("CREATE PUBLICATION %s WITH %s", quote(name), options(y.state.version, inserts))
		case inserts && !p.inOrder(y.state.version, inserts):
			statement = fmt.Sprintf("ALTER PUBLICATION %s SET %s", quote(name), options(y.state.version, inserts))
		default:
			continue
		}
		// Inserts, truncates or names of roots that were missing were so for
		// every table that is there.
		var grew []string
		if p != nil && !(p.insert && p.truncate && p.viaRoot && (p.generated || y.state.version < version18)) {
			grew = y.published(name)
		}
		if err := y.exec(ctx, statement, grew); err != nil {
			return err
		}
		y.changes.Grew = append(y.changes.Grew, grew...)
		if p == nil {
			y.changes.Created = append(y.changes.Created, name)
			y.state.pubs[name] = &pub{insert: true, update: !inserts, delete: !inserts, truncate: true, viaRoot: true, generated: true}
		}
	}
	return y.register(ctx)
}

// register makes the publication known to the guard, if there is one.
func (y *syncer) register(ctx context.Context) error {
	if y.state.guarded {
		return nil
	}
	var installed bool
	err := y.conn.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_catalog.pg_proc f JOIN pg_catalog.pg_namespace n ON n.oid = f.pronamespace
		WHERE n.nspname = 'lethe' AND f.proname = 'guard_publication' AND has_schema_privilege(n.oid, 'USAGE'))`).Scan(&installed)
	if err != nil {
		return fmt.Errorf("look for the guard: %w", err)
	}
	if !installed {
		return nil
	}
	err = y.inTx(ctx, func(tx pgx.Tx) error {
		_, err := tx.Exec(ctx, `SELECT lethe.guard_publication($1)`, y.cfg.Name)
		return err
	})
	if hasCode(err, codeInsufficientPrivilege) {
		return nil // somebody else's publication: whole rows, then
	}
	if err != nil {
		return fmt.Errorf("make publication %s known to the guard: %w", y.cfg.Name, err)
	}
	y.state.guarded, err = Guarded(ctx, y.conn, y.cfg.Name)
	return err
}

// after widens the main publication.
func (y *syncer) after(ctx context.Context) error {
	p := y.state.pubs[y.cfg.Name]
	if p.inOrder(y.state.version, false) {
		return nil
	}
	// Whatever was missing (updates, names of roots), it was for every table.
	var grew []string
	for _, t := range y.state.tables {
		if w := wanted(y.cfg, y.state, t, y.uses[t.qualified()]); w.in == y.cfg.Name {
			grew = append(grew, t.qualified())
		}
	}
	if err := y.exec(ctx, fmt.Sprintf("ALTER PUBLICATION %s SET %s", quote(y.cfg.Name), options(y.state.version, false)), grew); err != nil {
		return err
	}
	y.changes.Grew = append(y.changes.Grew, grew...)
	return nil
}

// published are the tables of the rules that the publication contains.
func (y *syncer) published(name string) (tables []string) {
	for _, t := range y.state.tables {
		if _, in := t.in[name]; in && y.uses[t.qualified()] != nil {
			tables = append(tables, t.qualified())
		}
	}
	return tables
}

// exec runs a statement, and stores in its transaction that tables have a gap.
func (y *syncer) exec(ctx context.Context, statement string, gaps []string) error {
	err := y.retry(ctx, func() error {
		return y.inTx(ctx, func(tx pgx.Tx) error {
			if _, err := tx.Exec(ctx, statement); err != nil {
				return err
			}
			return y.record(ctx, tx, gaps...)
		})
	})
	if hasCode(err, codeInsufficientPrivilege) {
		return &DeniedError{Statements: []string{statement + ";"}, Err: err}
	}
	if err != nil {
		return fmt.Errorf("%s: %w", statement, err)
	}
	return nil
}

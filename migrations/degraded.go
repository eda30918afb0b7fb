package migrations

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// degraded is the sentence for a migration that the role may not apply.
func degraded(ctx context.Context, conn *pgx.Conn, m migration, denied *pgconn.PgError) string {
	user, database := conn.Config().User, conn.Config().Database
	// Best effort: the session knows better than its settings.
	_ = conn.QueryRow(ctx, `SELECT current_user, current_database()`).Scan(&user, &database)
	return fmt.Sprintf("%s was not applied (%s). %s To install it, let a superuser run `lethe migrate --role %s` on database %s%s.",
		m.name(), denied.Message, m.lost, user, database, alternative(m, user, database))
}

func alternative(m migration, user, database string) string {
	if m.version == 3 { // only a superuser may create event triggers
		return ""
	}
	return fmt.Sprintf(", or GRANT CREATE ON DATABASE %s TO %s", quote(database), quote(user))
}

// grant gives the role what `lethe run` needs of what there is.
func grant(ctx context.Context, conn *pgx.Conn, opts Options) error {
	tx, err := begin(ctx, conn, opts)
	if err != nil {
		return fmt.Errorf("grant to %s: %w", opts.Role, err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	role := quote(opts.Role)
	for _, g := range []struct{ object, sql string }{
		{"lethe.source", "GRANT SELECT, INSERT, UPDATE, DELETE ON lethe.source TO " + role},
		{"lethe.gaps", "GRANT SELECT, INSERT, UPDATE, DELETE ON lethe.gaps, lethe.gaps_told, lethe.fingerprints TO " + role},
		{"lethe.schedules", "GRANT SELECT, INSERT, UPDATE, DELETE ON lethe.schedules, lethe.schedule_scans TO " + role},
		{"lethe.dependencies", "GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON lethe.dependencies TO " + role},
		{"lethe.edge_outbox", "GRANT SELECT, INSERT, UPDATE, DELETE ON lethe.edge_outbox, lethe.edge_endpoints TO " + role},
		{"lethe.dead_letters", "GRANT SELECT, INSERT, UPDATE, DELETE ON lethe.dead_letters TO " + role},
	} {
		var exists bool
		if err := tx.QueryRow(ctx, `SELECT to_regclass($1) IS NOT NULL`, g.object).Scan(&exists); err != nil {
			return fmt.Errorf("look for %s: %w", g.object, err)
		}
		if !exists {
			continue
		}
		if _, err := tx.Exec(ctx, g.sql); err != nil {
			return fmt.Errorf("grant %s to %s: %w", g.object, opts.Role, err)
		}
	}
	if err := tx.Commit(ctx); err != nil {
		return fmt.Errorf("grant to %s: %w", opts.Role, err)
	}
	return nil
}

func quote(identifier string) string {
	return `"` + strings.ReplaceAll(identifier, `"`, `""`) + `"`
}

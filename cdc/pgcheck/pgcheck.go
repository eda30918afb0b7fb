// Package pgcheck is what `lethe doctor` asks Postgres: each thing that Lethe
// needs, or works worse without, with what to run where it is amiss. It creates
// and changes nothing.
package pgcheck

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/lethe-cache/lethe/cdc/publication"
	"github.com/lethe-cache/lethe/migrations"
	"github.com/lethe-cache/lethe/rules"
)

// Status is the outcome of a Check.
type Status string

// The outcomes. Fail means that `lethe run` will not work, or that Lethe does
// harm; Warn that it does with less.
const (
	OK   Status = "ok"
	Warn Status = "warn"
	Fail Status = "fail"
)

// Check is one thing that was looked at.
type Check struct {
	// Name is a few words that stay the same.
	Name   string
	Status Status
	// Detail says what was found, and what follows from it.
	Detail string
	// Fix is what to run or to change; empty if there is nothing to do.
	Fix string
}

// Config says what to look for.
type Config struct {
	// Slot and Publication are the names in use.
	Slot, Publication string
	// Uses are the tables of the rules; none are checked if it is empty.
	Uses []rules.TableUse
}

// Checks runs every check over an ordinary connection to the primary. The error
// is about the connection: what a check could not find out is a warning in it.
func Checks(ctx context.Context, conn *pgx.Conn, cfg Config) ([]Check, error) {
	s, err := readServer(ctx, conn, cfg)
	if err != nil {
		return nil, fmt.Errorf("read the server's settings: %w", err)
	}
	checks := []Check{s.versionCheck(), s.primaryCheck()}
	if s.version < versionLeast {
		return checks, nil // the statements of the others are not for it
	}
	checks = append(checks, s.walLevel(), s.freeSlots(), s.freeSenders(), s.replicationRight())
	checks = append(checks, s.slotChecks(cfg)...)
	checks = append(checks, s.walBudget(), s.senderTimeout(), s.synchronous())
	installed, err := migrationChecks(ctx, conn, s)
	if err != nil {
		return nil, err
	}
	checks = append(checks, installed...)
	report, err := publication.Inspect(ctx, conn, publication.Config{Name: cfg.Publication}, cfg.Uses)
	if err != nil {
		return append(checks, Check{"publication", Fail, err.Error(), "set LETHE_PUBLICATION to another name"}), nil
	}
	checks = append(checks, publicationChecks(s, cfg, report)...)
	tables, err := tableChecks(ctx, conn, s, cfg, report)
	if err != nil {
		return nil, err
	}
	return append(checks, tables...), nil
}

// Worst is the worst status of the checks.
func Worst(checks []Check) Status {
	worst := OK
	for _, c := range checks {
		if c.Status == Fail || c.Status == Warn && worst == OK {
			worst = c.Status
		}
	}
	return worst
}

func publicationChecks(s *server, cfg Config, r publication.Report) []Check {
	const name = "publication"
	if r.Unusable != nil {
		return []Check{{name, Fail, r.Unusable.Error(), "DROP PUBLICATION " + quote(cfg.Publication) + "; or set LETHE_PUBLICATION"}}
	}
	var checks []Check
	if len(r.Breaking) > 0 {
		checks = append(checks, Check{name + " does no harm", Fail,
			"updates by the application fail at this moment: " + strings.Join(r.Breaking, ", "), strings.Join(r.Statements, " ")})
	} else {
		checks = append(checks, Check{Name: name + " does no harm", Status: OK, Detail: "no update by the application fails because of it"})
	}
	switch {
	case len(r.Absent) > 0 && !s.mayCreate:
		checks = append(checks, Check{name, Fail, fmt.Sprintf("%s is missing, and role %s may not create it", strings.Join(r.Absent, " and "), s.user),
			fmt.Sprintf("GRANT CREATE ON DATABASE %s TO %s;", quote(s.database), quote(s.user))})
	case len(r.Absent) > 0:
		checks = append(checks, Check{name, OK, strings.Join(r.Absent, " and ") + " will be made at the start of `lethe run`", ""})
	case len(r.Statements) > 0:
		checks = append(checks, Check{name, Warn, "it is not in step with the rules; `lethe run` brings it there", strings.Join(r.Statements, " ")})
	default:
		checks = append(checks, Check{name, OK, "in step with the rules", ""})
	}
	if s.guardInstalled && !r.Guarded && len(r.Absent) == 0 {
		checks = append(checks, Check{"guard", Warn, "installed, and not at work: an event trigger is disabled, its owner may not alter the published tables, or it does not know the publication. " +
			migrations.Lost(migrations.Guard), fmt.Sprintf("SELECT lethe.guard_publication('%s'); and ALTER EVENT TRIGGER lethe_guard_... ENABLE ALWAYS;", cfg.Publication)})
	} else if r.Guarded {
		checks = append(checks, Check{"guard", OK, "at work", ""})
	}
	if len(r.Whole) > 0 && r.Guarded {
		checks = append(checks, Check{"column lists", Warn, "REPLICA IDENTITY FULL makes the log carry whole rows, old and new, of " + strings.Join(r.Whole, ", "),
			"ALTER TABLE ... REPLICA IDENTITY USING INDEX ...; with a unique index on the columns whose old values rules need"})
	}
	return checks
}

// tableChecks looks at the tables of the rules one by one.
func tableChecks(ctx context.Context, conn *pgx.Conn, s *server, cfg Config, r publication.Report) ([]Check, error) {
	var checks []Check
	for i := range cfg.Uses {
		use := &cfg.Uses[i]
		table := use.QualifiedName()
		c := Check{Name: "table " + table, Status: OK}
		var exists, selects, owns bool
		err := conn.QueryRow(ctx, `SELECT true, has_table_privilege(c.oid, 'SELECT') AND has_schema_privilege(n.oid, 'USAGE'), pg_has_role(c.relowner, 'USAGE')
			FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
			WHERE n.nspname = $1 AND c.relname = $2`, use.Schema, use.Name).Scan(&exists, &selects, &owns)
		if err != nil && err != pgx.ErrNoRows {
			return nil, fmt.Errorf("look at table %s: %w", table, err)
		}
		quoted := publication.QuoteTable(use.Schema, use.Name)
		published := len(r.Absent) == 0 && !slices.ContainsFunc(r.Statements, func(s string) bool { return strings.Contains(s, quoted) })
		switch {
		case !exists:
			c.Status, c.Detail, c.Fix = Fail, "it does not exist", "correct the rules, or create the table"
		case slices.Contains(r.Missing, table):
			c.Status, c.Detail = Fail, "it can not be published: only logged, permanent tables can"
			c.Fix = "ALTER TABLE " + quoted + " SET LOGGED; -- of a view, name the tables below it"
		case slices.Contains(r.Blind, table):
			c.Status, c.Detail = Fail, "rules need its updates or deletes, and it has no replica identity"
			c.Fix = "ALTER TABLE " + quoted + " ADD PRIMARY KEY (...); or REPLICA IDENTITY USING INDEX ...; or REPLICA IDENTITY FULL; -- of a partitioned table, each partition"
		case !owns && !published:
			c.Status, c.Detail = Fail, "only its owner may add it to the publication"
			c.Fix = "let its owner run the statements of the check \"publication\", or GRANT its owner's role"
		case !selects:
			c.Status, c.Detail = Warn, "the role may not read it: loaders, audit and warm-up of its classes will fail"
			c.Fix = "GRANT SELECT ON " + quoted + " TO " + quote(s.user) + ";"
		default:
			c.Detail = "published as its rules need"
			if !published {
				c.Detail = "will be published at the start of `lethe run`"
			}
		}
		checks = append(checks, c)
	}
	for _, column := range r.MissingColumns {
		checks = append(checks, Check{"column " + column, Fail, "rules read it, and it does not exist", "correct the rules, or add the column"})
	}
	return checks, nil
}

func quote(identifier string) string { return pgx.Identifier{identifier}.Sanitize() }

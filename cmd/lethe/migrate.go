package main

import (
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/lethe-cache/lethe/cdc"
	"github.com/lethe-cache/lethe/migrations"
)

func (p *program) migrateCommand() *cobra.Command {
	var role string
	var pendingOnly bool
	cmd := &cobra.Command{
		Use:   "migrate",
		Short: "Create what Lethe keeps in the database, all of it in the schema lethe",
		Long: `Create what Lethe keeps in the database: tables and functions in the schema
lethe, and, where the role may, the event trigger that keeps the application's
own statements working when it changes published tables. lethe run does the same
at its start with the rights that it has; this command is for somebody with more.
Exit code 1 if something else than the guard could not be applied.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := p.settings.validate(true); err != nil {
				return err
			}
			d, err := openDatabase(p.settings.PostgresURL, p.log)
			if err != nil {
				return err
			}
			defer d.close()
			return d.withConn(cmd.Context(), func(conn *pgx.Conn) error {
				if pendingOnly {
					return p.printPending(cmd, conn)
				}
				result, err := migrations.Apply(cmd.Context(), conn, migrations.Options{Role: role})
				for _, name := range result.Applied {
					fmt.Fprintln(p.stdout, "applied", name)
				}
				if err != nil {
					return cdc.Classify("apply migrations", err)
				}
				return p.printMigrated(cmd, conn, role, result)
			})
		},
	}
	cmd.Flags().StringVar(&role, "role", "", "role that lethe run uses; it is granted what it needs in the schema lethe")
	cmd.Flags().BoolVar(&pendingOnly, "pending", false, "only list what is not applied yet")
	return cmd
}

// printMigrated says what was not applied beside what was, and fails if that is
// more than the guard, which takes a superuser that not every service has.
func (p *program) printMigrated(cmd *cobra.Command, conn *pgx.Conn, role string, result migrations.Result) error {
	for _, lost := range result.Degraded {
		fmt.Fprintln(p.stdout, "not applied:", lost)
	}
	if len(result.Applied)+len(result.Degraded) == 0 {
		fmt.Fprintln(p.stdout, "nothing to do: every migration is applied")
	}
	if role != "" {
		fmt.Fprintln(p.stdout, "granted to", role+": what lethe run needs in the schema lethe")
	}
	pending, err := migrations.Pending(cmd.Context(), conn)
	if err != nil {
		return cdc.Classify("list migrations", err)
	}
	if slices.ContainsFunc(pending, func(name string) bool { return name != migrations.Guard }) {
		return silent(exitFailed)
	}
	return nil
}

func (p *program) printPending(cmd *cobra.Command, conn *pgx.Conn) error {
	names, err := migrations.Pending(cmd.Context(), conn)
	if err != nil {
		return cdc.Classify("list migrations", err)
	}
	for _, name := range names {
		fmt.Fprintln(p.stdout, "pending", name)
	}
	if len(names) == 0 {
		fmt.Fprintln(p.stdout, "nothing is pending")
	}
	return nil
}

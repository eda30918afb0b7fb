package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/lethe-cache/lethe/cdc"
	"github.com/lethe-cache/lethe/cdc/pgcheck"
	"github.com/lethe-cache/lethe/rules"
)

// diagnosis is one thing that doctor looked at.
type diagnosis struct {
	Area   string `json:"area"`
	Name   string `json:"name"`
	Status string `json:"status"` // ok, warn or fail
	Detail string `json:"detail,omitempty"`
	Fix    string `json:"fix,omitempty"`
}

const (
	statusOK   = "ok"
	statusWarn = "warn"
	statusFail = "fail"
)

// doctorTimeout bounds the questions to one server.
const doctorTimeout = 20 * time.Second

func (p *program) doctorCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "doctor",
		Short: "Look at Postgres, Redis and Kafka: what is wrong, and what mends it",
		Long: `Looks at every server that the settings name and says what is wrong with it,
with the command that mends it. Nothing is created or changed. Exit code 0 with
warnings only, 1 if a check failed or a server can not be reached.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "text" && output != "json" {
				return usagef("-o %s: want text or json", output)
			}
			if err := p.settings.validate(true); err != nil {
				return err
			}
			set, err := p.loadRules()
			if err != nil {
				return err
			}
			var all []diagnosis
			for _, look := range []func(context.Context, *rules.Set) []diagnosis{p.lookAtPostgres, p.lookAtRedis, p.lookAtKafka} {
				ctx, cancel := context.WithTimeout(cmd.Context(), doctorTimeout)
				all = append(all, look(ctx, set)...)
				cancel()
			}
			return p.printDiagnoses(all, output)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return cmd
}

func (p *program) printDiagnoses(all []diagnosis, output string) error {
	failed, warned := 0, 0
	for _, d := range all {
		switch d.Status {
		case statusFail:
			failed++
		case statusWarn:
			warned++
		}
	}
	if output == "json" {
		encoder := json.NewEncoder(p.stdout)
		encoder.SetIndent("", "  ")
		if err := encoder.Encode(map[string]any{"failed": failed, "warnings": warned, "checks": all}); err != nil {
			return err
		}
	} else {
		for _, d := range all {
			fmt.Fprintf(p.stdout, "%-4s  %-9s %s", d.Status, d.Area, d.Name)
			if d.Detail != "" {
				fmt.Fprintf(p.stdout, ": %s", d.Detail)
			}
			fmt.Fprintln(p.stdout)
			if d.Fix != "" && d.Status != statusOK {
				fmt.Fprintf(p.stdout, "                fix: %s\n", d.Fix)
			}
		}
		fmt.Fprintf(p.stdout, "%d checks, %d failed, %d warning(s)\n", len(all), failed, warned)
	}
	if failed > 0 {
		return silent(exitFailed)
	}
	return nil
}

func (p *program) lookAtPostgres(ctx context.Context, set *rules.Set) []diagnosis {
	const area = "postgres"
	unreachable := func(err error) []diagnosis {
		return []diagnosis{{area, "reachable", statusFail, cdc.Classify("connect", err).Error(), "check LETHE_POSTGRES_URL"}}
	}
	d, err := openDatabase(p.settings.PostgresURL, p.log)
	if err != nil {
		return unreachable(err)
	}
	defer d.close()
	var out []diagnosis
	err = d.withConn(ctx, func(conn *pgx.Conn) error {
		out = append(out, diagnosis{Area: area, Name: "reachable", Status: statusOK})
		checks, err := pgcheck.Checks(ctx, conn, pgcheck.Config{
			Slot: p.settings.Slot, Publication: p.settings.Publication, Uses: set.Tables(),
		})
		for _, c := range checks {
			out = append(out, diagnosis{area, c.Name, string(c.Status), c.Detail, c.Fix})
		}
		return err
	})
	if err != nil {
		return unreachable(err)
	}
	schema, err := p.liveSchema(ctx, set)
	if err != nil {
		return append(out, diagnosis{area, "rules", statusFail, err.Error(), ""})
	}
	for _, f := range set.Check(schema) {
		status := statusWarn
		if f.Severity == rules.Error {
			status = statusFail
		}
		out = append(out, diagnosis{"rules", f.Code, status, f.String(), f.Fix})
	}
	return out
}

package main

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/rules"
)

func (p *program) checkCommand() *cobra.Command {
	var output string
	var strict, observed, schema bool
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Check the rules, against the live schema where LETHE_POSTGRES_URL is set",
		Long: `Check the rules: the grammar, and what will go wrong later. Where
LETHE_POSTGRES_URL is set they are checked against the live schema too. Nothing is
created or changed. Exit code 3 if there are errors, with --strict also if there
are warnings.

Each finding has a page in docs/findings.md. With -o github findings are commands of
GitHub's workflows, which show them at their lines in a pull request.

With --observed it asks Redis (LETHE_REDIS_URL), and also warns of each table that
the loads of a class were seen to read and that no rule covers. Clients with
Options.ObserveTables tell.`,
		Args: cobra.MaximumNArgs(64),
		RunE: func(cmd *cobra.Command, args []string) error {
			if schema {
				_, err := p.stdout.Write(rules.JSONSchema())
				return err
			}
			if output != "text" && output != "json" && output != "github" {
				return usagef("-o %s: want text, json or github", output)
			}
			if len(args) > 0 {
				p.settings.Rules = args
			}
			if err := p.settings.validate(false); err != nil {
				return err
			}
			findings, live, err := p.checkRules(cmd.Context())
			if err != nil {
				return err
			}
			if observed && !findings.HasErrors() {
				uncovered, err := p.checkObserved(cmd.Context())
				if err != nil {
					return err
				}
				findings = append(findings, uncovered...)
			}
			if err := p.printCheck(findings, live, output); err != nil {
				return err
			}
			if findings.HasErrors() || strict && len(findings) > 0 {
				return silent(exitRules)
			}
			return nil
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text, json, or github: annotations of a pull request")
	cmd.Flags().BoolVar(&observed, "observed", false, "compare with the tables that clients were seen to read")
	cmd.Flags().BoolVar(&schema, "schema", false, "print the JSON Schema of rules.yaml, for editors, and check nothing")
	cmd.Flags().BoolVar(&strict, "strict", false, "treat warnings as errors")
	return cmd
}

// checkRules returns everything that is wrong with the rules; live says that
// the schema was looked at.
func (p *program) checkRules(ctx context.Context) (findings rules.Findings, live bool, err error) {
	set, err := p.loadRules()
	if found, ok := err.(rules.Findings); ok { //nolint:errorlint // loadRules returns them unwrapped
		return found, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	if p.settings.PostgresURL == "" {
		return set.Lint(), false, nil
	}
	schema, err := p.liveSchema(ctx, set)
	if err != nil {
		return nil, false, err
	}
	_, problems, err := p.declaredEdges(ctx, set)
	if err != nil {
		return nil, false, err
	}
	return append(set.Check(schema), rules.EdgeFindings(problems)...), true, nil
}

// checkObserved compares the rules with what clients have reported. One
// attempt: whoever asks is waiting.
func (p *program) checkObserved(ctx context.Context) (rules.Findings, error) {
	set, err := p.loadRules()
	if err != nil {
		return nil, err
	}
	store, err := coherence.Dial(ctx, p.settings.RedisURL, coherence.Options{Namespace: set.Namespace, Logger: p.log})
	if err != nil {
		return nil, err
	}
	defer store.Close()
	observed, err := store.Observed(ctx)
	if err != nil {
		return nil, err
	}
	if len(observed) == 0 {
		p.log.Warn("no client has reported what its loads read: set Options.ObserveTables in development and tests")
	}
	return set.Uncovered(observed)
}

// liveSchema reads what the rules need to know of the database. One attempt:
// whoever asks is waiting.
func (p *program) liveSchema(ctx context.Context, set *rules.Set) (schema rules.Schema, err error) {
	d, err := openDatabase(p.settings.PostgresURL, p.log)
	if err != nil {
		return schema, err
	}
	defer d.close()
	err = d.withConn(ctx, func(conn *pgx.Conn) error {
		schema, err = readSchema(ctx, conn, set)
		return err
	})
	if err != nil {
		return schema, err
	}
	return schema, nil
}

// finding is a Finding as -o json prints it.
type finding struct {
	Code     string `json:"code"`
	Severity string `json:"severity"`
	File     string `json:"file"`
	Line     int    `json:"line,omitempty"`
	Column   int    `json:"column,omitempty"`
	Rule     string `json:"rule,omitempty"`
	Entry    string `json:"entry,omitempty"`
	Message  string `json:"message"`
	Fix      string `json:"fix,omitempty"`
	Page     string `json:"page"`
}

func (p *program) printCheck(findings rules.Findings, live bool, output string) error {
	if output == "json" {
		list := make([]finding, len(findings))
		for i, f := range findings {
			list[i] = finding{f.Code, f.Severity.String(), f.File, f.Line, f.Col, f.Rule, f.Entry, f.Message, f.Fix, f.Page()}
		}
		encoder := json.NewEncoder(p.stdout)
		encoder.SetIndent("", "  ")
		return encoder.Encode(map[string]any{
			"live": live, "errors": len(findings.Errors()), "warnings": len(findings.Warnings()), "findings": list,
		})
	}
	if output == "github" {
		return printAnnotations(p.stdout, findings)
	}
	printFindings(p.stdout, findings)
	against := "the grammar only; set LETHE_POSTGRES_URL to check against the live schema"
	if live {
		against = "the live schema"
	}
	_, err := fmt.Fprintf(p.stdout, "%d error(s), %d warning(s); checked against %s\n",
		len(findings.Errors()), len(findings.Warnings()), against)
	return err
}

package main

import (
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/lethe-cache/lethe/explain"
	"github.com/lethe-cache/lethe/rules"
)

// testOptions are the flags of lethe test.
type testOptions struct {
	update, coverage, strict, live bool
	output                         string
}

func (p *program) testCommand() *cobra.Command {
	var o testOptions
	cmd := &cobra.Command{
		Use:   "test [file...]",
		Short: "Run the tests of the rules: a change in, keys, tags and cascade out",
		Long: `Runs cases from YAML files (default: rules_test.yaml for rules.yaml) against the
rules, by the code that runs in production:

  cases:
    - name: a price moves the page
      change: {table: public.products, op: update, old: {id: 42, price: 1}, new: {id: 42, price: 2}}
      keys: ["product:42"]
      cascade: ["feed:42"]
    - name: a review moves the category
      change: {table: public.reviews, op: insert, new: {id: 1, product_id: 42}}
      lookup: [{with: {product_id: 42}, rows: [{category_id: 7}]}]
      tags: ["category:7"]

Names are without the namespace; what is not listed must not come out. Without
--live nothing is asked of a database: what is written of a row is what the log
carries. Exit code 1 if a case fails, with --strict also if some rule or part of a
condition was not tried; 3 if the rules are not valid.`,
		RunE: func(cmd *cobra.Command, args []string) error { return p.test(cmd.Context(), &o, args) },
	}
	f := cmd.Flags()
	f.BoolVar(&o.update, "update", false, "write what comes out into the files as what is expected")
	f.BoolVar(&o.coverage, "coverage", false, "tell which rules and parts of conditions were tried")
	f.BoolVar(&o.strict, "strict", false, "fail if something was not tried")
	f.BoolVar(&o.live, "live", false, "take tables and replica identities from LETHE_POSTGRES_URL")
	f.StringVarP(&o.output, "output", "o", "text", "text or json")
	return cmd
}

func (p *program) test(ctx context.Context, o *testOptions, files []string) error {
	if o.output != "text" && o.output != "json" {
		return usagef("-o %s: want text or json", o.output)
	}
	if err := p.settings.validate(false); err != nil {
		return err
	}
	set, err := p.loadRules()
	if err != nil {
		return err
	}
	var schema *rules.Schema
	if o.live {
		if schema, err = p.databaseFor(ctx, set, "--live"); err != nil {
			return err
		}
	}
	if len(files) == 0 {
		for _, f := range set.Files {
			files = append(files, strings.TrimSuffix(strings.TrimSuffix(f, ".yaml"), ".yml")+"_test.yaml")
		}
	}
	plan, err := set.Compile()
	if err != nil {
		return err
	}
	cover, err := plan.NewCoverage()
	if err != nil {
		return err
	}
	explainer, err := explain.New(set)
	if err != nil {
		return err
	}
	report := testReport{Failures: []testFailure{}}
	for _, file := range files {
		if err := report.file(explainer, schema, cover, file, o.update); err != nil {
			return err
		}
	}
	report.cover(cover)
	if err := p.printTests(&report, o); err != nil {
		return err
	}
	if len(report.Failures) > 0 || o.strict && report.Untried > 0 {
		return silent(exitFailed)
	}
	return nil
}

// testReport is the outcome of all cases, as -o json prints it.
type testReport struct {
	Cases    int            `json:"cases"`
	Updated  []string       `json:"updated,omitempty"`
	Failures []testFailure  `json:"failures"`
	Rules    []ruleCoverage `json:"rules"`
	Untried  int            `json:"untried"`
}

type testFailure struct {
	File       string   `json:"file"`
	Line       int      `json:"line"`
	Case       string   `json:"case"`
	Missing    []string `json:"missing,omitempty"`
	Unexpected []string `json:"unexpected,omitempty"`
	Error      string   `json:"error,omitempty"`
	Notes      []string `json:"notes,omitempty"`
}

type ruleCoverage struct {
	Rule     string   `json:"rule"`
	Changes  int      `json:"changes"`
	Matched  int      `json:"matched"`
	Covered  bool     `json:"covered"`
	NotTried []string `json:"not_tried,omitempty"`
}

// file runs the cases of a file, and rewrites it if that is asked for.
func (t *testReport) file(explainer *explain.Explainer, schema *rules.Schema, cover *rules.Coverage, file string, update bool) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return usagef("%w (a file of cases; see lethe test --help)", err)
	}
	cases, err := explain.ParseCases(file, data)
	if err != nil {
		return usagef("%w", err)
	}
	results := make([]*explain.Result, len(cases.List))
	whole := true
	for i := range cases.List {
		c := &cases.List[i]
		t.Cases++
		r, err := explainer.Run(c, schema, cover)
		switch {
		case err != nil:
			whole = false
			t.Failures = append(t.Failures, testFailure{File: file, Line: c.Line, Case: c.Name, Error: err.Error()})
		case r.Failed() && !update:
			t.Failures = append(t.Failures, testFailure{File: file, Line: c.Line, Case: c.Name, Missing: r.Missing, Unexpected: r.Unexpected, Notes: r.Notes})
		}
		results[i] = r
	}
	if !update || !whole {
		return nil
	}
	out, err := cases.Update(results)
	if err != nil || string(out) == string(data) {
		return err
	}
	t.Updated = append(t.Updated, file)
	return os.WriteFile(file, out, 0o644)
}

func (t *testReport) cover(cover *rules.Coverage) {
	for _, r := range cover.Rules() {
		c := ruleCoverage{Rule: r.Rule.Name, Changes: r.Changes, Matched: r.Matched, Covered: r.Covered()}
		if r.Matched == 0 {
			c.NotTried = append(c.NotTried, "no change matches")
		}
		for _, b := range r.Branches {
			if b.True == 0 {
				c.NotTried = append(c.NotTried, b.Text+" is never true")
			}
			if b.False == 0 {
				c.NotTried = append(c.NotTried, b.Text+" is never false")
			}
		}
		t.Untried += len(c.NotTried)
		t.Rules = append(t.Rules, c)
	}
}

func (p *program) printTests(t *testReport, o *testOptions) error {
	if o.output == "json" {
		return p.printJSON(t)
	}
	for _, f := range t.Failures {
		fmt.Fprintf(p.stdout, "%s:%d: case %q failed\n", f.File, f.Line, f.Case)
		if f.Error != "" {
			fmt.Fprintf(p.stdout, "    %s\n", f.Error)
		}
		for _, name := range f.Missing {
			fmt.Fprintf(p.stdout, "    missing:    %s\n", name)
		}
		for _, name := range f.Unexpected {
			fmt.Fprintf(p.stdout, "    unexpected: %s\n", name)
		}
		for _, n := range f.Notes {
			fmt.Fprintf(p.stdout, "    note: %s\n", n)
		}
	}
	if o.coverage || o.strict {
		for _, r := range t.Rules {
			fmt.Fprintf(p.stdout, "rule %q: %d of %d changes match%s\n", r.Rule, r.Matched, r.Changes, map[bool]string{true: ", covered"}[r.Covered])
			for _, n := range r.NotTried {
				fmt.Fprintf(p.stdout, "    not tried: %s\n", n)
			}
		}
	}
	for _, f := range t.Updated {
		fmt.Fprintf(p.stdout, "updated %s\n", f)
	}
	_, err := fmt.Fprintf(p.stdout, "%d case(s), %d failed\n", t.Cases, len(t.Failures))
	return err
}

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/spf13/cobra"

	"github.com/lethe-cache/lethe/cdc"
	"github.com/lethe-cache/lethe/cdc/publication"
	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/explain"
	"github.com/lethe-cache/lethe/lookup"
	"github.com/lethe-cache/lethe/rules"
)

// explainOptions are where the changes come from, exactly one of them.
type explainOptions struct {
	row         explain.Row
	old, new    string
	file        string
	sql         string
	lockTimeout time.Duration
	lsn         string
	lookup      string
	output      string
}

func (p *program) explainCommand() *cobra.Command {
	var o explainOptions
	cmd := &cobra.Command{
		Use:   "explain",
		Short: "What a change invalidates: every key and tag, and the rule that says so",
		Long: `Says what a change would invalidate, by the code that runs in production: each
key, tag and class, the way through the dependencies, the rule and its line. The
change is one of:

  --table products --op update --old '{"id":42,"price":1}' --new '{"id":42,"price":2}'
  --json FILE       changes as JSON, one or a list: {"table","op","old","new"}; - is
                    standard input
  --sql STATEMENTS  executed in a transaction that is rolled back: its rows are
                    captured by triggers made in it, those that triggers and foreign
                    keys change included. Writers of the rules' tables wait meanwhile
  --lsn FROM..TO    what the slot has still to hand on, from commits in the range;
                    either end may be left out. Nothing is consumed

Where LETHE_POSTGRES_URL is set, tables are those of the live schema, of an old row
only what their replica identity logs is used, and lookups of rules are made: with
--sql inside of the transaction, with what it has changed. --lookup says what they
give instead, the first that fits:

  --lookup '[{"with":{"product_id":42},"rows":[{"category_id":7}]}]'

Nothing is left behind. Exit
code 3 if the rules are not valid.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return p.explain(cmd.Context(), &o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.row.Table, "table", "", "the table of the change: schema.name")
	f.StringVar(&o.row.Op, "op", "", "insert, update, delete or truncate")
	f.StringVar(&o.old, "old", "", "the row before, as JSON")
	f.StringVar(&o.new, "new", "", "the row after, as JSON")
	f.StringVar(&o.file, "json", "", "a file of changes, or -")
	f.StringVar(&o.sql, "sql", "", "statements to execute and roll back")
	f.DurationVar(&o.lockTimeout, "lock-timeout", explain.LockTimeoutDefault, "with --sql: how long to wait for the lock of a table")
	f.StringVar(&o.lsn, "lsn", "", "a range of the slot: FROM..TO")
	f.StringVar(&o.lookup, "lookup", "", "what lookups give, as JSON, instead of asking the database")
	f.StringVarP(&o.output, "output", "o", "text", "text or json")
	return cmd
}

func (p *program) explain(ctx context.Context, o *explainOptions) error {
	if o.output != "text" && o.output != "json" {
		return usagef("-o %s: want text or json", o.output)
	}
	sources := 0
	for _, given := range []bool{o.row.Table != "" || o.row.Op != "", o.file != "", o.sql != "", o.lsn != ""} {
		if given {
			sources++
		}
	}
	if sources != 1 {
		return usagef("want exactly one of --table with --op, --json, --sql and --lsn")
	}
	if err := p.settings.validate(false); err != nil {
		return err
	}
	set, err := p.loadRules()
	if err != nil {
		return err
	}
	if p.settings.PostgresURL != "" {
		if set, _, err = p.declaredEdges(ctx, set); err != nil {
			return err
		}
	}
	explainer, err := explain.New(set)
	if err != nil {
		return err
	}
	answers, done, err := p.lookupsToExplain(ctx, o, set)
	if err != nil {
		return err
	}
	defer done()
	explainer.UseLookups(answers)
	var list []explain.Explanation
	var more bool
	if o.sql != "" {
		list, err = p.explainSQL(ctx, o, set, explainer)
	} else {
		var changes []*change.Change
		if changes, more, err = p.changesToExplain(ctx, o, set); err == nil {
			list, err = explainAll(explainer, changes)
		}
	}
	if err != nil {
		return err
	}
	if more {
		fmt.Fprintln(p.stderr, "there is more in the slot than was read: give a smaller range")
	}
	if o.output == "json" {
		return p.printJSON(list)
	}
	if len(list) == 0 {
		_, err := fmt.Fprintln(p.stdout, "no change of a table that a rule names")
		return err
	}
	return explain.Print(p.stdout, list)
}

// explainAll explains changes. What a worker could not process is told, as it
// would bury it and go on; that nobody looks up at present is an error.
func explainAll(explainer *explain.Explainer, changes []*change.Change) ([]explain.Explanation, error) {
	list := make([]explain.Explanation, 0, len(changes))
	for _, c := range changes {
		e, err := explainer.Explain(c)
		var lookup *rules.LookupError
		var refused *pgconn.PgError
		if errors.As(err, &lookup) && !errors.As(err, &refused) {
			return nil, err
		}
		if err != nil {
			e.Notes = append(e.Notes, "a worker can not process this change, and would raise what its table touches: "+err.Error())
		}
		list = append(list, e)
	}
	return list, nil
}

// lookupsToExplain says who answers lookups: the flag, the database, or nobody.
func (p *program) lookupsToExplain(ctx context.Context, o *explainOptions, set *rules.Set) (rules.Lookups, func(), error) {
	nothing := func() {}
	if o.lookup != "" {
		var answers explain.Answers
		if err := decodeJSON([]byte(o.lookup), &answers); err != nil {
			return nil, nothing, usagef("--lookup %s: %w", o.lookup, err)
		}
		return answers, nothing, nil
	}
	needed := slices.ContainsFunc(set.Rules, func(r *rules.Rule) bool { return r.Lookup != nil })
	if p.settings.PostgresURL == "" || !needed {
		return nil, nothing, nil
	}
	runner, err := lookup.Open(lookup.Config{URL: p.settings.PostgresURL, Concurrency: 1})
	if err != nil {
		return nil, nothing, usagef("LETHE_POSTGRES_URL: %w", err)
	}
	return runner.Now(ctx), runner.Close, nil
}

func (p *program) changesToExplain(ctx context.Context, o *explainOptions, set *rules.Set) (changes []*change.Change, more bool, err error) {
	if o.lsn != "" {
		return p.changesOfSlot(ctx, o.lsn)
	}
	rows, err := o.rows(os.Stdin)
	if err != nil {
		return nil, false, err
	}
	var schema *rules.Schema
	if p.settings.PostgresURL != "" {
		live, err := p.liveSchema(ctx, set)
		if err != nil {
			return nil, false, err
		}
		schema = &live
	}
	for i := range rows {
		c, err := rows[i].Change(schema)
		if err != nil {
			return nil, false, usagef("change %d: %w", i+1, err)
		}
		changes = append(changes, c)
	}
	return changes, false, nil
}

// rows reads the changes that flags or a file describe.
func (o *explainOptions) rows(stdin io.Reader) ([]explain.Row, error) {
	if o.file == "" {
		for text, side := range map[*string]*map[string]any{&o.old: &o.row.Old, &o.new: &o.row.New} {
			if *text == "" {
				continue
			}
			if err := decodeJSON([]byte(*text), side); err != nil {
				return nil, usagef("--old or --new %s: %w", *text, err)
			}
		}
		return []explain.Row{o.row}, nil
	}
	data, err := readInput(o.file, stdin)
	if err != nil {
		return nil, err
	}
	if data = bytes.TrimSpace(data); bytes.HasPrefix(data, []byte("[")) {
		var list []explain.Row
		if err := decodeJSON(data, &list); err != nil {
			return nil, usagef("--json %s: %w", o.file, err)
		}
		return list, nil
	}
	var one explain.Row
	if err := decodeJSON(data, &one); err != nil {
		return nil, usagef("--json %s: %w", o.file, err)
	}
	return []explain.Row{one}, nil
}

func readInput(name string, stdin io.Reader) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(stdin)
	}
	return os.ReadFile(name)
}

// decodeJSON reads one value, numbers as they are written.
func decodeJSON(data []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return err
	}
	if d.More() {
		return errors.New("there is more behind the value")
	}
	return nil
}

// explainSQL explains what statements change before that is rolled back, so that
// lookups see it.
func (p *program) explainSQL(ctx context.Context, o *explainOptions, set *rules.Set, explainer *explain.Explainer) (list []explain.Explanation, err error) {
	schema, err := p.databaseFor(ctx, set, "--sql")
	if err != nil {
		return nil, err
	}
	err = p.onDatabase(ctx, func(conn *pgx.Conn) error {
		return explain.RunAnd(ctx, conn, schema, set.Tables(), o.sql, o.lockTimeout, func(tx pgx.Tx, changes []*change.Change) error {
			if o.lookup == "" {
				explainer.UseLookups(lookup.In(ctx, tx))
			}
			list, err = explainAll(explainer, changes)
			return err
		})
	})
	return list, err
}

func (p *program) changesOfSlot(ctx context.Context, text string) (changes []*change.Change, more bool, err error) {
	from, to, ok := strings.Cut(text, "..")
	var r cdc.PeekRange
	var fromErr, toErr error
	if from != "" {
		r.From, fromErr = change.ParseLSN(from)
	}
	if to != "" {
		r.To, toErr = change.ParseLSN(to)
	}
	if !ok || fromErr != nil || toErr != nil {
		return nil, false, usagef("--lsn %s: want FROM..TO, each like 0/16B3748 or left out", text)
	}
	if p.settings.PostgresURL == "" {
		return nil, false, usagef("--lsn needs LETHE_POSTGRES_URL")
	}
	err = p.onDatabase(ctx, func(conn *pgx.Conn) error {
		publications := []string{p.settings.Publication, p.settings.Publication + publication.InsertsSuffix}
		changes, more, err = cdc.Peek(ctx, conn, p.settings.Slot, publications, r)
		return err
	})
	return changes, more, err
}

// databaseFor reads the live schema, which an option can not do without.
func (p *program) databaseFor(ctx context.Context, set *rules.Set, option string) (*rules.Schema, error) {
	if p.settings.PostgresURL == "" {
		return nil, usagef("%s needs LETHE_POSTGRES_URL", option)
	}
	schema, err := p.liveSchema(ctx, set)
	if err != nil {
		return nil, err
	}
	if findings := set.Check(schema); findings.HasErrors() {
		return nil, findings
	}
	return &schema, nil
}

// onDatabase runs f on one connection of its own.
func (p *program) onDatabase(ctx context.Context, f func(*pgx.Conn) error) error {
	d, err := openDatabase(p.settings.PostgresURL, p.log)
	if err != nil {
		return err
	}
	defer d.close()
	return d.withConn(ctx, f)
}

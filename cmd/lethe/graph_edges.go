package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/lethe-cache/lethe/rules"
)

// declared is one row of lethe.dependencies, as people see it.
type declared struct {
	ID          int64     `json:"id"`
	Of          string    `json:"of"`
	Also        []string  `json:"also"`
	When        string    `json:"when,omitempty"`
	Owner       string    `json:"owner,omitempty"`
	Description string    `json:"description,omitempty"`
	CreatedAt   time.Time `json:"created_at"`
	CreatedBy   string    `json:"created_by"`
	Problems    []string  `json:"problems,omitempty"`
}

func (p *program) graphAddCommand() *cobra.Command {
	var d declared
	cmd := &cobra.Command{
		Use:   "add --of TEMPLATE --also TEMPLATE",
		Short: "Declare a dependency in the database, for workers that run",
		Long: `Writes a dependency into the table lethe.dependencies, where workers find it
beside those of the rules' files: whatever forgets a name of the form of --of also
forgets those of --also. They learn of it through the log, in every partition, and
forget what it newly touches. The same may be done in SQL. Exit code 3 if it can
not be understood.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return p.addEdge(cmd.Context(), &d) },
	}
	cmd.Flags().StringVar(&d.Of, "of", "", "what is forgotten first: user:{id}, or one name")
	cmd.Flags().StringArrayVar(&d.Also, "also", nil, "what is forgotten with it: profile:{id}; may be repeated")
	cmd.Flags().StringVar(&d.When, "when", "", "condition, CEL over the placeholders of --of, op, table, rule and depth")
	cmd.Flags().StringVar(&d.Owner, "owner", "", "who to ask")
	cmd.Flags().StringVar(&d.Description, "description", "", "why")
	return cmd
}

func (p *program) addEdge(ctx context.Context, d *declared) error {
	if d.Of == "" || len(d.Also) == 0 {
		return usagef("want --of and --also")
	}
	set, err := p.rulesAndDatabase()
	if err != nil {
		return err
	}
	with, problems := set.WithEdges([]rules.Edge{{ID: 1, Of: d.Of, Also: d.Also, When: d.When}})
	if len(problems) > 0 {
		text := make([]string, len(problems))
		for i, problem := range problems {
			text[i] = problem.Message
		}
		return &exitError{code: exitRules, err: fmt.Errorf("the dependency was not declared: %s", strings.Join(text, "; "))}
	}
	for _, f := range with.Lint() {
		if f.Code == rules.CodeCycle && !contains(set.Lint(), f) {
			fmt.Fprintln(p.stderr, "warning:", f.Message)
		}
	}
	var id int64
	err = p.onDatabase(ctx, func(conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `INSERT INTO lethe.dependencies (namespace, of, also, condition, owner, description)
			VALUES ($1, $2, $3, nullif($4, ''), nullif($5, ''), nullif($6, '')) RETURNING id`,
			set.Namespace, d.Of, d.Also, d.When, d.Owner, d.Description).Scan(&id)
	})
	if err != nil {
		return fmt.Errorf("declare a dependency: %w", err)
	}
	_, err = fmt.Fprintf(p.stdout, "%d\n", id)
	return err
}

func contains(list rules.Findings, f rules.Finding) bool {
	for _, have := range list {
		if have.Code == f.Code && have.Message == f.Message {
			return true
		}
	}
	return false
}

func (p *program) graphRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "rm ID...",
		Short: "Take declared dependencies back",
		Long: `Deletes rows of lethe.dependencies, by the numbers that list prints. From then on
changes are not followed along them; nothing is forgotten for it. Exit code 1 if
there is no such row, and then none is deleted.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ids := make([]int64, len(args))
			for i, a := range args {
				id, err := strconv.ParseInt(a, 10, 64)
				if err != nil || id < 1 {
					return usagef("%s is no number of a dependency: lethe graph list prints them", a)
				}
				ids[i] = id
			}
			set, err := p.rulesAndDatabase()
			if err != nil {
				return err
			}
			return p.removeEdges(cmd.Context(), set.Namespace, ids)
		},
	}
}

func (p *program) removeEdges(ctx context.Context, namespace string, ids []int64) error {
	return p.onDatabase(ctx, func(conn *pgx.Conn) error {
		return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			for _, id := range ids {
				tag, err := tx.Exec(ctx, `DELETE FROM lethe.dependencies WHERE namespace = $1 AND id = $2`, namespace, id)
				if err != nil {
					return fmt.Errorf("delete dependency %d: %w", id, err)
				}
				if tag.RowsAffected() == 0 {
					return fmt.Errorf("there is no dependency %d in namespace %q", id, namespace)
				}
			}
			return nil
		})
	})
}

func (p *program) graphListCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the dependencies that are declared in the database",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if output != "text" && output != "json" {
				return usagef("-o %s: want text or json", output)
			}
			set, err := p.rulesAndDatabase()
			if err != nil {
				return err
			}
			list, err := p.listEdges(cmd.Context(), set)
			if err != nil {
				return err
			}
			if output == "json" {
				return p.printJSON(list)
			}
			return p.printEdges(list)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "text", "text or json")
	return cmd
}

func (p *program) printEdges(list []declared) error {
	w := tabwriter.NewWriter(p.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ID\tOF\tALSO\tWHEN\tOWNER\tCREATED\tDESCRIPTION")
	for _, d := range list {
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%s\t%s\n", d.ID, d.Of, strings.Join(d.Also, " "), oneLine(d.When), d.Owner,
			d.CreatedAt.UTC().Format(time.RFC3339), oneLine(d.Description))
		for _, problem := range d.Problems {
			fmt.Fprintf(w, "\t  %s\t\t\t\t\t\n", problem)
		}
	}
	return w.Flush()
}

func (p *program) listEdges(ctx context.Context, set *rules.Set) ([]declared, error) {
	list := []declared{}
	err := p.onDatabase(ctx, func(conn *pgx.Conn) error {
		rows, err := conn.Query(ctx, `SELECT id, of, also, coalesce(condition, ''), coalesce(owner, ''), coalesce(description, ''), created_at, created_by
			FROM lethe.dependencies WHERE namespace = $1 ORDER BY id`, set.Namespace)
		if err != nil {
			return err
		}
		list, err = pgx.AppendRows(list, rows, func(row pgx.CollectableRow) (d declared, err error) {
			err = row.Scan(&d.ID, &d.Of, &d.Also, &d.When, &d.Owner, &d.Description, &d.CreatedAt, &d.CreatedBy)
			return d, err
		})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read lethe.dependencies: %w", err)
	}
	at, all := map[int64]int{}, make([]rules.Edge, len(list))
	for i := range list {
		d := &list[i]
		at[d.ID], all[i] = i, rules.Edge{ID: d.ID, Of: d.Of, Also: d.Also, When: d.When}
	}
	_, problems := set.WithEdges(all)
	for _, problem := range problems {
		d := &list[at[problem.ID]]
		d.Problems = append(d.Problems, problem.String())
	}
	return list, nil
}

// rulesAndDatabase reads the rules of a command that needs the database too.
func (p *program) rulesAndDatabase() (*rules.Set, error) {
	if err := p.settings.validate(true); err != nil {
		return nil, err
	}
	return p.loadRules()
}

// declaredEdges adds to the rules what is declared in the database; problems are
// what can not be understood of it. One attempt: whoever asks is waiting.
func (p *program) declaredEdges(ctx context.Context, set *rules.Set) (with *rules.Set, problems []rules.EdgeProblem, err error) {
	var list []rules.Edge
	err = p.onDatabase(ctx, func(conn *pgx.Conn) (err error) {
		list, err = readEdges(ctx, conn, set.Namespace)
		return err
	})
	if err != nil {
		return nil, nil, fmt.Errorf("read lethe.dependencies: %w", err)
	}
	with, problems = set.WithEdges(list)
	return with, problems, nil
}

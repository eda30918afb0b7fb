package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/lethe-cache/lethe/cdc"
	"github.com/lethe-cache/lethe/cdc/catalog"
	"github.com/lethe-cache/lethe/internal/keyscan"
	"github.com/lethe-cache/lethe/scaffold"
)

// initFlags are the flags of `lethe init`.
type initFlags struct {
	out       string
	force     bool
	schemas   []string
	exclude   []string
	namespace string
	fromRedis bool
	output    string
	keys      int
	time      time.Duration
}

func (p *program) initCommand() *cobra.Command {
	var f initFlags
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Write a first rules.yaml from the tables of the live schema",
		Long: `Reads tables, primary keys and foreign keys of the database and writes a first
rules.yaml: a class for the rows of each table, one for the rows of each foreign
key, and the rules that keep them true. What the log does not carry yet is written
as a comment, with the ALTER TABLE that lets it in. Nothing is created or changed
in the database. Exit code 2 if the file is there already, without --force.

With --from-redis it looks at the keys of Redis instead, by SCAN and within
bounds, reports how they are called, their size, life and age, and proposes plain
classes for them. Nothing is written to Redis.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := p.settings.validate(!f.fromRedis); err != nil {
				return err
			}
			if err := f.check(); err != nil {
				return err
			}
			if f.fromRedis {
				return p.initFromRedis(cmd.Context(), &f)
			}
			schema, err := p.readWholeSchema(cmd.Context(), &f)
			if err != nil {
				return err
			}
			if len(schema.Tables) == 0 {
				return &exitError{code: exitFailed, err: fmt.Errorf("no table to write rules for in database %q", schema.Database),
					hint: "look at --schema and --exclude, and whether LETHE_POSTGRES_URL names the right database"}
			}
			text, classes := scaffold.Rules(schema, scaffold.Options{Namespace: f.namespace})
			if err := writeNew(p.stdout, f.out, f.force, text); err != nil {
				return err
			}
			if classes == 0 {
				return &exitError{code: exitFailed, err: errors.New("none of the tables can be cached as it is"), hint: "read the comments in what was written"}
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&f.out, "out", "", "write there instead of to standard output")
	cmd.Flags().BoolVar(&f.force, "force", false, "overwrite the file of --out")
	cmd.Flags().StringSliceVar(&f.schemas, "schema", nil, "schemas to take tables from (default all)")
	cmd.Flags().StringSliceVar(&f.exclude, "exclude", nil, "tables to leave out: name or schema.name, * and ? stand for anything")
	cmd.Flags().BoolVar(&f.fromRedis, "from-redis", false, "report the keys of Redis and propose classes for them")
	cmd.Flags().StringVarP(&f.output, "output", "o", "text", "with --from-redis: text or json")
	cmd.Flags().IntVar(&f.keys, "sample", keyscan.KeysDefault, "with --from-redis: how many keys to look at")
	cmd.Flags().DurationVar(&f.time, "sample-time", keyscan.TimeDefault, "with --from-redis: how long to look at keys")
	cmd.Flags().StringVar(&f.namespace, "namespace", "", "namespace of the rules (default the database's name)")
	return cmd
}

// check finds mistakes before anything is asked of a server.
func (f *initFlags) check() error {
	if f.output != "text" && f.output != "json" {
		return usagef("-o %s: want text or json", f.output)
	}
	if f.keys < 1 || f.time <= 0 {
		return usagef("--sample and --sample-time must be positive")
	}
	for _, e := range f.exclude {
		if _, err := path.Match(e, ""); err != nil {
			return usagef("--exclude %q: not a pattern", e)
		}
	}
	if f.namespace == "lethe" || f.namespace != "" && scaffold.Namespace(f.namespace) != strings.ReplaceAll(f.namespace, ".", "_") {
		return usagef("--namespace %q: want up to 63 letters, digits, \"_\", \"-\" and \".\", and not lethe", f.namespace)
	}
	return notThere(f.out, f.force)
}

// takes reports whether rules are to be written for a table.
func (f *initFlags) takes(t catalog.UserTable) bool {
	if len(f.schemas) > 0 && !slices.Contains(f.schemas, t.Schema) {
		return false
	}
	return !slices.ContainsFunc(f.exclude, func(pattern string) bool {
		byName, _ := path.Match(pattern, t.Name) // checked with the flags
		whole, _ := path.Match(pattern, t.QualifiedName())
		return byName || whole
	})
}

// readWholeSchema describes the tables that the flags leave. One attempt:
// whoever asks is waiting.
func (p *program) readWholeSchema(ctx context.Context, f *initFlags) (s scaffold.Schema, err error) {
	d, err := openDatabase(p.settings.PostgresURL, p.log)
	if err != nil {
		return s, err
	}
	defer d.close()
	err = d.withConn(ctx, func(conn *pgx.Conn) error {
		s.Database = conn.Config().Database
		tables, err := catalog.UserTables(ctx, conn)
		if err != nil {
			return err
		}
		rows := map[string]int64{}
		var names []string
		for _, t := range tables {
			if f.takes(t) {
				names = append(names, t.QualifiedName())
				rows[t.QualifiedName()] = t.Rows
			}
		}
		live, err := catalog.Read(ctx, conn, names)
		if err != nil {
			return err
		}
		for _, t := range live.Tables {
			s.Tables = append(s.Tables, scaffold.Table{TableInfo: t, Rows: rows[t.QualifiedName()]})
		}
		s.ForeignKeys = live.ForeignKeys
		return nil
	})
	if err != nil {
		return s, cdc.Classify("read the live schema", err)
	}
	return s, nil
}

// notThere refuses a file that would be overwritten.
func notThere(file string, force bool) error {
	if file == "" || force {
		return nil
	}
	if _, err := os.Lstat(file); err == nil {
		return &exitError{code: exitUsage, err: fmt.Errorf("%s is there already", file), hint: "--force overwrites it; another --out leaves it alone"}
	}
	return nil
}

// writeNew writes a file that is not there yet, or any with force; no name
// means standard output.
func writeNew(stdout io.Writer, file string, force bool, data []byte) error {
	if file == "" {
		_, err := stdout.Write(data)
		return err
	}
	how := os.O_WRONLY | os.O_CREATE | os.O_EXCL
	if force {
		how = os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	}
	f, err := os.OpenFile(file, how, 0o644)
	if errors.Is(err, fs.ErrExist) {
		return notThere(file, false)
	}
	if err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		_ = f.Close()
		return err
	}
	return f.Close()
}

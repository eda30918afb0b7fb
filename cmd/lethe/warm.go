package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/spf13/cobra"

	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/rules"
	"github.com/lethe-cache/lethe/warmer"
)

// warmCommand is `lethe warm`.
type warmCommand struct {
	p       *program
	entries []string
	onStart bool
	limit   int
	rate    float64
	save    string
	load    string
	top     int
	output  string

	set    *rules.Set
	store  *coherence.Store
	warmer *warmer.Warmer
}

func (p *program) warmCommand() *cobra.Command {
	w := &warmCommand{p: p}
	cmd := &cobra.Command{
		Use:   "warm",
		Short: "Fill entries now, or carry what is hot to a new Redis",
		Long: `Runs the warm-ups of the rules now, beside a process that runs or alone: what is
absent is read from the database and stored through the protocol. One warm-up
runs at a time; this one waits for another.

--save writes the names of the entries that are read most: first what clients
report, then what was read last. --load reads such a file and fills these entries
from the database, the hottest first. Values are never copied: only the database
can vouch for them.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return w.run(cmd.Context()) },
	}
	f := cmd.Flags()
	f.StringSliceVar(&w.entries, "entry", nil, "warm-ups of these entries (default: all)")
	f.BoolVar(&w.onStart, "on-start", false, "only those with on_start")
	f.IntVar(&w.limit, "limit", 0, "rows of each warm-up at most (0: what the rules say)")
	f.Float64Var(&w.rate, "rate", 0, "rows in a second at most (0: no limit but the loader's)")
	f.StringVar(&w.save, "save", "", "write the names of hot entries to this file, and fill nothing")
	f.StringVar(&w.load, "load", "", "fill the entries of a file that --save wrote")
	f.IntVar(&w.top, "top", 10_000, "names of each entry that --save writes at most")
	f.StringVarP(&w.output, "output", "o", "text", "text or json")
	p.settings.Warm.addFlags(f)
	return cmd
}

func (w *warmCommand) run(ctx context.Context) error {
	if err := w.validate(); err != nil {
		return err
	}
	if err := w.open(ctx); err != nil {
		return err
	}
	defer w.store.Close()
	if w.save != "" {
		return w.saveHot(ctx)
	}
	loader, err := warmer.OpenLoader(ctx, warmer.LoaderConfig{
		URL: w.p.settings.PostgresURL, StandbyURL: w.p.settings.Warm.URL, Concurrency: w.p.settings.Warm.Concurrency,
	})
	if err != nil {
		return usagef("%w", err)
	}
	defer loader.Close()
	plan, err := w.set.Compile()
	if err != nil {
		return err
	}
	w.warmer, err = warmer.New(warmer.Config{
		Store: w.store, Loader: loader, Rules: func() *rules.Plan { return plan }, Logger: w.p.log,
		Limiter: warmer.NewLimiter(warmer.LimiterConfig{Rate: w.p.settings.Warm.Rate, Concurrency: w.p.settings.Warm.Concurrency}),
	})
	if err != nil {
		return err
	}
	if w.load != "" {
		return w.loadHot(ctx)
	}
	return w.warm(ctx)
}

func (w *warmCommand) validate() error {
	s := &w.p.settings
	errs := []error{s.validate(w.save == ""), s.Warm.validate()}
	if !slices.Contains([]string{"text", "json"}, w.output) {
		errs = append(errs, usagef("-o %q: want text or json", w.output))
	}
	if w.limit < 0 || w.rate < 0 {
		errs = append(errs, usagef("--limit and --rate must be above zero"))
	}
	if w.top < 1 || w.top > 1_000_000 {
		errs = append(errs, usagef("--top %d: want 1 to 1000000", w.top))
	}
	if (w.save != "" || w.load != "") && (w.limit != 0 || w.onStart || w.rate != 0 || w.save != "" && w.load != "") {
		errs = append(errs, usagef("--save and --load go with --entry, --top and -o only, and not with each other"))
	}
	return errors.Join(errs...)
}

func (w *warmCommand) open(ctx context.Context) error {
	set, err := w.p.loadRules()
	if err != nil {
		return err
	}
	for _, e := range w.entries {
		if set.Class(e) == nil {
			return usagef("--entry %q: the rules have no such entry", e)
		}
	}
	if w.save == "" {
		schema, err := w.p.liveSchema(ctx, set)
		if err != nil {
			return err
		}
		if errs := set.Check(schema).Errors(); len(errs) > 0 {
			return errs
		}
		set = w.withRows(ctx, set)
	}
	store, err := coherence.Dial(ctx, w.p.settings.RedisURL, coherence.Options{Namespace: set.Namespace, Logger: w.p.log})
	if err != nil {
		return classifyRedis(err)
	}
	recorded, err := store.Source(ctx)
	if err != nil && !errors.Is(err, coherence.ErrNoSource) {
		return errors.Join(err, store.Close())
	}
	if recorded.Era == 0 && w.save == "" {
		_ = store.Close()
		return &exitError{code: exitFailed, err: errors.New("no source is recorded in this Redis: nothing can be cached until a worker has run"), hint: "start lethe run first"}
	}
	w.set, w.store = set, store
	return nil
}

// withRows is the set with the dependencies that rows declare, as the workers
// have it: rules that touch an entry by way of those must be theirs too. What can
// not be read is left out, since it does not say what is loaded or how it is
// called.
func (w *warmCommand) withRows(ctx context.Context, set *rules.Set) *rules.Set {
	d, err := openDatabase(w.p.settings.PostgresURL, w.p.log)
	if err == nil {
		defer d.close()
		err = d.withConn(ctx, func(conn *pgx.Conn) error {
			rows, err := readEdges(ctx, conn, set.Namespace)
			if err == nil {
				set, _ = set.WithEdges(rows)
			}
			return err
		})
	}
	if err != nil {
		w.p.log.Warn("lethe.dependencies can not be read, warming without it", "error", err)
	}
	return set
}

// warmed is one row of the result.
type warmed struct {
	Entry    string         `json:"entry"`
	State    string         `json:"state"`
	Rows     int            `json:"rows"`
	Stored   int            `json:"stored"`
	Present  int            `json:"present"`
	NoRow    int            `json:"no_row"`
	Oversize int            `json:"oversize"`
	Refused  map[string]int `json:"refused,omitempty"`
	Seconds  float64        `json:"seconds"`
	Error    string         `json:"error,omitempty"`
}

func (w *warmed) take(r warmer.Result) {
	w.Stored, w.Present, w.NoRow, w.Oversize, w.Refused = r.Stored, r.Present, r.NoRow, r.Oversize, r.Refused
}

// warm runs the warm-ups, the highest priority first.
func (w *warmCommand) warm(ctx context.Context) error {
	var list []*rules.Warm
	for _, one := range w.set.Warm {
		if (len(w.entries) == 0 || slices.Contains(w.entries, one.Entry)) && (one.OnStart || !w.onStart) {
			list = append(list, one)
		}
	}
	if len(list) == 0 {
		return &exitError{code: exitUsage, err: errors.New("the rules have no warm-up of that kind"), hint: "declare it: warm: [{entry: product, sql: SELECT id FROM products}]"}
	}
	slices.SortStableFunc(list, func(a, b *rules.Warm) int { return cmp.Compare(b.Priority, a.Priority) })
	warmups, err := warmer.NewWarmups(warmer.WarmupConfig{Warmer: w.warmer, Cache: cacheName(w.p.settings.RedisURL, w.set.Namespace), Logger: w.p.log})
	if err != nil {
		return err
	}
	stop := w.p.terminal.follow(warmups)
	failed := false
	var out []warmed
	for _, one := range list {
		got, err := warmups.Run(ctx, one, warmer.RunOptions{Limit: w.limit, Rate: w.rate, Wait: true})
		row := warmed{Entry: got.Entry, State: got.State, Rows: got.Rows, Seconds: got.Took.Seconds(), Error: got.Error}
		row.take(got.Result)
		out = append(out, row)
		failed = failed || err != nil
		if ctx.Err() != nil {
			break
		}
	}
	stop()
	return w.print(out, failed)
}

func (w *warmCommand) print(out []warmed, failed bool) error {
	if w.output == "json" {
		if err := w.p.printJSON(map[string]any{"warmed": out}); err != nil {
			return err
		}
	} else {
		table := tabwriter.NewWriter(w.p.stdout, 0, 0, 2, ' ', 0)
		fmt.Fprintln(table, "ENTRY\tSTATE\tROWS\tSTORED\tPRESENT\tNO ROW\tREFUSED\tTOOK")
		for _, r := range out {
			refused := r.Oversize
			for _, n := range r.Refused {
				refused += n
			}
			fmt.Fprintf(table, "%s\t%s\t%d\t%d\t%d\t%d\t%d\t%s\n", r.Entry, r.State, r.Rows, r.Stored, r.Present, r.NoRow, refused,
				time.Duration(r.Seconds*float64(time.Second)).Round(time.Millisecond))
		}
		if err := table.Flush(); err != nil {
			return err
		}
		for _, r := range out {
			if r.Error != "" {
				fmt.Fprintf(w.p.stdout, "%s: %s\n", r.Entry, r.Error)
			}
		}
	}
	if failed {
		return silent(exitFailed)
	}
	return nil
}

// loadHot fills what a file names.
func (w *warmCommand) loadHot(ctx context.Context) error {
	names, header, err := warmer.ReadSnapshot(w.load, w.set.Namespace)
	if err != nil {
		return err
	}
	if len(w.entries) > 0 {
		names = slices.DeleteFunc(names, func(n warmer.SnapshotName) bool { return !slices.Contains(w.entries, n.Class) })
	}
	w.p.log.Info("loading what was hot", "file", w.load, "names", len(names), "made", header.Made)
	began := time.Now()
	results, err := w.warmer.LoadSnapshot(ctx, names, func(done int) {
		if w.p.terminal != nil {
			w.p.terminal.show(fmt.Sprintf("loading %d of %d", done, len(names)))
		}
	})
	if w.p.terminal != nil {
		w.p.terminal.show("")
	}
	failed := err != nil
	var out []warmed
	for _, r := range results {
		row := warmed{Entry: r.Class, State: "done", Rows: r.Names, Seconds: time.Since(began).Seconds(), Error: r.Unknown}
		if r.Unknown != "" {
			row.State, failed = "unknown", true
		}
		row.take(r.Result)
		out = append(out, row)
	}
	if printErr := w.print(out, false); printErr != nil {
		return printErr
	}
	if err != nil {
		return err
	}
	if failed {
		return silent(exitFailed)
	}
	return nil
}

// saveHot writes which entries are read most.
func (w *warmCommand) saveHot(ctx context.Context) error {
	names, err := w.hotNames(ctx)
	if err != nil {
		return err
	}
	if err := warmer.SaveSnapshot(w.save, w.set.Namespace, names); err != nil {
		return err
	}
	count := map[string]int{}
	for _, n := range names {
		count[n.Class]++
	}
	if w.output == "json" {
		return w.p.printJSON(map[string]any{"file": w.save, "names": len(names), "entries": count})
	}
	var parts []string
	for _, c := range w.set.Entries {
		if count[c.Name] > 0 {
			parts = append(parts, fmt.Sprintf("%d of %s", count[c.Name], c.Name))
		}
	}
	fmt.Fprintf(w.p.stdout, "%s: %d names (%s)\n", w.save, len(names), strings.Join(parts, ", "))
	return nil
}

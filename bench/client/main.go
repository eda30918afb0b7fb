// Command client measures the client beside what one would use instead, in one
// run on one Redis: hits in the process, hits in Redis, misses, and batches. It
// is a module of its own, so that Lethe does not depend on what it is compared
// with. docs/bench.md says what the numbers mean.
//
//	go -C bench/client run .
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// Report is the JSON of one run.
type Report struct {
	Started time.Time `json:"started"`
	Redis   string    `json:"redis"`
	Cores   int       `json:"cores"`
	Go      string    `json:"go"`
	// Load is the load average when the run began.
	Load string `json:"load"`
	// Summary has the median ratio under each metric's name, and that of the
	// processor's time with _cpu behind it.
	Summary map[string]float64 `json:"summary"`
	Rows    []Row              `json:"rows"`
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	fs := flag.NewFlagSet("client", flag.ContinueOnError)
	fs.SetOutput(stderr)
	rounds := fs.Int("rounds", 15, "rounds in which every subject has its turn")
	slice := fs.Duration("slice", 50*time.Millisecond, "length of a turn")
	only := fs.String("only", "", "measure only groups whose name contains this `text`")
	profile := fs.String("profile", "", "write a CPU profile of what is measured to this `file`")
	out := fs.String("o", "", "`file` for the JSON (default ../results/client-<time>.json)")
	switch err := fs.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	case fs.NArg() > 0 || *rounds < 1 || *slice <= 0:
		fmt.Fprintln(stderr, "Error: want no arguments, and positive -rounds and -slice")
		return 2
	}
	if err := experiment(ctx, *rounds, *slice, *only, *profile, *out, stdout); err != nil {
		fmt.Fprintln(stderr, "Error:", err)
		return 1
	}
	return 0
}

func experiment(ctx context.Context, rounds int, slice time.Duration, only, profile, out string, stdout io.Writer) (err error) {
	r := Report{Started: time.Now().UTC(), Cores: runtime.NumCPU(), Go: runtime.Version(), Summary: map[string]float64{}}
	if raw, err := os.ReadFile("/proc/loadavg"); err == nil {
		r.Load, _, _ = strings.Cut(string(raw), " ")
	}
	w, err := openWorld(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	r.Redis = w.server.String()
	fmt.Fprintf(stdout, "%s, %s, %d cores (load %s), %d rounds of %v\n\n", r.Redis, r.Go, r.Cores, r.Load, rounds, slice)
	groups, err := w.groups(ctx)
	if err != nil {
		return err
	}
	if profile != "" {
		f, err := os.Create(profile)
		if err != nil {
			return fmt.Errorf("make profile: %w", err)
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return fmt.Errorf("start profile: %w", err)
		}
		defer pprof.StopCPUProfile()
	}
	b := &bench{rounds: rounds, slice: slice, reads: w.reads}
	for _, g := range groups {
		if !strings.Contains(g.name, only) {
			continue
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		rows, err := b.measure(g)
		if err != nil {
			return err
		}
		for _, row := range rows {
			if row.Metric != "" {
				r.Summary[metric(g, row.Metric)] = row.Ratio.Median
				r.Summary[metric(g, row.Metric)+"_cpu"] = row.CPU.Median
			}
		}
		r.Rows = append(r.Rows, rows...)
	}
	if err := r.print(stdout); err != nil {
		return err
	}
	if out == "" {
		out = filepath.Join("..", "results", "client-"+r.Started.Format("20060102T150405Z")+".json")
	}
	if err := r.write(out); err != nil {
		return err
	}
	fmt.Fprintf(stdout, "\nwritten to %s\n", out)
	return nil
}

// groups are all that there is to measure; the keys of the first serve the
// second.
func (w *world) groups(ctx context.Context) ([]group, error) {
	names := keys("")
	var all []group
	for _, make := range []func() ([]group, error){
		func() ([]group, error) { return w.l1(ctx, names) },
		func() ([]group, error) { return w.l2(ctx, names) },
		func() ([]group, error) { return w.miss(ctx) },
		func() ([]group, error) { return w.batch(ctx, names, keys("plain:")) },
	} {
		groups, err := make()
		if err != nil {
			return nil, err
		}
		all = append(all, groups...)
	}
	return all, nil
}

// metric is the name of a ratio, told apart where it is measured twice.
func metric(g group, name string) string {
	if g.workers > 1 {
		return fmt.Sprintf("%s_%d_goroutines", name, g.workers)
	}
	return name
}

// print renders the table: medians, and the quartiles of the ratio.
func (r *Report) print(w io.Writer) error {
	table := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprint(table, "GROUP\tSUBJECT\tTIME\tRATIO\tQUARTILES\tCPU\tALLOCS\tREDIS READS\tTARGET\n")
	for i, row := range r.Rows {
		name, target := row.Group, ""
		if i > 0 && r.Rows[i-1].Group == row.Group {
			name = ""
		}
		if row.AtMost > 0 {
			target = fmt.Sprintf("<= %g", row.AtMost)
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%.2f\t%.2f..%.2f\t%.2f\t%.1f\t%.2f\t%s\n", name, row.Subject,
			duration(row.Nanoseconds.Median), row.Ratio.Median, row.Ratio.Low, row.Ratio.High, row.CPU.Median, row.Allocations, max(0, row.Reads), target)
	}
	return table.Flush()
}

func duration(ns float64) string {
	if ns < 1000 {
		return fmt.Sprintf("%.1f ns", ns)
	}
	return fmt.Sprintf("%.1f us", ns/1000)
}

func (r *Report) write(path string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode report: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make directory of the report: %w", err)
	}
	if err := os.WriteFile(path, append(data, '\n'), 0o644); err != nil {
		return fmt.Errorf("write report: %w", err)
	}
	return nil
}

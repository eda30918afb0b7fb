// Command bench measures Lethe against what one would use instead, on this
// machine, and compares the ratios with the budgets of the design. docs/bench.md
// says what each number means.
//
//	go run ./bench -quick     about two minutes
//	go run ./bench            the full sizes
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == childCommand {
		os.Exit(memoryChild(os.Args[2:], os.Stdout, os.Stderr))
	}
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// options are the command line.
type options struct {
	quick    bool
	out      string
	only     string
	binary   string
	profiles string
	rounds   int
	limit    time.Duration
	verbose  bool
}

func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.BoolVar(&o.quick, "quick", false, "smaller sizes, about two minutes in all")
	fs.StringVar(&o.out, "o", "", "`file` for the JSON (default bench/results/<time>.json)")
	fs.StringVar(&o.only, "only", "", "measure only metrics whose name contains one of these `words`, separated by commas")
	fs.StringVar(&o.binary, "lethe", "", "measure this `binary` instead of building one")
	fs.StringVar(&o.profiles, "profile", "", "write CPU profiles of the reader and of Invalidate to this `directory`")
	fs.IntVar(&o.rounds, "rounds", 0, "rounds of subject and baseline (default 3 quick, 5 full)")
	fs.DurationVar(&o.limit, "limit", 0, "end of the whole run (default 2m30s quick, 40m full)")
	fs.BoolVar(&o.verbose, "v", false, "log every drain")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	if fs.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	if o.rounds < 0 || o.limit < 0 {
		return o, errors.New("-rounds and -limit can not be negative")
	}
	return o, nil
}

// apply returns the sizes and the names of the metrics that the options ask for.
func (o options) apply() (sizes, []string, error) {
	s := fullSizes
	if o.quick {
		s = quickSizes
	}
	if o.rounds > 0 {
		s.Rounds, s.LatencyRounds = o.rounds, o.rounds
	}
	if o.limit > 0 {
		s.Limit = o.limit
	}
	names := s.measured()
	if o.only != "" {
		names = s.known()
		words := strings.Split(o.only, ",")
		names = slices.DeleteFunc(names, func(name string) bool {
			return !slices.ContainsFunc(words, func(w string) bool { return w != "" && strings.Contains(name, w) })
		})
		if len(names) == 0 {
			return s, nil, fmt.Errorf("-only %s: there is no such metric; they are %s", o.only, strings.Join(s.known(), ", "))
		}
	}
	return s, names, nil
}

// errLimit is why a run ended before it was complete.
var errLimit = errors.New("the time limit of the run was reached")

// run is main with its surroundings given; it returns the exit code: 0 if every
// metric was measured, 1 if not, 2 for a wrong command line.
func run(args []string, stdout, stderr io.Writer) int {
	o, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	var s sizes
	var names []string
	if err == nil {
		s, names, err = o.apply()
	}
	if err != nil {
		fmt.Fprintln(stderr, "Error:", err)
		return 2
	}
	level := slog.LevelWarn
	if o.verbose {
		level = slog.LevelInfo
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	facts := thisMachine()
	dir, err := os.MkdirTemp("", "lethe-bench-")
	if err != nil {
		fmt.Fprintln(stderr, "Error:", err)
		return 1
	}
	defer os.RemoveAll(dir)
	e := &env{
		sizes: s, metrics: newMetrics(names), dir: dir, profiles: o.profiles,
		log: slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level})),
	}
	fmt.Fprintf(stdout, "%s sizes on %d cores (load %s), %d rounds, at most %v\n", s.Mode, facts.Cores, facts.Load, s.Rounds, s.Limit)
	// Compiling is not part of the time that the run may take: it is nothing
	// the second time, and minutes on a machine that has compiled nothing yet.
	e.openLethe(ctx, o.binary)
	started := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, s.Limit, errLimit)
	defer cancel()
	err = e.open(ctx)
	if err == nil {
		facts = e.machine(ctx, facts) // now: the end of ctx ends the connections too
		e.measure(ctx)
	}
	if closed := e.close(); closed != nil {
		fmt.Fprintln(stderr, "Error: stop servers:", closed)
	}
	if err != nil {
		fmt.Fprintln(stderr, "Error:", err)
		return 1
	}
	return e.finish(started, facts, o.out, stdout, stderr)
}

// finish prints the table, writes the file and decides the exit code.
func (e *env) finish(started time.Time, facts Machine, out string, stdout, stderr io.Writer) int {
	fmt.Fprintf(stdout, "Postgres %s, Redis %s, Kafka %s, %s; %.0f s\n\n", facts.Postgres, facts.Redis, facts.Kafka, facts.Go, time.Since(started).Seconds())
	if err := e.metrics.print(stdout); err != nil {
		fmt.Fprintln(stderr, "Error:", err)
		return 1
	}
	if out == "" {
		out = filepath.Join("bench", "results", started.UTC().Format("20060102T150405Z")+".json")
	}
	if err := newReport(started, e.sizes, facts, e.metrics).write(out); err != nil {
		fmt.Fprintln(stderr, "Error:", err)
		return 1
	}
	fmt.Fprintf(stdout, "\nwritten to %s\n", out)
	if !e.metrics.complete() {
		fmt.Fprintln(stderr, "Error: not every metric could be measured")
		return 1
	}
	return 0
}

// measure runs every measurement in turn. What follows the workloads' order in
// the log comes first; the large transaction, which leaves gigabytes of it
// behind, comes last.
func (e *env) measure(ctx context.Context) {
	e.step(ctx, "first start of lethe", e.prepareLethe, func(error) {})
	if e.metrics.wants(append([]string{"reader_vs_pg_recvlogical"}, pipelineMetrics[:4]...)...) {
		for _, w := range e.workloads {
			e.measureWorkload(ctx, w)
		}
	}
	all := func(names ...string) func(error) {
		return func(err error) {
			for _, name := range names {
				e.metrics.unmeasured(name, noWorkload, err)
			}
		}
	}
	e.step(ctx, "latency", e.measureLatency, all(pipelineMetrics[4:]...))
	e.step(ctx, "commit to L1", e.measureL1, all(l1Metrics...))
	e.step(ctx, "invalidate", e.measureInvalidate, all("invalidate_vs_unlink"))
	e.step(ctx, "memory", e.measureMemory, all(e.sizes.MemoryMetric))
}

// measureWorkload writes one workload into the log and drains it in every way.
func (e *env) measureWorkload(ctx context.Context, w *workload) {
	leaves := func(names ...string) func(error) {
		return func(err error) {
			for _, name := range names {
				if name != "kafka_vs_direct" || slices.Contains(e.sizes.KafkaWorkloads, w.name) {
					e.metrics.unmeasured(name, w.name, err)
				}
			}
		}
	}
	written := false
	e.step(ctx, "write workload "+w.name, func(ctx context.Context) error {
		err := w.generate(ctx, e.db, int64(e.tableRows))
		written = err == nil
		return err
	}, leaves(append([]string{"reader_vs_pg_recvlogical"}, pipelineMetrics[:4]...)...))
	if !written {
		return
	}
	e.step(ctx, "reader "+w.name, func(ctx context.Context) error { return e.measureReader(ctx, w) }, leaves("reader_vs_pg_recvlogical"))
	e.step(ctx, "pipeline "+w.name, func(ctx context.Context) error { return e.measurePipeline(ctx, w) }, leaves(pipelineMetrics[:4]...))
	if e.kafka == nil && e.kafkaErr != nil {
		leaves("kafka_vs_direct")(e.kafkaErr)
	}
	// The log behind it is not needed any more.
	if err := e.db.dropSlot(context.WithoutCancel(ctx), w.slot()); err != nil {
		e.log.Warn("slot left", "slot", w.slot(), "err", err)
	}
}

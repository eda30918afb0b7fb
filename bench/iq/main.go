// Command iq repeats a published experiment: which part of the reads of a social
// network are wrong, with a plain cache, with leases, and with Lethe, while more
// and more sessions read and write at the same time. docs/iq.md says what counts
// as wrong.
//
//	go run ./bench/iq
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lethe-cache/lethe/internal/servers"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// options are the command line.
type options struct {
	sessions []int
	duration time.Duration
	members  int
	writes   float64
	deaths   float64
	out      string
	binary   string
}

func parse(args []string, stderr io.Writer) (o options, err error) {
	fs := flag.NewFlagSet("iq", flag.ContinueOnError)
	fs.SetOutput(stderr)
	sessions := fs.String("sessions", "10,50,100,200", "numbers of concurrent sessions, separated by commas")
	fs.DurationVar(&o.duration, "duration", 3500*time.Millisecond, "how long each cell of the table is run")
	fs.IntVar(&o.members, "members", 1000, "members of the social network")
	fs.Float64Var(&o.writes, "writes", 0.1, "part of the actions that write")
	fs.Float64Var(&o.deaths, "deaths", 0.02, "part of the writers that end right after COMMIT, in the second table")
	fs.StringVar(&o.out, "o", "", "`file` for the JSON (default bench/results/iq-<time>.json)")
	fs.StringVar(&o.binary, "lethe", "", "use this `binary` instead of building one")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	for s := range strings.SplitSeq(*sessions, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(s))
		if err != nil || n < 1 || n > 1000 {
			return o, fmt.Errorf("-sessions %s: want numbers from 1 to 1000", *sessions)
		}
		o.sessions = append(o.sessions, n)
	}
	switch {
	case fs.NArg() > 0:
		return o, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	case o.duration <= 0:
		return o, fmt.Errorf("-duration %v: want more than nothing", o.duration)
	case o.members < 2:
		return o, fmt.Errorf("-members %d: want at least 2", o.members)
	case !(o.writes >= 0 && o.writes < 1) || !(o.deaths >= 0 && o.deaths <= 1):
		return o, errors.New("-writes and -deaths are parts of 1")
	}
	return o, nil
}

// run is main with its surroundings given; it returns the exit code: 1 if
// something could not be measured, or if Lethe had a wrong read.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintln(stderr, "Error:", err)
		return 2
	}
	if err := experiment(ctx, o, stdout); err != nil {
		fmt.Fprintln(stderr, "Error:", err)
		return 1
	}
	return 0
}

func experiment(ctx context.Context, o options, stdout io.Writer) (err error) {
	dir, err := os.MkdirTemp("", "lethe-iq-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if o.binary == "" {
		if o.binary, err = servers.BuildLethe(ctx, dir); err != nil {
			return err
		}
	}
	most := 0
	for _, n := range o.sessions {
		most = max(most, n)
	}
	w, err := openWorld(ctx, o.binary, o.members, most)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	r := newReport(o, w.names)
	fmt.Fprintf(stdout, "%s; %d members, %.0f%% writes, %v a cell\n\n", w.names, o.members, 100*o.writes, o.duration)
	for _, n := range o.sessions {
		for _, v := range variants {
			if err := r.measure(ctx, w, v, n, 0); err != nil {
				return err
			}
		}
	}
	// Who writes may end at any point. The order that is right otherwise has
	// nothing for that: the delete never comes.
	for _, v := range variants {
		if o.deaths > 0 {
			if err := r.measure(ctx, w, v, o.sessions[len(o.sessions)/2], o.deaths); err != nil {
				return err
			}
		}
	}
	if err := r.print(stdout); err != nil {
		return err
	}
	if o.out == "" {
		o.out = filepath.Join("bench", "results", "iq-"+r.Started.Format("20060102T150405Z")+".json")
	}
	if err := r.write(o.out); err != nil {
		return err
	}
	fmt.Fprintf(stdout, "\nwritten to %s\n", o.out)
	return r.verdict()
}

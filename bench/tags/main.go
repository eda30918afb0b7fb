// Command tags measures the purge of a name with 1, 1,000, 100,000 and 1,000,000
// members: how long until readers refuse the old values, how long the sweep
// takes, what the index weighs, and what other clients of Redis feel of it. It
// starts a Postgres, a Redis and lethe run, the program as it ships, and puts
// its table into docs/tags.md.
//
//	go run ./bench/tags
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// options are the command line.
type options struct {
	sizes  []int
	rounds int
	out    string
	binary string
}

func parse(args []string, stderr io.Writer) (o options, err error) {
	fs := flag.NewFlagSet("tags", flag.ContinueOnError)
	fs.SetOutput(stderr)
	sizes := fs.String("sizes", "1,1000,100000,1000000", "numbers of members, separated by commas; the first is what the others are compared with")
	fs.IntVar(&o.rounds, "rounds", 0, "purges of each size (default 25, and fewer of large ones)")
	fs.StringVar(&o.out, "o", "", "`file` whose table is replaced, such as docs/tags.md (default: it is only printed)")
	fs.StringVar(&o.binary, "lethe", "", "use this `binary` instead of building one")
	if err := fs.Parse(args); err != nil {
		return o, err
	}
	for s := range strings.SplitSeq(*sizes, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(s))
		if err != nil || n < 1 || n > 5_000_000 {
			return o, fmt.Errorf("-sizes %s: want numbers from 1 to 5000000", *sizes)
		}
		o.sizes = append(o.sizes, n)
	}
	if fs.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", fs.Arg(0))
	}
	return o, nil
}

// roundsOf is how many purges of a size are measured: large ones take their
// time, and differ less from each other.
func (o *options) roundsOf(size int) int {
	switch {
	case o.rounds > 0:
		return o.rounds
	case size >= 1_000_000:
		return 5
	case size >= 100_000:
		return 10
	}
	return 25
}

// run is main with its surroundings given; it returns the exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o, err := parse(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return 0
	}
	if err != nil {
		fmt.Fprintln(stderr, "Error:", err)
		return 2
	}
	if err := measure(ctx, o, stdout); err != nil {
		fmt.Fprintln(stderr, "Error:", err)
		return 1
	}
	return 0
}

func measure(ctx context.Context, o options, stdout io.Writer) (err error) {
	w, err := openWorld(ctx, o.binary)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	r := newReport(w.names)
	// Once for nothing, so that the first size does not pay for what is loaded
	// and connected once.
	if _, err := w.purge(ctx, 1); err != nil {
		return err
	}
	// Round by round, not size by size: what the machine does meanwhile meets
	// all sizes alike.
	for round := range 25 + o.rounds {
		for _, size := range o.sizes {
			if round >= o.roundsOf(size) {
				continue
			}
			p, err := w.purge(ctx, size)
			if err != nil {
				return fmt.Errorf("purge of %d members: %w", size, err)
			}
			fmt.Fprintf(stdout, "%d members: refused after %v (L1) and %v (Redis), swept in %v\n", size, p.l1, p.l2, p.sweep)
			r.add(size, p)
		}
	}
	text := r.table()
	fmt.Fprintf(stdout, "\n%s", text)
	if o.out == "" {
		return nil
	}
	return replaceTable(o.out, text)
}

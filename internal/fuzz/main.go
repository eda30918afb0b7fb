// Command fuzz finds every fuzz target of the module and fuzzes each for a
// while, a few at a time. It fails if one of them does.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

func main() {
	each := flag.Duration("time", 30*time.Second, "how long to fuzz each target")
	atOnce := flag.Int("at-once", 2, "how many targets to fuzz at the same time, one worker each")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := fuzzAll(ctx, ".", *each, *atOnce); err != nil {
		fmt.Fprintln(os.Stderr, "fuzz:", err)
		os.Exit(1)
	}
}

// target is one fuzz function.
type target struct{ dir, name string }

func fuzzAll(ctx context.Context, root string, each time.Duration, atOnce int) error {
	targets, err := find(root)
	if err != nil {
		return err
	}
	fmt.Printf("fuzz: %d targets, %v each, %d at a time\n", len(targets), each, atOnce)
	var (
		g      errgroup.Group
		mu     sync.Mutex // output of one target stays together
		failed []string
	)
	g.SetLimit(atOnce)
	for _, t := range targets {
		g.Go(func() error {
			if ctx.Err() != nil {
				return nil
			}
			out, err := fuzz(ctx, t, each)
			mu.Lock()
			defer mu.Unlock()
			fmt.Printf("fuzz: %s %s\n%s", t.dir, t.name, out)
			if err != nil {
				failed = append(failed, t.dir+" "+t.name)
			}
			return nil
		})
	}
	_ = g.Wait()
	if len(failed) > 0 {
		return errors.New("failed: " + strings.Join(failed, ", "))
	}
	return ctx.Err()
}

// fuzz runs one target in one process with one worker.
func fuzz(ctx context.Context, t target, each time.Duration) (output string, err error) {
	cmd := exec.CommandContext(ctx, "go", "test", "-run=^$", "-fuzz=^"+t.name+"$",
		// Minimising one interesting input may otherwise take the whole time.
		"-fuzztime="+each.String(), "-fuzzminimizetime=10x", "-parallel=1", "./"+t.dir)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	if input := stalled(out); err != nil && input != "" && ctx.Err() == nil {
		again, failed := rerun(ctx, t, input)
		return string(out) + again, failed
	}
	return string(out), err
}

var written = regexp.MustCompile(`Failing input written to testdata/fuzz/\w+/(\w+)`)

// stalled returns the name of the input that the process is said to have hung
// or died in, which it also is where the machine stood still for ten seconds.
func stalled(out []byte) (input string) {
	if !bytes.Contains(out, []byte("fuzzing process hung or terminated unexpectedly")) {
		return ""
	}
	if m := written.FindSubmatch(out); m != nil {
		return string(m[1])
	}
	return ""
}

// rerun tries such an input three times by itself. One that fails or hangs
// does so again; one that passes is forgotten, and the output says so.
func rerun(ctx context.Context, t target, input string) (output string, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "go", "test", "-count=3", "-timeout=1m", "-run=^"+t.name+"$/^"+input+"$", "./"+t.dir).CombinedOutput()
	if err != nil {
		return string(out), err
	}
	return "the input passes by itself: the machine stood still\n", os.Remove(filepath.Join(t.dir, "testdata", "fuzz", t.name, input))
}

var fuzzFunc = regexp.MustCompile(`(?m)^func (Fuzz\w+)\(\w+ \*testing\.F\)`)

// find lists the targets in test files below root, sorted.
func find(root string) ([]target, error) {
	var targets []target
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); path != root && (name == "testdata" || strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_")) {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		src, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		dir, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		for _, m := range fuzzFunc.FindAllSubmatch(src, -1) {
			targets = append(targets, target{dir, string(m[1])})
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look for fuzz targets: %w", err)
	}
	slices.SortFunc(targets, func(a, b target) int { return strings.Compare(a.dir+" "+a.name, b.dir+" "+b.name) })
	return targets, nil
}

// Command setup makes a machine ready for the tests and says, one line to each
// server, what they will run on and what is left out.
//
// As root on Debian it installs PostgreSQL (with pgbench and the other client
// programs), Redis, a C compiler (for the race detector), and Python and Node
// (for the examples in those languages), whichever is missing. For everybody it
// downloads the embedded Postgres versions, Kafka's jars and the compiler of
// TypeScript into the cache. What it cannot get is left out and is no error: the
// harness skips the tests that need it.
package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"

	"github.com/lethe-cache/lethe/internal/servers"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := setup(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "setup:", err)
		os.Exit(1)
	}
}

func setup(ctx context.Context) error {
	if packages := missing(ctx); len(packages) > 0 {
		if err := servers.Install(ctx, packages...); err != nil {
			say("packages", "%s not installed: %v", strings.Join(packages, ", "), err)
		} else {
			say("packages", "installed %s", strings.Join(packages, ", "))
		}
	}

	postgres, err := servers.FindPostgres(ctx, servers.Debian)
	report("postgres", postgres, err, "tests run on the embedded one; those that need pgbench or other client programs are left out")
	for _, version := range servers.EmbeddedVersions() {
		line, err := servers.FindPostgres(ctx, version)
		report("postgres", line, err, "tests on Postgres "+version+" are left out")
	}
	redis, err := servers.FindRedis()
	report("redis", redis, err, "tests on a real Redis are left out")
	kafka, err := servers.FindKafka(ctx)
	report("kafka", kafka, err, "tests run on kfake, in the process; those that stop a broker are left out")
	python, err := servers.FindPython(ctx)
	report("python", python, err, "tests of the example in Python are left out")
	typescript, err := servers.FindTypeScript(ctx)
	report("typescript", typescript, err, "tests of the example in TypeScript are left out")
	if _, err := exec.LookPath(compiler()); err != nil {
		say("race", "no C compiler (%s): tests run without the race detector", compiler())
	}
	return ctx.Err()
}

func say(what, format string, args ...any) {
	fmt.Printf("setup: %-11s %s\n", what+":", fmt.Sprintf(format, args...))
}

// report prints the server that was found or what goes without it.
func report(what, found string, err error, without string) {
	if err != nil {
		found = without + " (" + firstLine(err) + ")"
	}
	say(what, "%s", found)
}

func firstLine(err error) string {
	line, _, _ := strings.Cut(err.Error(), "\n")
	return line
}

// compiler is the C compiler that cgo, and so the race detector, would use.
func compiler() string {
	if cc := os.Getenv("CC"); cc != "" {
		return cc
	}
	return "gcc"
}

// missing lists the Debian packages of what the tests want and this machine has
// not.
func missing(ctx context.Context) []string {
	var packages []string
	if _, err := servers.FindPostgres(ctx, servers.Debian); err != nil {
		packages = append(packages, "postgresql")
	}
	if _, err := servers.FindRedis(); err != nil {
		packages = append(packages, "redis-server")
	}
	if _, err := exec.LookPath(compiler()); err != nil {
		packages = append(packages, "gcc", "libc6-dev")
	}
	if _, err := servers.FindPython(ctx); err != nil {
		packages = append(packages, "python3")
	}
	if _, err := servers.FindNode(ctx); err != nil {
		packages = append(packages, "nodejs")
	}
	if _, err := exec.LookPath("npm"); err != nil {
		packages = append(packages, "npm")
	}
	return packages
}

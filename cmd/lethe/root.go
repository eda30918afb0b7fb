package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"

	"github.com/redis/go-redis/v9"
	"github.com/spf13/cobra"
)

// program is what every subcommand shares.
type program struct {
	settings settings
	stdout   io.Writer
	stderr   io.Writer
	log      *slog.Logger
	// terminal is stderr, if a person looks at it; else nil.
	terminal *terminal
}

// execute runs the program and returns its exit code.
func execute(ctx context.Context, args, environ []string, stdout, stderr io.Writer) int {
	p := &program{stdout: stdout, stderr: stderr}
	if isTerminal(stderr) {
		p.terminal = &terminal{w: stderr}
		p.stderr = p.terminal
	}
	root := p.root(environ)
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	// What cobra finds wrong with a command line has no code of its own.
	var exit *exitError
	if err != nil && !errors.As(err, &exit) && isCommandLine(err) {
		err = &exitError{code: exitUsage, err: err, hint: "lethe --help lists commands and settings"}
	}
	return report(stderr, err)
}

func (p *program) root(environ []string) *cobra.Command {
	root := &cobra.Command{
		Use:     "lethe",
		Short:   "Keeps caches true to a Postgres database",
		Version: buildVersion(),
		Long: `Lethe tails Postgres logical replication, maps committed row changes to cache
keys and tags by the rules of rules.yaml, and empties Redis and every in-process
cache of what they made stale.

A setting is a flag, the environment variable LETHE_<NAME>, or a line of
lethe.yaml; the first one found counts.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if err := p.settings.load(cmd.Flags(), environ, settingOf(cmd.Root())); err != nil {
				return err
			}
			p.log = newLogger(p.stderr, p.settings.Log, p.settings.LogLevel)
			redis.SetLogger(redisLog{p.log})
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usagef("unknown command %q", args[0])
			}
			return cmd.Help()
		},
		Args: cobra.ArbitraryArgs,
	}
	root.CompletionOptions.HiddenDefaultCmd = true
	root.SetOut(p.stdout)
	root.SetErr(p.stderr)
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usagef("%w", err) })
	p.settings.addFlags(root.PersistentFlags())
	root.AddCommand(
		p.runCommand(), p.demoCommand(), p.checkCommand(), p.doctorCommand(),
		p.explainCommand(), p.testCommand(), p.graphCommand(), p.initCommand(), p.docCommand(), p.invalidateCommand(), p.warmCommand(), p.statusCommand(), p.migrateCommand(), p.versionCommand(),
	)
	return root
}

// settingOf returns what reports whether some command has a flag of that name.
func settingOf(root *cobra.Command) func(name string) bool {
	return func(name string) bool {
		if root.PersistentFlags().Lookup(name) != nil {
			return true
		}
		return slices.ContainsFunc(root.Commands(), func(c *cobra.Command) bool { return c.Flags().Lookup(name) != nil })
	}
}

// isCommandLine reports whether cobra itself refused the command line.
func isCommandLine(err error) bool {
	for _, s := range []string{"unknown command", "unknown flag", "unknown shorthand", "accepts ", "required flag", "invalid argument"} {
		if strings.Contains(err.Error(), s) {
			return true
		}
	}
	return false
}

// redisLog takes what the Redis client would print by itself: what it could not
// connect to comes back as an error too, and is told there.
type redisLog struct{ log *slog.Logger }

func (l redisLog) Printf(ctx context.Context, format string, args ...any) {
	l.log.DebugContext(ctx, fmt.Sprintf(format, args...), "component", "go-redis")
}

func newLogger(w io.Writer, format, level string) *slog.Logger {
	var l slog.Level
	_ = l.UnmarshalText([]byte(level)) // validated with the settings; info otherwise
	options := &slog.HandlerOptions{Level: l}
	if format == "json" {
		return slog.New(slog.NewJSONHandler(w, options))
	}
	return slog.New(slog.NewTextHandler(w, options))
}

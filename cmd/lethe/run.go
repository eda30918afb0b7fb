package main

import (
	"errors"
	"fmt"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"

	"github.com/lethe-cache/lethe/invalidator"
	"github.com/lethe-cache/lethe/rules"
)

func (p *program) runCommand() *cobra.Command {
	var names []string
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Follow the database and empty the cache",
		Long: `Follow the database and empty the cache.

Without LETHE_KAFKA_BROKERS reader and worker share this process, and the slot
follows what Redis has applied. With them the reader writes to the topic and the
workers of a group share its partitions; --roles splits the two.

SIGHUP, and a change of their files, reloads the rules: all of them or, if anything
is wrong with them, none; /readyz tells of it then. The first SIGINT or SIGTERM stops the intake and applies what was taken; the
second leaves it, to be delivered again at the next start.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := parseRoles(names, p.settings.direct())
			if err != nil {
				return err
			}
			if err := p.settings.validate(true); err != nil {
				return err
			}
			if err := p.settings.Warm.validate(); err != nil {
				return err
			}
			// Before the rules are read: what comes later is a reload, however long
			// the start takes.
			asked, stopAsking := reloadSignals()
			defer stopAsking()
			seen := rules.Fingerprint(p.settings.Rules...)
			set, err := p.loadRules()
			if err != nil {
				return err
			}
			for _, f := range set.Lint().Warnings() {
				p.log.Debug("rules", "code", f.Code, "finding", f.String(), "fix", f.Fix)
			}
			graceful, hurry, release := stopSignals(cmd.Context())
			defer release()
			registry := prometheus.NewRegistry()
			line, err := newPipeline(&p.settings, r, set, p.log, registry)
			if err != nil {
				return err
			}
			line.asked, line.seen, line.terminal = asked, seen, p.terminal
			var server *httpServer
			if p.settings.Listen != "" {
				if server, err = listen(p.settings.Listen, registry, line.readiness); err != nil {
					return err
				}
			}
			p.log.Info("lethe starts", "version", buildVersion(), "roles", strings.Join(names, ","),
				"transport", p.settings.transport(), "rules", len(set.Rules), "listen", p.settings.Listen)
			err = errors.Join(line.run(graceful, hurry), server.close())
			p.log.Info("lethe stopped")
			return err
		},
	}
	cmd.Flags().StringSliceVar(&names, "roles", []string{"reader", "worker"}, "what this process does: reader, worker; warmer is a part of worker")
	p.settings.Warm.addFlags(cmd.Flags())
	cmd.Flags().Int64Var(&p.settings.WALBudget, "wal-budget", 0,
		"bytes of WAL that the slot may keep; beyond it the slot is given up and everything cached is forgotten (0: no limit)")
	cmd.Flags().IntVar(&p.settings.PruneRate, "prune-rate", invalidator.PruneRateDefault,
		"keys and members that the pruner of the name index looks at in a second on each master (0: none)")
	return cmd
}

// parseRoles reads --roles. In direct the reader and the worker can not be
// parted: there is nothing between them.
func parseRoles(names []string, direct bool) (roles, error) {
	var r roles
	warmer := false
	for _, name := range names {
		switch strings.TrimSpace(name) {
		case "reader":
			r.reader = true
		case "worker":
			r.worker = true
		case "warmer":
			warmer = true
		case "console", "audit":
			return r, usagef("--roles: %q is not part of this version; it has reader, worker and warmer", name)
		default:
			return r, usagef("--roles: unknown role %q: want reader, worker, warmer", name)
		}
	}
	// What is forgotten is filled again by who forgot it.
	if warmer && !r.worker {
		return r, usagef("--roles: warmer is a part of worker: name both; `lethe warm` fills entries beside them")
	}
	if !r.reader && !r.worker {
		return r, usagef("--roles: names no role: want reader, worker, warmer")
	}
	if direct && (!r.reader || !r.worker) {
		return r, usagef("--roles %s needs a broker between reader and worker: set LETHE_KAFKA_BROKERS", strings.Join(names, ","))
	}
	return r, nil
}

// loadRules reads the rules files; findings of severity error are the error.
func (p *program) loadRules() (*rules.Set, error) { return loadRules(p.settings.Rules) }

func loadRules(files []string) (*rules.Set, error) {
	set, err := rules.Load(files...)
	if err != nil {
		var findings rules.Findings
		if errors.As(err, &findings) {
			return nil, err
		}
		return nil, &exitError{code: exitFailed, err: fmt.Errorf("read the rules: %w", err), hint: "LETHE_RULES names the files"}
	}
	return set, nil
}

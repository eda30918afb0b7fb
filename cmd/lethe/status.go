package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lethe-cache/lethe/coherence"
)

func (p *program) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "What the running process says of itself, and how far the cache is",
		Long: `Asks the process at LETHE_LISTEN for /readyz, and Redis for the control data of
the rules' namespace. Exit code 0 if the process is ready, else 1.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := p.settings.validate(false); err != nil {
				return err
			}
			ready := p.processStatus(cmd.Context())
			p.cacheStatus(cmd.Context())
			if !ready {
				return silent(exitFailed)
			}
			return nil
		},
	}
}

const statusTimeout = 3 * time.Second

// processStatus prints /readyz of the process and reports whether it is ready.
func (p *program) processStatus(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	if p.settings.Listen == "" {
		fmt.Fprintln(p.stdout, "process   LETHE_LISTEN is off: there is no address to ask")
		return false
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+p.settings.Listen+"/readyz", nil)
	if err != nil {
		fmt.Fprintln(p.stdout, "process   ", err)
		return false
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		fmt.Fprintf(p.stdout, "process   nobody answers at %s: %v\n", p.settings.Listen, err)
		return false
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	var state readiness
	if err == nil {
		err = json.Unmarshal(body, &state)
	}
	if err != nil {
		fmt.Fprintf(p.stdout, "process   %s answers %s, which is not lethe's: %v\n", p.settings.Listen, response.Status, err)
		return false
	}
	if state.Ready {
		fmt.Fprintln(p.stdout, "process   ready")
	} else {
		fmt.Fprintln(p.stdout, "process   not ready:", strings.Join(state.Reasons, "; "))
	}
	names := make([]string, 0, len(state.Details))
	for name := range state.Details {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		text, _ := json.Marshal(state.Details[name]) // it came from JSON
		fmt.Fprintf(p.stdout, "  %-18s %s\n", name, text)
	}
	return state.Ready
}

// cacheStatus prints the control data that Redis holds.
func (p *program) cacheStatus(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	set, err := p.loadRules()
	if err != nil {
		fmt.Fprintln(p.stdout, "cache     the rules can not be read, so the namespace is not known:", err)
		return
	}
	store, err := coherence.Dial(ctx, p.settings.RedisURL, coherence.Options{Namespace: set.Namespace})
	if err != nil {
		fmt.Fprintln(p.stdout, "cache    ", err)
		return
	}
	defer store.Close()
	classes := make([]string, len(set.Entries))
	for i, c := range set.Entries {
		classes[i] = c.Name
	}
	control, err := store.Control(ctx, classes...)
	if err != nil {
		fmt.Fprintln(p.stdout, "cache    ", err)
		return
	}
	if control.Source.Era == 0 {
		fmt.Fprintln(p.stdout, "cache     no source is recorded: nothing is cached in this namespace until a worker has run")
		return
	}
	fmt.Fprintf(p.stdout, "cache     era %d of system %d, timeline %d\n", control.Source.Era, control.Source.SystemID, control.Source.Timeline)
	fmt.Fprintf(p.stdout, "  %-18s %s\n  %-18s %s\n  %-18s %d\n", "visible", control.V, "applied", control.W, "broadcasts", control.Number)
	fmt.Fprintf(p.stdout, "  %-18s %d\n", "open purges", len(control.Purges))
	sweeps, err := store.Sweeps(ctx)
	if err != nil {
		return // a progress that can not be shown
	}
	for _, w := range sweeps {
		if w.Done < w.Total {
			fmt.Fprintf(p.stdout, "  %-18s %d of %d members of %s\n", "sweeping", w.Done, w.Total, strings.Join(w.Purge.Tags, ", "))
		}
	}
}

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/rules"
)

// forgotten is what --pattern did, as -o json prints it.
type forgotten struct {
	Namespace string `json:"namespace"`
	Pattern   string `json:"pattern"`
	// Raised are the classes that were raised, Unlinked the values that were
	// found, by class; "" is those without one.
	Raised   []string       `json:"raised"`
	Unlinked map[string]int `json:"unlinked"`
	Masters  []string       `json:"masters"`
	// Looked is how many keys were looked at, about.
	Looked  int     `json:"looked"`
	Seconds float64 `json:"seconds"`
}

// globOf is the pattern that --pattern or --prefix asks for.
func (o *invalidateOptions) globOf() (glob string, err error) {
	if o.pattern == "" && o.prefix == "" {
		return "", nil
	}
	switch {
	case o.pattern != "" && o.prefix != "":
		return "", usagef("--pattern and --prefix: want one of them")
	case len(o.keys)+len(o.tags)+len(o.classes) > 0 || o.all:
		return "", usagef("--pattern and --prefix go with none of --key, --tag, --class and --all")
	case o.at != "":
		return "", usagef("--pattern and --prefix look at the keys that there are now: they go with no --at")
	case o.action != "" && o.action != actionDelete:
		return "", usagef("--action %s: --pattern and --prefix forget, and nothing else", o.action)
	case o.rate <= 0:
		return "", usagef("--rate %d: want at least one key a second", o.rate)
	case o.prefix != "":
		return coherence.EscapeGlob(o.prefix) + "*", nil
	}
	return o.pattern, nil
}

const actionDelete = "delete"

// forgetPattern raises the classes that a glob can match, through the log and
// so exactly: what is being filled is refused too. Behind that it walks all
// masters and unlinks what matches, keys without a class among it, which no
// raise reaches and whose names are broadcast.
func (p *program) forgetPattern(ctx context.Context, o *invalidateOptions, set *rules.Set, d *database, glob string) error {
	began := time.Now()
	store, err := coherence.Dial(ctx, p.settings.RedisURL, coherence.Options{Namespace: set.Namespace, Logger: p.log})
	if err != nil {
		return fmt.Errorf("connect to Redis: %w", classifyRedis(err))
	}
	defer store.Close()
	source, err := store.Source(ctx)
	if err != nil {
		return err
	}
	if source.Era == 0 {
		return &exitError{code: exitFailed, err: errors.New("no worker has ever run in this namespace, so nothing is cached there by Lethe"),
			hint: "look at LETHE_REDIS_URL and at the namespace of the rules"}
	}
	out := forgotten{Namespace: set.Namespace, Pattern: glob, Raised: []string{}, Unlinked: map[string]int{}, Masters: []string{}}
	for _, c := range set.ClassesOfGlob(glob) {
		out.Raised = append(out.Raised, c.Name)
	}
	x, err := p.raiseClasses(ctx, o, set, d, source, out.Raised)
	if err != nil {
		return err
	}
	done, err := p.walkPattern(ctx, store, set, x, glob, o.rate)
	if err != nil {
		return err
	}
	for group, n := range done.Unlinked {
		switch {
		case n == 0:
		case group == 0:
			out.Unlinked[""] = n
		default:
			out.Unlinked[set.Entries[group-1].Name] = n
		}
	}
	out.Masters, out.Looked, out.Seconds = done.Masters, done.Looked/2, time.Since(began).Seconds()
	if o.output == "json" {
		return p.printJSON(out)
	}
	p.printForgotten(&out)
	return nil
}

// raiseClasses raises classes by a message in the log, waits until that is
// applied everywhere, and returns a position behind it.
func (p *program) raiseClasses(ctx context.Context, o *invalidateOptions, set *rules.Set, d *database, source change.Source, classes []string) (x change.Position, err error) {
	if len(classes) == 0 {
		instance, err := d.instance(ctx)
		if err != nil {
			return x, err
		}
		if instance.InRecovery || instance.SystemID != source.SystemID || instance.Timeline != source.Timeline {
			return x, &exitError{code: exitFailed, err: errors.New("LETHE_POSTGRES_URL names another server than the workers follow"), hint: "name their primary"}
		}
		return change.Position{Era: source.Era, LSN: instance.Insert}, nil
	}
	raise := *o
	raise.classes = classes
	message, err := raise.message(set)
	if err != nil {
		return x, err
	}
	done, err := p.emit(ctx, d, &raise, message)
	if err != nil {
		return x, err
	}
	if err := p.waitApplied(ctx, set, done, o.timeout); err != nil {
		return x, err
	}
	return change.Position{Era: source.Era, LSN: done.commit.insert}, nil
}

func (p *program) walkPattern(ctx context.Context, store *coherence.Store, set *rules.Set, x change.Position, glob string, rate int) (coherence.Forgotten, error) {
	// Group 0 is what has no class.
	group := func(name string) int {
		if c := set.ClassOf([]byte(name)); c != nil {
			return 1 + slices.Index(set.Entries, c)
		}
		return 0
	}
	b := newWaitBar(p.stderr)
	defer b.end()
	done, err := store.Forget(ctx, coherence.ForgetRequest{
		Glob: coherence.EscapeGlob(store.Layout().Name("")) + glob, X: x, Rate: rate, Group: group,
		Tell:     func(name string) bool { return group(name) == 0 },
		Progress: func(f coherence.Forgotten) { b.show("keys looked at", f.Looked, 0) },
	})
	if err != nil {
		return done, &exitError{code: exitFailed, err: err, hint: "what was raised stays raised; begin again for what is left"}
	}
	return done, nil
}

func (p *program) printForgotten(f *forgotten) {
	if len(f.Raised) > 0 {
		fmt.Fprintf(p.stdout, "raised    %s: all of it is forgotten, and what is being filled\n", strings.Join(f.Raised, ", "))
	} else {
		fmt.Fprintln(p.stdout, "raised    nothing: no class has keys of this form")
	}
	total := 0
	names := make([]string, 0, len(f.Unlinked))
	for name, n := range f.Unlinked {
		total += n
		names = append(names, name)
	}
	slices.Sort(names)
	fmt.Fprintf(p.stdout, "unlinked  %d values\n", total)
	for _, name := range names {
		label := name
		if name == "" {
			label = "without a class"
		}
		fmt.Fprintf(p.stdout, "  %-18s %d\n", label, f.Unlinked[name])
	}
	fmt.Fprintf(p.stdout, "looked at about %d keys on %d masters (%s) in %.2fs\n", f.Looked, len(f.Masters), strings.Join(f.Masters, ", "), f.Seconds)
}

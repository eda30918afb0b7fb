package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/spf13/cobra"

	"github.com/lethe-cache/lethe/cdc"
	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/rules"
)

// invalidateOptions are the flags of `lethe invalidate`.
type invalidateOptions struct {
	keys, tags, classes []string
	all, wait           bool
	action, reason, at  string
	timeout             time.Duration
	output              string
	// pattern and prefix take what keys there are, rate of them a second.
	pattern, prefix string
	rate            int
}

// waitDefault is how long --wait waits.
const waitDefault = time.Minute

func (p *program) invalidateCommand() *cobra.Command {
	var o invalidateOptions
	cmd := &cobra.Command{
		Use:   "invalidate",
		Short: "Forget keys, tags or classes, now or at a time",
		Long: `Writes one logical message into the database's log, in a transaction on the
primary. It comes to the workers as any commit does, so it is as exact: what is
read after it holds nothing from before it, in every process's own cache too, and
a worker that is down applies it when it is back. Names are without the namespace.

--at takes a time (2030-01-31T12:00:00Z) or how long from now (90m, by the
database's clock); what is due is kept in lethe.schedules and fired once, also
after an outage. --wait returns when every worker has applied all of it, sweeps
of tags included; with --at, when it is kept.

--pattern takes a glob of keys as SCAN has them (*, ?, [a-z], \\ before what is to
have no meaning), --prefix the beginning of keys. The classes of which a key may
match are raised through the log, whole, so that what is being filled is refused
too; behind that every master is walked by SCAN, at --rate keys a second, and what
matches is unlinked, keys without a class among it. It waits in any case.`,
		Example: `  lethe invalidate --key product:42 --tag category:7 --wait
  lethe invalidate --tag "category:7 & brand:3"
  lethe invalidate --class product --reason "import of 21 November"
  lethe invalidate --key product:42 --at 2026-12-24T00:00:00Z
  lethe invalidate --pattern "user:*:posts"`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return p.invalidate(cmd.Context(), &o) },
	}
	f := cmd.Flags()
	f.StringArrayVar(&o.keys, "key", nil, "a key, as often as needed")
	f.StringArrayVar(&o.tags, "tag", nil, "a tag, as often as needed; \"a & b\" is what carries both")
	f.StringArrayVar(&o.classes, "class", nil, "a class of entries, whole; as often as needed")
	f.BoolVar(&o.all, "all", false, "every class of the namespace")
	f.StringVar(&o.action, "action", "delete", "what becomes of the entries: delete, stale or rewarm")
	f.StringVar(&o.reason, "reason", "", "why; it stands in the message")
	f.StringVar(&o.at, "at", "", "when: a time, or how long from now")
	f.BoolVar(&o.wait, "wait", false, "wait until it is applied everywhere")
	f.DurationVar(&o.timeout, "timeout", waitDefault, "with --wait: how long; it is applied all the same, later")
	f.StringVar(&o.pattern, "pattern", "", "a glob of keys: raises the classes that it can match, and walks Redis for it")
	f.StringVar(&o.prefix, "prefix", "", "like --pattern, with the text that keys begin with")
	f.IntVar(&o.rate, "rate", coherence.ForgetRateDefault, "with --pattern and --prefix: keys that each master looks at in a second")
	f.StringVarP(&o.output, "output", "o", "text", "text or json")
	return cmd
}

// invalidated is what was done, as -o json prints it.
type invalidated struct {
	Namespace string     `json:"namespace"`
	Keys      []string   `json:"keys,omitempty"`
	Tags      []string   `json:"tags,omitempty"`
	Classes   []string   `json:"classes,omitempty"`
	Action    string     `json:"action"`
	At        string     `json:"at,omitempty"`
	Reason    string     `json:"reason,omitempty"`
	LSN       change.LSN `json:"lsn"`
	// Applied is true if --wait has seen it applied, or, with at, kept.
	Applied bool    `json:"applied"`
	Waited  float64 `json:"waited_seconds,omitempty"`

	// commit is where the primary stood after the commit.
	commit emitted
}

// emitted is where a message stands: its commit lies below Insert.
type emitted struct {
	systemID uint64
	timeline uint32
	insert   change.LSN
}

func (p *program) invalidate(ctx context.Context, o *invalidateOptions) error {
	if o.output != "text" && o.output != "json" {
		return usagef("-o %s: want text or json", o.output)
	}
	if err := p.settings.validate(false); err != nil {
		return err
	}
	set, err := p.loadRules()
	if err != nil {
		return err
	}
	glob, err := o.globOf()
	if err != nil {
		return err
	}
	var message rules.Message
	if glob == "" {
		if message, err = o.message(set); err != nil {
			return err
		}
	}
	if p.settings.PostgresURL == "" {
		return &exitError{code: exitUsage, err: errors.New("an invalidation is written into the log of the database, and there is none to write to"),
			hint: "set LETHE_POSTGRES_URL to the primary"}
	}
	d, err := openDatabase(p.settings.PostgresURL, p.log)
	if err != nil {
		return err
	}
	defer d.close()
	if glob != "" {
		return p.forgetPattern(ctx, o, set, d, glob)
	}
	done, err := p.emit(ctx, d, o, message)
	if err != nil {
		return err
	}
	if o.output == "text" {
		fmt.Fprintln(p.stdout, done.text())
	}
	var waitErr error
	if o.wait {
		waitErr = p.waitApplied(ctx, set, done, o.timeout)
		if waitErr == nil && o.output == "text" {
			what := "applied everywhere"
			if done.At != "" {
				what = "kept for its time"
			}
			fmt.Fprintf(p.stdout, "%s after %.2fs\n", what, done.Waited)
		}
	}
	if o.output == "json" {
		return errors.Join(waitErr, p.printJSON(done))
	}
	return waitErr
}

// message checks the flags, and that a worker will understand what they ask for.
func (o *invalidateOptions) message(set *rules.Set) (rules.Message, error) {
	m := rules.Message{Keys: o.keys, Classes: slices.Clone(o.classes), Action: o.action, Reason: o.reason, Namespace: &set.Namespace}
	for _, t := range o.tags {
		parts := strings.Split(t, " & ")
		if len(parts) == 1 {
			m.Tags = append(m.Tags, t)
			continue
		}
		for i := range parts {
			parts[i] = strings.TrimSpace(parts[i])
		}
		m.AllTags = append(m.AllTags, parts)
	}
	if o.all {
		m.Classes = append(m.Classes, "*")
	}
	if len(m.Keys)+len(m.Tags)+len(m.AllTags)+len(m.Classes) == 0 {
		return m, usagef("nothing to forget: want --key, --tag, --class, --all, --pattern or --prefix")
	}
	if o.at != "" {
		if _, err := time.Parse(time.RFC3339, o.at); err != nil {
			if d, durationErr := time.ParseDuration(o.at); durationErr != nil || d < 0 {
				return m, usagef("--at %s: want a time such as 2030-01-31T12:00:00Z, or how long from now, such as 90m", o.at)
			}
		}
	}
	content, err := m.Encode()
	if err != nil {
		return m, err
	}
	plan, err := set.Compile()
	if err != nil {
		return m, err
	}
	var targets rules.Targets
	c := &change.Change{Op: change.Message, Prefix: rules.MessagePrefix, Content: content}
	if err := plan.NewMatcher(rules.Observer{}).Match(&targets, c, change.Position{}); err != nil {
		return m, usagef("%s", strings.TrimPrefix(err.Error(), "read logical message: "))
	}
	return m, nil
}

// emit writes the message in a transaction of its own.
func (p *program) emit(ctx context.Context, d *database, o *invalidateOptions, m rules.Message) (*invalidated, error) {
	ask := func(what string, err error) error {
		var denied *pgconn.PgError
		if errors.As(err, &denied) && denied.Code == "42501" {
			return &exitError{code: exitFailed, err: fmt.Errorf("%s: %w", what, err),
				hint: "GRANT EXECUTE ON FUNCTION pg_catalog.pg_logical_emit_message(bool, text, text) to this role; by default every role may"}
		}
		return cdc.Classify(what, err)
	}
	instance, err := d.instance(ctx)
	if err != nil {
		return nil, ask("connect to Postgres", err)
	}
	if instance.InRecovery {
		return nil, &exitError{code: exitFailed, err: errors.New("LETHE_POSTGRES_URL names a standby, which can write nothing into the log"), hint: "name the primary"}
	}
	if err := d.checkWALLevel(ctx); err != nil {
		return nil, err
	}
	p.warnWithoutSlot(ctx, d)
	if o.at != "" {
		if m.At, err = p.timeOf(ctx, d, o.at); err != nil {
			return nil, err
		}
	}
	content, err := m.Encode()
	if err != nil {
		return nil, err
	}
	done := &invalidated{Namespace: *m.Namespace, Keys: m.Keys, Tags: o.tags, Classes: m.Classes, Action: m.Action, At: m.At, Reason: m.Reason}
	var lsn string
	if err := d.pool.QueryRow(ctx, `SELECT pg_catalog.pg_logical_emit_message(true, $1, $2::text)::text`, rules.MessagePrefix, string(content)).Scan(&lsn); err != nil {
		return nil, ask("write the message", err)
	}
	if done.LSN, err = change.ParseLSN(lsn); err != nil {
		return nil, err
	}
	// After the commit: its record lies below.
	if instance, err = d.instance(ctx); err != nil {
		return nil, ask("read where the log ends", err)
	}
	done.commit = emitted{systemID: instance.SystemID, timeline: instance.Timeline, insert: instance.Insert}
	return done, nil
}

// warnWithoutSlot says that nobody keeps the message until a worker comes.
func (p *program) warnWithoutSlot(ctx context.Context, d *database) {
	if !p.settings.direct() {
		return
	}
	var exists bool
	err := d.pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1)`, p.settings.Slot).Scan(&exists)
	if err == nil && !exists {
		fmt.Fprintf(p.stderr, "warning: there is no slot %q: what is written now reaches nobody, but a first `lethe run` forgets everything anyway\n", p.settings.Slot)
	}
}

// timeOf is the time of --at; how long from now is by the database's clock.
func (p *program) timeOf(ctx context.Context, d *database, at string) (string, error) {
	var there bool
	if err := d.pool.QueryRow(ctx, `SELECT to_regclass('lethe.schedules') IS NOT NULL`).Scan(&there); err != nil {
		return "", cdc.Classify("look for lethe.schedules", err)
	}
	if !there {
		return "", &exitError{code: exitFailed, err: errors.New("--at needs the table lethe.schedules, which this database does not have"), hint: "lethe migrate"}
	}
	if t, err := time.Parse(time.RFC3339, at); err == nil {
		return t.UTC().Format(time.RFC3339Nano), nil
	}
	delay, err := time.ParseDuration(at)
	if err != nil {
		return "", err // looked at with the flags
	}
	var t time.Time
	if err := d.pool.QueryRow(ctx, `SELECT clock_timestamp() + $1::interval`, delay).Scan(&t); err != nil {
		return "", cdc.Classify("read the database's clock", err)
	}
	return t.UTC().Format(time.RFC3339Nano), nil
}

const (
	waitPoll = 25 * time.Millisecond
)

// waitApplied returns when the watermark says that every effect of the message
// is done: on every partition and master, with all sweeps.
func (p *program) waitApplied(ctx context.Context, set *rules.Set, done *invalidated, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	began := time.Now()
	store, err := coherence.Dial(ctx, p.settings.RedisURL, coherence.Options{Namespace: set.Namespace, Logger: p.log})
	if err != nil {
		return fmt.Errorf("it is written, but whether it is applied can not be seen: %w", classifyRedis(err))
	}
	defer store.Close()
	state := ""
	b := newWaitBar(p.stderr)
	defer b.end()
	for {
		control, err := store.Control(ctx)
		if err == nil {
			var ok bool
			if ok, state = done.commit.applied(control); ok {
				done.Applied, done.Waited = true, time.Since(began).Seconds()
				return nil
			}
		} else if ctx.Err() == nil {
			state = err.Error()
		}
		if b.due() {
			if swept, of := p.sweptSoFar(ctx, store, set, done); of > 0 {
				state = fmt.Sprintf("%d of %d members are swept", swept, of)
				b.show("sweeping", swept, of)
			} else {
				b.say("waiting: " + state)
			}
		}
		timer := time.NewTimer(waitPoll)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			done.Waited = time.Since(began).Seconds()
			return &exitError{code: exitFailed, err: fmt.Errorf("it is written and will be applied, but was not within %s: %s", timeout, state),
				hint: "look at `lethe status` for what holds the workers up, or give --timeout"}
		}
	}
}

// sweptSoFar is how far the sweeps are that the message's tags wait for.
func (p *program) sweptSoFar(ctx context.Context, store *coherence.Store, set *rules.Set, done *invalidated) (swept, of int) {
	sweeps, err := store.Sweeps(ctx)
	if err != nil {
		return 0, 0 // a progress that can not be shown is none to fail for
	}
	for _, s := range sweeps {
		// The commit's position lies above that of the message in it.
		mine := s.Purge.X.LSN >= done.LSN && slices.ContainsFunc(s.Purge.Tags, func(full string) bool {
			return slices.ContainsFunc(done.Tags, func(t string) bool {
				return slices.Contains(strings.Split(t, " & "), strings.TrimPrefix(full, set.FullName("")))
			})
		})
		if mine {
			swept, of = swept+s.Done, of+s.Total
		}
	}
	return swept, of
}

// applied reports whether the watermark covers the message, and what is known
// of it else. A watermark of another server says nothing.
func (e emitted) applied(c *coherence.ControlState) (bool, string) {
	switch {
	case c.Source.Era == 0:
		return false, "no worker has ever run in this namespace"
	case c.Source.SystemID == 0:
		return false, "the workers do not know the era of the log, so they keep no watermark"
	case c.Source.SystemID != e.systemID || c.Source.Timeline != e.timeline:
		return false, "the workers follow another server than LETHE_POSTGRES_URL names"
	}
	need := change.Position{Era: c.Source.Era, LSN: change.Bound(e.insert)}
	if c.W.Covers(need) {
		return true, ""
	}
	return false, fmt.Sprintf("applied up to %s, visible up to %s, the message stands at %s; %d purges are open", c.W.LSN, c.V.LSN, need.LSN, len(c.Purges))
}

// text says in a line what was asked for.
func (d *invalidated) text() string {
	var parts []string
	count := func(n int, one, more string) {
		switch {
		case n == 1:
			parts = append(parts, "1 "+one)
		case n > 1:
			parts = append(parts, fmt.Sprintf("%d %s", n, more))
		}
	}
	count(len(d.Keys), "key", "keys")
	count(len(d.Tags), "tag", "tags")
	if slices.Contains(d.Classes, "*") {
		parts = append(parts, "every class")
	} else {
		count(len(d.Classes), "class", "classes")
	}
	text := strings.Join(parts, ", ") + " (" + d.Action + ")"
	if d.Namespace != "" {
		text += " in " + d.Namespace
	}
	if d.At != "" {
		text += " at " + d.At
	}
	return fmt.Sprintf("%s: written to the log at %s", text, d.LSN)
}

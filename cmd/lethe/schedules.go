package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/invalidator"
	"github.com/lethe-cache/lethe/rules"
	"github.com/lethe-cache/lethe/schedule"
)

func hasTimes(set *rules.Set) bool {
	return slices.ContainsFunc(set.Rules, func(r *rules.Rule) bool { return r.At != "" })
}

// checkSchedules finds out whether anything can be scheduled. Rules that need it
// are refused where it can not: a time that nobody keeps is a stale entry.
func (p *pipeline) checkSchedules(ctx context.Context, conn *pgx.Conn, set *rules.Set) error {
	err := schedule.Usable(ctx, conn)
	var missing *schedule.MissingError
	if errors.As(err, &missing) && !hasTimes(set) {
		p.log.Warn("nothing can be scheduled: messages with \"at\" become dead letters", "lost", missing.What, "fix", missing.Hint())
		return nil
	}
	if err == nil {
		p.mu.Lock()
		p.up.schedulable = true
		p.mu.Unlock()
		err = schedule.Readable(ctx, conn, set)
	}
	return notSchedulable(err)
}

// notSchedulable marks what a retry does not cure.
func notSchedulable(err error) error {
	var missing *schedule.MissingError
	var unreadable *schedule.UnreadableError
	if errors.As(err, &missing) || errors.As(err, &unreadable) {
		return &exitError{code: exitFailed, err: err}
	}
	return err
}

// schedulesFor checks rules that are to come into force in a running process.
func (p *pipeline) schedulesFor(ctx context.Context, set *rules.Set) error {
	if !hasTimes(set) {
		return nil
	}
	if !p.up.schedulable {
		return errors.New("rules with `at` need lethe.schedules, which this process could not use when it started: let an administrator run `lethe migrate --role`, then start it again")
	}
	return p.up.database.withConn(ctx, func(conn *pgx.Conn) error { return notSchedulable(schedule.Readable(ctx, conn, set)) })
}

// scheduleOwner names the deployment in lethe.schedules: whoever shares it
// follows the same log for the same cache, so that positions compare.
func (p *pipeline) scheduleOwner() string {
	if p.settings.direct() {
		return fmt.Sprintf("%s slot %s", p.namespace(), p.settings.Slot)
	}
	cfg := p.settings.kafka(p.namespace(), p.log)
	return fmt.Sprintf("%s topic %s group %s", p.namespace(), cfg.Topic, cfg.Group)
}

// prepareSchedules makes what keeps schedules, nil where nothing can, and the
// services that fire them and read tables for them.
func (p *pipeline) prepareSchedules() (invalidator.Schedules, error) {
	if !p.up.schedulable {
		return nil, nil
	}
	store, err := schedule.New(schedule.Config{
		Pool: p.up.database.pool, Namespace: p.namespace(), Owner: p.scheduleOwner(), Logger: p.log, Metrics: schedule.NewMetrics(p.registry),
	})
	if err != nil {
		return nil, err
	}
	position := &visiblePosition{p: p}
	scanner := &schedule.Scanner{
		Store: store, Position: position.read,
		Plan: func() *rules.Plan { return p.rules.Load().compiled.Plan },
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.up.services = append(p.up.services,
		service{"fire schedules", func(ctx context.Context) error { return store.Run(ctx, p.applied) }},
		service{"read tables for schedules", scanner.Run})
	return &sameServer{p, store}, nil
}

// sameServer stores schedules only on the server that the log comes from: what
// is emitted on another, or kept on a primary that was deposed, reaches nobody.
type sameServer struct {
	p    *pipeline
	next invalidator.Schedules
}

func (s *sameServer) Put(ctx context.Context, b invalidator.ScheduleBatch) ([]bool, error) {
	insert, err := s.p.insertLSN(ctx)
	if err != nil {
		return nil, err
	}
	if insert == ^change.LSN(0) {
		return nil, errors.New("LETHE_POSTGRES_URL names another system than the log comes from: what is due at a time can not be kept there")
	}
	return s.next.Put(ctx, b)
}

// applied is the watermark: what lies below it is not applied again.
func (p *pipeline) applied(ctx context.Context) (change.Position, error) {
	control, err := p.up.store.Control(ctx)
	if err != nil {
		return change.Position{}, err
	}
	return control.W, nil
}

// visiblePosition tells below which position every commit is visible.
type visiblePosition struct {
	p  *pipeline
	mu sync.Mutex
	// since when there has been no v.
	without time.Time
}

// withoutV is how long there may be no v until the log counts as another
// reader's, which has none.
const withoutV = 20 * time.Second

// read returns the place before v, so that the commit at v itself comes after
// it. The changes of another reader (Debezium) are handed on when they are
// visible, with the insert LSN of then: those that a snapshot does not show have
// one that is not below the insert LSN from before it.
func (v *visiblePosition) read(ctx context.Context) (change.Position, error) {
	insert, err := v.p.insertLSN(ctx) // errs for a standby and an old primary
	if err != nil {
		return change.Position{}, err
	}
	control, err := v.p.up.store.Control(ctx)
	if err != nil {
		return change.Position{}, err
	}
	if control.Source.Era == 0 || control.Source.SystemID == 0 {
		return change.Position{}, fmt.Errorf("%w: no source is recorded", schedule.ErrNotYet)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if control.V.Era == control.Source.Era && control.V.LSN > 0 {
		v.without = time.Time{}
		return change.Position{Era: control.V.Era, LSN: control.V.LSN - 1}, nil
	}
	if v.without.IsZero() {
		v.without = time.Now()
	}
	if time.Since(v.without) < withoutV || insert == ^change.LSN(0) {
		return change.Position{}, schedule.ErrNotYet
	}
	return change.Position{Era: control.Source.Era, LSN: insert - 1}, nil
}

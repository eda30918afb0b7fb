package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/lethe-cache/lethe/cdc/source"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/rules"
)

// edges are the dependencies of the table lethe.dependencies, as this process
// has last read them.
type edges struct {
	// mu is held while the table is read and the rules are made of it, so that
	// rules never go back to what the table held before.
	mu   sync.Mutex
	list []rules.Edge
	// read counts the times that list became another one.
	read uint64
	// told are the causes that were answered last: each comes once for every
	// partition.
	told []string
	// wrong is what readiness tells of, without waiting for a reading.
	wrong atomic.Pointer[wrongEdges]
	count *prometheus.GaugeVec
}

// wrongEdges are rows that can not be understood, of so many.
type wrongEdges struct {
	declared int
	problems []rules.EdgeProblem
}

// toldMax is how many causes are remembered. Of one that is forgotten the table
// is read once more.
const toldMax = 256

func newEdges(registry prometheus.Registerer) *edges {
	e := &edges{count: prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "lethe_declared_dependencies",
		Help: "Rows of lethe.dependencies by state: in_force; faulty, of which a part has no effect; skipped, which have none.",
	}, []string{"state"})}
	for _, state := range []string{"in_force", "faulty", "skipped"} {
		e.count.WithLabelValues(state)
	}
	registry.MustRegister(e.count)
	return e
}

// note keeps what is wrong with the rows.
func (e *edges) note(problems []rules.EdgeProblem) {
	faulty, skipped := map[int64]bool{}, map[int64]bool{}
	for _, p := range problems {
		faulty[p.ID] = true
		if p.Skipped {
			skipped[p.ID] = true
		}
	}
	e.wrong.Store(&wrongEdges{len(e.list), problems})
	e.count.WithLabelValues("in_force").Set(float64(len(e.list) - len(faulty)))
	e.count.WithLabelValues("faulty").Set(float64(len(faulty) - len(skipped)))
	e.count.WithLabelValues("skipped").Set(float64(len(skipped)))
}

// problemsShown is how many wrong rows readiness tells of.
const problemsShown = 10

// details tells of rows that can not be understood, nil if there are none.
func (e *edges) details() map[string]any {
	w := e.wrong.Load()
	if w == nil || len(w.problems) == 0 {
		return nil
	}
	shown := make([]string, 0, problemsShown)
	for _, p := range w.problems[:min(len(w.problems), problemsShown)] {
		shown = append(shown, p.String())
	}
	return map[string]any{"declared": w.declared, "problems": len(w.problems), "first": shown}
}

// learn takes what the table of dependencies holds into force, unless that has
// happened for the same cause; see invalidator.Config.Dependencies. Without a
// cause it always does.
//
// It must be the primary that is read: the commit that is the cause is visible
// there, and need not be on a standby. What a row says that can not be understood
// is told, and stops nothing: such a row has taken no effect before either, so
// that nothing is to be forgotten because of it.
func (p *pipeline) learn(ctx context.Context, cause string) error {
	e := p.edges
	e.mu.Lock()
	defer e.mu.Unlock()
	if cause != "" && slices.Contains(e.told, cause) {
		return nil
	}
	var list []rules.Edge
	err := p.up.database.withConn(ctx, func(conn *pgx.Conn) error {
		instance, err := source.Read(ctx, conn)
		if err != nil {
			return err
		}
		if err := p.isPrimary(ctx, instance); err != nil {
			return err
		}
		list, err = readEdges(ctx, conn, p.namespace())
		return err
	})
	if err != nil {
		return fmt.Errorf("read lethe.dependencies: %w", err)
	}
	if !slices.EqualFunc(list, e.list, sameEdge) {
		before := p.rules.Load()
		next, err := newRuleset(before.files, list)
		if err != nil {
			return err
		}
		e.list = list
		e.read++
		p.take(before, next)
	}
	if e.told = append(e.told, cause); len(e.told) > toldMax {
		e.told = slices.Delete(e.told, 0, len(e.told)-toldMax)
	}
	return nil
}

// take puts rules into force that differ from those before in declared
// dependencies. Called with edges.mu held.
func (p *pipeline) take(before, next *ruleset) {
	added, removed := rules.Difference(before.set, next.set)
	p.rules.Store(next)
	p.edges.note(next.problems)
	p.log.Info("the table of dependencies was read", "rows", len(p.edges.list), "added", someOf(added), "removed", someOf(removed))
	for _, problem := range next.problems[:min(len(next.problems), problemsShown)] {
		p.log.Error("a row of lethe.dependencies can not be understood", "problem", problem.String())
	}
}

// inForce puts rules of other files into force, with the dependencies that the
// table holds by now.
func (p *pipeline) inForce(next *ruleset) {
	e := p.edges
	e.mu.Lock()
	defer e.mu.Unlock()
	if next.read != e.read {
		// They were compiled a moment ago, and dependencies can not fail.
		if anew, err := newRuleset(next.files, e.list); err == nil {
			next = anew
		}
	}
	p.rules.Store(next)
	e.note(next.problems)
}

// withEdges makes a ruleset of files and of what the table held when it was last
// read.
func (p *pipeline) withEdges(files *rules.Set) (*ruleset, error) {
	p.edges.mu.Lock()
	list, read := p.edges.list, p.edges.read
	p.edges.mu.Unlock()
	r, err := newRuleset(files, list)
	if err == nil {
		r.read = read
	}
	return r, err
}

// someOf shortens a list for the log.
func someOf(list []string) []string {
	const most = 20
	if len(list) > most {
		return append(slices.Clone(list[:most]), fmt.Sprintf("and %d more", len(list)-most))
	}
	return list
}

func sameEdge(a, b rules.Edge) bool {
	return a.ID == b.ID && a.Of == b.Of && a.When == b.When && slices.Equal(a.Also, b.Also)
}

// isPrimary errs for a server that may lack what the log has told of: a standby,
// or a primary of before.
func (p *pipeline) isPrimary(ctx context.Context, instance source.Instance) error {
	if instance.InRecovery {
		return errors.New("LETHE_POSTGRES_URL names a standby")
	}
	recorded, err := p.up.store.Source(ctx)
	if err != nil && !errors.Is(err, coherence.ErrNoSource) {
		return err
	}
	if recorded.SystemID == instance.SystemID && recorded.Timeline > instance.Timeline {
		return fmt.Errorf("the server is on timeline %d, the log on %d: it is an old primary", instance.Timeline, recorded.Timeline)
	}
	return nil
}

// errUnreadable is what a role without the right to read the table meets.
var errUnreadable = &exitError{code: exitFailed, err: errors.New("the role may not read it"),
	hint: "let its owner run: GRANT SELECT ON lethe.dependencies TO the role, or lethe migrate --role"}

// readEdges reads the dependencies of a namespace; none where there is no such
// table.
func readEdges(ctx context.Context, conn *pgx.Conn, namespace string) ([]rules.Edge, error) {
	// to_regclass says nothing of a schema that one may not use, so it is asked for
	// in the catalog: a table that is there and may not be read is no empty one.
	var there, readable bool
	err := conn.QueryRow(ctx, `SELECT count(*) > 0, coalesce(bool_and(has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT')), false)
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = 'lethe' AND c.relname = 'dependencies'`).Scan(&there, &readable)
	if err != nil || !there {
		return nil, err
	}
	if !readable {
		return nil, errUnreadable
	}
	rows, err := conn.Query(ctx, `SELECT id, of, also, coalesce(condition, '') FROM lethe.dependencies WHERE namespace = $1 ORDER BY id`, namespace)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (e rules.Edge, err error) {
		err = row.Scan(&e.ID, &e.Of, &e.Also, &e.When)
		return e, err
	})
}

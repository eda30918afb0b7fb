package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// The bounds of the observation.
const (
	observeQueue      = 256
	observeStatements = 2000
	observeTables     = 1000 // of a class
	observeTimeout    = 2 * time.Second
	observeRetry      = time.Second
	// observeDrain is how long Close waits for what is still to be explained.
	observeDrain = 3 * time.Second
)

// observation finds out which tables the statements of loads read. Loads hand
// their statements over and go on; one goroutine explains them on a connection
// of its own, so that no load waits for it, nor for a connection that it has.
type observation struct {
	c     *Client
	pool  *pgxpool.Pool
	queue chan statement
	stop  chan struct{}
	done  chan struct{}

	mu     sync.Mutex
	seen   map[statementID]bool
	tables map[string]map[string]bool // by class

	// What follows is the goroutine's.
	conn *pgx.Conn
	// unreported are the classes whose tables Redis does not know yet.
	unreported map[string]bool
}

type statementID struct{ class, sql string }

// statement is one that a load ran without an error. rewriter is pgx's, of
// named arguments.
type statement struct {
	statementID
	rewriter pgx.QueryRewriter
	args     []any
}

func newObservation(c *Client) *observation {
	return &observation{
		c: c, pool: c.opts.Database, queue: make(chan statement, observeQueue), stop: make(chan struct{}), done: make(chan struct{}),
		seen: map[statementID]bool{}, tables: map[string]map[string]bool{}, unreported: map[string]bool{},
	}
}

// add hands over a statement that was not seen before. It never waits: what
// does not fit is seen the next time.
func (o *observation) add(class, sql string, args []any) {
	if o == nil {
		return
	}
	s := statement{statementID: statementID{class, sql}, args: args}
	if len(args) > 0 {
		s.rewriter, _ = args[0].(pgx.QueryRewriter)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.seen[s.statementID] || len(o.seen) >= observeStatements {
		return
	}
	select {
	case o.queue <- s:
		o.seen[s.statementID] = true
	default:
	}
}

// run explains until close, and then what is left.
func (o *observation) run(ctx context.Context) {
	defer close(o.done)
	defer func() {
		if o.conn != nil {
			closeCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), observeTimeout)
			defer cancel()
			_ = o.conn.Close(closeCtx)
		}
	}()
	for {
		var retry <-chan time.Time
		if len(o.unreported) > 0 {
			retry = time.After(observeRetry)
		}
		select {
		case s := <-o.queue:
			o.look(ctx, s)
		case <-retry:
		case <-ctx.Done():
			return
		case <-o.stop:
			drain, cancel := context.WithTimeout(ctx, observeDrain)
			defer cancel()
			for drain.Err() == nil {
				select {
				case s := <-o.queue:
					o.look(drain, s)
					continue
				default:
				}
				o.report(drain)
				return
			}
			return
		}
		if len(o.queue) == 0 {
			o.report(ctx)
		}
	}
}

// close ends run; called when no load is under way any more.
func (o *observation) close() {
	if o == nil {
		return
	}
	close(o.stop)
	<-o.done
}

// look explains one statement. What can not be explained is logged and no more:
// it is the application's, and it has worked.
func (o *observation) look(ctx context.Context, s statement) {
	ctx, cancel := context.WithTimeout(ctx, 2*observeTimeout)
	defer cancel()
	tables, err := o.explain(ctx, s)
	if err != nil {
		if o.conn != nil {
			_ = o.conn.Close(ctx)
			o.conn = nil
		}
		o.c.logger.Info("can not tell which tables a statement reads", "class", s.class, "sql", s.sql, "err", err)
		return
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	have := o.tables[s.class]
	if have == nil && len(tables) > 0 {
		have = map[string]bool{}
		o.tables[s.class] = have
	}
	for _, t := range tables {
		if !have[t] && len(have) < observeTables {
			have[t] = true
			o.unreported[s.class] = true
		}
	}
}

// The plan has to show every table that the statement can read, not only those
// that it reads with the arguments of one call: so it is a generic plan, in
// which no partition is left out. (EXPLAIN (GENERIC_PLAN) is the same, but not
// before Postgres 16.)
const (
	observeBegin = `BEGIN READ ONLY; SET LOCAL statement_timeout = '2s'; SET LOCAL lock_timeout = '200ms';
SET LOCAL plan_cache_mode = force_generic_plan; SET LOCAL enable_partition_pruning = off; SET LOCAL constraint_exclusion = off`
	observeParameters = `SELECT pg_catalog.cardinality(parameter_types) FROM pg_catalog.pg_prepared_statements WHERE name = 'lethe_observed'`
	// observeRoots puts the root in the place of a partition, as rules do.
	observeRoots = `SELECT DISTINCT coalesce(rn.nspname || '.' || r.relname, n.nspname || '.' || c.relname)
FROM ROWS FROM (pg_catalog.unnest($1::text[]), pg_catalog.unnest($2::text[])) AS t(schema, name)
JOIN pg_catalog.pg_namespace n ON n.nspname = t.schema JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = t.name
LEFT JOIN pg_catalog.pg_class r ON c.relispartition AND r.oid = pg_catalog.pg_partition_root(c.oid)
LEFT JOIN pg_catalog.pg_namespace rn ON rn.oid = r.relnamespace`
)

// explain returns the tables (schema.name) that a statement reads.
func (o *observation) explain(ctx context.Context, s statement) (tables []string, err error) {
	conn, err := o.connect(ctx)
	if err != nil {
		return nil, err
	}
	sql := s.sql
	if s.rewriter != nil {
		if sql, _, err = s.rewriter.RewriteQuery(ctx, conn, s.sql, s.args[1:]); err != nil {
			return nil, err
		}
	}
	if _, err := conn.Exec(ctx, observeBegin); err != nil {
		return nil, err
	}
	defer func() {
		if _, rollback := conn.Exec(ctx, `ROLLBACK`); err == nil && rollback != nil {
			err = rollback
		}
	}()
	if _, err := conn.Exec(ctx, `PREPARE lethe_observed AS `+sql); err != nil {
		return nil, err
	}
	var parameters int
	if err := conn.QueryRow(ctx, observeParameters, pgx.QueryExecModeExec).Scan(&parameters); err != nil {
		return nil, err
	}
	execute := `EXPLAIN (FORMAT JSON, VERBOSE, COSTS OFF) EXECUTE lethe_observed`
	if parameters > 0 {
		execute += "(NULL" + strings.Repeat(", NULL", parameters-1) + ")"
	}
	var text string
	if err := conn.QueryRow(ctx, execute, pgx.QueryExecModeSimpleProtocol).Scan(&text); err != nil {
		return nil, err
	}
	if _, err := conn.Exec(ctx, `DEALLOCATE lethe_observed`); err != nil {
		return nil, err
	}
	var plans []planNode
	if err := json.Unmarshal([]byte(text), &plans); err != nil {
		return nil, fmt.Errorf("read a plan: %w", err)
	}
	var schemas, names []string
	for i := range plans {
		plans[i].relations(&schemas, &names)
	}
	if len(names) == 0 {
		return nil, nil
	}
	rows, err := conn.Query(ctx, observeRoots, pgx.QueryExecModeExec, schemas, names)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// planNode is what matters of a node of EXPLAIN's JSON, and of the object
// around the first.
type planNode struct {
	Plan     *planNode  `json:"Plan"`
	Plans    []planNode `json:"Plans"`
	Schema   string     `json:"Schema"`
	Relation string     `json:"Relation Name"`
}

// relations appends the tables below a node. Postgres' own and temporary ones,
// and Lethe's, are nobody's concern.
func (n *planNode) relations(schemas, names *[]string) {
	if n.Plan != nil {
		n.Plan.relations(schemas, names)
	}
	if n.Relation != "" && !strings.HasPrefix(n.Schema, "pg_") && n.Schema != "information_schema" && n.Schema != "lethe" {
		*schemas, *names = append(*schemas, n.Schema), append(*names, n.Relation)
	}
	for i := range n.Plans {
		n.Plans[i].relations(schemas, names)
	}
}

// connect makes the connection, as the pool would.
func (o *observation) connect(ctx context.Context) (*pgx.Conn, error) {
	if o.conn != nil && !o.conn.IsClosed() {
		return o.conn, nil
	}
	cfg := o.pool.Config()
	if cfg.BeforeConnect != nil {
		if err := cfg.BeforeConnect(ctx, cfg.ConnConfig); err != nil {
			return nil, err
		}
	}
	conn, err := pgx.ConnectConfig(ctx, cfg.ConnConfig)
	if err != nil {
		return nil, err
	}
	if cfg.AfterConnect != nil {
		if err := cfg.AfterConnect(ctx, conn); err != nil {
			_ = conn.Close(ctx)
			return nil, err
		}
	}
	o.conn = conn
	return conn, nil
}

// report tells Redis what is new. What fails is tried again.
func (o *observation) report(ctx context.Context) {
	store := o.c.store.Load()
	if store == nil {
		return
	}
	for class := range o.unreported {
		reportCtx, cancel := context.WithTimeout(ctx, observeTimeout)
		err := store.AddObserved(reportCtx, class, o.of(class)...)
		cancel()
		if err != nil {
			if !errors.Is(err, context.Canceled) {
				o.c.logger.Info("can not report observed tables", "class", class, "err", err)
			}
			return
		}
		delete(o.unreported, class)
	}
}

func (o *observation) of(class string) []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return slices.Sorted(maps.Keys(o.tables[class]))
}

// ObservedTables returns, by class, the tables (schema.name, sorted) that the
// statements of Load.Query and Load.QueryRow were seen to read since Open; a
// partition counts as its root, a view as the tables that it reads. What a
// function reads can not be seen. It is empty without Options.ObserveTables.
func (c *Client) ObservedTables() map[string][]string {
	out := map[string][]string{}
	if c.observed == nil {
		return out
	}
	c.observed.mu.Lock()
	classes := slices.Collect(maps.Keys(c.observed.tables))
	c.observed.mu.Unlock()
	for _, class := range classes {
		out[class] = c.observed.of(class)
	}
	return out
}

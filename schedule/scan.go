package schedule

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lethe-cache/lethe/cdc/catalog"
	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/invalidator"
	"github.com/lethe-cache/lethe/rules"
)

// Scanner reads the tables of rules with `at` for schedules that the log has
// not told of.
type Scanner struct {
	Store *Store
	// Plan returns the rules in force.
	Plan func() *rules.Plan
	// Position returns a position below which every commit is visible to whatever
	// snapshot is taken after the call, and whose era is that of the log. While
	// nobody can say, as in the first moment of a start, it errs with ErrNotYet.
	Position func(ctx context.Context) (change.Position, error)
	// Page is how many rows are read at once; 0 is PageDefault.
	Page int
}

// ErrNotYet says that there is no position yet: nothing has failed, and it is
// asked for again soon.
var ErrNotYet = errors.New("nothing is known to be visible yet")

// PageDefault is Scanner.Page where it is not set.
const PageDefault = 2000

const (
	lookEvery = 2 * time.Second
	lookSoon  = 100 * time.Millisecond // while there is no position yet
	// leaseFor is the life of a lease without a page: how long the rows of a
	// process that was killed wait for the next.
	leaseFor = 10 * time.Second
)

// due is a scan that this process has taken.
type due struct {
	id     uint64
	wanted int64
	from   time.Time
}

// Run scans what is due until ctx ends. What fails is tried again.
func (s *Scanner) Run(ctx context.Context) error {
	for {
		err := s.Scan(ctx)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // told to stop: the scan is still due
		}
		wait := lookEvery
		switch {
		case err == nil:
		case errors.Is(err, ErrNotYet):
			wait = lookSoon
		default:
			s.Store.cfg.Metrics.scans.WithLabelValues("failed").Inc()
			s.Store.cfg.Logger.ErrorContext(ctx, "a table could not be read for schedules; until it is, what is due may be missed", "error", err)
		}
		timer := time.NewTimer(wait)
		read := s.Store.read
		if err != nil {
			read = nil
		}
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-read:
		}
		timer.Stop()
	}
}

// Scan does the scans that are due of rules in force and that no other process
// is at, one after another.
func (s *Scanner) Scan(ctx context.Context) error {
	var errs []error
	plan := s.Plan()
	for _, r := range plan.Set().Rules {
		if r.At == "" {
			continue
		}
		d, ok, err := s.take(ctx, plan.ScheduleID(r))
		if err == nil && ok {
			err = s.scan(ctx, plan, r, d)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("rule %q: %w", r.Name, err))
		}
	}
	return errors.Join(errs...)
}

// take leases the scan of a rule, if it is due.
func (s *Scanner) take(ctx context.Context, id uint64) (due, bool, error) {
	d := due{id: id}
	err := s.Store.cfg.Pool.QueryRow(ctx, `UPDATE lethe.schedule_scans SET leased = clock_timestamp() + $3::interval
		WHERE owner = $1 AND rule_id = $2 AND wanted > done AND (leased IS NULL OR leased < clock_timestamp())
		RETURNING wanted, wanted_from`, s.Store.cfg.Owner, int64(id), leaseFor).Scan(&d.wanted, &d.from)
	if errors.Is(err, pgx.ErrNoRows) {
		return d, false, nil
	}
	return d, err == nil, err
}

// scan reads the rule's table, page by page, each in a snapshot of its own: a
// row that moves between pages is changed under the eyes of the rule.
func (s *Scanner) scan(ctx context.Context, plan *rules.Plan, r *rules.Rule, d due) (err error) {
	defer func() {
		if err != nil { // for others, or for the next attempt
			_, _ = s.Store.cfg.Pool.Exec(context.WithoutCancel(ctx),
				`UPDATE lethe.schedule_scans SET leased = NULL WHERE owner = $1 AND rule_id = $2`, s.Store.cfg.Owner, int64(d.id))
		}
	}()
	began, rows := time.Now(), 0
	p, err := s.reader(ctx, r)
	if err != nil {
		return err
	}
	matcher := plan.NewMatcher(rules.Observer{})
	for more := true; more; {
		position, err := s.Position(ctx)
		if err != nil {
			return fmt.Errorf("read the position of the log: %w", err)
		}
		var found []change.Row
		if found, more, err = p.next(ctx, d.from); err != nil {
			return err
		}
		if err := s.put(ctx, plan, matcher, r, p.table, found, position); err != nil {
			return err
		}
		rows += len(found)
		if _, err := s.Store.cfg.Pool.Exec(ctx, `UPDATE lethe.schedule_scans SET leased = clock_timestamp() + $3::interval
			WHERE owner = $1 AND rule_id = $2`, s.Store.cfg.Owner, int64(d.id), leaseFor); err != nil {
			return err
		}
	}
	// What was asked for meanwhile is still due.
	_, err = s.Store.cfg.Pool.Exec(ctx, `UPDATE lethe.schedule_scans SET done = greatest(done, $3), leased = NULL, updated_at = clock_timestamp()
		WHERE owner = $1 AND rule_id = $2`, s.Store.cfg.Owner, int64(d.id), d.wanted)
	if err != nil {
		return err
	}
	s.Store.cfg.Metrics.scans.WithLabelValues("done").Inc()
	s.Store.cfg.Logger.InfoContext(ctx, "table read for schedules", "rule", r.Name, "table", r.QualifiedTable(),
		"rows", rows, "took", time.Since(began).Round(time.Millisecond))
	return nil
}

// put stores what the rows schedule. What is due already is stored too, and
// fired: it was not when the scan was asked for.
func (s *Scanner) put(ctx context.Context, plan *rules.Plan, m *rules.Matcher, r *rules.Rule, t *change.Table, rows []change.Row, x change.Position) error {
	var ts rules.Targets
	for _, row := range rows {
		if err := m.Existing(&ts, r, t, row, x); err != nil {
			return err
		}
	}
	var batch invalidator.ScheduleBatch
	for i := range ts.Timed {
		timed := &ts.Timed[i]
		item := invalidator.ScheduleItem{
			Rule: invalidator.ScheduleRule{ID: timed.ID, Name: r.Name},
			Key:  string(timed.Key), X: timed.X, Ordinal: timed.Ordinal, At: timed.At,
		}
		var err error
		switch timed.Kind {
		case rules.TimedSet:
			if item.Message, err = plan.Scheduled(r, ts.TimedTargets(timed)); err != nil {
				return err
			}
		case rules.TimedDrop: // it has nothing to invalidate
		default:
			return fmt.Errorf("column %q of a row of %s could not be read", r.At, r.QualifiedTable())
		}
		batch.Items = append(batch.Items, item)
	}
	if len(batch.Items) == 0 {
		return nil
	}
	s.Store.cfg.Metrics.scanRows.Add(float64(len(batch.Items)))
	if err := s.Store.put(ctx, batch, time.Now(), nil); err != nil {
		return fmt.Errorf("store schedules: %w", err)
	}
	kick(s.Store.wake)
	return nil
}

// reader reads the rows of a table whose time is to come, in the order of a key.
type reader struct {
	scanner *Scanner
	table   *change.Table
	sql     string // up to the condition of the key
	key     []int  // columns of the table; nil: all at once
	names   []string
	last    [][]byte
}

// settings make the server print values as the log does, and tell the truth:
// rows that a policy hides are an error instead.
const settings = `SET LOCAL TimeZone = 'UTC'; SET LOCAL DateStyle = 'ISO'; SET LOCAL IntervalStyle = 'postgres'; SET LOCAL extra_float_digits = 1;
SET LOCAL bytea_output = 'hex'; SET LOCAL client_encoding = 'UTF8'; SET LOCAL search_path = pg_catalog, pg_temp; SET LOCAL row_security = off`

// wholeTimeout bounds the one statement that reads a table without a key.
const wholeTimeout = `SET LOCAL statement_timeout = '10min'`

func (s *Scanner) reader(ctx context.Context, r *rules.Rule) (*reader, error) {
	schema, err := catalog.Read(ctx, s.Store.cfg.Pool, []string{r.QualifiedTable()})
	if err != nil {
		return nil, err
	}
	info := schema.Table(r.QualifiedTable())
	if info == nil {
		return nil, fmt.Errorf("there is no table %s", r.QualifiedTable())
	}
	at := info.Column(r.At)
	if at == nil {
		return nil, fmt.Errorf("%s has no column %q", r.QualifiedTable(), r.At)
	}
	p := &reader{scanner: s, table: &change.Table{Schema: info.Schema, Name: info.Name, Identity: info.Identity}}
	selected := ""
	for _, c := range info.Columns {
		if c.Generated != 0 && c.Generated != ' ' {
			continue // the log has them neither
		}
		p.table.Columns = append(p.table.Columns, change.Column{Name: c.Name, Type: c.Type, Key: slices.Contains(info.IdentityColumns, c.Name)})
		if selected != "" {
			selected += ", "
		}
		selected += rules.QuoteIdent(c.Name)
	}
	order := info.PrimaryKey
	if len(order) == 0 && info.Identity == change.IdentityIndex {
		order = info.IdentityColumns
	}
	for _, name := range order {
		p.key = append(p.key, p.table.ColumnIndex(name))
		p.names = append(p.names, rules.QuoteIdent(name))
	}
	when := rules.QuoteIdent(r.At)
	if at.TypeName != "timestamp with time zone" {
		when += "::pg_catalog.timestamp AT TIME ZONE 'UTC'"
	}
	p.sql = fmt.Sprintf("SELECT %s FROM %s.%s WHERE %s > $1 AND %s < 'infinity'", selected,
		rules.QuoteIdent(info.Schema), rules.QuoteIdent(info.Name), when, rules.QuoteIdent(r.At))
	return p, nil
}

// next returns a page of rows; more is false with the last.
func (p *reader) next(ctx context.Context, from time.Time) (rows []change.Row, more bool, err error) {
	sql, params := p.sql, [][]byte{[]byte(from.UTC().Format("2006-01-02 15:04:05.999999+00"))}
	page := p.scanner.Page
	if page <= 0 {
		page = PageDefault
	}
	if len(p.key) > 0 {
		list, places := "", ""
		for i, name := range p.names {
			if i > 0 {
				list, places = list+", ", places+", "
			}
			list += name
			places += fmt.Sprintf("$%d", i+2)
		}
		if p.last != nil {
			sql += fmt.Sprintf(" AND (%s) > (%s)", list, places)
			params = append(params, p.last...)
		}
		sql += fmt.Sprintf(" ORDER BY %s LIMIT %d", list, page)
	}
	err = pgx.BeginTxFunc(ctx, p.scanner.Store.cfg.Pool, pgx.TxOptions{AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		before := settings
		if len(p.key) == 0 {
			before += "; " + wholeTimeout
		}
		// Several statements without arguments are one simple query, and the text
		// of the result is what the types' own functions print, as in the log.
		if _, err := tx.Conn().PgConn().Exec(ctx, before).ReadAll(); err != nil {
			return err
		}
		result := tx.Conn().PgConn().ExecParams(ctx, sql, params, nil, nil, nil)
		for result.NextRow() {
			rows = append(rows, rowOf(result.Values()))
		}
		_, err := result.Close()
		return err
	})
	var denied *pgconn.PgError
	if errors.As(err, &denied) && denied.Code == "42501" {
		return nil, false, fmt.Errorf("read %s: %w; run: %s", p.table.QualifiedName(), err, grantSelect(p.table.Schema, p.table.Name, "CURRENT_USER"))
	}
	if err != nil {
		return nil, false, fmt.Errorf("read %s: %w", p.table.QualifiedName(), err)
	}
	if len(p.key) == 0 || len(rows) < page {
		return rows, false, nil
	}
	p.last = p.last[:0]
	for _, i := range p.key {
		p.last = append(p.last, rows[len(rows)-1][i].Bytes)
	}
	return rows, true, nil
}

func rowOf(values [][]byte) change.Row {
	row := make(change.Row, len(values))
	for i, v := range values {
		if v == nil {
			row[i].Kind = change.Null
			continue
		}
		row[i] = change.Value{Kind: change.Text, Bytes: append([]byte{}, v...)}
	}
	return row
}

// Readable returns an error if the role of the connection may not read the table
// of a rule with At: what was there before the rule could not be scheduled.
func Readable(ctx context.Context, conn *pgx.Conn, set *rules.Set) error {
	for _, r := range set.Rules {
		if r.At == "" {
			continue
		}
		var may bool
		var user string
		err := conn.QueryRow(ctx, `SELECT coalesce(has_table_privilege(to_regclass($1), 'SELECT'), false), quote_ident(current_user)`,
			rules.QuoteIdent(r.Schema)+"."+rules.QuoteIdent(r.Table)).Scan(&may, &user)
		if err != nil {
			return fmt.Errorf("look whether %s may be read: %w", r.QualifiedTable(), err)
		}
		if !may {
			return &UnreadableError{Rule: r.Name, Table: r.QualifiedTable(), fix: grantSelect(r.Schema, r.Table, user)}
		}
	}
	return nil
}

// UnreadableError names a table that a rule with At needs and the role may not
// read.
type UnreadableError struct{ Rule, Table, fix string }

func (e *UnreadableError) Error() string {
	return fmt.Sprintf("rule %q: `at` needs to read %s, for rows that were there before the rule", e.Rule, e.Table)
}

// Hint is the statement that cures it.
func (e *UnreadableError) Hint() string { return e.fix }

func grantSelect(schema, table, role string) string {
	return fmt.Sprintf("GRANT SELECT ON %s.%s TO %s;", rules.QuoteIdent(schema), rules.QuoteIdent(table), role)
}

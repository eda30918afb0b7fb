package publication

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v4"
	"github.com/jackc/pgx/v5"

	"github.com/lethe-cache/lethe/rules"
)

// Sync makes the publications what the rules need, and reports what it did. It
// changes nothing, and takes no lock, where nothing differs. It blocks while
// tables are locked, as long as cfg allows.
//
// A table that could not be brought in step is in the error, and the others
// are done nevertheless: Changes is valid, and to be acted on, beside an error.
// The error may hold a *DeniedError or an *UnusableError, which a retry does not
// cure.
func Sync(ctx context.Context, conn Conn, cfg Config, uses []rules.TableUse) (Changes, error) {
	if err := cfg.Validate(); err != nil {
		return Changes{}, err
	}
	y := newSyncer(conn, cfg, uses)
	err := y.run(ctx)
	for _, list := range []*[]string{&y.changes.Entered, &y.changes.Grew, &y.changes.Moved, &y.changes.Left,
		&y.changes.Blind, &y.changes.Missing, &y.changes.MissingColumns} {
		slices.Sort(*list)
		*list = slices.Compact(*list)
	}
	return y.changes, err
}

// syncer is one run of Sync.
type syncer struct {
	conn    Conn
	cfg     Config
	uses    map[string]*rules.TableUse
	names   []string
	state   *state
	changes Changes
}

func (y *syncer) run(ctx context.Context) error {
	var err error
	if y.state, err = read(ctx, y.conn, y.cfg, y.names); err != nil {
		return err
	}
	if y.changes.Stored, err = storable(ctx, y.conn); err != nil {
		return err
	}
	if err := y.before(ctx); err != nil {
		return err
	}
	y.changes.Guarded = y.state.guarded
	y.describe()

	// What breaks the application goes first, then what enters or grows, and
	// what is let go of last: a failure on the way leaves too much published.
	todo := slices.DeleteFunc(slices.Clone(y.state.tables), func(t *table) bool {
		return t.satisfied(wanted(y.cfg, y.state, t, y.uses[t.qualified()]))
	})
	slices.SortStableFunc(todo, func(a, b *table) int { return cmp.Compare(y.rank(a), y.rank(b)) })
	var errs []error
	var denied *DeniedError
	for _, t := range todo {
		err := y.table(ctx, t)
		if hasCode(err, codeInsufficientPrivilege) {
			if denied == nil {
				denied = &DeniedError{Err: fmt.Errorf("alter publication %s: %w", y.cfg.Name, err)}
			}
			denied.Statements = append(denied.Statements, y.statements(t, wanted(y.cfg, y.state, t, y.uses[t.qualified()]))...)
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("bring %s in step with publication %s: %w", t.qualified(), y.cfg.Name, err))
		}
	}
	if denied != nil {
		errs = append(errs, denied)
	}
	if len(errs) == 0 {
		errs = append(errs, y.after(ctx))
	}
	return errors.Join(errs...)
}

// describe notes what is the matter with tables, whatever is done about them.
func (y *syncer) describe() {
	for _, name := range y.names {
		t := y.state.table(name)
		if t == nil || !t.publishable() {
			y.changes.Missing = append(y.changes.Missing, name)
			continue
		}
		w := wanted(y.cfg, y.state, t, y.uses[name])
		if w.blind {
			y.changes.Blind = append(y.changes.Blind, name)
		}
		for _, c := range w.missing {
			y.changes.MissingColumns = append(y.changes.MissingColumns, name+"."+c)
		}
	}
}

func (y *syncer) rank(t *table) int {
	switch use := y.uses[t.qualified()]; {
	case t.breaks(y.cfg, y.state):
		return 0
	case use != nil:
		return 1
	}
	return 2
}

// table brings one table in step, again and again while locks or DDL come in
// between.
func (y *syncer) table(ctx context.Context, t *table) error {
	return y.retry(ctx, func() error {
		use := y.uses[t.qualified()]
		w := wanted(y.cfg, y.state, t, use)
		if t.satisfied(w) {
			return nil
		}
		err := y.alter(ctx, t, w, use)
		if err == nil {
			y.note(t, w, use)
			return nil
		}
		// Look again, whatever it was: the table may be gone, or another one.
		tables, readErr := readTables(ctx, y.conn, y.cfg, []string{t.qualified()})
		if readErr != nil {
			return errors.Join(err, readErr)
		}
		fresh := &state{tables: tables}
		if now := fresh.table(t.qualified()); now != nil {
			*t = *now
		} else {
			t.persistence, t.in = "", nil // dropped: nothing to do any more
		}
		return err
	})
}

func (y *syncer) note(t *table, w want, use *rules.TableUse) {
	name := t.qualified()
	y.changes.touched = append(y.changes.touched, name)
	_, inserts := t.in[y.cfg.Inserts()]
	switch {
	case w.in == "":
		y.changes.Left = append(y.changes.Left, name)
	case t.enters(w):
		y.changes.Entered = append(y.changes.Entered, name)
	case t.grows(y.cfg, w, use):
		y.changes.Grew = append(y.changes.Grew, name)
	case w.in == y.cfg.Inserts() && !inserts:
		y.changes.Moved = append(y.changes.Moved, name)
	}
}

// statements are the ALTER PUBLICATIONs that make t what w says.
func (y *syncer) statements(t *table, w want) []string {
	var out []string
	for _, pub := range y.cfg.Names() {
		if _, in := t.in[pub]; in {
			out = append(out, fmt.Sprintf("ALTER PUBLICATION %s DROP TABLE ONLY %s;", quote(pub), t.sql()))
		}
	}
	if w.in != "" {
		columns := ""
		if w.list != nil {
			quoted := make([]string, len(w.list))
			for i, c := range w.list {
				quoted[i] = quote(c)
			}
			columns = " (" + strings.Join(quoted, ", ") + ")"
		}
		out = append(out, fmt.Sprintf("ALTER PUBLICATION %s ADD TABLE ONLY %s%s;", quote(w.in), t.sql(), columns))
	}
	return out
}

func quote(identifier string) string { return pgx.Identifier{identifier}.Sanitize() }

// alter makes t what w says, in one transaction, or changes nothing. If that is
// a gap it is stored with it.
func (y *syncer) alter(ctx context.Context, t *table, w want, use *rules.TableUse) error {
	return y.inTx(ctx, func(tx pgx.Tx) error {
		for _, statement := range y.statements(t, w) {
			if _, err := tx.Exec(ctx, statement); err != nil {
				return err
			}
		}
		// Now that the lock is ours: is it still the table that was looked at?
		tables, err := readTables(ctx, tx, y.cfg, []string{t.qualified()})
		if err != nil {
			return err
		}
		now := (&state{tables: tables}).table(t.qualified())
		if now == nil || now.oid != t.oid || !now.satisfied(wanted(y.cfg, y.state, now, y.uses[t.qualified()])) {
			return errChanged
		}
		if t.enters(w) || t.grows(y.cfg, w, use) {
			return y.record(ctx, tx, t.qualified())
		}
		return nil
	})
}

// record stores that the tables have a gap.
func (y *syncer) record(ctx context.Context, tx pgx.Tx, tables ...string) error {
	if !y.changes.Stored {
		return nil
	}
	return record(ctx, tx, y.cfg.Name, tables, true)
}

func (y *syncer) inTx(ctx context.Context, do func(pgx.Tx) error) error {
	return inTx(ctx, y.conn, y.cfg, do)
}

// inTx runs do in a transaction that waits neither long for locks nor at all
// for synchronous standbys.
func inTx(ctx context.Context, conn Conn, cfg Config, do func(pgx.Tx) error) error {
	tx, err := conn.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	if _, err := tx.Exec(ctx, `SELECT set_config('lock_timeout', $1, true), set_config('statement_timeout', '30s', true),
		set_config('synchronous_commit', 'local', true)`, fmt.Sprintf("%dms", cfg.LockTimeout.Milliseconds())); err != nil {
		return err
	}
	if err := do(tx); err != nil {
		return err
	}
	return tx.Commit(ctx)
}

// retry tries do again while what it met may pass.
func (y *syncer) retry(ctx context.Context, do func() error) error {
	wait := backoff.NewExponentialBackOff(backoff.WithInitialInterval(20*time.Millisecond),
		backoff.WithMaxInterval(time.Second), backoff.WithMaxElapsedTime(0))
	return backoff.Retry(func() error {
		err := do()
		if err == nil || errors.Is(err, errChanged) || hasCode(err, codeLockNotAvailable, codeDeadlock, codeSerialization,
			codeUndefinedTable, codeUndefinedObject, codeUndefinedColumn, codeDuplicateObject, codeInternal) {
			return err
		}
		return backoff.Permanent(err)
	}, backoff.WithContext(backoff.WithMaxRetries(wait, uint64(y.cfg.Attempts-1)), ctx))
}

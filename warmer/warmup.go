package warmer

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lethe-cache/lethe/rules"
)

// Bounds of a run.
const (
	warmTries    = 5                      // of one batch, before a run gives up
	warmBackoff  = 100 * time.Millisecond // before the second try, then twice that
	warmLogEvery = 5 * time.Second
	lockLook     = 250 * time.Millisecond
)

// Errors of a warm-up.
var (
	// ErrWarming: another process warms the same cache now.
	ErrWarming = errors.New("another process warms this cache now")
	// ErrDeadline: the run took as long as it may; the rest is left to readers.
	ErrDeadline = errors.New("the run's deadline has passed")
)

// WarmupConfig holds what Warmups need. Warmer must be set.
type WarmupConfig struct {
	Warmer *Warmer
	// Cache names what is warmed: processes that give the same text take turns.
	Cache string
	// Ready says whether entries can be filled; what is to be warmed at the
	// start waits for it. nil: at once.
	Ready  func() bool
	Logger *slog.Logger
	// Metrics, nil counts into nothing.
	Metrics *WarmupMetrics
}

// Warmups run the warm-ups of a set: at the start and by their schedules (Serve),
// or when told to (Run). It is safe for concurrent use.
//
// One runs at a time, in this process and in all that warm the same cache: who
// runs one holds an advisory lock of the database for as long. It is the
// database that is to be spared, so it is where the lock is: it goes with the
// session, so that nobody has to find out whether a process that had it is dead,
// and it is the same whether a broker is there or not. The owner of partition 0
// would do as well for the schedules, but not for `lethe warm`, which owns none,
// nor while partitions change hands. Two runs at a time would be a waste and no
// more: fills are what they are, whoever asks for them.
type Warmups struct {
	cfg WarmupConfig
	log *slog.Logger

	mu      sync.Mutex
	running *Progress           // nil while nothing runs
	started bool                // what was to be run at the start is over
	atStart map[string]Progress // by ID
	order   []string            // of atStart
	jitter  func(time.Duration) time.Duration
}

// NewWarmups makes Warmups; it starts nothing.
func NewWarmups(cfg WarmupConfig) (*Warmups, error) {
	if cfg.Warmer == nil {
		return nil, errors.New("warmer: WarmupConfig.Warmer is nil")
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Metrics == nil {
		cfg.Metrics = NewWarmupMetrics(nil)
	}
	return &Warmups{cfg: cfg, log: cfg.Logger.With("component", "warmer"), atStart: map[string]Progress{}, jitter: upTo}, nil
}

// Progress is how far a run is, or how it ended.
type Progress struct {
	// Entry and ID name the warm-up.
	Entry, ID string
	// State is one of waiting, running, done, deadline, failed, stopped,
	// skipped.
	State string
	// Rows are those of warm.sql that were dealt with, of Of; Of is -1 until the
	// query has run.
	Rows, Of int
	// Result says what became of the entries.
	Result Result
	// Took is how long it ran, so far or in all.
	Took time.Duration
	// Error says why it failed, or waits.
	Error string

	began time.Time
}

// String is a line such as "product: 1200 of 5000".
func (p Progress) String() string {
	switch {
	case p.Of < 0 && p.Error != "":
		return fmt.Sprintf("%s: %s", p.Entry, p.Error)
	case p.Of < 0:
		return p.Entry + ": reading which entries there are"
	case p.Error != "" && p.State == "running":
		return fmt.Sprintf("%s: %d of %d, %s", p.Entry, p.Rows, p.Of, p.Error)
	}
	return fmt.Sprintf("%s: %d of %d", p.Entry, p.Rows, p.Of)
}

// PerSecond is the rate so far, in rows.
func (p Progress) PerSecond() float64 {
	if p.Took <= 0 {
		return 0
	}
	return float64(p.Rows) / p.Took.Seconds()
}

// Running returns the run under way.
func (u *Warmups) Running() (Progress, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.running == nil {
		return Progress{}, false
	}
	p := u.running.copy()
	p.Took = time.Since(p.began)
	return p, true
}

func (p *Progress) copy() Progress {
	c := *p
	c.Result = Result{}
	c.Result.add(p.Result)
	return c
}

// update changes the progress of the run under way.
func (u *Warmups) update(p *Progress, change func()) {
	u.mu.Lock()
	defer u.mu.Unlock()
	change()
	u.running = p
}

// RunOptions say how a run differs from what the rules say. The zero
// RunOptions change nothing.
type RunOptions struct {
	// Limit bounds the rows further; 0 does not.
	Limit int
	// Rate bounds the rows of a second; 0 does not.
	Rate float64
	// Wait waits for another process that warms now, as long as the deadline
	// lets it; else that is ErrWarming.
	Wait bool

	// due, if set, is the instant of a schedule: the run is left out if a run
	// for it, or a later one, was made by somebody.
	due time.Time
}

// Run fills what is absent of a warm-up's entries. It blocks until the run is
// over or ctx ends. What Redis or the database do not do is tried again; the
// error is the last one, ErrWarming, or ErrDeadline.
func (u *Warmups) Run(ctx context.Context, w *rules.Warm, o RunOptions) (Progress, error) {
	p := &Progress{Entry: w.Entry, ID: w.ID(), State: "waiting", Of: -1, began: time.Now()}
	u.update(p, func() {})
	outer := ctx
	ctx, cancel := context.WithTimeoutCause(ctx, w.Deadline, ErrDeadline)
	defer cancel()
	stopLog := u.logEvery(warmLogEvery)
	err := u.run(ctx, w, o, p)
	stopLog()
	u.mu.Lock()
	switch {
	case err == nil && p.State == "skipped":
	case err == nil:
		p.State = "done"
	case errors.Is(err, ErrWarming):
		p.State = "skipped"
	case outer.Err() != nil:
		p.State, err = "stopped", outer.Err()
	case ctx.Err() != nil:
		p.State, err = "deadline", fmt.Errorf("%w: %s (%v)", ErrDeadline, w.Deadline, err)
	default:
		p.State = "failed"
	}
	if err != nil {
		err = fmt.Errorf("warm entry %q: %w", w.Entry, err)
	}
	u.running = nil
	p.Took, p.Error = time.Since(p.began), ""
	if err != nil {
		p.Error = err.Error()
	}
	u.mu.Unlock()
	u.report(p, err)
	return p.copy(), err
}

// report counts and logs the end of a run.
func (u *Warmups) report(p *Progress, err error) {
	u.cfg.Metrics.ended(p)
	args := []any{"entry", p.Entry, "rows", p.Rows, "stored", p.Result.Stored, "present", p.Result.Present, "took", p.Took.Round(time.Millisecond)}
	if n := p.Result.refused(); n > 0 {
		args = append(args, "refused", p.Result.Refused)
	}
	switch p.State {
	case "done":
		u.log.Info("warmed", args...)
	case "skipped":
		u.log.Debug("not warmed: somebody else does, or has", "entry", p.Entry, "error", err)
	case "stopped":
		u.log.Info("warm-up stopped", args...)
	default:
		u.log.Warn("warm-up ended early, the rest is left to readers", append(args, "of", p.Of, "error", err)...)
	}
}

func (r *Result) refused() (n int) {
	for _, k := range r.Refused {
		n += k
	}
	return n
}

// logEvery tells how far the run is until it is stopped.
func (u *Warmups) logEvery(d time.Duration) (stop func()) {
	end, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		ticker := time.NewTicker(d)
		defer ticker.Stop()
		for {
			select {
			case <-end:
				return
			case <-ticker.C:
			}
			if p, ok := u.Running(); ok {
				u.log.Info("warming", "entry", p.Entry, "rows", p.Rows, "of", p.Of, "rows_per_second", int(p.PerSecond()), "waits_for", p.Error)
			}
		}
	}()
	return func() { close(end); <-done }
}

func (u *Warmups) run(ctx context.Context, w *rules.Warm, o RunOptions, p *Progress) (err error) {
	set := u.cfg.Warmer.cfg.Rules().Set()
	class := set.Class(w.Entry)
	if class == nil {
		return errGone
	}
	if !u.cfg.Warmer.cfg.Loader.Loads(class) {
		return ErrNoLoader
	}
	conn, err := u.lock(ctx, o.Wait, p)
	if err != nil {
		return err
	}
	// Whatever becomes of the run: the session takes cursor and lock along.
	defer closeSoon(conn)
	if !o.due.IsZero() {
		store := u.cfg.Warmer.cfg.Store
		last, lookErr := store.Warmed(ctx, p.ID)
		if lookErr != nil {
			return lookErr
		}
		if !last.Before(o.due) {
			u.update(p, func() { p.State = "skipped" })
			return nil
		}
		// At the end, and with the lock: a run that its process did not survive
		// was none, and another worker makes it. One that took too long was.
		defer func() {
			if err == nil || errors.Is(context.Cause(ctx), ErrDeadline) {
				err = errors.Join(err, store.SetWarmed(context.WithoutCancel(ctx), p.ID, o.due))
			}
		}()
	}
	deadline, _ := ctx.Deadline()
	cursor, err := openCursor(ctx, conn, w.Statement(o.Limit), time.Until(deadline))
	if err != nil {
		return err
	}
	u.update(p, func() { p.State, p.Of, p.Error = "running", cursor.total, "" })
	u.cfg.Metrics.began(p)
	return u.walk(ctx, cursor, set, class, o, p)
}

// walk fills what the cursor names, some batches at a time.
func (u *Warmups) walk(ctx context.Context, c *cursor, set *rules.Set, class *rules.Class, o RunOptions, p *Progress) error {
	cfg := u.cfg.Warmer.cfg.Loader.cfg
	n := cfg.Batch * cfg.Concurrency
	if o.Rate > 0 {
		n = max(1, min(n, int(o.Rate/4)))
	}
	began, left := time.Now(), warmPatience
	for {
		names, read, err := c.fetch(ctx, n, set, class)
		if err != nil {
			return err
		}
		if read == 0 {
			return nil
		}
		if err := u.fill(ctx, class.Name, names, &left, p); err != nil {
			return err
		}
		u.update(p, func() { p.Rows += read })
		u.cfg.Metrics.rows(p.Entry, read)
		if o.Rate > 0 {
			pause := time.Duration(float64(p.Rows)/o.Rate*float64(time.Second)) - time.Since(began)
			if err := sleep(ctx, pause); err != nil {
				return err
			}
		}
	}
}

// fill is fillPatiently, tried again while its error is one that time may cure.
func (u *Warmups) fill(ctx context.Context, class string, names []string, left *time.Duration, p *Progress) error {
	wait := warmBackoff
	for try := 1; len(names) > 0; try++ {
		r, err := u.cfg.Warmer.fillPatiently(ctx, class, names, left)
		u.update(p, func() {
			if err != nil { // counted when it is done whole
				p.Error = err.Error()
				return
			}
			p.Error = ""
			p.Result.add(r)
		})
		if err == nil {
			u.cfg.Metrics.filled(p.Entry, r)
			return nil
		}
		if ctx.Err() != nil || try == warmTries || incurable(err) {
			return err
		}
		u.log.Warn("warm-up tries again", "entry", class, "error", err, "retry_in", wait)
		if err := sleep(ctx, wait); err != nil {
			return err
		}
		wait *= 4
	}
	return nil
}

// incurable reports whether another try would fail alike: a statement that is
// wrong, a class that is gone or has no loader, a cache without room. Of the database's errors
// 42 is what is wrong with the statement or the role, 22 with the data.
func incurable(err error) bool {
	var refused *pgconn.PgError
	if errors.As(err, &refused) {
		return strings.HasPrefix(refused.Code, "42") || isDataError(err)
	}
	return errors.Is(err, errGone) || errors.Is(err, ErrNoLoader) || errors.Is(err, ErrOtherSource) || errors.Is(err, errWarmSQL) || errors.Is(err, errLoadSQL) || strings.Contains(err.Error(), "OOM command not allowed")
}

// lock opens a session that holds the right to warm.
func (u *Warmups) lock(ctx context.Context, wait bool, p *Progress) (*pgx.Conn, error) {
	conn, err := u.cfg.Warmer.cfg.Loader.connect(ctx)
	if err != nil {
		return nil, err
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte("lethe.warm\x00" + u.cfg.Cache))
	for {
		var held bool
		if err := conn.QueryRow(ctx, "SELECT pg_try_advisory_lock($1)", int64(h.Sum64())).Scan(&held); err != nil {
			closeSoon(conn)
			return nil, err
		}
		if held {
			return conn, nil
		}
		if !wait {
			closeSoon(conn)
			return nil, ErrWarming
		}
		u.update(p, func() { p.Error = ErrWarming.Error() })
		if err := sleep(ctx, lockLook); err != nil {
			closeSoon(conn)
			return nil, err
		}
	}
}

// closeSoon gives the lock back and says good-bye. A server notices the end of
// a session by itself, a moment later.
func closeSoon(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if !conn.IsClosed() {
		_, _ = conn.Exec(ctx, "SELECT pg_advisory_unlock_all()")
	}
	_ = conn.Close(ctx)
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return context.Cause(ctx)
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// byPriority orders warm-ups: the highest first, then as in the file.
func byPriority(list []*rules.Warm) []*rules.Warm {
	list = slices.Clone(list)
	slices.SortStableFunc(list, func(a, b *rules.Warm) int { return cmp.Compare(b.Priority, a.Priority) })
	return list
}

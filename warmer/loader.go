package warmer

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lethe-cache/lethe/cdc/source"
	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/internal/keytext"
	"github.com/lethe-cache/lethe/rules"
)

// Defaults of LoaderConfig.
const (
	ConcurrencyDefault      = 4
	BatchDefault            = 500
	StatementTimeoutDefault = 10 * time.Second
	applicationName         = "lethe"
)

// Errors of a Loader.
var (
	// ErrNotPrimary: the server is in recovery. What a standby shows is not
	// what a fill with a primary's stamp may hold.
	ErrNotPrimary = errors.New("server is not a primary")
	// ErrNoLoader: the class has no load.sql.
	ErrNoLoader = errors.New("class has no loader")
)

// LoaderConfig says where values are read.
type LoaderConfig struct {
	// URL is an ordinary connection to the primary, without a transaction
	// pooler between.
	URL string
	// StandbyURL is one to a standby of it, where values that are to be cached
	// are read instead, as long as it is not too far behind; "" is none. Its
	// role must be able to call lethe.source(), or have pg_read_all_stats.
	StandbyURL string
	// Concurrency bounds the loads that run at a time, Batch the rows that one
	// asks for.
	Concurrency, Batch int
	// Funcs read values of the classes by that name, in place of what the rules
	// say: for programs that embed the warmer.
	Funcs map[string]LoaderFunc
	// StatementTimeout bounds each statement on the server's side.
	StatementTimeout time.Duration
}

func (c LoaderConfig) withDefaults() LoaderConfig {
	if c.Concurrency <= 0 {
		c.Concurrency = ConcurrencyDefault
	}
	if c.Batch <= 0 {
		c.Batch = BatchDefault
	}
	if c.StatementTimeout <= 0 {
		c.StatementTimeout = StatementTimeoutDefault
	}
	return c
}

// Loader reads values of entries from the primary. It is safe for concurrent
// use; more than Concurrency loads wait for each other.
type Loader struct {
	pool    *pgxpool.Pool
	standby *pgxpool.Pool // nil without
	web     *web
	cfg     LoaderConfig
	// queries are the load.sql that were described, as they are run.
	queries queries
}

// OpenLoader makes a Loader. It does not connect: a database that is away shows
// when values are asked for.
func OpenLoader(ctx context.Context, cfg LoaderConfig) (*Loader, error) {
	cfg = cfg.withDefaults()
	pool, err := openPool(ctx, cfg, cfg.URL)
	if err != nil {
		return nil, fmt.Errorf("open loader: %w", err)
	}
	l := &Loader{pool: pool, web: newWeb(), cfg: cfg}
	if cfg.StandbyURL != "" {
		if l.standby, err = openPool(ctx, cfg, cfg.StandbyURL); err != nil {
			pool.Close()
			return nil, fmt.Errorf("open loader of a standby: %w", err)
		}
	}
	return l, nil
}

func openPool(ctx context.Context, cfg LoaderConfig, url string) (*pgxpool.Pool, error) {
	pc, err := pgxpool.ParseConfig(url)
	if err != nil {
		return nil, redact(err, url)
	}
	pc.MaxConns = int32(cfg.Concurrency)
	// Values are read in Postgres's text form, which must not depend on how
	// the role or the database is set up; and nothing is written, so that no
	// load ever sees data of its own that may be rolled back.
	for name, value := range map[string]string{
		"application_name":              applicationName,
		"bytea_output":                  "hex",
		"client_encoding":               "UTF8",
		"DateStyle":                     "ISO, YMD",
		"default_transaction_isolation": "read committed",
		"default_transaction_read_only": "on",
		"extra_float_digits":            "1",
		"IntervalStyle":                 "postgres",
		"lock_timeout":                  fmt.Sprint(cfg.StatementTimeout.Milliseconds()),
		"statement_timeout":             fmt.Sprint(cfg.StatementTimeout.Milliseconds()),
		"synchronous_commit":            "local",
		"TimeZone":                      "UTC",
	} {
		pc.ConnConfig.RuntimeParams[name] = value
	}
	return pgxpool.NewWithConfig(ctx, pc)
}

// redact keeps a password out of an error about the URL it stands in.
func redact(err error, raw string) error {
	if u, parseErr := url.Parse(raw); parseErr == nil && u.User != nil {
		if password, ok := u.User.Password(); ok && password != "" {
			return errors.New(strings.ReplaceAll(err.Error(), password, "xxxxx"))
		}
	}
	return err
}

// Close closes the connections, after the loads that run.
func (l *Loader) Close() {
	l.pool.Close()
	if l.standby != nil {
		l.standby.Close()
	}
	l.web.close()
}

// connect makes a connection of the loader's kind that is not of its pool, for
// what outlives a load.
func (l *Loader) connect(ctx context.Context) (*pgx.Conn, error) {
	cfg := l.pool.Config().ConnConfig.Copy()
	// It may hold a lock for hours: a server whose peer has lost its power would
	// otherwise find out after two.
	cfg.RuntimeParams["tcp_keepalives_idle"] = "30"
	cfg.RuntimeParams["tcp_keepalives_interval"] = "10"
	cfg.RuntimeParams["tcp_keepalives_count"] = "3"
	return pgx.ConnectConfig(ctx, cfg)
}

// Loaded are the values of some entries, each at the index of its name.
type Loaded struct {
	// Values are one line of JSON each; nil where there is no row.
	Values [][]byte
	// Tags are full names, rendered from the row.
	Tags [][]string
	// Source is where they were read, without an era.
	Source change.Source
	// Standby says that it was in recovery, Replayed how far it had replayed
	// before any of them was read.
	Standby  bool
	Replayed change.LSN
	// External says that the application read them: nothing is known of where.
	// TTLs and Refused are nil otherwise: the life of each if it is not the
	// class's, and why it can not be kept.
	External bool
	TTLs     []time.Duration
	Refused  []string
}

// origin is which server has answered, and how far it was.
type origin struct {
	source   change.Source
	standby  bool
	replayed change.LSN
}

// and joins the origins of two reads: of one server, and no further than the
// one that was less far.
func (o origin) and(p origin) (origin, error) {
	if o.source != p.source || o.standby != p.standby {
		return o, fmt.Errorf("the server changed from %+v to %+v meanwhile", o.source, p.source)
	}
	o.replayed = min(o.replayed, p.replayed)
	return o, nil
}

// HasStandby reports whether values may be read from a standby.
func (l *Loader) HasStandby() bool { return l.standby != nil }

// replayed asks the standby who it is and how far it has replayed.
func (l *Loader) replayed(ctx context.Context) (origin, error) {
	in, err := source.Read(ctx, l.standby)
	return originOf(in), err
}

func originOf(in source.Instance) origin {
	return origin{source: in.Source(), standby: in.InRecovery, replayed: in.Replay}
}

// InsertLSN reads where the primary writes now. It errs if the server is in
// recovery, or not of that source (its era is not looked at; the zero Source is
// any).
func (l *Loader) InsertLSN(ctx context.Context, of change.Source) (change.LSN, error) {
	in, err := source.Read(ctx, l.pool)
	if err != nil {
		return 0, fmt.Errorf("read insert LSN: %w", err)
	}
	if in.InRecovery {
		return 0, fmt.Errorf("read insert LSN: %w", ErrNotPrimary)
	}
	if of.SystemID != 0 && (in.SystemID != of.SystemID || in.Timeline != of.Timeline) {
		return 0, fmt.Errorf("read insert LSN: the server is system %d timeline %d, the log is of %d/%d", in.SystemID, in.Timeline, of.SystemID, of.Timeline)
	}
	return in.Insert, nil
}

// Load reads the values of entries by their full names, which must be of the
// class. Each batch is one transaction, begun after Load was called; all of
// them read the same server, or Load errs.
func (l *Loader) Load(ctx context.Context, set *rules.Set, class *rules.Class, names []string) (Loaded, error) {
	return l.loadAll(ctx, false, set, class, names)
}

// loadAll is Load, from the standby if that is asked for. What calls itself a
// standby and is none is read as the primary that it is: whether it is the right
// one is for the caller to see.
func (l *Loader) loadAll(ctx context.Context, standby bool, set *rules.Set, class *rules.Class, names []string) (Loaded, error) {
	if f, most := l.external(class); f != nil {
		return l.loadExternal(ctx, f, most, set, class, names)
	}
	if class.Load == nil {
		return Loaded{}, fmt.Errorf("load entry %q: %w", class.Name, ErrNoLoader)
	}
	out := Loaded{Values: make([][]byte, len(names)), Tags: make([][]string, len(names))}
	var from origin
	for start := 0; start < len(names); start += l.cfg.Batch {
		end := min(start+l.cfg.Batch, len(names))
		b := newRequest(set, class, names[start:end], out.Values[start:end], out.Tags[start:end])
		b.pool, b.standby = l.pool, standby
		if standby {
			b.pool = l.standby
		}
		o, err := l.load(ctx, b, 0, len(b.names))
		if err == nil && start > 0 {
			o, err = from.and(o)
		}
		if err != nil {
			return Loaded{}, fmt.Errorf("load entry %q: %w", class.Name, err)
		}
		from = o
	}
	out.Source, out.Standby, out.Replayed = from.source, from.standby, from.replayed
	return out, nil
}

// request is one batch of a load.
type request struct {
	pool    *pgxpool.Pool
	standby bool
	set     *rules.Set
	class   *rules.Class
	names   []string
	values  [][]byte
	tags    [][]string
	// args are the values of each placeholder, by its name; ok tells which
	// names have the form of the class's key at all.
	args map[string][]string
	ok   []bool
}

func newRequest(set *rules.Set, class *rules.Class, names []string, values [][]byte, tags [][]string) *request {
	r := &request{set: set, class: class, names: names, values: values, tags: tags, args: map[string][]string{}, ok: make([]bool, len(names))}
	placeholders := class.Key.Placeholders()
	filters := placeholderFilters(class.Key.Template)
	for i, name := range names {
		captures, ok := class.Captures([]byte(name))
		r.ok[i] = ok
		for j, p := range placeholders {
			if len(r.args[p]) > i {
				continue // named twice in the key
			}
			value := ""
			if ok {
				value = unfilter(captures[j], filters[j])
			}
			r.args[p] = append(r.args[p], value)
		}
	}
	return r
}

func placeholderFilters(t *keytext.Template) [][]keytext.Filter {
	var filters [][]keytext.Filter
	for _, s := range t.Segments() {
		if s.Column != "" {
			filters = append(filters, s.Filters)
		}
	}
	return filters
}

// unfilter undoes what can be undone; a loader of a key with other filters has
// to compare with the same ones applied.
func unfilter(value string, filters []keytext.Filter) string {
	if slices.Contains(filters, keytext.URLEncode) {
		if plain, err := url.PathUnescape(value); err == nil {
			return plain
		}
	}
	return value
}

// load reads names[from:to]. A value that the statement can not even parse
// ("abc" for an integer) fails the whole statement, so the batch is halved
// until that name stands alone: nobody's row has such a key.
func (l *Loader) load(ctx context.Context, r *request, from, to int) (origin, error) {
	o, err := l.loadOnce(ctx, r, from, to)
	if !isDataError(err) {
		return o, err
	}
	if to-from == 1 {
		return r.identify(ctx)
	}
	middle := (from + to) / 2
	if o, err = l.load(ctx, r, from, middle); err != nil {
		return o, err
	}
	second, err := l.load(ctx, r, middle, to)
	if err != nil {
		return second, err
	}
	return o.and(second)
}

// isDataError reports whether the server could not make sense of a value.
func isDataError(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && strings.HasPrefix(pgErr.Code, "22")
}

func (r *request) identify(ctx context.Context) (origin, error) {
	in, err := source.Read(ctx, r.pool)
	if err == nil && in.InRecovery && !r.standby {
		err = ErrNotPrimary
	}
	return originOf(in), err
}

// loadOnce runs the statement in a transaction of its own, in which the server
// also says who it is: behind a balancer the next statement may be elsewhere.
// How far a standby has replayed is read before the data, and what is read
// committed has a snapshot for each statement: the data is at least that young.
func (l *Loader) loadOnce(ctx context.Context, r *request, from, to int) (o origin, err error) {
	query, err := l.queries.of(ctx, r.pool, r.class)
	if err != nil {
		return o, err
	}
	args := []any{pgx.QueryResultFormats{pgx.TextFormatCode}}
	for _, p := range r.class.Load.Params {
		args = append(args, string(appendLiteral(nil, r.args[p][from:to])))
	}
	err = pgx.BeginTxFunc(ctx, r.pool, pgx.TxOptions{IsoLevel: pgx.ReadCommitted, AccessMode: pgx.ReadOnly}, func(tx pgx.Tx) error {
		in, err := source.Read(ctx, tx)
		if err != nil {
			return err
		}
		if in.InRecovery && !r.standby {
			return ErrNotPrimary
		}
		o = originOf(in)
		rows, err := tx.Query(ctx, query.SQL, args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		if err := r.read(rows, query.Hidden, from, to); err != nil {
			return err
		}
		return rows.Err()
	})
	if err != nil && !isDataError(err) {
		l.queries.forget(r.class) // a DDL may have made another of it
	}
	return o, err
}

package lookup

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lethe-cache/lethe/cdc/source"
	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/rules"
)

// Defaults of Config.
const (
	ConcurrencyDefault      = 4
	StatementTimeoutDefault = 5 * time.Second
	connectTimeout          = 5 * time.Second
	// memoryMax bounds what the rows of one call may hold; lookups beyond it
	// count as ones with too many rows.
	memoryMax = 64 << 20
	// pipelineMax is how many lookups are sent before the first answer is read.
	pipelineMax = 1000
	// attempts is how often a lookup is made that the server gives up, such as
	// one that runs into the statement timeout.
	attempts = 3
)

// Errors of a Runner that are repeated until they are over.
var (
	// ErrNotPrimary: the server is in recovery. What it shows may lack the
	// change that a lookup is made for.
	ErrNotPrimary = errors.New("server is not a primary")
	// ErrOtherSource: the server is not the one that the log is of.
	ErrOtherSource = errors.New("server is not the one that the log comes from")
)

// Config says where lookups are made.
type Config struct {
	// URL is an ordinary connection to the primary, without a transaction pooler
	// between.
	URL string
	// Concurrency bounds the connections; calls beyond it wait.
	Concurrency int
	// StatementTimeout bounds each lookup on the server's side. One that is
	// stopped by it three times has failed.
	StatementTimeout time.Duration
}

// Runner makes lookups. It is safe for concurrent use.
type Runner struct {
	pool *pgxpool.Pool
}

// settings make values print as the log carries them, whatever the role and the
// database are set up for, and keep a lookup from writing. A row that a policy
// hides would be a name that is missing: with row_security off the statement is
// refused instead.
func settings(timeout time.Duration) map[string]string {
	ms := fmt.Sprint(timeout.Milliseconds())
	return map[string]string{
		"application_name":              "lethe",
		"bytea_output":                  "hex",
		"client_encoding":               "UTF8",
		"DateStyle":                     "ISO",
		"default_transaction_isolation": "read committed",
		"default_transaction_read_only": "on",
		"extra_float_digits":            "1",
		"IntervalStyle":                 "postgres",
		"lock_timeout":                  ms,
		"row_security":                  "off",
		"statement_timeout":             ms,
		"TimeZone":                      "UTC",
	}
}

// Open makes a Runner. It does not connect: a database that is away shows when
// something is looked up.
func Open(cfg Config) (*Runner, error) {
	if cfg.Concurrency <= 0 {
		cfg.Concurrency = ConcurrencyDefault
	}
	if cfg.StatementTimeout <= 0 {
		cfg.StatementTimeout = StatementTimeoutDefault
	}
	pc, err := pgxpool.ParseConfig(cfg.URL)
	if err != nil {
		return nil, fmt.Errorf("open lookups: %w", redact(err, cfg.URL))
	}
	pc.MaxConns = int32(cfg.Concurrency)
	pc.ConnConfig.ConnectTimeout = connectTimeout
	for name, value := range settings(cfg.StatementTimeout) {
		pc.ConnConfig.RuntimeParams[name] = value
	}
	pc.AfterConnect = identify
	pool, err := pgxpool.NewWithConfig(context.Background(), pc)
	if err != nil {
		return nil, fmt.Errorf("open lookups: %w", err)
	}
	return &Runner{pool: pool}, nil
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

// Close closes the connections, after the lookups that run.
func (r *Runner) Close() { r.pool.Close() }

// sourceKey is where a connection keeps who its server is.
const sourceKey = "lethe.source"

// identify refuses a standby, and notes who the server is. A backend that has
// once said that it is a primary's is so for life, and of that timeline.
func identify(ctx context.Context, conn *pgx.Conn) error {
	in, err := source.Read(ctx, conn)
	if err != nil {
		return err
	}
	if in.InRecovery {
		return ErrNotPrimary
	}
	conn.PgConn().CustomData()[sourceKey] = in.Source()
	return nil
}

// Lookup makes lookups, those of one rule in one round trip, and answers each in
// its place. of is the source of the changes; its zero SystemID is any. The
// snapshots are younger than the call.
//
// An error says that the database did not answer as it will when all is well:
// connections, shutdowns, the wrong server. What it refuses for good, or gives
// up three times, is the error of that answer.
func (r *Runner) Lookup(ctx context.Context, of change.Source, requests []rules.LookupRequest) ([]rules.LookupAnswer, error) {
	conn, err := r.pool.Acquire(ctx)
	if err != nil {
		return nil, fmt.Errorf("look up: %w", err)
	}
	defer conn.Release()
	if err := fits(conn.Conn(), of); err != nil {
		_ = conn.Conn().Close(ctx) // the next one may be to whoever took over
		return nil, err
	}
	answers := make([]rules.LookupAnswer, len(requests))
	memory := memoryMax
	for _, group := range byRule(requests) {
		if err := run(ctx, conn.Conn().PgConn(), requests, answers, group, &memory); err != nil {
			return nil, fmt.Errorf("look up for rule %q: %w", requests[group[0]].Rule.Name, err)
		}
	}
	return answers, nil
}

// fits checks that a server has all that the log of a source says. A later
// timeline has what it shares with the earlier one, and what it lacks of it is
// no more; a raise of everything follows from there.
func fits(conn *pgx.Conn, of change.Source) error {
	is, _ := conn.PgConn().CustomData()[sourceKey].(change.Source)
	if of.SystemID == 0 || is.SystemID == of.SystemID && is.Timeline >= of.Timeline {
		return nil
	}
	return fmt.Errorf("look up: the server is system %d timeline %d, the log is of %d/%d: %w", is.SystemID, is.Timeline, of.SystemID, of.Timeline, ErrOtherSource)
}

// byRule groups the requests' indexes by rule, in the order of their first.
func byRule(requests []rules.LookupRequest) [][]int {
	var out [][]int
	at := map[*rules.Rule]int{}
	for i := range requests {
		g, ok := at[requests[i].Rule]
		if !ok {
			g = len(out)
			at[requests[i].Rule] = g
			out = append(out, nil)
		}
		out[g] = append(out[g], i)
	}
	return out
}

package edge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/rules"
)

// Defaults of Config.
const (
	PollDefault       = time.Second
	LeaseDefault      = 30 * time.Second
	RetryFirstDefault = 200 * time.Millisecond
	RetryMostDefault  = 30 * time.Second
)

// Forgotten is what was invalidated, each name once, namespace included.
type Forgotten struct {
	// Keys by the name of their class; "" has those of none.
	Keys map[string][]string
	Tags []string
	// Classes were raised; "*" is every class.
	Classes []string
	// X is the greatest position of all that.
	X change.Position
}

// DB is what a Sink needs of a pool of connections to the primary.
type DB interface {
	Begin(ctx context.Context) (pgx.Tx, error)
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Config holds what a Sink needs. DB and Owner must be set.
type Config struct {
	DB DB
	// Owner names the deployment: its namespace and the log that it follows.
	Owner string
	// Namespace is taken from names, unless an endpoint wants it.
	Namespace string
	// Alone says that no other process tells for this owner, so that what an
	// earlier one had taken is taken over at once instead of after its lease.
	Alone bool

	// Env looks up variables; nil is os.LookupEnv.
	Env func(name string) (string, bool)
	// Transport of the requests; nil is one like http.DefaultTransport.
	Transport http.RoundTripper
	// DeadLetter is told of a name that an endpoint does not take; nil logs it.
	DeadLetter func(ctx context.Context, endpoint, name string, err error)
	// Logger, nil discards. Registerer, nil registers no metrics.
	Logger     *slog.Logger
	Registerer prometheus.Registerer

	// Poll is how often the table is looked at, Lease how long a row that was
	// taken is nobody else's. RetryFirst and RetryMost bound the pause before a
	// request is repeated.
	Poll, Lease, RetryFirst, RetryMost time.Duration
}

func (c Config) withDefaults() Config {
	if c.Env == nil {
		c.Env = os.LookupEnv
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{
		{&c.Poll, PollDefault}, {&c.Lease, LeaseDefault}, {&c.RetryFirst, RetryFirstDefault}, {&c.RetryMost, RetryMostDefault},
	} {
		if *d.field <= 0 {
			*d.field = d.value
		}
	}
	return c
}

// credentials are what the environment holds for an endpoint.
type credentials struct {
	secret []byte
	header http.Header
}

// resolve reads the variables that an endpoint names. All that are missing are
// told at once.
func (c *Config) resolve(e *rules.EdgeCache) (credentials, error) {
	out := credentials{header: http.Header{}}
	var errs []error
	get := func(name string) string {
		v, ok := c.Env(name)
		if !ok || v == "" {
			errs = append(errs, fmt.Errorf("edge %q: the environment has no %s", e.Name, name))
		}
		return v
	}
	for name, value := range e.Headers {
		out.header.Set(name, value)
	}
	for name, variable := range e.HeadersEnv {
		out.header.Set(name, get(variable))
	}
	if e.TokenEnv != "" {
		out.header.Set("Authorization", "Bearer "+get(e.TokenEnv))
	}
	if e.SecretEnv != "" {
		out.secret = []byte(get(e.SecretEnv))
	}
	return out, errors.Join(errs...)
}

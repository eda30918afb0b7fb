package client

import (
	"errors"
	"fmt"
	"log/slog"
	"regexp"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/redis/go-redis/v9"
)

// Defaults of Options.
const (
	// L1BytesDefault bounds the memory of L1.
	L1BytesDefault = 64 << 20
	// RedisTimeoutDefault bounds each step of a read that asks Redis.
	RedisTimeoutDefault = 100 * time.Millisecond
	// OpenTimeoutDefault is how long Open waits for Redis.
	OpenTimeoutDefault = 2 * time.Second
	// TokenWaitDefault is how long a read under After waits for the cache.
	TokenWaitDefault = 200 * time.Millisecond
)

// Options are the settings of a Client. Redis must be set.
type Options struct {
	// Redis tells where the cache is: a *redis.Client (of one node, or one that
	// redis.NewFailoverClient made) or a *redis.ClusterClient. The Client makes
	// connections of its own from its settings, with timeouts and without
	// repetitions; this one is neither used nor closed. What reads from
	// replicas, and rings, are refused.
	Redis redis.UniversalClient
	// Name is what other Clients and operators call this one: see BarrierError
	// (default host:pid).
	Name string
	// Namespace is that of rules.yaml; "" if names are used as written.
	Namespace string
	// Database serves Load.Query, and carries invalidations by hand. Primary or
	// standby: which one is found out on each load. nil: loaders read the
	// primary by themselves. The caller closes it, after the Client.
	Database *pgxpool.Pool
	// Logger receives what an operator should know, under component=client; nil
	// discards it. A message that repeats itself is written five times in 10 s,
	// then left out; the next one says how many were (left_out).
	Logger *slog.Logger
	// Observer is told what the Client does (nil: nobody); see Observer for what
	// it may do itself. Client.Collector needs none.
	Observer Observer
	// KeyPattern is what every key and tag, without the namespace, must match:
	// one that does not is an error (ErrKey) before anything is asked. It is
	// matched anywhere, as regexp does: begin with ^ and end with $. nil: any
	// name that ErrKey allows; a key that does not begin with its class and a
	// colon is warned of, once for each class that has no KeyTemplate.
	KeyPattern *regexp.Regexp
	// ObserveTables finds out, for development and tests, which tables the
	// loads of each class read through Load.Query and Load.QueryRow: each
	// statement is explained once, on a connection of its own, after the load.
	// The tables are reported to Redis, where "lethe check --observed" compares
	// them with the rules, and are returned by Client.ObservedTables. It needs
	// Database.
	ObserveTables bool
	// HotInterval is how often the keys that are read most are reported to Redis,
	// where Lethe sees which to keep warm: 64 keys at most, those of HotKeys
	// (default 10 s; negative: never).
	HotInterval time.Duration
	// L1Bytes bounds the values that are kept decoded in the process, by the
	// length of their encoding (default 64 MB). Negative: there is no L1.
	L1Bytes int64
	// RedisTimeout bounds each step of a read that asks Redis (default 100 ms).
	// After it the read goes on without the cache.
	RedisTimeout time.Duration
	// OpenTimeout is how long Open waits for Redis to answer (default 2 s). It
	// then returns a Client that reads the database, and goes on trying.
	OpenTimeout time.Duration
	// MaxStale is the bound of classes that have no MaxStale of their own: see
	// there (default 1 min; negative: none).
	MaxStale time.Duration
	// TokenWait is how long a read under After waits until a value of the cache is
	// sure to have what the token names, before it reads the database (default
	// 200 ms). Where the cache has no value it does not wait.
	TokenWait time.Duration
}

func (o Options) withDefaults() Options {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Name == "" {
		o.Name = defaultName()
	}
	if o.L1Bytes == 0 {
		o.L1Bytes = L1BytesDefault
	}
	if o.RedisTimeout <= 0 {
		o.RedisTimeout = RedisTimeoutDefault
	}
	if o.OpenTimeout <= 0 {
		o.OpenTimeout = OpenTimeoutDefault
	}
	if o.MaxStale == 0 {
		o.MaxStale = MaxStaleDefault
	}
	if o.HotInterval == 0 {
		o.HotInterval = HotIntervalDefault
	}
	if o.TokenWait <= 0 {
		o.TokenWait = TokenWaitDefault
	}
	return o
}

func (o Options) validate() error {
	switch r := o.Redis.(type) {
	case nil:
		return errors.New("Options.Redis is nil")
	case *redis.Client:
		if opt := r.Options(); opt.ClientSideCache != nil || opt.ClientSideCacheConfig != nil {
			return errors.New("Options.Redis caches on the client side: its answers may be older than the last invalidation")
		}
	case *redis.ClusterClient:
		if opt := r.Options(); opt.ReadOnly || opt.RouteByLatency || opt.RouteRandomly {
			return errors.New("Options.Redis reads from replicas (ReadOnly, RouteByLatency or RouteRandomly): a replica may miss an invalidation")
		}
	case *redis.Ring:
		return errors.New("Options.Redis is a ring: the two halves of an invalidation would fall on different servers")
	default:
		return fmt.Errorf("Options.Redis is a %T: want *redis.Client or *redis.ClusterClient", r)
	}
	return nil
}

package coherence

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
)

// Defaults and bounds of Options.
const (
	DialTimeoutDefault  = 2 * time.Second
	IOTimeoutDefault    = 5 * time.Second
	PoolSizeDefault     = 16
	StreamLengthDefault = 4096
	StreamBytesDefault  = 16 << 20
	// CoarseBatchDefault is the number of entries from which a batch on one
	// node raises one mark instead of a bucket for each; see
	// Options.CoarseBatch.
	CoarseBatchDefault = 256
	// EmptyLife is how long an empty entry lives.
	EmptyLife = 60 * time.Second
)

// Store is the protocol on one Redis: one node, a master behind Sentinels, or
// a Cluster. It is safe for concurrent use and starts no goroutine that
// outlives a call. Its commands are never repeated by the client library;
// where a call may be repeated, and must be repeated whole, it says so.
type Store struct {
	layout *Layout
	opts   Options
	logger *slog.Logger

	// single is nil in Cluster, cluster elsewhere.
	single  *node
	cluster *redis.ClusterClient
	owned   redis.UniversalClient // to be closed with the Store, or nil
	legacy  bool                  // servers without #!lua flags
	setGet  bool                  // servers with SET NX GET
	closed  atomic.Bool
	foreign atomic.Int64

	mu    sync.Mutex
	nodes map[string]*node // by address
	// owners is, in Cluster, which master was known to own each slot when the
	// Store was opened or the node acknowledged. Another one is a lost node:
	// it may be a replica that missed writes.
	owners []*node
}

func (o Options) withDefaults() Options {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.DialTimeout <= 0 {
		o.DialTimeout = DialTimeoutDefault
	}
	if o.ReadTimeout <= 0 {
		o.ReadTimeout = IOTimeoutDefault
	}
	if o.WriteTimeout <= 0 {
		o.WriteTimeout = IOTimeoutDefault
	}
	if o.PoolSize <= 0 {
		o.PoolSize = PoolSizeDefault
	}
	if o.StreamLength <= 0 {
		o.StreamLength = StreamLengthDefault
	}
	if o.StreamBytes <= 0 {
		o.StreamBytes = StreamBytesDefault
	}
	if o.CoarseBatch == 0 {
		o.CoarseBatch = CoarseBatchDefault
	}
	return o
}

func (o Options) validate() error {
	if o.Namespace == ReservedNamespace || strings.HasPrefix(o.Namespace, ReservedNamespace+":") {
		return fmt.Errorf("namespace %q is reserved", o.Namespace)
	}
	if strings.ContainsAny(o.Namespace, "{}") {
		return fmt.Errorf("namespace %q: braces would move keys between the slots of a cluster", o.Namespace)
	}
	return nil
}

func newStore(o Options, cluster bool) (*Store, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	o = o.withDefaults()
	return &Store{
		layout: NewLayout(o.Namespace, cluster), opts: o, logger: o.Logger.With("component", "coherence"),
		nodes: make(map[string]*node),
	}, nil
}

// New makes a Store on a client of the caller's, who closes it. A
// *redis.Client and a *redis.ClusterClient are taken. Its own settings stand:
// MaxRetries should be -1 and ContextTimeoutEnabled true. A change of run_id
// is noticed by Check only, since New can not look at each new connection.
func New(ctx context.Context, rdb redis.UniversalClient, o Options) (*Store, error) {
	switch c := rdb.(type) {
	case *redis.Client:
		s, err := newStore(o, false)
		if err != nil {
			return nil, err
		}
		s.single = s.node(c.Options().Addr)
		s.single.client = c
		return s, s.open(ctx)
	case *redis.ClusterClient:
		s, err := newStore(o, true)
		if err != nil {
			return nil, err
		}
		s.cluster = c
		return s, s.open(ctx)
	}
	return nil, fmt.Errorf("use redis client: %T is neither *redis.Client nor *redis.ClusterClient", rdb)
}

// open learns who the masters are and what they can do.
func (s *Store) open(ctx context.Context) error {
	masters, err := s.topology(ctx)
	if err != nil {
		return fmt.Errorf("open redis: %w", err)
	}
	s.setGet = true
	for _, m := range masters {
		if err := s.greet(ctx, m.node); err != nil {
			return fmt.Errorf("open redis %s: %w", m.node.name, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cluster != nil {
		s.owners = make([]*node, Slots)
		for _, m := range masters {
			m.own(s.owners)
		}
	}
	return nil
}

// greet asks a master who it is, what it can do and how it sorts.
func (s *Store) greet(ctx context.Context, n *node) error {
	id, err := s.askRunID(ctx, n)
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.known = id
	n.mu.Unlock()
	// The probe, not the version, decides: forks number as they like.
	if err := n.conn().ScriptLoad(ctx, "#!lua flags=allow-oom\nreturn 1").Err(); err != nil {
		if !isServerError(err) {
			return err
		}
		s.legacy, s.setGet = true, false
	}
	// Positions are compared as strings, by the server's collation. Digits and
	// lower-case letters keep their order in every one that is in use; this is
	// the proof for this server.
	ok, err := n.conn().Eval(ctx, collationCheck, nil).Bool()
	if err != nil {
		return fmt.Errorf("check collation: %w", err)
	}
	if !ok {
		return errors.New("check collation: the server does not sort '9' < 'a' < 'f': start it with LC_ALL=C")
	}
	return nil
}

const collationCheck = `local d = '0123456789abcdef'
for i = 1, 15 do
  local a, b = string.sub(d, i, i), string.sub(d, i + 1, i + 1)
  if not (a < b) or not ('0' .. a .. 'f' < '0' .. b .. '0') then return 0 end
end
return 1`

// Layout returns the names of the keys.
func (s *Store) Layout() *Layout { return s.layout }

// Close closes the connections of a Store that Dial made. Calls under way and
// later ones fail. It may be called twice.
func (s *Store) Close() error {
	if s.closed.Swap(true) || s.owned == nil {
		return nil
	}
	return s.owned.Close()
}

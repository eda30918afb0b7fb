package client

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
)

// Defaults of a class.
const (
	TTLDefault      = time.Hour
	MaxValueDefault = 8 << 20
	MaxLoadsDefault = 128
)

// Errors that callers branch on.
var (
	// ErrNotFound is what a loader returns (wrapped or not) for something that
	// does not exist. With NegativeTTL that knowledge is cached.
	ErrNotFound = errors.New("not found")
	// ErrOverloaded: too many loads of the class run and wait already.
	ErrOverloaded = errors.New("too many loads")
	// ErrNotLive is returned by classes with FailWhileNotLive.
	ErrNotLive = errors.New("the client does not hear the broadcast")
	// ErrNoLoader: neither the call nor the class has a loader.
	ErrNoLoader = errors.New("no loader")
	// ErrClosed is why a load's context ended: Close did not wait for it any
	// longer.
	ErrClosed = errors.New("the client was closed")
)

// class is what is common to the entries of one class.
type class struct {
	// What a hit in L1 reads stands together, away from what changes with each
	// load.
	//
	// valid is the number that entries of L1 have if they are of this epoch and
	// generation. No two classes have the same number, nor one at two times.
	valid atomic.Uint32
	l1    *l1 // nil if the class is not kept in L1
	// trusted is until when, by Client.now, no master's entries are too old.
	trusted   atomic.Int64
	l1Version uint32 // the version in keys of L1: 0 and 1 are the plain name

	name     string
	ttl      time.Duration
	jitter   float64
	negative time.Duration
	version  uint32
	maxValue int
	codec    Codec
	load     any // func(context.Context, string, *Load) (T, error)
	loadMany any // func(context.Context, []string, *BatchLoad) (map[string]T, error)
	maxBatch int
	staleFor time.Duration
	failing  bool
	plain    bool
	maxLoads int
	// maxStale is the bound of what is served, if positive; strict says that it
	// was asked for, and is not the default.
	maxStale time.Duration
	strict   bool
	key      *keyTemplate // nil without KeyTemplate
	linted   atomic.Bool  // lintKey has warned

	generation atomic.Uint64 // as known; 0 if it is not
	serving
	admission Admission
	share     float64 // of L1, 0 for none
	room      *room   // guarded by Client.mu
	_         [64]byte
	turns     *turns
	took      loadTime
	counts    classCounts
	mu        sync.Mutex
	flights   map[string]any // *flight[T] by key
}

// Option is a setting of a class of entries.
type Option func(*class) error

// TTL is how long a value may be served at most (default 1 h). It must be
// positive. Load.TTL has precedence.
func TTL(d time.Duration) Option {
	return func(c *class) error {
		if d <= 0 {
			return fmt.Errorf("TTL is %v: want a positive duration", d)
		}
		c.ttl = d
		return nil
	}
}

// Jitter shortens the TTL of each entry by a random part of up to the given
// fraction (0 to 1, default 0), so that what was filled together does not
// expire together.
func Jitter(fraction float64) Option {
	return func(c *class) error {
		if !(fraction >= 0 && fraction <= 1) {
			return fmt.Errorf("Jitter is %v: want 0 to 1", fraction)
		}
		c.jitter = fraction
		return nil
	}
}

// NegativeTTL caches, that long, that a loader returned ErrNotFound. Default:
// it is not cached.
func NegativeTTL(d time.Duration) Option {
	return func(c *class) error {
		if d <= 0 {
			return fmt.Errorf("NegativeTTL is %v: want a positive duration", d)
		}
		c.negative = d
		return nil
	}
}

// LoadWith gives the class a loader, for calls of Get that bring none. T is
// that of Entries. See Load for what a loader may do.
func LoadWith[T any](load func(ctx context.Context, key string, l *Load) (T, error)) Option {
	return func(c *class) error {
		if load == nil {
			return errors.New("LoadWith is nil")
		}
		c.load = load
		return nil
	}
}

// Version is the version of the values' format, as in rules.yaml (default 1).
// Values of one version are not seen by readers of another.
func Version(n uint32) Option {
	return func(c *class) error { c.version = n; return nil }
}

// WithCodec encodes values in Redis (default JSON).
func WithCodec(codec Codec) Option {
	return func(c *class) error {
		if codec == nil {
			return errors.New("WithCodec is nil")
		}
		c.codec = codec
		return nil
	}
}

// MaxValue bounds an encoded value in bytes (default 8 MB): a larger one is
// returned, not cached, and counted.
func MaxValue(bytes int) Option {
	return func(c *class) error {
		if bytes <= 0 {
			return fmt.Errorf("MaxValue is %d: want a positive number of bytes", bytes)
		}
		c.maxValue = bytes
		return nil
	}
}

// MaxLoads bounds the loads of the class that run at one time in this process
// (default 128), so that a cache that is down does not take the database with
// it. Eight times as many may wait, in the order of Priority; more get
// ErrOverloaded at once.
func MaxLoads(n int) Option {
	return func(c *class) error {
		if n <= 0 {
			return fmt.Errorf("MaxLoads is %d: want a positive number", n)
		}
		c.maxLoads = n
		return nil
	}
}

// StaleWhileNotLive serves from L1 for up to d after the Client has ceased to
// be Live. Default: L1 is passed by.
func StaleWhileNotLive(d time.Duration) Option {
	return func(c *class) error {
		if d <= 0 {
			return fmt.Errorf("StaleWhileNotLive is %v: want a positive duration", d)
		}
		c.staleFor = d
		return nil
	}
}

// FailWhileNotLive makes Get return ErrNotLive while the Client is not Live,
// for what must rather be absent than loaded by everybody at once.
func FailWhileNotLive() Option {
	return func(c *class) error { c.failing = true; return nil }
}

// Class is a class of cache entries whose values are of type T. It is safe for
// concurrent use.
//
// Values are shared: what Get returns may be held by L1 and by other callers,
// so maps, slices and pointers in it must not be written to.
type Class[T any] struct {
	c   *Client
	cl  *class
	err error
}

// Entries gives access to a class of rules.yaml. Call it once for each class
// and keep the result. A setting that makes no sense is the error of every
// later call.
func Entries[T any](c *Client, name string, opts ...Option) *Class[T] {
	cl := &class{
		name: name, ttl: TTLDefault, maxValue: MaxValueDefault, maxLoads: MaxLoadsDefault, maxBatch: MaxBatchDefault, codec: JSON{},
		serving: newServing(), maxStale: c.opts.MaxStale, strict: c.vouching.strict,
		flights: map[string]any{},
	}
	var errs []error
	if name == "" || name == namespaceClass {
		errs = append(errs, fmt.Errorf("class %q: not a name", name))
	}
	for _, o := range opts {
		if err := o(cl); err != nil {
			errs = append(errs, err)
		}
	}
	if cl.load != nil {
		if _, ok := cl.load.(func(context.Context, string, *Load) (T, error)); !ok {
			var zero T
			errs = append(errs, fmt.Errorf("LoadWith returns something else than %T", zero))
		}
	}
	if _, ok := cl.loadMany.(batchLoader[T]); !ok && cl.loadMany != nil {
		var zero T
		errs = append(errs, fmt.Errorf("LoadManyWith returns something else than %T", zero))
	}
	if _, ok := cl.fallback.(T); !ok && cl.fallback != nil {
		var zero T
		errs = append(errs, fmt.Errorf("Default is a %T: want %T", cl.fallback, zero))
	}
	errs = append(errs, cl.serving.check(), cl.checkPlain())
	if err := errors.Join(errs...); err != nil {
		return &Class[T]{c: c, cl: cl, err: fmt.Errorf("entries %q: %w", name, err)}
	}
	if cl.version > 1 {
		cl.l1Version = cl.version
	}
	cl.turns = newTurns(cl.maxLoads)
	cl.counts.class, cl.counts.observer = name, c.opts.Observer
	e := &Class[T]{c: c, cl: cl}
	if err := c.register(cl); err != nil {
		e.err = fmt.Errorf("entries %q: %w", name, err)
	}
	return e
}

// name is the key of an entry in Redis.
func (c *Client) name(cl *class, key string) string {
	return c.layout.Versioned(c.full(key), cl.version)
}

// life is the TTL of one entry.
func (cl *class) life(own time.Duration) time.Duration {
	if own <= 0 {
		own = cl.ttl
	}
	return own - time.Duration(float64(own)*cl.jitter*rand.Float64())
}

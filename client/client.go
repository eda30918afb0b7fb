package client

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/coherence"
)

// State says how much of the broadcast a Client has heard.
type State int

// The states of a Client.
const (
	// Blind: there is no subscription, or it does not answer. L1 is not used,
	// and each hit in Redis is checked against the control data.
	Blind State = iota
	// CatchingUp: what was missed is being replayed; reads as in Blind.
	CatchingUp
	// Live: everything that was broadcast up to 1.5 s ago at most was handled.
	Live
)

// String is "blind", "catching up" or "live".
func (s State) String() string {
	switch s {
	case Live:
		return "live"
	case CatchingUp:
		return "catching up"
	}
	return "blind"
}

// Client is a cache of two layers in front of a Postgres database: L1 in the
// process, L2 in Redis. It is safe for concurrent use. Open makes one, and one
// is enough for a process.
type Client struct {
	opts   Options
	logger *slog.Logger
	log    *limited // the handler of logger
	layout *coherence.Layout
	prefix string // of full names

	data, subs redis.UniversalClient
	cluster    *redis.ClusterClient // data, if that is a cluster
	owners     *[coherence.Slots]atomic.Pointer[redis.Client]
	store      atomic.Pointer[coherence.Store] // nil until Redis answered
	breaker    breaker                         // of a cluster whose nodes are not known
	vouching   vouching
	conns      conns
	timeouts   timeouts
	nodesMu    sync.Mutex
	nodes      map[string]string // run_id by address

	// id is this Client's in the list of clients, enrolled when it was last
	// written there (by now; the receiver's), sharded how broadcasts come.
	id       string
	enrolled time.Duration
	sharded  atomic.Bool

	// What each hit in L1 reads stands together, away from what is written
	// often. epoch, view and liveUntil are read without mu and written under it.
	_          [64]byte
	clock      clock
	liveUntil  atomic.Int64 // by now, nanoseconds
	lastLive   atomic.Int64 // the greatest that liveUntil was
	epoch      atomic.Uint64
	_          [64]byte
	view       atomic.Pointer[view] // nil until the control data was read
	subscribed atomic.Bool
	refused    atomic.Pointer[error] // Redis does not permit what is needed
	marks      marks
	spares     atomic.Bool // some class has StaleFor
	l1         *l1         // nil without L1
	heat       *heat
	seed       maphash.Seed // of hashes of keys
	reload     chan struct{}

	// mu makes the handling of a message, and a look at what was handled
	// together with a store into L1, one step each. No command is sent and no
	// code of the application runs under it.
	mu         sync.Mutex
	classes    map[string][]*class
	valid      uint32 // the last class.valid
	versions   []uint32
	suffixes   atomic.Pointer[[]string]
	caughtUp   bool
	caughtUpAt time.Duration
	stale      bool // the control data is to be read again
	news       chan struct{}
	closed     bool

	counts   counts
	observed *observation // nil without Options.ObserveTables
	hooks    hooks
	loads    context.Context // ends when Close waits no longer for loads
	endLoads context.CancelFunc
	ctx      context.Context // ends with Close
	cancel   context.CancelFunc
	wg       sync.WaitGroup // the receiver
	fills    sync.WaitGroup // flights
}

// hooks are for tests of this package.
type hooks struct {
	// queue is the length of the receiver's queue, 0 for the usual one.
	queue int
	// received may hold a message back, or swallow it by returning false.
	received func(*received) bool
	// loaded runs between the load and the fill.
	loaded func(name string)
	// answered runs between the answer of Redis to a read and its judgement.
	answered func(name string)
	// awaiting runs before a read under a token waits for w.
	awaiting func()
	// registering runs before each round of registrations.
	registering func([]coherence.RegisterRequest)
	// grace is that of Close, before and after it ends contexts; 0 for the
	// usual one.
	grace [2]time.Duration
	// filled runs between an accepted fill and the store into L1.
	filled func(name string)
}

// Open connects. It fails on options that can not work, and if Redis refuses what
// is needed (a wrong password, no permission for INFO, scripts or the channel); if
// Redis does not answer within Options.OpenTimeout it returns a Client that reads
// the database through its loaders and goes on trying. Close frees what it holds.
func Open(ctx context.Context, o Options) (*Client, error) {
	return open(ctx, o, hooks{})
}

func open(ctx context.Context, o Options, h hooks) (*Client, error) {
	if err := o.validate(); err != nil {
		return nil, fmt.Errorf("open client: %w", err)
	}
	if o.Namespace == coherence.ReservedNamespace || strings.HasPrefix(o.Namespace, coherence.ReservedNamespace+":") {
		return nil, fmt.Errorf("open client: Options.Namespace %q is reserved", o.Namespace)
	}
	if strings.ContainsAny(o.Namespace, "{}") {
		return nil, fmt.Errorf("open client: Options.Namespace %q: braces would move keys between the slots of a cluster", o.Namespace)
	}
	asked := o.MaxStale
	o = o.withDefaults()
	_, clustered := o.Redis.(*redis.ClusterClient)
	log := newLimited(o.Logger.Handler().WithAttrs([]slog.Attr{slog.String("component", "client")}), logBurst, logInterval)
	c := &Client{
		opts: o, logger: slog.New(log), log: log, layout: coherence.NewLayout(o.Namespace, clustered),
		nodes: map[string]string{}, classes: map[string][]*class{}, versions: []uint32{0},
		id: randomHex(), reload: make(chan struct{}, 1), news: make(chan struct{}), hooks: h,
	}
	c.counts.observer = o.Observer
	c.clock.start()
	c.seed, c.heat = maphash.MakeSeed(), newHeat()
	c.prefix = c.layout.Name("")
	c.suffixes.Store(new([]string))
	c.epoch.Store(1)
	if o.L1Bytes > 0 {
		c.l1 = newL1(o.L1Bytes, newTable(c.seed))
	}
	c.vouching.strict = asked > 0
	c.vouching.kick, c.vouching.masters = make(chan struct{}, 1), map[string]*master{}
	c.connect()
	c.ctx, c.cancel = context.WithCancel(context.WithoutCancel(ctx))
	c.loads, c.endLoads = context.WithCancel(context.WithoutCancel(ctx))
	c.vouching.bound(o.MaxStale)
	c.wg.Go(func() { c.run(c.ctx) })
	c.wg.Go(func() { c.vouch(c.ctx) })
	if o.HotInterval > 0 {
		c.wg.Go(func() { c.reportHot(c.ctx, o.HotInterval) })
	}
	if o.ObserveTables && o.Database != nil {
		c.observed = newObservation(c)
		c.wg.Go(func() { c.observed.run(c.ctx) })
	}
	waitCtx, cancel := context.WithTimeout(ctx, o.OpenTimeout)
	defer cancel()
	if err := c.waitFor(waitCtx, func() bool { return c.State() == Live || c.refused.Load() != nil }); err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("open client: %w", joinClose(ctx.Err(), c))
		}
		c.logger.Warn("redis does not answer, reads go to the database", "waited", o.OpenTimeout)
	} else if refused := c.refused.Load(); refused != nil {
		return nil, fmt.Errorf("open client: %w", joinClose(*refused, c))
	} else {
		c.firstVouch(ctx)
	}
	return c, nil
}

func joinClose(err error, c *Client) error {
	_ = c.Close()
	return err
}

// Close waits for the loads and fills that are under way, ends the subscription
// and closes the connections that Open made. Loads that are not over after 5 s
// have their context ended, with ErrClosed as its cause; those that are not over
// another 5 s later are left alone, and Close returns an error that says how
// many. Reads after Close go to the database. It may be called twice.
func (c *Client) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	c.mu.Unlock()
	left := c.drain()
	c.observed.close()
	c.cancel()
	c.wg.Wait()
	c.resign()
	c.log.close(context.Background())
	err := c.data.Close()
	err = errors.Join(left, err, c.subs.Close())
	if err != nil {
		return fmt.Errorf("close client: %w", err)
	}
	return nil
}

// closeGrace is how long Close waits for loads, before and after it ends their
// contexts.
const closeGrace = 5 * time.Second

// drain waits for loads and fills, and no longer than it promises.
func (c *Client) drain() error {
	defer c.endLoads()
	done := make(chan struct{})
	go func() {
		c.fills.Wait()
		close(done)
	}()
	for _, grace := range c.hooks.grace {
		if grace == 0 {
			grace = closeGrace
		}
		t := time.NewTimer(grace)
		select {
		case <-done:
			t.Stop()
			return nil
		case <-t.C:
			c.endLoads()
		}
	}
	select {
	case <-done:
		return nil
	default:
		return fmt.Errorf("%d loads go on although their context has ended", c.counts.flights.Load())
	}
}

// State says how far the Client hears the broadcast.
func (c *Client) State() State {
	switch {
	case c.live():
		return Live
	case c.subscribed.Load():
		return CatchingUp
	}
	return Blind
}

// now is the time since Open, by the monotonic clock: it goes on while the
// process is stopped, so that a process that was asleep knows it.
func (c *Client) now() time.Duration { return c.clock.since() }

func (c *Client) live() bool { return int64(c.now()) < c.liveUntil.Load() }

// waitFor waits until a condition on the view or the state holds.
func (c *Client) waitFor(ctx context.Context, ok func() bool) error {
	for {
		c.mu.Lock()
		news := c.news
		c.mu.Unlock()
		if ok() {
			return nil
		}
		select {
		case <-news:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// full is the full name of a key or tag; short is its reverse.
func (c *Client) full(name string) string { return c.prefix + name }

func (c *Client) short(name string) (string, bool) { return strings.CutPrefix(name, c.prefix) }

// bare is a name without the version of a class.
func (c *Client) bare(name string) string {
	for _, s := range *c.suffixes.Load() {
		if bare, ok := strings.CutSuffix(name, s); ok {
			return bare
		}
	}
	return name
}

func (c *Client) classNames() []string {
	names := make([]string, 0, len(c.classes)+1)
	for n := range c.classes {
		names = append(names, n)
	}
	if v := c.view.Load(); v != nil {
		for n := range v.control.Classes {
			if !slices.Contains(names, n) {
				names = append(names, n)
			}
		}
	}
	return names
}

// register makes a class known. Its record is read with the next epoch, which
// begins now unless the record is there.
func (c *Client) register(cl *class) error {
	c.mu.Lock()
	if c.l1 != nil {
		room, err := c.l1.rooms.of(cl.name, cl.share)
		if err != nil {
			c.mu.Unlock()
			return err
		}
		if cl.room = room; !cl.admission.off {
			cl.l1 = c.l1
		}
		for _, same := range c.classes[cl.name] {
			same.room = room
		}
	}
	c.classes[cl.name] = append(c.classes[cl.name], cl)
	c.voidLocked(cl.name) // 0 is for what was dropped
	c.vouching.bound(cl.maxStale)
	c.trustLocked()
	if cl.staleCap > 0 {
		c.spares.Store(true)
	}
	if cl.version > 1 && !slices.Contains(c.versions, cl.version) {
		c.versions = append(c.versions, cl.version)
		s := append(slices.Clone(*c.suffixes.Load()), "@"+strconv.FormatUint(uint64(cl.version), 10))
		c.suffixes.Store(&s)
	}
	v := c.view.Load()
	if v != nil && v.knows(cl.name) {
		g, _ := v.generation(cl.name)
		cl.generation.Store(g)
		c.mu.Unlock()
		return nil
	}
	c.mu.Unlock()
	if v != nil {
		c.bump("class " + cl.name + " is new")
	}
	return nil
}

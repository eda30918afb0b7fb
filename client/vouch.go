package client

import (
	"context"
	"errors"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
)

// MaxStaleDefault is how old what is served may be by default.
const MaxStaleDefault = time.Minute

// MaxStale bounds how old a value may be that is served as current: one from
// Redis or L1 is passed by, and loaded, unless this Client knows that everything
// that was committed up to d ago has been invalidated on the master that holds
// it. So when a reader or worker is dead, the log stalls, or a master is cut off
// from the workers but not from this process, nothing is served that is older
// than d. What this process itself loaded from the primary is served from L1 for
// up to d meanwhile, and StaleFor allows more to those that would wait.
//
// Default: Options.MaxStale. Negative: there is no bound but the TTL. Values
// below 1 s ask much of the workers, whose pulse has a period of 200 ms. With a
// log that can not be dated (a topic of Debezium, a reader that may not store
// its era) nothing is ever known: a class with MaxStale is not served from the
// cache then, and the default of one minute does not count; nor does it for the
// 5 s at most that it takes to know something after the first date was seen.
//
// Nothing but durations by this process's monotonic clock is compared; see
// docs/coherence.md, "How old may it be".
func MaxStale(d time.Duration) Option {
	return func(c *class) error {
		if d == 0 {
			return errors.New("MaxStale is 0: want a positive duration, or a negative one for no bound")
		}
		c.maxStale, c.strict = d, d > 0
		return nil
	}
}

// master is a Redis node as far as it can be vouched for: in Cluster one for
// each address, else the only one.
type master struct {
	name string
	// since is the moment, by Client.now, up to which everything that was
	// visible has been applied there; 0 if that is unknown.
	since   atomic.Int64
	breaker breaker

	// Guarded by vouching.mu.
	run    string
	w      change.Position
	resets uint64
	told   bool // that it can not be vouched for
	listed bool // the last look found it among the masters
}

// vouched reports whether it is known that what a master holds is younger than d.
func (m *master) vouched(now, d time.Duration) bool {
	if m == nil {
		return false
	}
	since := m.since.Load()
	return since != 0 && now-time.Duration(since) < d
}

// vouching is how a Client knows how old what it reads may be. It looks at the
// workers' pulse and at the masters' watermarks from time to time, and depends
// neither on the broadcast nor on a clock but its own.
type vouching struct {
	only *master // nil in Cluster
	// dated says that the workers answer their pulses at all, looked that this
	// was looked at.
	dated, looked atomic.Bool
	// patient is until when, by Client.now, the default bound waits for the first
	// answer to be covered; 0 if there was one before the first look.
	patient atomic.Int64
	// strict says that Options.MaxStale was set.
	strict bool
	kick   chan struct{}
	dates  dating // of the goroutine that looks

	mu      sync.Mutex
	masters map[string]*master
	// least is the least positive bound of a class, 0 if there is none.
	least time.Duration
}

// master finds a node by the address of its client.
func (v *vouching) master(name string) *master {
	v.mu.Lock()
	defer v.mu.Unlock()
	m := v.masters[name]
	if m == nil {
		m = &master{name: name}
		v.masters[name] = m
	}
	return m
}

// distrust is called when another server answers under an address: what is known
// is not known of it.
func (c *Client) distrust(name string) {
	v := &c.vouching
	m := v.master(name)
	v.mu.Lock()
	m.resets++
	m.since.Store(0)
	v.mu.Unlock()
	c.mu.Lock()
	c.trustLocked()
	c.mu.Unlock()
	v.wake()
}

// trustLocked tells the classes until when they need not ask how old an entry of
// L1 may be; called under Client.mu.
func (c *Client) trustLocked() {
	v := &c.vouching
	v.mu.Lock()
	since, masters := int64(math.MaxInt64), 0
	for _, m := range v.masters {
		if m.listed {
			since = min(since, m.since.Load())
			masters++
		}
	}
	v.mu.Unlock()
	for _, same := range c.classes {
		for _, cl := range same {
			switch {
			case cl.maxStale <= 0, !cl.strict && !v.dated.Load():
				cl.trusted.Store(math.MaxInt64)
			case since == 0 || masters == 0:
				cl.trusted.Store(0)
			default:
				cl.trusted.Store(since + min(int64(cl.maxStale), math.MaxInt64-since))
			}
		}
	}
}

func (v *vouching) wake() {
	select {
	case v.kick <- struct{}{}:
	default:
	}
}

// bound notes a class's bound.
func (v *vouching) bound(d time.Duration) {
	if d <= 0 {
		return
	}
	v.mu.Lock()
	less := v.least == 0 || d < v.least
	if less {
		v.least = d
	}
	v.mu.Unlock()
	if less {
		v.wake()
	}
}

func (v *vouching) leastBound() time.Duration {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.least
}

// The periods of looking: an eighth of the least bound, so that two looks in a
// row may fail; sooner while a master is not vouched for by half of the bound.
const (
	lookShare = 8
	lookMin   = 50 * time.Millisecond
	lookMax   = 10 * time.Second
)

// vouch looks until ctx ends.
func (c *Client) vouch(ctx context.Context) {
	v := &c.vouching
	quick := lookMin
	for {
		var timer <-chan time.Time
		if least := v.leastBound(); least > 0 {
			usual := min(max(least/lookShare, lookMin), lookMax)
			if c.look(ctx, least) {
				quick = lookMin
				timer = time.After(usual)
			} else {
				timer = time.After(min(quick, usual))
				quick = min(2*quick, usual)
			}
			c.mu.Lock()
			c.trustLocked()
			c.changedLocked()
			c.mu.Unlock()
		}
		select {
		case <-ctx.Done():
			return
		case <-v.kick:
			quick = lookMin
		case <-timer:
		}
	}
}

// look asks once, and reports whether all is well: each master was vouched for
// within half of the bound.
func (c *Client) look(ctx context.Context, least time.Duration) (well bool) {
	store := c.store.Load()
	if store == nil {
		return false
	}
	v := &c.vouching
	v.mu.Lock()
	resets := make(map[string]uint64, len(v.masters))
	for name, m := range v.masters {
		resets[name] = m.resets
	}
	v.mu.Unlock()
	lookCtx, cancel := context.WithTimeout(ctx, controlTimeout)
	began := c.now()
	proof, err := store.Prove(lookCtx)
	cancel()
	if err != nil || ctx.Err() != nil {
		return false
	}
	if proof.Err == nil {
		if proof.Dated && v.looked.Load() && !v.dated.Load() {
			v.patient.Store(int64(c.now() + firstAnswerWait))
			v.wake()
		}
		v.dated.Store(proof.Dated)
		v.dates.look(proof, began)
		v.looked.Store(true)
	}
	if v.list(proof.Masters) {
		// What is in L1 from one that is no master any more nobody looks at
		// here, and no read need come by the slots that it had.
		c.bump("a redis node is no master any more")
	}
	well = true
	for i := range proof.Masters {
		p := &proof.Masters[i]
		m := v.master(p.Node)
		v.learn(m, p, resets[p.Node])
		well = m.vouched(c.now(), least/2) && well
		c.tell(m, least)
	}
	return well
}

// list notes who the masters are, and reports whether one is none any more.
func (v *vouching) list(all []coherence.MasterProof) (gone bool) {
	listed := make(map[string]bool, len(all))
	for i := range all {
		listed[v.master(all[i].Node).name] = true
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	for name, m := range v.masters {
		gone = gone || m.listed && !listed[name]
		m.listed = listed[name]
	}
	return gone
}

// learn takes what a master showed, unless another server has been seen in its
// place since it was asked.
func (v *vouching) learn(m *master, p *coherence.MasterProof, resets uint64) {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case p.Err != nil || m.resets != resets:
		return
	case m.run != p.RunID || p.W.Less(m.w):
		// Another server, or one that went back: what it held then it need not
		// hold now.
		m.since.Store(0)
	}
	m.run, m.w = p.RunID, p.W
	m.since.Store(max(m.since.Load(), int64(v.dates.since(p.W))))
}

// tell logs when a master begins and ceases to be distrusted.
func (c *Client) tell(m *master, least time.Duration) {
	if !c.vouching.dated.Load() || c.vouching.waitsFor(m, c.now()) {
		return
	}
	silent := !m.vouched(c.now(), least)
	c.vouching.mu.Lock()
	changed := m.told != silent
	m.told = silent
	c.vouching.mu.Unlock()
	switch {
	case !changed:
	case silent:
		c.logger.Warn("nobody vouches for what redis holds, reads go to the database", "node", m.name, "max_stale", least)
	default:
		c.logger.Info("what redis holds is vouched for", "node", m.name)
	}
}

// masterOf is the master that answered for a name, nil if that is unknown.
func (c *Client) masterOf(name string) *master {
	if c.cluster == nil {
		return c.vouching.only
	}
	node := c.owners[coherence.Slot(name)].Load()
	if node == nil {
		return nil
	}
	return c.vouching.master(node.Options().Addr)
}

// route finds the master of a name, in Cluster, and sees when that is another
// than before: what came from the old one may be void then. The epoch ends
// before the new one is known, so that no answer of the old is taken for its.
func (c *Client) route(ctx context.Context, name string) (*redis.Client, error) {
	node, err := c.cluster.MasterForKey(ctx, name)
	if err != nil {
		return nil, err
	}
	slot := &c.owners[coherence.Slot(name)]
	if was := slot.Load(); was != node {
		if was != nil {
			c.bump("a slot has another master")
		}
		slot.Store(node)
	}
	return node, nil
}

// tooOld reports whether a class must not be served what a master holds. own is
// when this process loaded the value itself, 0 if it did not.
func (c *Client) tooOld(cl *class, m *master, own time.Duration) bool {
	return c.tooOldAt(c.now(), cl, m, own)
}

func (c *Client) tooOldAt(now time.Duration, cl *class, m *master, own time.Duration) bool {
	if cl.maxStale <= 0 || m.vouched(now, cl.maxStale) || own > 0 && now-own < cl.maxStale {
		return false
	}
	return cl.strict || c.vouching.dated.Load() && !c.vouching.waitsFor(m, now)
}

// firstAnswerWait bounds for how long the default bound does not count yet after
// this Client saw the workers begin to answer. The answer is in Redis a moment
// before the watermark that covers it, so nothing is known of any master in
// between, and every read would be a load: of all clients at once, because
// somebody started a worker. Until the first answer the default did not count
// either, so nothing is served that would not have been served before it came. A
// Client that finds an answer when it looks for the first time does not wait: the
// worker may have been dead for a week.
const firstAnswerWait = 5 * time.Second

// waitsFor reports whether nothing is known of a master, yet.
func (v *vouching) waitsFor(m *master, now time.Duration) bool {
	return int64(now) < v.patient.Load() && m.knownGood() == 0
}

// knownGood is the last moment at which a master's value is known to have been
// current.
func (m *master) knownGood() time.Duration {
	if m == nil {
		return 0
	}
	return time.Duration(m.since.Load())
}

// masterAges says, of each master that the last look found, how old what it
// holds may be; -1 if nobody knows.
func (c *Client) masterAges() map[string]time.Duration {
	now := c.now()
	c.vouching.mu.Lock()
	defer c.vouching.mu.Unlock()
	ages := map[string]time.Duration{}
	for name, m := range c.vouching.masters {
		if !m.listed {
			continue
		}
		ages[name] = -1
		if since := m.since.Load(); since != 0 {
			ages[name] = now - time.Duration(since)
		}
	}
	return ages
}

// firstVouch waits, at Open, for the first proof, so that a new process does not
// load what the cache has. Where nobody sends any it does not wait.
func (c *Client) firstVouch(ctx context.Context) {
	if c.opts.MaxStale <= 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, vouchWait)
	defer cancel()
	_ = c.waitFor(ctx, func() bool {
		v := &c.vouching
		return v.looked.Load() && (!v.dated.Load() || c.allVouched(c.opts.MaxStale))
	})
}

// vouchWait bounds how long Open waits for the first proof.
const vouchWait = time.Second

func (c *Client) allVouched(d time.Duration) bool {
	c.vouching.mu.Lock()
	defer c.vouching.mu.Unlock()
	for _, m := range c.vouching.masters {
		if m.listed && !m.vouched(c.now(), d) {
			return false
		}
	}
	return true
}

package client

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/lethe-cache/lethe/coherence"
)

// connect makes the connections: those of data, and apart from them that of
// the subscription, so that a burst of reads can not delay the broadcast.
func (c *Client) connect() {
	switch r := c.opts.Redis.(type) {
	case *redis.Client:
		dial := func() *redis.Client {
			opt := *r.Options()
			c.harden(&opt)
			return redis.NewClient(&opt)
		}
		c.data, c.subs = dial(), dial()
		c.vouching.only = c.vouching.master(r.Options().Addr)
	case *redis.ClusterClient:
		dial := func() *redis.ClusterClient {
			opt := *r.Options()
			opt.MaxRetries, opt.ContextTimeoutEnabled = -1, true
			opt.ReadTimeout, opt.WriteTimeout = ioTimeout, ioTimeout
			opt.Protocol = 2
			inner := opt.NewClient
			opt.NewClient = func(o *redis.Options) *redis.Client {
				c.harden(o)
				if inner != nil {
					return inner(o)
				}
				return redis.NewClient(o)
			}
			return redis.NewClusterClient(&opt)
		}
		data := dial()
		c.data, c.cluster, c.subs = data, data, dial()
		c.owners = new([coherence.Slots]atomic.Pointer[redis.Client])
	}
}

// ioTimeout bounds what no context bounds; reads have RedisTimeout.
const ioTimeout = 2 * time.Second

// harden sets what the protocol needs: a command is sent once, a context is
// obeyed, and a new connection tells who answers.
func (c *Client) harden(o *redis.Options) {
	o.MaxRetries, o.ContextTimeoutEnabled = -1, true
	o.ReadTimeout, o.WriteTimeout, o.DialerRetries = ioTimeout, ioTimeout, 1
	if o.DialTimeout <= 0 || o.DialTimeout > ioTimeout {
		o.DialTimeout = ioTimeout
	}
	o.Protocol = 2
	o.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	theirs, addr := o.OnConnect, o.Addr
	c.watch(o, addr)
	o.OnConnect = func(ctx context.Context, cn *redis.Conn) error {
		if theirs != nil {
			if err := theirs(ctx, cn); err != nil {
				return err
			}
		}
		return c.greet(ctx, cn, addr)
	}
}

var errReplica = errors.New("it is a replica: it may miss an invalidation")

// greet asks a new connection, before its first command, who answers. Another
// server under a known address may have missed invalidations, or registrations
// that others rely on: everything in L1 is void from here on, and nothing that
// the one before still answers counts.
func (c *Client) greet(ctx context.Context, cn *redis.Conn, addr string) error {
	info, err := cn.Info(ctx).Result()
	if err != nil {
		return fmt.Errorf("ask run_id of %s: %w", addr, err)
	}
	if infoField(info, "redis_mode") == "sentinel" {
		return nil
	}
	if role := infoField(info, "role"); role == "slave" || role == "replica" {
		return fmt.Errorf("connect to redis %s: %w", addr, errReplica)
	}
	id := infoField(info, "run_id")
	c.nodesMu.Lock()
	was, known := c.nodes[addr]
	c.nodes[addr] = id
	c.nodesMu.Unlock()
	if known && was != id {
		c.conns.hangUp(addr)
		c.distrust(addr)
		c.bump("another server answers at " + addr)
	}
	return nil
}

func infoField(info, field string) string {
	for line := range strings.SplitSeq(info, "\n") {
		if name, value, ok := strings.Cut(strings.TrimRight(line, "\r"), ":"); ok && name == field {
			return value
		}
	}
	return ""
}

// get reads an entry from its master; nil if there is none. now is Client.now, or
// was a moment ago.
func (c *Client) get(ctx context.Context, key string, now time.Duration) (raw []byte, err error) {
	err = c.askAt(ctx, key, false, now, func(ctx context.Context) error {
		if c.cluster == nil {
			raw, err = c.data.Get(ctx, key).Bytes()
		} else {
			raw, err = c.getCluster(ctx, key)
		}
		if errors.Is(err, redis.Nil) {
			raw, err = nil, nil
		}
		return err
	})
	return raw, err
}

// getCluster goes to the master of the slot by itself, to see when that is
// another one than before: what came from the old one may be void then.
func (c *Client) getCluster(ctx context.Context, key string) (raw []byte, err error) {
	for range 3 {
		node, err := c.route(ctx, key)
		if err != nil {
			return nil, err
		}
		raw, err = node.Get(ctx, key).Bytes()
		if !redirected(err) {
			if err != nil && !answered(err) {
				c.cluster.ReloadState(ctx) // it may be another's by now
			}
			return raw, err
		}
		c.cluster.ReloadState(ctx)
		if strings.HasPrefix(err.Error(), "ASK ") {
			// The slot is being moved and this key has been: a hit is not
			// worth the way, Begin finds it.
			return nil, redis.Nil
		}
	}
	return nil, redis.Nil
}

func redirected(err error) bool {
	if err == nil {
		return false
	}
	s := err.Error()
	return strings.HasPrefix(s, "MOVED ") || strings.HasPrefix(s, "ASK ") || strings.HasPrefix(s, "TRYAGAIN")
}

// target is the breaker of the node that holds a key, as far as is known.
func (c *Client) target(ctx context.Context, key string) *breaker {
	if c.cluster == nil {
		return &c.vouching.only.breaker
	}
	if c.store.Load() == nil {
		return &c.breaker // the nodes are not known: to find them is to ask
	}
	node, err := c.route(ctx, key)
	if err != nil {
		return &c.breaker
	}
	return &c.vouching.master(node.Options().Addr).breaker
}

// ask runs one step that needs the node of a key: within its time, unless the
// breaker is open. follows says that the caller has asked already, see
// breaker.allow. What fails is counted; the caller goes on without the cache.
func (c *Client) ask(ctx context.Context, key string, follows bool, step func(context.Context) error) error {
	return c.askAt(ctx, key, follows, c.now(), step)
}

func (c *Client) askAt(ctx context.Context, key string, follows bool, now time.Duration, step func(context.Context) error) error {
	b := c.target(ctx, key)
	if !b.allow(now, follows) {
		c.counts.skipped.Add(1)
		return errBreaker
	}
	stepCtx, t := c.timeouts.begin(ctx, c.clock.began.Add(now), c.opts.RedisTimeout)
	err := step(stepCtx)
	c.timeouts.end(t)
	if err == nil {
		b.done(now, false)
		return nil
	}
	if ctx.Err() != nil {
		b.release() // the caller went away: that says nothing of Redis
		return err
	}
	var lost *coherence.NodeLostError
	if errors.As(err, &lost) {
		c.bump("redis node " + lost.Node + " is another")
		if store := c.store.Load(); store != nil {
			ackCtx, cancel := context.WithTimeout(ctx, c.opts.RedisTimeout)
			_ = store.Acknowledge(ackCtx, lost)
			cancel()
		}
	}
	if b.done(c.now(), !answered(err)) {
		c.logger.Warn("redis does not answer, reads go to the database", "err", err)
	}
	c.counts.redis(err)
	return err
}

// answered reports whether the server replied, with an error.
func answered(err error) bool {
	var e redis.Error
	return errors.As(err, &e)
}

// withStore is ask for steps of the protocol that begin with the control data.
func (c *Client) withStore(ctx context.Context, step func(context.Context, *coherence.Store) error) error {
	return c.onStore(ctx, c.layout.Control("source"), false, step)
}

// following is ask for steps on an entry that follow on others.
func (c *Client) following(ctx context.Context, name string, step func(context.Context, *coherence.Store) error) error {
	return c.onStore(ctx, name, true, step)
}

func (c *Client) onStore(ctx context.Context, name string, follows bool, step func(context.Context, *coherence.Store) error) error {
	store := c.store.Load()
	if store == nil {
		c.counts.skipped.Add(1)
		return errNoRedis
	}
	return c.ask(ctx, name, follows, func(ctx context.Context) error { return step(ctx, store) })
}

// healed is called when the control data was read: its node answers again, and
// reads need not find that out one by one. It may be called under Client.mu.
func (c *Client) healed() {
	c.breaker.heal()
	if c.cluster == nil {
		c.vouching.only.breaker.heal()
	}
}

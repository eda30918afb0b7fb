package client

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/coherence"
)

// The periods of the receiver. L1 life is the one number that safety knows:
// a Client that is cut off serves from L1 no longer than that.
const (
	l1Life          = 1500 * time.Millisecond
	pingEvery       = 300 * time.Millisecond
	pingPatience    = 1200 * time.Millisecond
	beatPatience    = time.Second
	controlTimeout  = 2 * time.Second
	queueLength     = 4096
	reconnectMin    = 20 * time.Millisecond
	reconnectMax    = 200 * time.Millisecond
	sessionLongLife = 5 * time.Second
)

// noID is the id before the first broadcast.
const noID = "0000000000000000"

// run keeps a subscription until ctx ends.
func (c *Client) run(ctx context.Context) {
	wait := reconnectMin
	for {
		began := c.now()
		err := c.session(ctx)
		c.subscribed.Store(false)
		c.mu.Lock()
		c.caughtUp = false
		c.liveUntil.Store(0)
		c.mu.Unlock()
		c.changed()
		c.counts.now(c.State())
		if ctx.Err() != nil {
			return
		}
		if refusal(err) {
			c.refused.Store(&err)
			c.changed()
		}
		if c.now()-began > sessionLongLife {
			wait = reconnectMin
		}
		c.logger.Warn("lost the broadcast, L1 is not used until it is back", "err", err, "retry_in", wait)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait/2 + rand.N(wait)): // not all clients at the same time
		}
		wait = min(2*wait, reconnectMax)
	}
}

// refusal reports whether the server answered that it will not: no repetition
// cures that.
func refusal(err error) bool {
	var e redis.Error
	if !errors.As(err, &e) {
		return false
	}
	for _, code := range []string{"NOPERM", "NOAUTH", "WRONGPASS"} {
		if strings.Contains(e.Error(), code) {
			return true
		}
	}
	return false
}

// received is what came on the subscription, in its order: the answer to a
// PING stands behind every message that was sent before it.
type received struct {
	at   time.Duration
	body string
	pong string
	// barrier is a request to acknowledge what came before it.
	barrier string
	sub     bool
	err     error
}

// session is one subscription. It returns when it is of no use any more.
func (c *Client) session(ctx context.Context) error {
	if err := c.openStore(ctx); err != nil {
		return err
	}
	ps, err := c.subscribe(ctx)
	if err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	length := queueLength
	if c.hooks.queue > 0 {
		length = c.hooks.queue
	}
	queue := make(chan received, length)
	var overflow atomic.Bool
	readerCtx, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.receive(readerCtx, ps, queue, &overflow)
	}()
	defer func() {
		stop()
		_ = ps.Close()
		<-done
	}()
	return c.handle(ctx, ps, queue, &overflow)
}

// openStore learns what Redis can do; before that nothing is cached.
func (c *Client) openStore(ctx context.Context) error {
	if c.store.Load() != nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	s, err := coherence.New(ctx, c.data, coherence.Options{Namespace: c.opts.Namespace, Logger: c.opts.Logger})
	if err != nil {
		return err
	}
	c.store.Store(s)
	return nil
}

// subscribe waits for the confirmation: from then on no message is missed.
// Broadcasts of a cluster are sharded where its servers know that.
func (c *Client) subscribe(ctx context.Context) (*redis.PubSub, error) {
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	ways := []func(context.Context, ...string) *redis.PubSub{c.subs.Subscribe}
	if c.layout.Cluster() {
		ways = append(ways, c.subs.SSubscribe)
		slices.Reverse(ways)
	}
	var err error
	for i, open := range ways {
		var ps *redis.PubSub
		if ps, err = subscribeTo(ctx, open, c.layout.Control("stream"), c.layout.Control("barrier")); err == nil {
			c.sharded.Store(len(ways) > 1 && i == 0)
			return ps, nil
		}
		if !answered(err) || redirected(err) {
			break // only a server that does not know the command is asked again
		}
	}
	return nil, err
}

// receive passes on what comes. It never waits for the handler: Redis would cut
// a slow subscriber off, so what does not fit is dropped and said to be.
func (c *Client) receive(ctx context.Context, ps *redis.PubSub, queue chan<- received, overflow *atomic.Bool) {
	for {
		m, err := ps.ReceiveTimeout(ctx, controlTimeout)
		r := received{at: c.now()}
		var timeout interface{ Timeout() bool }
		switch m := m.(type) {
		case *redis.Message:
			if m.Channel == c.layout.Control("barrier") {
				r.barrier = m.Payload
			} else {
				r.body = m.Payload
			}
		case *redis.Pong:
			r.pong = m.Payload
		case *redis.Subscription:
			r.sub = true
		default:
			if errors.As(err, &timeout) && timeout.Timeout() && ctx.Err() == nil {
				continue
			}
			r.err = err
			if err == nil {
				r.err = fmt.Errorf("unexpected message %T", m)
			}
		}
		if r.err != nil {
			select {
			case queue <- r:
			case <-ctx.Done():
			}
			return
		}
		if c.hooks.received != nil && !c.hooks.received(&r) {
			continue
		}
		select {
		case queue <- r:
		default:
			overflow.Store(true)
		}
	}
}

var (
	errReconnected = errors.New("the connection was replaced")
	errNoPong      = errors.New("no answer to PING")
	errSilent      = errors.New("what was broadcast did not come on the subscription")
)

// handle catches up and then follows the broadcast.
func (c *Client) handle(ctx context.Context, ps *redis.PubSub, queue <-chan received, overflow *atomic.Bool) error {
	c.subscribed.Store(true)
	c.counts.now(c.State())
	if err := c.catchUp(ctx); err != nil {
		return err
	}
	c.counts.now(c.State())
	ticker := time.NewTicker(pingEvery)
	defer ticker.Stop()
	answered, beat := c.now(), c.now()
	for {
		var err error
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.reload:
			c.counts.now(c.State())
			err = c.catchUp(ctx)
		case r := <-queue:
			switch {
			case r.err != nil:
				return r.err
			case r.sub:
				return errReconnected // the library did; what was sent meanwhile is lost
			case r.pong != "":
				sent, _ := strconv.ParseInt(r.pong, 10, 64)
				answered = c.now()
				c.alive(time.Duration(sent))
			case r.barrier != "":
				err = c.barrier(ctx, &r)
			default:
				var isBeat bool
				if isBeat, err = c.message(ctx, &r); isBeat {
					beat = c.now()
				}
			}
		case <-ticker.C:
			if c.now()-answered > pingPatience {
				return errNoPong
			}
			if err := c.enroll(ctx, enrollEvery); err != nil {
				return err
			}
			pingCtx, cancel := context.WithTimeout(ctx, pingEvery)
			err = ps.Ping(pingCtx, strconv.FormatInt(int64(c.now()), 10))
			cancel()
			if err == nil && c.now()-beat > beatPatience {
				// No worker sends heartbeats, or they are lost: look.
				beat = c.now()
				err = c.lookFor(ctx, queue)
			}
		}
		c.counts.now(c.State())
		if err == nil && overflow.Swap(false) {
			c.counts.gap()
			c.logger.Warn("the broadcast came faster than it was handled, replaying")
			err = c.catchUp(ctx)
		}
		if err != nil {
			return err
		}
	}
}

// lookFor catches up when nothing has come for a while. If there was something,
// the subscription may be with a server by way of which nobody broadcasts any
// more, a deposed master: another one is made.
func (c *Client) lookFor(ctx context.Context, queue <-chan received) error {
	known := c.view.Load().control.ID
	if err := c.catchUp(ctx); err != nil {
		return err
	}
	if c.view.Load().control.ID != known && len(queue) == 0 {
		return errSilent
	}
	return nil
}

// alive takes the answer to a PING sent at a moment: everything that was
// broadcast before has been handled.
func (c *Client) alive(sent time.Duration) {
	c.mu.Lock()
	if c.caughtUp {
		c.liveLocked(sent)
	}
	c.mu.Unlock()
}

// bump begins a new epoch: what is in L1 is void, and so is what is being read.
// It may be called from anywhere, without Client.mu.
func (c *Client) bump(why string) {
	c.mu.Lock()
	c.bumpLocked()
	c.mu.Unlock()
	c.counts.epoch(why)
	c.logger.Info("new L1 epoch", "why", why)
	select {
	case c.reload <- struct{}{}:
	default:
	}
}

func (c *Client) bumpLocked() {
	c.epoch.Add(1)
	for name := range c.classes {
		c.voidLocked(name)
	}
	c.caughtUp = false
	c.stale = true
	c.liveUntil.Store(0)
	c.counts.epochLocked()
}

// voidLocked makes what L1 has of a class void, however much that is.
func (c *Client) voidLocked(class string) {
	c.valid++
	for _, cl := range c.classes[class] {
		cl.valid.Store(c.valid)
	}
}

// catchUp makes the Client live: by replaying what it missed, or by an epoch.
func (c *Client) catchUp(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	if err := c.enroll(ctx, enrollEvery); err != nil {
		return err
	}
	for {
		c.mu.Lock()
		stale := c.stale
		c.mu.Unlock()
		if !stale && c.view.Load() != nil {
			ok, err := c.replay(ctx)
			if err != nil {
				return fmt.Errorf("replay: %w", err)
			}
			if ok {
				return nil
			}
			c.mu.Lock()
			c.bumpLocked()
			c.mu.Unlock()
			const why = "the broadcast can not be replayed"
			c.counts.epoch(why)
			c.logger.Info("new L1 epoch", "why", why)
		}
		ok, err := c.load(ctx)
		if err != nil {
			return fmt.Errorf("read control: %w", err)
		}
		if ok {
			return nil
		}
	}
}

// load reads the control data at one moment and begins from there. false if
// yet another epoch began meanwhile.
func (c *Client) load(ctx context.Context) (bool, error) {
	c.mu.Lock()
	epoch := c.epoch.Load()
	classes := c.classNames()
	c.mu.Unlock()
	// Whatever control has lost, the list may be lost with it.
	if err := c.enroll(ctx, 0); err != nil {
		return false, err
	}
	sent := c.now()
	ctl, err := c.store.Load().Control(ctx, classes...)
	if err != nil {
		return false, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.l1 != nil {
		c.clearLocked()
	}
	if c.epoch.Load() != epoch {
		return false, nil
	}
	if ctl.ID == "" {
		ctl.ID = noID
	}
	next := &view{control: *ctl, footing: footing{usable: ctl.Supported(c.layout)}}
	if old := c.view.Load(); old != nil {
		next.stillNamed(old.named)
		next.notBehind(old)
	}
	c.stale = false
	// What was broadcast since the epoch began is in the control data and does
	// not come as a message: it may concern whatever was asked since then.
	c.marks.everything()
	c.caughtUpLocked(sent)
	c.publishLocked(next)
	return true, nil
}

// caughtUpLocked ends catching up with what was asked for at sent.
func (c *Client) caughtUpLocked(sent time.Duration) {
	c.caughtUp = true
	c.caughtUpAt = c.now()
	c.healed()
	c.liveLocked(sent)
}

// liveLocked makes the Client live for the time after a moment up to which it
// has heard everything.
func (c *Client) liveLocked(sent time.Duration) {
	until := max(c.liveUntil.Load(), int64(sent+l1Life))
	c.liveUntil.Store(until)
	c.lastLive.Store(max(c.lastLive.Load(), until))
	c.changedLocked()
}

// publishLocked makes a view known.
func (c *Client) publishLocked(v *view) {
	c.view.Store(v)
	for name, same := range c.classes {
		g, _ := v.generation(name)
		for _, cl := range same {
			if cl.generation.Swap(g) != g {
				c.voidLocked(name)
			}
		}
	}
	c.changedLocked()
}

// changed wakes those who wait for another state.
func (c *Client) changed() {
	c.mu.Lock()
	c.changedLocked()
	c.mu.Unlock()
}

func (c *Client) changedLocked() {
	close(c.news)
	c.news = make(chan struct{})
}

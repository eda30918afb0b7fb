package client

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
)

// BarrierTimeoutDefault bounds a Barrier whose ctx has no deadline.
const BarrierTimeoutDefault = 5 * time.Second

// Clients write themselves into a list before their L1 is used, again every
// enrollEvery, and are struck off it by whoever looks after enrollLife. A Client
// that could not for enrollPatience does without L1: so one whose L1 is used is
// in the list.
const (
	enrollEvery    = 15 * time.Second
	enrollPatience = 40 * time.Second
	enrollLife     = time.Minute
)

// Scripts of the list, by the clock of Redis.
const (
	// KEYS: clients. ARGV: id, name.
	enrollScript = `redis.call('HSET', KEYS[1], ARGV[1], redis.call('TIME')[1] .. ' ' .. ARGV[2]) return 1`
	// KEYS: clients, last, barrier. ARGV: channel command, id of the request,
	// seconds. What was broadcast last goes with the request.
	barrierScript = `local now, out = tonumber(redis.call('TIME')[1]), {}
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  local seen, name = string.match(all[i + 1], '^(%d+) (.*)$')
  if not seen or now - tonumber(seen) > tonumber(ARGV[3]) then
    redis.call('HDEL', KEYS[1], all[i])
  else
    out[#out + 1] = all[i]
    out[#out + 1] = name
  end
end
local last = redis.call('HMGET', KEYS[2], 'number', 'id')
redis.call(ARGV[1], KEYS[3], ARGV[2] .. ' ' .. (last[1] or '0') .. ' ' .. (last[2] or '0000000000000000'))
return out`
	// KEYS: acks of a request. ARGV: id of the client, milliseconds.
	ackScript = `redis.call('SADD', KEYS[1], ARGV[1]) redis.call('PEXPIRE', KEYS[1], ARGV[2]) return 1`
)

// BarrierError says what a Barrier waited for in vain.
type BarrierError struct {
	// Passed is whether the workers had done everything up to the token.
	Passed bool
	// Clients are the names (Options.Name) of those that did not say that they
	// have heard of it, sorted.
	Clients []string
	// Err is why it did not wait any longer.
	Err error
}

// Error tells it in a sentence.
func (b *BarrierError) Error() string {
	switch {
	case !b.Passed:
		return fmt.Sprintf("the workers have not come to the token: %v", b.Err)
	case len(b.Clients) == 0:
		return fmt.Sprintf("the clients were not asked: %v", b.Err)
	}
	return fmt.Sprintf("not acknowledged by %s: %v", strings.Join(b.Clients, ", "), b.Err)
}

// Unwrap is Err.
func (b *BarrierError) Unwrap() error { return b.Err }

// Barrier waits until the write that a token of Wrote names has been done away
// with everywhere: the workers have applied it, and every Client of the
// namespace whose L1 may be used has handled what was broadcast up to then. A
// read that begins after Barrier returned nil contains the write, in every
// process and without a token (but for what a class serves stale on purpose).
//
// It waits as long as ctx, 5 s if that has no deadline, and costs each Client
// one message and one command: it is for a deployment, a test, or an operator,
// not for each request. The error is a *BarrierError otherwise. A client that
// it names may be one that ended without Close: such are forgotten after a
// minute. One that is not Live for lack of a connection does not use its L1, but
// is named as well, since nobody can tell from afar.
func (c *Client) Barrier(ctx context.Context, token string) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, BarrierTimeoutDefault)
		defer cancel()
	}
	bound := c.boundOf(ctx, token)
	if bound == unknownToken {
		return fmt.Errorf("barrier: %w", &BarrierError{Err: errors.New("the token names no position that the workers come to")})
	}
	if err := c.waitFor(ctx, func() bool { return c.reached(bound) }); err != nil {
		return fmt.Errorf("barrier: %w", &BarrierError{Err: err})
	}
	request := randomHex()
	waiting, err := c.requestAcks(ctx, request)
	if err != nil {
		return fmt.Errorf("barrier: %w", &BarrierError{Passed: true, Err: err})
	}
	if err = c.collectAcks(ctx, request, waiting); err != nil {
		b := &BarrierError{Passed: true, Err: err}
		for _, name := range waiting {
			b.Clients = append(b.Clients, name)
		}
		slices.Sort(b.Clients)
		return fmt.Errorf("barrier: %w", b)
	}
	return nil
}

// requestAcks asks everybody, and returns who is in the list, by id. The
// request stands behind everything that was broadcast before it.
func (c *Client) requestAcks(ctx context.Context, request string) (map[string]string, error) {
	command := "publish"
	if c.sharded.Load() {
		command = "spublish"
	}
	keys := []string{c.layout.Control("clients"), c.layout.Control("last"), c.layout.Control("barrier")}
	pairs, err := c.subs.Eval(ctx, barrierScript, keys, command, request, int(enrollLife.Seconds())).StringSlice()
	if err != nil {
		return nil, err
	}
	waiting := map[string]string{}
	for pair := range slices.Chunk(pairs, 2) {
		waiting[pair[0]] = pair[1]
	}
	return waiting, nil
}

// collectAcks waits until everybody has answered, and strikes those off who
// have.
func (c *Client) collectAcks(ctx context.Context, request string, waiting map[string]string) error {
	key := c.layout.Control("acks:" + request)
	for pause := 2 * time.Millisecond; ; pause = min(2*pause, 50*time.Millisecond) {
		have, err := c.subs.SMembers(ctx, key).Result()
		for _, id := range have {
			delete(waiting, id)
		}
		if len(waiting) == 0 && err == nil {
			return nil
		}
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		}
	}
}

// enroll writes this Client into the list, unless that was done not long ago.
// Only the receiver calls it.
func (c *Client) enroll(ctx context.Context, age time.Duration) error {
	if at := c.enrolled; at > 0 && c.now()-at < age {
		return nil
	}
	at := c.now()
	if err := c.subs.Eval(ctx, enrollScript, []string{c.layout.Control("clients")}, c.id, c.opts.Name).Err(); err != nil {
		if c.enrolled > 0 && at-c.enrolled < enrollPatience && age > 0 {
			return nil // it is in the list, for a while
		}
		return fmt.Errorf("write itself into the list of clients: %w", err)
	}
	c.enrolled = max(at, 1)
	return nil
}

// resign strikes this Client off the list, after its L1 has ceased to be used.
func (c *Client) resign() {
	if c.enrolled == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), c.opts.RedisTimeout)
	defer cancel()
	_ = c.subs.HDel(ctx, c.layout.Control("clients"), c.id).Err()
}

// barrier answers a request, when everything that was broadcast before it has
// been handled.
func (c *Client) barrier(ctx context.Context, r *received) error {
	request, rest, _ := strings.Cut(r.barrier, " ")
	text, id, ok := strings.Cut(rest, " ")
	number, err := strconv.ParseUint(text, 10, 64)
	if !ok || err != nil {
		return nil //nolint:nilerr // a later version's, which knows that this one does not answer
	}
	c.mu.Lock()
	last, caughtUpAt := c.view.Load().control, c.caughtUpAt
	c.mu.Unlock()
	behind := number != last.Number || id != last.ID
	if behind && !(number < last.Number && r.at <= caughtUpAt) {
		c.counts.gap()
		if number < last.Number { // control begins anew
			c.mu.Lock()
			c.bumpLocked()
			c.mu.Unlock()
			c.counts.epoch("control begins anew")
		}
		if err := c.catchUp(ctx); err != nil {
			return err
		}
	}
	if !c.enter() {
		return nil
	}
	go func() {
		defer c.fills.Done()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), controlTimeout)
		defer cancel()
		_ = c.subs.Eval(ctx, ackScript, []string{c.layout.Control("acks:" + request)}, c.id, time.Minute.Milliseconds()).Err()
	}()
	return nil
}

// subscribeTo opens a subscription on channels of one slot and waits until all
// of it is confirmed.
func subscribeTo(ctx context.Context, open func(context.Context, ...string) *redis.PubSub, channels ...string) (*redis.PubSub, error) {
	ps := open(ctx, channels...)
	for range channels {
		m, err := ps.ReceiveTimeout(ctx, controlTimeout)
		if err == nil {
			if _, ok := m.(*redis.Subscription); ok {
				continue
			}
			err = fmt.Errorf("want a confirmation, got %T", m)
		}
		_ = ps.Close()
		return nil, err
	}
	return ps, nil
}

func randomHex() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never errs
	return hex.EncodeToString(b[:])
}

// defaultName is host:pid.
func defaultName() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	return host + ":" + strconv.Itoa(os.Getpid())
}

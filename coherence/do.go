package coherence

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
)

// unit is a run of commands on the keys of one slot that are sent on one
// connection, in order, and repeated whole or not at all: if the library
// repeated one of them by itself, a master that has just lost the others would
// see only that one (PROTOCOL H6).
type unit struct {
	key  string // routes the unit
	cmds []redis.Cmder
}

// The bounds of following a cluster's redirections.
const (
	redirects    = 12
	redirectWait = 5 * time.Millisecond
)

// do runs units: one pipeline for each master, masters side by side. What was
// redirected is repeated by units; any other error is returned, and the caller
// repeats everything. Replies of redis.Nil are not errors.
func (s *Store) do(ctx context.Context, units []unit) error {
	if len(units) == 0 {
		return nil
	}
	if s.cluster == nil {
		n, err := s.owner(ctx, units[0].key)
		if err != nil {
			return err
		}
		cmds := units[0].cmds
		if len(units) > 1 {
			cmds = nil
			for _, u := range units {
				cmds = append(cmds, u.cmds...)
			}
		}
		return s.pipeline(ctx, n, cmds)
	}
	for attempt := 0; ; attempt++ {
		again, err := s.spread(ctx, units)
		if err != nil {
			s.reload(ctx)
			return err
		}
		if len(again) == 0 {
			return nil
		}
		if attempt == redirects {
			return s.crawl(ctx, again)
		}
		units = again
		s.reload(ctx)
		select {
		case <-ctx.Done():
			return fmt.Errorf("follow redirection: %w", context.Cause(ctx))
		case <-time.After(redirectWait << min(attempt, 6)):
		}
	}
}

// spread runs units on their masters and returns those that were redirected.
func (s *Store) spread(ctx context.Context, units []unit) (again []unit, err error) {
	byNode := make(map[*node][]unit)
	for _, u := range units {
		n, err := s.owner(ctx, u.key)
		if err != nil {
			return nil, err
		}
		byNode[n] = append(byNode[n], u)
	}
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		errs []error
	)
	for n, us := range byNode {
		wg.Go(func() {
			var cmds []redis.Cmder
			for _, u := range us {
				cmds = append(cmds, u.cmds...)
			}
			err := s.pipeline(ctx, n, cmds)
			mu.Lock()
			defer mu.Unlock()
			if err != nil && !redirected(err) {
				errs = append(errs, err)
				return
			}
			for _, u := range us {
				for _, c := range u.cmds {
					if redirected(c.Err()) {
						again = append(again, u)
						break
					}
				}
			}
		})
	}
	wg.Wait()
	return again, errors.Join(errs...)
}

// crawl is the way through a slot that is being moved and has been for a
// while: half of its keys answer ASK. Commands go one by one, each waiting for
// its reply, through the library, which follows ASK. A master that is replaced
// between two of them is a change of owner and fails the call.
func (s *Store) crawl(ctx context.Context, units []unit) error {
	for _, u := range units {
		for _, c := range u.cmds {
			if err := s.crawlOne(ctx, c); err != nil {
				return fmt.Errorf("in a slot that is being moved: %w", err)
			}
		}
		if _, err := s.owner(ctx, u.key); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) crawlOne(ctx context.Context, c redis.Cmder) error {
	args := c.Args()
	if count, ok := c.(*redis.IntCmd); ok && len(args) > 2 && (c.Name() == "unlink" || c.Name() == "exists") {
		// Several keys, of which some have moved and some have not.
		var total int64
		for _, key := range args[1:] {
			n, err := s.cluster.Do(ctx, args[0], key).Int64()
			if err != nil {
				return err
			}
			total += n
		}
		count.SetErr(nil)
		count.SetVal(total)
		return nil
	}
	c.SetErr(nil)
	err := s.cluster.Process(ctx, c)
	if noScript(err) {
		if err := s.cluster.ForEachMaster(ctx, func(ctx context.Context, m *redis.Client) error {
			return s.load(ctx, m)
		}); err != nil {
			return err
		}
		c.SetErr(nil)
		err = s.cluster.Process(ctx, c)
	}
	if errors.Is(err, redis.Nil) {
		return nil
	}
	return err
}

// pipeline runs commands on one connection. A server that has forgotten the
// scripts gets them, and the commands again.
func (s *Store) pipeline(ctx context.Context, n *node, cmds []redis.Cmder) error {
	err := s.pipelineOnce(ctx, n, cmds)
	if noScript(err) {
		if err := s.load(ctx, n.conn()); err != nil {
			return fmt.Errorf("load scripts into %s: %w", n.name, err)
		}
		err = s.pipelineOnce(ctx, n, cmds)
	}
	if err != nil {
		return fmt.Errorf("redis %s: %w", n.name, err)
	}
	// Another server may have taken the place while this was under way.
	return n.state(ctx)
}

func (s *Store) pipelineOnce(ctx context.Context, n *node, cmds []redis.Cmder) error {
	if len(cmds) == 1 {
		cmds[0].SetErr(nil)
		if err := n.conn().Process(ctx, cmds[0]); err != nil && !errors.Is(err, redis.Nil) {
			return err
		}
		return nil
	}
	p := n.conn().Pipeline()
	for _, c := range cmds {
		c.SetErr(nil)
		_ = p.Process(ctx, c)
	}
	_, err := p.Exec(ctx)
	var first error
	for _, c := range cmds {
		switch err := c.Err(); {
		case err == nil || errors.Is(err, redis.Nil):
		case noScript(err):
			return err
		case first == nil:
			first = err
		}
	}
	if first == nil && err != nil && !errors.Is(err, redis.Nil) {
		return err
	}
	return first
}

func (s *Store) load(ctx context.Context, c *redis.Client) error {
	p := c.Pipeline()
	for _, sc := range allScripts {
		text := sc.modern
		if s.legacy {
			text = sc.legacy
		}
		p.ScriptLoad(ctx, text)
	}
	_, err := p.Exec(ctx)
	return err
}

func noScript(err error) bool { return err != nil && strings.HasPrefix(errText(err), "NOSCRIPT") }

func redirected(err error) bool {
	if err == nil {
		return false
	}
	text := errText(err)
	return strings.HasPrefix(text, "MOVED ") || strings.HasPrefix(text, "ASK ") || strings.HasPrefix(text, "TRYAGAIN")
}

// errText is the server's own words, without what was wrapped around them.
func errText(err error) string {
	var e redis.Error
	if errors.As(err, &e) {
		return e.Error()
	}
	return ""
}

package client

import (
	"context"
	"errors"
	"sync"

	"github.com/redis/go-redis/v9"
)

// getAll reads entries from their masters, one pipeline for each; nil for those
// that are not there, or could not be asked for.
func (c *Client) getAll(ctx context.Context, names []string) (raws [][]byte) {
	raws = make([][]byte, len(names))
	if len(names) == 1 { // as one reads one
		raws[0], _ = c.get(ctx, names[0], c.now())
		return raws
	}
	switch {
	case c.cluster == nil:
		all := make([]int, len(names))
		for i := range all {
			all[i] = i
		}
		_ = c.ask(ctx, names[0], false, func(ctx context.Context) error {
			_, err := getPipelined(ctx, c.data, names, all, raws)
			return err
		})
	case c.store.Load() != nil: // before, the nodes are not known
		c.getAllCluster(ctx, names, raws)
	}
	return raws
}

// getPipelined puts the answers for some of the names where they belong. The
// error is the first that is not about a single key.
func getPipelined(ctx context.Context, node redis.Cmdable, names []string, which []int, raws [][]byte) (moved bool, err error) {
	p := node.Pipeline()
	cmds := make([]*redis.StringCmd, len(which))
	for n, i := range which {
		cmds[n] = p.Get(ctx, names[i])
	}
	_, _ = p.Exec(ctx)
	for n, i := range which {
		raw, failed := cmds[n].Bytes()
		switch {
		case failed == nil:
			raws[i] = raw
		case redirected(failed):
			moved = true // a miss: Begin finds where it is
		case errors.Is(failed, redis.Nil), answered(failed):
		case err == nil:
			err = failed
		}
	}
	return moved, err
}

func (c *Client) getAllCluster(ctx context.Context, names []string, raws [][]byte) {
	byNode := map[*redis.Client][]int{}
	for i, name := range names {
		node, err := c.route(ctx, name)
		if err != nil {
			return
		}
		byNode[node] = append(byNode[node], i)
	}
	var wg sync.WaitGroup
	for node, which := range byNode {
		wg.Go(func() {
			_ = c.ask(ctx, names[which[0]], false, func(ctx context.Context) error {
				moved, err := getPipelined(ctx, node, names, which, raws)
				if moved || err != nil {
					c.cluster.ReloadState(ctx)
				}
				return err
			})
		})
	}
	wg.Wait()
}

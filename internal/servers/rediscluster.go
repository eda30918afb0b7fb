package servers

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// RedisCluster is a Redis Cluster whose masters share the slots evenly.
type RedisCluster struct {
	// Masters serve the slots, in order: the first has the lowest.
	Masters []*Redis
	// Replicas are in the order of Masters, or empty.
	Replicas []*Redis
}

const slots = 16384

// StartRedisCluster starts a cluster of that many masters without replicas and
// returns when every node says that the cluster is well. Args are like
// RedisConfig.Args, for each node.
func StartRedisCluster(ctx context.Context, masters int, args ...string) (*RedisCluster, error) {
	return startRedisCluster(ctx, masters, false, args)
}

// StartReplicatedRedisCluster is StartRedisCluster with one replica to each
// master, which takes over about two seconds after its master's end.
func StartReplicatedRedisCluster(ctx context.Context, masters int, args ...string) (*RedisCluster, error) {
	return startRedisCluster(ctx, masters, true, args)
}

func startRedisCluster(ctx context.Context, masters int, replicated bool, args []string) (*RedisCluster, error) {
	c := &RedisCluster{}
	err := c.build(ctx, masters, replicated, args)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start a cluster of %d: %w", masters, err), c.Close())
	}
	return c, nil
}

func (c *RedisCluster) build(ctx context.Context, masters int, replicated bool, args []string) error {
	for range masters {
		r, err := startClusterNode(ctx, args)
		if err != nil {
			return err
		}
		c.Masters = append(c.Masters, r)
	}
	for i, r := range c.Masters {
		client := r.client()
		// Own epochs from the start: nodes that meet with equal ones spend
		// seconds on settling who is right. ClusterAddSlotsRange sends single
		// slots, which servers before 7.0 understand too.
		err := errors.Join(
			client.Do(ctx, "cluster", "set-config-epoch", i+1).Err(),
			client.ClusterAddSlotsRange(ctx, i*slots/masters, (i+1)*slots/masters-1).Err(),
			client.Close(),
		)
		if err != nil {
			return fmt.Errorf("give slots to %s: %w", r.Addr(), err)
		}
	}
	if replicated {
		for range masters {
			r, err := startClusterNode(ctx, args)
			if err != nil {
				return err
			}
			c.Replicas = append(c.Replicas, r)
		}
	}
	if err := c.meet(ctx); err != nil {
		return err
	}
	if err := c.wait(ctx, "cluster_state:ok", fmt.Sprintf("cluster_known_nodes:%d", len(c.nodes()))); err != nil {
		return err
	}
	for i, r := range c.Replicas {
		if err := replicate(ctx, r, c.Masters[i]); err != nil {
			return err
		}
	}
	return c.wait(ctx, "cluster_state:ok", "cluster_slots_ok:16384")
}

func startClusterNode(ctx context.Context, args []string) (*Redis, error) {
	client, bus, err := reservePair()
	if err != nil {
		return nil, err
	}
	return startRedis(ctx, client, bus, append([]string{"--cluster-enabled", "yes", "--cluster-node-timeout", "1500"}, args...))
}

func (c *RedisCluster) nodes() []*Redis {
	return append(append([]*Redis(nil), c.Masters...), c.Replicas...)
}

// meet introduces every node to the first; gossip does the rest.
func (c *RedisCluster) meet(ctx context.Context) error {
	client := c.Masters[0].client()
	defer client.Close()
	for _, r := range c.nodes()[1:] {
		if err := client.ClusterMeet(ctx, "127.0.0.1", fmt.Sprint(r.port.number)).Err(); err != nil {
			return fmt.Errorf("introduce %s: %w", r.Addr(), err)
		}
	}
	return nil
}

// replicate makes r a replica and waits until it is in step.
func replicate(ctx context.Context, r, master *Redis) error {
	m := master.client()
	defer m.Close()
	id, err := m.ClusterMyID(ctx).Result()
	if err != nil {
		return fmt.Errorf("ask %s for its id: %w", master.Addr(), err)
	}
	client := r.client()
	defer client.Close()
	if err := client.ClusterReplicate(ctx, id).Err(); err != nil {
		return fmt.Errorf("make %s a replica of %s: %w", r.Addr(), master.Addr(), err)
	}
	return r.proc.ready(ctx, func(ctx context.Context) error {
		info, err := client.Info(ctx, "replication").Result()
		if err == nil && !strings.Contains(info, "master_link_status:up") {
			err = fmt.Errorf("not in step with %s", master.Addr())
		}
		return err
	})
}

// wait returns when CLUSTER INFO of every node has all the lines.
func (c *RedisCluster) wait(ctx context.Context, lines ...string) error {
	for _, r := range c.nodes() {
		client := r.client()
		err := r.proc.ready(ctx, func(ctx context.Context) error {
			info, err := client.ClusterInfo(ctx).Result()
			for _, line := range lines {
				if err == nil && !strings.Contains(info, line+"\r\n") {
					err = fmt.Errorf("%s has not %s yet", r.Addr(), line)
				}
			}
			return err
		})
		if err := errors.Join(err, client.Close()); err != nil {
			return err
		}
	}
	return nil
}

// Addrs are the host:port of all masters.
func (c *RedisCluster) Addrs() []string {
	var addrs []string
	for _, r := range c.Masters {
		addrs = append(addrs, r.Addr())
	}
	return addrs
}

// URL is what LETHE_REDIS_URL takes for a cluster: all masters, with commas.
func (c *RedisCluster) URL() string { return "redis://" + strings.Join(c.Addrs(), ",") }

// Close ends all nodes. Calling it again does nothing.
func (c *RedisCluster) Close() error {
	var errs []error
	for _, r := range c.nodes() {
		errs = append(errs, r.Close())
	}
	return errors.Join(errs...)
}

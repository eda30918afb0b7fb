package coherence

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/redis/go-redis/v9"
)

// master is a node with the slots it owns now; nil ranges on one node.
type master struct {
	node   *node
	ranges [][2]int
}

// least is the least slot of a master, 0 on one node.
func (m master) least() int {
	least := 0
	for i, r := range m.ranges {
		if i == 0 || r[0] < least {
			least = r[0]
		}
	}
	return least
}

func (m master) own(owners []*node) {
	for _, r := range m.ranges {
		for slot := r[0]; slot <= r[1]; slot++ {
			owners[slot] = m.node
		}
	}
}

// topology asks who the masters are, the least slot first.
func (s *Store) topology(ctx context.Context) ([]master, error) {
	if s.closed.Load() {
		return nil, ErrClosed
	}
	if s.cluster == nil {
		return []master{{node: s.single}}, nil
	}
	slots, err := s.cluster.ClusterSlots(ctx).Result() //nolint:staticcheck // Redis 6.2 has no CLUSTER SHARDS
	if err != nil {
		return nil, fmt.Errorf("ask cluster slots: %w", err)
	}
	var masters []master
	covered := 0
	for _, r := range slots {
		// The library's client for the slot, whatever name it has for the node.
		client, err := s.cluster.MasterForKey(ctx, s.layout.CellKey(r.Start))
		if err != nil {
			return nil, fmt.Errorf("find master of slot %d: %w", r.Start, err)
		}
		n := s.clientNode(client)
		i := slices.IndexFunc(masters, func(m master) bool { return m.node == n })
		if i < 0 {
			masters = append(masters, master{node: n})
			i = len(masters) - 1
		}
		masters[i].ranges = append(masters[i].ranges, [2]int{r.Start, r.End})
		covered += r.End - r.Start + 1
	}
	if covered < Slots {
		return nil, fmt.Errorf("%d of %d slots of the cluster have no master", Slots-covered, Slots)
	}
	slices.SortFunc(masters, func(a, b master) int { return a.least() - b.least() })
	return masters, nil
}

func (s *Store) clientNode(c *redis.Client) *node {
	n := s.node(c.Options().Addr)
	n.mu.Lock()
	n.client = c
	n.mu.Unlock()
	return n
}

// owner finds the master of a key, and refuses one that is lost. In Cluster a
// master that was not the owner when the Store looked last is lost as well: it
// may be a replica that missed writes. (Slots that were moved on purpose look
// the same, and cost a redo.)
func (s *Store) owner(ctx context.Context, key string) (*node, error) {
	if s.closed.Load() {
		return nil, ErrClosed
	}
	if s.cluster == nil {
		return s.single, s.single.state(ctx)
	}
	client, err := s.cluster.MasterForKey(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("find master of %q: %w", key, err)
	}
	n := s.clientNode(client)
	if err := n.state(ctx); err != nil {
		return nil, err
	}
	s.mu.Lock()
	was := s.owners[Slot(key)]
	s.mu.Unlock()
	if was == n || redoing(ctx, n) {
		return n, nil
	}
	id, err := s.askRunID(ctx, n)
	if err != nil {
		return nil, err
	}
	if err := s.seen(n, id, "topology"); err != nil {
		return nil, err
	}
	return n, n.state(ctx)
}

func redoing(ctx context.Context, n *node) bool {
	return ctx.Value(redoKey(n.name)) != nil
}

// reload makes the library ask the cluster again who owns what.
func (s *Store) reload(ctx context.Context) {
	if s.cluster != nil {
		s.cluster.ReloadState(ctx)
	}
}

// isServerError reports whether the server answered, with an error.
func isServerError(err error) bool {
	var e redis.Error
	return errors.As(err, &e) && !errors.Is(err, redis.Nil)
}

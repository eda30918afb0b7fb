package coherence

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// NodeStats is what a master says of itself.
type NodeStats struct {
	Node, RunID, Version string
	// Policy is maxmemory-policy; see Policy.
	Policy      string
	EvictedKeys uint64
	// MaxMemory is 0 for no limit; both are bytes.
	MaxMemory, UsedMemory int64
}

// NodeStats asks every master for its statistics, the one with the least slot
// first.
func (s *Store) NodeStats(ctx context.Context) ([]NodeStats, error) {
	masters, err := s.topology(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask nodes: %w", err)
	}
	stats := make([]NodeStats, len(masters))
	for i, m := range masters {
		if stats[i], err = s.nodeStats(ctx, m.node); err != nil {
			return nil, fmt.Errorf("ask %s: %w", m.node.name, err)
		}
	}
	return stats, nil
}

func (s *Store) nodeStats(ctx context.Context, n *node) (NodeStats, error) {
	st := NodeStats{Node: n.name}
	var err error
	if st.RunID, err = s.askRunID(ctx, n); err != nil {
		return st, err
	}
	var info strings.Builder
	for _, section := range []string{"server", "stats", "memory"} {
		text, err := n.conn().Info(ctx, section).Result()
		if err != nil && !isServerError(err) {
			return st, err
		}
		info.WriteString(text)
	}
	text := info.String()
	st.Version = infoField(text, "valkey_version")
	if st.Version == "" {
		st.Version = infoField(text, "redis_version")
	}
	st.Policy = infoField(text, "maxmemory_policy")
	st.EvictedKeys, _ = strconv.ParseUint(infoField(text, "evicted_keys"), 10, 64)
	st.MaxMemory, _ = strconv.ParseInt(infoField(text, "maxmemory"), 10, 64)
	st.UsedMemory, _ = strconv.ParseInt(infoField(text, "used_memory"), 10, 64)
	return st, nil
}

// Check asks every master who it is, and whether it evicted keys where the
// indexes of tags can be evicted. What it finds is a lost node: the errors are
// NodeLostErrors, joined, and stay until Acknowledge. The worker calls it with
// its heartbeat.
func (s *Store) Check(ctx context.Context) error {
	masters, err := s.topology(ctx)
	if err != nil {
		return fmt.Errorf("check nodes: %w", err)
	}
	var errs []error
	for _, m := range masters {
		st, err := s.nodeStats(ctx, m.node)
		if err != nil {
			errs = append(errs, fmt.Errorf("check %s: %w", m.node.name, err))
			continue
		}
		errs = append(errs, s.judge(m, st), m.node.state(ctx))
	}
	return joinDistinct(errs)
}

func (s *Store) judge(m master, st NodeStats) error {
	if err := s.seen(m.node, st.RunID, "run_id"); err != nil {
		return err
	}
	if s.cluster != nil {
		s.mu.Lock()
		moved := false
		for _, r := range m.ranges {
			for slot := r[0]; slot <= r[1] && !moved; slot++ {
				moved = s.owners[slot] != m.node
			}
		}
		s.mu.Unlock()
		if moved {
			return s.seen(m.node, st.RunID, "topology")
		}
	}
	m.node.mu.Lock()
	moved := m.node.checked && st.EvictedKeys != m.node.evicted
	m.node.evicted, m.node.checked = st.EvictedKeys, true
	m.node.mu.Unlock()
	if moved && !Policy(st.Policy).Tags {
		return s.seen(m.node, st.RunID, "evicted")
	}
	return nil
}

func joinDistinct(errs []error) error {
	var out []error
	for _, err := range errs {
		if err == nil {
			continue
		}
		known := false
		for _, o := range out {
			known = known || o == err //nolint:errorlint // the same value, not the same kind
		}
		if !known {
			out = append(out, err)
		}
	}
	return errors.Join(out...)
}

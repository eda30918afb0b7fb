package coherence

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/redis/go-redis/v9"
)

// node is one master as the Store knows it: an address, or in Sentinel the
// master's name.
type node struct {
	name string

	mu     sync.Mutex
	client *redis.Client
	known  string         // run_id; "" before the Store is open
	lost   *NodeLostError // set from the notice to Acknowledge
	redo   bool           // a redo has begun: connections to the new one may be made
	// evicted is evicted_keys as the last Check saw it, if checked.
	evicted uint64
	checked bool
}

// node returns the node of an address, made on first sight.
func (s *Store) node(name string) *node {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := s.nodes[name]
	if n == nil {
		n = &node{name: name}
		s.nodes[name] = n
	}
	return n
}

// conn is the library's client for the node. In Cluster it is set again
// whenever a key is routed, by whatever goroutine does that.
func (n *node) conn() *redis.Client {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.client
}

// onConnect asks a new connection who answers, before its first command. A
// stranger's connections are refused until a redo needs them: a command that
// asked the node (state) before the notice may still be looking for one.
func (s *Store) onConnect(n *node) func(context.Context, *redis.Conn) error {
	return func(ctx context.Context, cn *redis.Conn) error {
		id, err := s.runID(ctx, n, cn)
		if errors.Is(err, errSentinel) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("ask run_id of %s: %w", n.name, err)
		}
		return s.seen(n, id, "run_id")
	}
}

// seen compares a run_id with the known one, and notes a loss.
func (s *Store) seen(n *node, id, cause string) error {
	n.mu.Lock()
	// Without a known run_id the node is being opened, or in Cluster owns
	// nothing yet; when it comes to own a slot that is compared by owner.
	same := n.lost == nil && cause == "run_id" && (n.known == "" || n.known == id)
	if same || n.lost != nil && n.lost.New == id {
		lost, redo := n.lost, n.redo
		n.mu.Unlock()
		if lost != nil && !redo {
			return lost
		}
		return nil
	}
	lost := &NodeLostError{Node: n.name, Old: n.known, New: id, Cause: cause}
	n.lost, n.redo = lost, false
	n.mu.Unlock()
	s.logger.Warn("redis node may have lost writes", "node", n.name, "cause", cause, "known_run_id", lost.Old, "run_id", id)
	if s.opts.OnNodeLost != nil {
		s.opts.OnNodeLost(lost)
	}
	return lost
}

func (s *Store) runID(ctx context.Context, n *node, c infoer) (string, error) {
	if s.opts.RunID != nil {
		return s.opts.RunID(ctx, n.name)
	}
	info, err := c.Info(ctx, "server").Result()
	if err != nil {
		return "", err
	}
	if infoField(info, "redis_mode") == "sentinel" {
		return "", errSentinel
	}
	id := infoField(info, "run_id")
	if id == "" {
		return "", errors.New("INFO server tells no run_id")
	}
	return id, nil
}

// errSentinel: the library asks the same of its connections to Sentinels, which
// hold no data.
var errSentinel = errors.New("a sentinel, not a master")

// infoer is what a client and a connection have in common.
type infoer interface {
	Info(ctx context.Context, sections ...string) *redis.StringCmd
}

func (s *Store) askRunID(ctx context.Context, n *node) (string, error) {
	return s.runID(ctx, n, n.conn())
}

// infoField reads one line of INFO's answer.
func infoField(info, field string) string {
	for line := range strings.SplitSeq(info, "\n") {
		if name, value, ok := strings.Cut(strings.TrimRight(line, "\r"), ":"); ok && name == field {
			return value
		}
	}
	return ""
}

// state returns the node's loss, unless ctx belongs to its redo.
func (n *node) state(ctx context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.lost == nil {
		return nil
	}
	if redo, ok := ctx.Value(redoKey(n.name)).(*NodeLostError); ok && redo.New == n.lost.New {
		n.redo = true
		return nil
	}
	return n.lost
}

type redoKey string

// DuringRedo marks the commands of the redo of a lost node: they pass, where
// others fail with ErrNodeLost until Acknowledge. If yet another server takes
// the node's place meanwhile they fail too, and the redo begins again.
func DuringRedo(ctx context.Context, lost *NodeLostError) context.Context {
	return context.WithValue(ctx, redoKey(lost.Node), lost)
}

// Acknowledge ends the loss of a node, after its redo: classes that use tags
// raised, tables seeded, invalidations applied again from the watermark,
// control rewritten. It fails with ErrNodeLost if another server has taken the
// node's place since. Acknowledging twice is fine.
func (s *Store) Acknowledge(ctx context.Context, lost *NodeLostError) error {
	masters, err := s.topology(ctx)
	if err != nil {
		return fmt.Errorf("acknowledge %s: %w", lost.Node, err)
	}
	n := s.node(lost.Node)
	if !slices.ContainsFunc(masters, func(m master) bool { return m.node == n }) {
		// It owns nothing any more; if it comes back that is a new loss.
		n.mu.Lock()
		n.known, n.lost = "", nil
		n.mu.Unlock()
		return nil
	}
	ctx = DuringRedo(ctx, lost)
	if err := n.state(ctx); err != nil {
		return fmt.Errorf("acknowledge %s: %w", lost.Node, err)
	}
	id, err := s.askRunID(ctx, n)
	if err != nil {
		return fmt.Errorf("acknowledge %s: %w", lost.Node, err)
	}
	n.mu.Lock()
	switch {
	case n.lost == nil:
		n.mu.Unlock()
		return nil
	case id != lost.New || n.lost.New != lost.New:
		// Also if it is the server of before the loss: it missed what its
		// stand-in was told.
		n.known, n.lost = lost.New, nil
		n.mu.Unlock()
		return s.seen(n, id, "run_id")
	}
	n.known, n.lost = id, nil
	n.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, m := range masters {
		if s.cluster != nil && m.node == n {
			m.own(s.owners)
		}
	}
	return nil
}

// Lost returns the losses that nobody has acknowledged yet.
func (s *Store) Lost() []*NodeLostError {
	s.mu.Lock()
	defer s.mu.Unlock()
	var lost []*NodeLostError
	for _, n := range s.nodes {
		n.mu.Lock()
		if n.lost != nil {
			lost = append(lost, n.lost)
		}
		n.mu.Unlock()
	}
	return lost
}

package servers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Sentinel is a group of sentinels that watch one master. They notice its end
// after half a second and promote a replica.
type Sentinel struct {
	name string

	mu    sync.Mutex
	group []*sentinelNode
}

type sentinelNode struct {
	port    *port
	scratch *scratch
	proc    *process
}

// StartSentinel starts n sentinels that watch master under the name
// "mymaster", and returns when each of them knows all its replicas and the
// others. Replicas are started before, by Redis.Replica.
func StartSentinel(ctx context.Context, master *Redis, n int) (*Sentinel, error) {
	s := &Sentinel{name: "mymaster"}
	for range n {
		node, err := s.start(ctx, master, n/2+1)
		if err != nil {
			return nil, errors.Join(err, s.Close())
		}
		s.group = append(s.group, node)
	}
	m := master.client()
	defer m.Close()
	info, err := m.Info(ctx, "replication").Result()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("ask %s for its replicas: %w", master.Addr(), err), s.Close())
	}
	replicas := strings.Count(info, "\r\nslave")
	for _, node := range s.group {
		if err := node.proc.ready(ctx, node.knows(s.name, n-1, replicas)); err != nil {
			return nil, errors.Join(fmt.Errorf("wait until sentinels know each other: %w", err), s.Close())
		}
	}
	return s, nil
}

func (s *Sentinel) start(ctx context.Context, master *Redis, quorum int) (*sentinelNode, error) {
	program, err := redisProgram()
	if err != nil {
		return nil, err
	}
	p, err := reservePort(0)
	if err != nil {
		return nil, err
	}
	dir, err := newScratch("sentinel", "")
	if err != nil {
		p.release()
		return nil, err
	}
	node := &sentinelNode{port: p, scratch: dir}
	// A sentinel writes what it learns into its own file of settings.
	conf := fmt.Sprintf(`port %d
bind 127.0.0.1
protected-mode no
dir %s
sentinel monitor %[3]s 127.0.0.1 %[4]d %[5]d
sentinel down-after-milliseconds %[3]s 500
sentinel failover-timeout %[3]s 3000
`, p.number, dir.dir, s.name, master.port.number, quorum)
	err = os.WriteFile(dir.path("sentinel.conf"), []byte(conf), 0o600)
	if err == nil {
		node.proc, err = startProcess(command{
			path: program, args: []string{dir.path("sentinel.conf"), "--sentinel"}, dir: dir.dir,
			log: dir.path("sentinel.log"), pidFile: dir.path("sentinel.pid"), lastWill: syscall.SIGKILL,
		})
	}
	if err == nil {
		err = node.proc.ready(ctx, func(ctx context.Context) error {
			_, err := askRedis(ctx, p.addr(), "PING")
			return err
		})
	}
	if err != nil {
		return nil, errors.Join(err, node.close())
	}
	return node, nil
}

// knows asks a sentinel whether it has found its peers and the replicas.
func (n *sentinelNode) knows(name string, peers, replicas int) func(context.Context) error {
	return func(ctx context.Context) error {
		client := (&Redis{port: n.port}).client()
		defer client.Close()
		got, err := client.Do(ctx, "sentinel", "master", name).StringSlice()
		if err != nil {
			return err
		}
		facts := map[string]string{}
		for i := 0; i+1 < len(got); i += 2 {
			facts[got[i]] = got[i+1]
		}
		if facts["num-other-sentinels"] != strconv.Itoa(peers) || facts["num-slaves"] != strconv.Itoa(replicas) {
			return fmt.Errorf("it knows %s sentinels and %s replicas", facts["num-other-sentinels"], facts["num-slaves"])
		}
		return nil
	}
}

func (n *sentinelNode) close() error {
	if n.proc != nil {
		n.proc.kill()
	}
	n.port.release()
	return n.scratch.close()
}

// Name is the master's name.
func (s *Sentinel) Name() string { return s.name }

// Addrs are the host:port of the sentinels.
func (s *Sentinel) Addrs() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var addrs []string
	for _, n := range s.group {
		addrs = append(addrs, n.port.addr())
	}
	return addrs
}

// URL is what LETHE_REDIS_URL takes for a master behind sentinels.
func (s *Sentinel) URL() string {
	return "redis+sentinel://" + strings.Join(s.Addrs(), ",") + "/" + s.name + "/0"
}

// Master is the host:port that the first sentinel holds for the master's now.
func (s *Sentinel) Master(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	s.mu.Lock()
	client := (&Redis{port: s.group[0].port}).client()
	s.mu.Unlock()
	defer client.Close()
	got, err := client.Do(ctx, "sentinel", "get-master-addr-by-name", s.name).StringSlice()
	if err == nil && len(got) != 2 {
		err = fmt.Errorf("unexpected answer %v", got)
	}
	if err != nil {
		return "", fmt.Errorf("ask a sentinel for the master: %w", err)
	}
	return got[0] + ":" + got[1], nil
}

// Close ends the sentinels and leaves the servers they watch alone. Calling it
// again does nothing.
func (s *Sentinel) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, n := range s.group {
		errs = append(errs, n.close())
	}
	s.group = nil
	return errors.Join(errs...)
}

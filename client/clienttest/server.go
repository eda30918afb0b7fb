package clienttest

import (
	"context"
	"errors"
	"net"
	"sync"

	"github.com/alicebob/miniredis/v2"
	wire "github.com/alicebob/miniredis/v2/server"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/lethe-cache/lethe/coherence"
)

// server is a Redis in the process, reached through pipes that can be cut.
type server struct {
	mini *miniredis.Miniredis

	// door is held to come in, and to close for good: a pool of connections
	// dials in goroutines that its Close does not wait for, and a closed
	// miniredis would start again for one of them.
	door   sync.RWMutex
	closed bool

	mu    sync.Mutex
	down  bool
	deaf  bool // subscriptions are cut
	lose  bool // the next broadcast is to be swallowed
	lost  bool // it was, or will be: no heartbeats either
	conns map[*conn]struct{}
	pumps sync.WaitGroup
}

func newServer() *server {
	s := &server{mini: miniredis.NewMiniRedis(), conns: map[*conn]struct{}{}}
	s.mini.ClockTTL(true)
	if c, err := s.mini.Dial(); err == nil { // starts it; a pipe does not fail
		_ = c.Close()
	}
	s.mini.Server().SetPreHook(s.hook)
	return s
}

func (s *server) close() {
	s.door.Lock()
	s.closed = true
	s.door.Unlock()
	s.cut(func(*conn) bool { return true })
	s.mini.Close()
	s.pumps.Wait()
}

// info is what clients and workers ask a server about, and miniredis does not
// tell.
const info = "# Server\r\nrun_id:clienttest\r\nredis_mode:standalone\r\n# Replication\r\nrole:master\r\n" +
	"# Stats\r\nevicted_keys:0\r\n# Cluster\r\ncluster_enabled:0\r\n"

// hook runs before each command, those of scripts too.
func (s *server) hook(p *wire.Peer, command string, args ...string) bool {
	switch command {
	case "INFO":
		p.WriteBulk(info)
		return true
	case "PUBLISH":
		if len(args) == 2 && s.swallow(args[1]) {
			p.WriteInt(0)
			return true
		}
	}
	return false
}

func (s *server) swallow(body string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if m, err := coherence.ParseMessage([]byte(body)); err != nil || m.Kind == coherence.KindHeartbeat {
		return s.lost
	}
	lose := s.lose
	s.lose = false
	return lose
}

func (s *server) loseNext() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lose, s.lost = true, true
}

// keep ends loseNext.
func (s *server) keep() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lose, s.lost = false, false
}

func (s *server) losing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lost
}

func (s *server) isDown() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.down
}

func (s *server) setDown(down bool) {
	s.mu.Lock()
	s.down = down
	s.mu.Unlock()
	s.cut(func(*conn) bool { return down })
}

func (s *server) deafen(deaf bool) {
	s.mu.Lock()
	s.deaf = deaf
	s.mu.Unlock()
	s.cut(func(c *conn) bool { return deaf && c.subscriber })
}

// cut closes connections.
func (s *server) cut(which func(*conn) bool) {
	s.mu.Lock()
	var cut []*conn
	for c := range s.conns {
		if which(c) {
			cut = append(cut, c)
		}
	}
	s.mu.Unlock()
	for _, c := range cut {
		_ = c.Close()
	}
}

// address is what the server is called; nobody listens there.
const address = "clienttest"

// dial makes a client of the server.
func (s *server) dial() *redis.Client {
	return redis.NewClient(&redis.Options{
		Addr: address, Protocol: 2, MaxRetries: -1, DialerRetries: 1, ContextTimeoutEnabled: true, DisableIdentity: true,
		ReadTimeout: patience, WriteTimeout: patience,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
		Dialer:                   func(context.Context, string, string) (net.Conn, error) { return s.connect() },
	})
}

var errDown = errors.New("redis is down, says the test")

func (s *server) connect() (net.Conn, error) {
	s.door.RLock()
	defer s.door.RUnlock()
	if s.closed || s.isDown() {
		return nil, errDown
	}
	pipe, err := s.mini.Dial()
	if err != nil {
		return nil, err
	}
	c := &conn{Conn: pipe, server: s, more: make(chan struct{}, 1), done: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conns[c] = struct{}{}
	s.pumps.Go(c.pump)
	return c, nil
}

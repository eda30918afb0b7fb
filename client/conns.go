package client

import (
	"context"
	"net"
	"sync"
	"syscall"

	"github.com/redis/go-redis/v9"
)

// conns are the connections under each address. An address may come to mean
// another server (Sentinel, a name in DNS) while the one before lives: it would
// go on answering on the connections that it has, and its broadcast would be
// silent, while new connections reach the other one.
type conns struct {
	mu  sync.Mutex
	all map[string]map[*watched]struct{}
}

// watch makes a client note its connections.
func (c *Client) watch(o *redis.Options, addr string) {
	dial := o.Dialer
	if dial == nil {
		dial = redis.NewDialer(o)
	}
	o.Dialer = func(ctx context.Context, network, to string) (net.Conn, error) {
		cn, err := dial(ctx, network, to)
		if err != nil {
			return nil, err
		}
		return c.conns.add(addr, cn), nil
	}
}

func (s *conns) add(addr string, cn net.Conn) net.Conn {
	w := &watched{Conn: cn, addr: addr, in: s}
	s.mu.Lock()
	if s.all == nil {
		s.all = map[string]map[*watched]struct{}{}
	}
	if s.all[addr] == nil {
		s.all[addr] = map[*watched]struct{}{}
	}
	s.all[addr][w] = struct{}{}
	s.mu.Unlock()
	if sys, ok := cn.(syscall.Conn); ok {
		if raw, err := sys.SyscallConn(); err == nil {
			return &watchedRaw{watched: w, raw: raw}
		}
	}
	return w
}

// hangUp ends every connection under an address, also the one that has just
// shown that another server answers there: which of them it is, is not known
// here, and the next is as good.
func (s *conns) hangUp(addr string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.all[addr] {
		_ = w.Conn.Close()
	}
}

// watched is a connection that is forgotten when it is closed.
type watched struct {
	net.Conn
	addr string
	in   *conns
}

// Close closes the connection.
func (w *watched) Close() error {
	w.in.mu.Lock()
	delete(w.in.all[w.addr], w)
	w.in.mu.Unlock()
	return w.Conn.Close()
}

// watchedRaw is one whose socket the library can look at, to see whether the
// other side has closed it. It does so before each command.
type watchedRaw struct {
	*watched
	raw syscall.RawConn
}

// SyscallConn is the socket.
func (w *watchedRaw) SyscallConn() (syscall.RawConn, error) { return w.raw, nil }

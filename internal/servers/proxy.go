package servers

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Proxy passes TCP connections on to a server and breaks them on demand. It is
// how tests lose a network: the server itself never notices that it is a test.
type Proxy struct {
	target   string
	listener net.Listener
	wg       sync.WaitGroup

	mu      sync.Mutex
	changed chan struct{} // closed and replaced at every change of what follows
	pairs   map[*pair]struct{}
	hole    bool
	refuse  bool
	delay   time.Duration
	forbids []byte
	closed  bool
}

// pair is one connection through the proxy.
type pair struct {
	client, server net.Conn
	done           chan struct{} // closed when the pair is cut
	once           sync.Once
}

func (c *pair) cut() {
	c.once.Do(func() {
		close(c.done)
		// Reset instead of an orderly end: a broken network says no goodbye.
		for _, conn := range []net.Conn{c.client, c.server} {
			if tcp, ok := conn.(*net.TCPConn); ok {
				_ = tcp.SetLinger(0)
			}
			if conn != nil {
				_ = conn.Close()
			}
		}
	})
}

// NewProxy listens on a free port of 127.0.0.1 and passes every connection on
// to target (host:port), which need not be up yet.
func NewProxy(target string) (*Proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for a proxy of %s: %w", target, err)
	}
	p := &Proxy{target: target, listener: l, changed: make(chan struct{}), pairs: map[*pair]struct{}{}}
	p.wg.Go(p.accept)
	return p, nil
}

// Addr is the host:port to connect to instead of the target.
func (p *Proxy) Addr() string { return p.listener.Addr().String() }

// Target is the host:port that connections are passed on to.
func (p *Proxy) Target() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.target
}

// SetTarget sends connections made from now on to another server: a failover.
func (p *Proxy) SetTarget(target string) { p.set(func() { p.target = target }) }

// Cut resets every connection that is open now; new ones are accepted.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.pairs {
		c.cut()
	}
}

// Refuse resets open connections and, as long as it is on, every new one at
// once: a server that is down.
func (p *Proxy) Refuse(on bool) {
	p.set(func() { p.refuse = on })
	if on {
		p.Cut()
	}
}

// Blackhole lets nothing through in either direction as long as it is on, and
// keeps all connections open, new ones too: a half-open network. What was sent
// meanwhile goes through when it is turned off.
func (p *Proxy) Blackhole(on bool) { p.set(func() { p.hole = on }) }

// Delay holds every piece of data for d in either direction; 0 turns it off.
func (p *Proxy) Delay(d time.Duration) { p.set(func() { p.delay = d }) }

// Forbid resets each connection whose client sends these bytes in one piece: a
// proxy that does not know a part of the protocol. Nil turns it off.
func (p *Proxy) Forbid(piece []byte) { p.set(func() { p.forbids = piece }) }

func (p *Proxy) forbidden(piece []byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.forbids) > 0 && bytes.Contains(piece, p.forbids)
}

// Connections is how many connections are open through the proxy.
func (p *Proxy) Connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.pairs)
}

// Close resets all connections, stops listening and waits for every goroutine.
func (p *Proxy) Close() error {
	p.set(func() { p.closed = true })
	err := p.listener.Close()
	p.Cut()
	p.wg.Wait()
	return err
}

func (p *Proxy) set(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change()
	close(p.changed)
	p.changed = make(chan struct{})
}

func (p *Proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		c := &pair{client: client, done: make(chan struct{})}
		p.mu.Lock()
		target, broken := p.target, p.refuse || p.closed
		if !broken {
			p.pairs[c] = struct{}{}
		}
		p.mu.Unlock()
		if broken {
			c.cut()
			continue
		}
		p.wg.Go(func() { p.serve(c, target) })
	}
}

func (p *Proxy) serve(c *pair, target string) {
	defer func() {
		c.cut()
		p.mu.Lock()
		delete(p.pairs, c)
		p.mu.Unlock()
	}()
	if !p.pass(c) { // a black hole swallows the handshake too
		return
	}
	server, err := net.DialTimeout("tcp", target, 5*time.Second)
	if err != nil {
		return
	}
	p.mu.Lock() // cut may run at the same time
	c.server = server
	select {
	case <-c.done:
		_ = server.Close()
	default:
	}
	p.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { p.copy(c, server, c.client) })
	p.copy(c, c.client, server)
	both.Wait()
}

// copy passes data on in one direction. An orderly end of one side is passed
// on as such, so that half-closed connections work.
func (p *Proxy) copy(c *pair, dst, src net.Conn) {
	buf := make([]byte, 64<<10)
	for {
		n, err := src.Read(buf)
		if n > 0 {
			if !p.pass(c) {
				return
			}
			if src == c.client && p.forbidden(buf[:n]) {
				c.cut()
				return
			}
			if _, err := dst.Write(buf[:n]); err != nil {
				c.cut()
				return
			}
		}
		if errors.Is(err, io.EOF) {
			if tcp, ok := dst.(*net.TCPConn); ok && p.pass(c) {
				_ = tcp.CloseWrite()
			}
			return
		}
		if err != nil {
			c.cut()
			return
		}
	}
}

// pass waits for the delay and for the end of a black hole; it is false if the
// connection was cut meanwhile.
func (p *Proxy) pass(c *pair) bool {
	p.mu.Lock()
	delay := p.delay
	p.mu.Unlock()
	if delay > 0 {
		timer := time.NewTimer(delay)
		defer timer.Stop()
		select {
		case <-c.done:
			return false
		case <-timer.C:
		}
	}
	for {
		p.mu.Lock()
		hole, changed := p.hole, p.changed
		p.mu.Unlock()
		if !hole {
			break
		}
		select {
		case <-c.done:
			return false
		case <-changed:
		}
	}
	select {
	case <-c.done:
		return false
	default:
		return true
	}
}

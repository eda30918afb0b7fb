package clienttest

import (
	"bytes"
	"net"
	"syscall"
	"time"
)

// conn is the client's end of a connection. The pipe holds nothing, so that two
// ends that both write would wait for each other for ever, as they do when a
// pipeline is longer than what the server reads at a time: what the client
// writes is kept here until the server takes it.
type conn struct {
	net.Conn
	server *server
	more   chan struct{} // something is in out
	done   chan struct{} // closed with the connection

	// Guarded by server.mu.
	out        []byte
	subscriber bool
	closed     bool
}

// subscribes is how a subscription begins on the wire, behind the number of its
// channels.
const subscribes = "$9\r\nsubscribe\r\n"

// Write looks for the command that makes the connection a subscription.
func (c *conn) Write(b []byte) (int, error) {
	s := c.server
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, command, _ := bytes.Cut(b, []byte("\r\n")); bytes.HasPrefix(command, []byte(subscribes)) {
		c.subscriber = true
	}
	switch {
	case c.closed:
		return 0, net.ErrClosed
	case s.down, s.deaf && c.subscriber:
		return 0, errDown
	}
	c.out = append(c.out, b...)
	select {
	case c.more <- struct{}{}:
	default:
	}
	return len(b), nil
}

// pump hands on what was written, until the connection is closed.
func (c *conn) pump() {
	for {
		select {
		case <-c.done:
			return
		case <-c.more:
		}
		c.server.mu.Lock()
		out := c.out
		c.out = nil
		c.server.mu.Unlock()
		if _, err := c.Conn.Write(out); err != nil {
			_ = c.Close()
			return
		}
	}
}

// Close may be called twice: by a fault, and by who uses the connection.
func (c *conn) Close() error {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	delete(c.server.conns, c)
	close(c.done)
	return c.Conn.Close()
}

// A write does not wait, so that no deadline concerns it.
func (c *conn) SetDeadline(t time.Time) error    { return c.SetReadDeadline(t) }
func (c *conn) SetWriteDeadline(time.Time) error { return nil }

// SyscallConn lets the library see before it uses a pooled connection that it
// was cut, as it sees it of a socket.
func (c *conn) SyscallConn() (syscall.RawConn, error) {
	c.server.mu.Lock()
	defer c.server.mu.Unlock()
	if c.closed {
		return nil, net.ErrClosed
	}
	return idle{}, nil
}

// idle is a socket on which nothing has come.
type idle struct{}

func (idle) Control(func(uintptr)) error    { return nil }
func (idle) Read(func(uintptr) bool) error  { return nil }
func (idle) Write(func(uintptr) bool) error { return nil }

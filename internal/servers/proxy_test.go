package servers_test

import (
	"bufio"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

// echo answers every line with itself until its client hangs up.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return l.Addr().String()
}

// line is a client of echo.
type line struct {
	net.Conn
	r *bufio.Reader
}

func dial(t *testing.T, addr string) *line {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &line{conn, bufio.NewReader(conn)}
}

// say sends a line and returns how long its echo took, at most patience.
func (l *line) say(patience time.Duration) (time.Duration, error) {
	start := time.Now()
	if err := l.SetDeadline(start.Add(patience)); err != nil {
		return 0, err
	}
	if _, err := l.Write([]byte("hello\n")); err != nil {
		return 0, err
	}
	_, err := l.r.ReadString('\n')
	return time.Since(start), err
}

func TestProxyCuts(t *testing.T) {
	t.Parallel()
	p := harness.Proxy(t, echo(t))
	a, b := dial(t, p.Addr()), dial(t, p.Addr())
	for _, c := range []*line{a, b} {
		if _, err := c.say(5 * time.Second); err != nil {
			t.Fatal(err)
		}
	}
	if got := p.Connections(); got != 2 {
		t.Errorf("Connections() = %d, want 2", got)
	}
	p.Cut()
	for _, c := range []*line{a, b} {
		if _, err := c.say(5 * time.Second); err == nil || errors.Is(err, io.EOF) {
			t.Errorf("a cut connection: %v, want a reset", err)
		}
	}
	if _, err := dial(t, p.Addr()).say(5 * time.Second); err != nil {
		t.Errorf("a new connection after Cut: %v", err)
	}
}

func TestProxyRefuses(t *testing.T) {
	t.Parallel()
	p := harness.Proxy(t, echo(t))
	p.Refuse(true)
	if conn, err := net.Dial("tcp", p.Addr()); err == nil {
		c := &line{conn, bufio.NewReader(conn)}
		if _, err := c.say(5 * time.Second); err == nil {
			t.Error("a refusing proxy passes data on")
		}
		conn.Close()
	}
	p.Refuse(false)
	if _, err := dial(t, p.Addr()).say(5 * time.Second); err != nil {
		t.Errorf("after Refuse(false): %v", err)
	}
}

func TestProxyBlackholeKeepsDataAndConnections(t *testing.T) {
	t.Parallel()
	p := harness.Proxy(t, echo(t))
	c := dial(t, p.Addr())
	if _, err := c.say(5 * time.Second); err != nil {
		t.Fatal(err)
	}
	p.Blackhole(true)
	fresh := dial(t, p.Addr())
	for name, l := range map[string]*line{"open": c, "new": fresh} {
		if _, err := l.say(50 * time.Millisecond); !errors.Is(err, errTimeout(err)) {
			t.Errorf("%s connection in a black hole: %v, want a timeout", name, err)
		}
	}
	p.Blackhole(false)
	for name, l := range map[string]*line{"open": c, "new": fresh} {
		if err := l.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if got, err := l.r.ReadString('\n'); got != "hello\n" {
			t.Errorf("%s connection after the black hole: %q, %v, want what was sent into it", name, got, err)
		}
	}
}

// errTimeout returns err if it is a timeout, else an error that it is not.
func errTimeout(err error) error {
	var n net.Error
	if errors.As(err, &n) && n.Timeout() {
		return err
	}
	return errors.New("not a timeout")
}

func TestProxyDelays(t *testing.T) {
	t.Parallel()
	p := harness.Proxy(t, echo(t))
	c := dial(t, p.Addr())
	p.Delay(30 * time.Millisecond)
	took, err := c.say(5 * time.Second)
	if err != nil || took < 60*time.Millisecond {
		t.Errorf("round trip with 30 ms each way took %v, %v", took, err)
	}
}

func TestProxyChangesItsTarget(t *testing.T) {
	t.Parallel()
	p := harness.Proxy(t, "127.0.0.1:1")
	if conn, err := net.Dial("tcp", p.Addr()); err == nil { // the reset may come first
		c := &line{conn, bufio.NewReader(conn)}
		if _, err := c.say(5 * time.Second); err == nil {
			t.Error("a proxy of nothing answers")
		}
		conn.Close()
	}
	p.SetTarget(echo(t))
	if _, err := dial(t, p.Addr()).say(5 * time.Second); err != nil {
		t.Errorf("after SetTarget: %v", err)
	}
}

func TestProxyClosesTwice(t *testing.T) {
	t.Parallel()
	p, err := servers.NewProxy(echo(t))
	if err != nil {
		t.Fatal(err)
	}
	dial(t, p.Addr())
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	_ = p.Close() // nothing but no panic
	if conn, err := net.Dial("tcp", p.Addr()); err == nil {
		conn.Close()
		t.Error("a closed proxy accepts connections")
	}
}

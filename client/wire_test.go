package client

import (
	"bytes"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// wire stands between a Client and Redis and counts round trips where they
// happen: commands that are sent together are one, what is sent after an answer
// is the next. Connections that subscribe are left out: their PINGs go on
// whatever is read.
type wire struct {
	listener net.Listener
	target   string
	wg       sync.WaitGroup

	mu    sync.Mutex
	conns []net.Conn
	trips []trip
	subs  map[int]bool
}

// trip is one round trip: the names of its commands.
type trip struct {
	conn     int
	commands []string
	answered bool
}

func (t trip) String() string { return strings.Join(t.commands, "+") }

func newWire(t *testing.T, target string) *wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{listener: l, target: target, subs: map[int]bool{}}
	w.wg.Go(w.accept)
	t.Cleanup(func() {
		_ = l.Close()
		w.mu.Lock()
		for _, c := range w.conns {
			_ = c.Close()
		}
		w.mu.Unlock()
		w.wg.Wait()
	})
	return w
}

func (w *wire) accept() {
	for n := 0; ; n++ {
		client, err := w.listener.Accept()
		if err != nil {
			return
		}
		server, err := net.Dial("tcp", w.target)
		if err != nil {
			_ = client.Close()
			continue
		}
		w.mu.Lock()
		w.conns = append(w.conns, client, server)
		w.mu.Unlock()
		w.wg.Go(func() { w.requests(n, client, server) })
		w.wg.Go(func() { w.answers(n, client, server) })
	}
}

// requests notes each command before it is passed on.
func (w *wire) requests(conn int, client, server net.Conn) {
	defer server.Close()
	var pending []byte
	buf := make([]byte, 64<<10)
	for {
		n, err := client.Read(buf)
		pending = append(pending, buf[:n]...)
		for {
			args, rest, ok := command(pending)
			if !ok {
				break
			}
			pending = rest
			w.note(conn, args)
		}
		if _, werr := server.Write(buf[:n]); err != nil || werr != nil {
			return
		}
	}
}

// answers notes that there was one before it is passed on, so that what the
// Client sends because of it is another trip.
func (w *wire) answers(conn int, client, server net.Conn) {
	defer client.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := server.Read(buf)
		w.mu.Lock()
		for i := range w.trips {
			w.trips[i].answered = w.trips[i].answered || w.trips[i].conn == conn
		}
		w.mu.Unlock()
		if _, werr := client.Write(buf[:n]); err != nil || werr != nil {
			return
		}
	}
}

func (w *wire) note(conn int, args []string) {
	name := strings.ToLower(args[0])
	w.mu.Lock()
	defer w.mu.Unlock()
	if strings.HasSuffix(name, "subscribe") {
		w.subs[conn] = true
	}
	for i := len(w.trips) - 1; i >= 0; i-- {
		if t := &w.trips[i]; t.conn == conn && !t.answered {
			t.commands = append(t.commands, name)
			return
		}
	}
	w.trips = append(w.trips, trip{conn: conn, commands: []string{name}})
}

// command cuts one command off the bytes of a connection.
func command(b []byte) (args []string, rest []byte, ok bool) {
	number := func(kind byte) (int, bool) {
		line, after, found := bytes.Cut(b, []byte("\r\n"))
		if !found || len(line) < 2 || line[0] != kind {
			return 0, false
		}
		n, err := strconv.Atoi(string(line[1:]))
		b = after
		return n, err == nil
	}
	n, ok := number('*')
	if !ok || n < 1 {
		return nil, b, false
	}
	for range n {
		length, ok := number('$')
		if !ok || len(b) < length+2 {
			return nil, b, false
		}
		args, b = append(args, string(b[:length])), b[length+2:]
	}
	return args, b, true
}

// take returns the trips since the last call, in the order in which they began.
func (w *wire) take() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	out := []string{}
	for _, t := range w.trips {
		if !w.subs[t.conn] {
			out = append(out, t.String())
		}
	}
	w.trips = nil
	return out
}

package history

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"time"
)

// Chaos says what becomes of broadcasts on their way to a client: the
// probability of each, the rest arrives.
type Chaos struct {
	// Drop loses a message, Hold lets one to three others overtake it, Twice
	// delivers it once more after the next one.
	Drop, Hold, Twice float64
}

// Broadcast passes connections on to a Redis, and knows published messages in
// what comes back: it loses and reorders them, and nothing else, on connections
// that live. It speaks RESP2.
type Broadcast struct {
	target   string
	listener net.Listener
	wg       sync.WaitGroup

	mu     sync.Mutex
	random *rand.Rand
	chaos  Chaos
	conns  map[net.Conn]struct{}
	closed bool
	harmed int
}

// NewBroadcast listens on a free port of 127.0.0.1.
func NewBroadcast(target string, random *rand.Rand) (*Broadcast, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for a proxy of %s: %w", target, err)
	}
	b := &Broadcast{target: target, listener: l, random: random, conns: map[net.Conn]struct{}{}}
	b.wg.Go(b.accept)
	return b, nil
}

// Addr is the host:port to connect to instead of the target.
func (b *Broadcast) Addr() string { return b.listener.Addr().String() }

// Set replaces what is done to messages from now on.
func (b *Broadcast) Set(c Chaos) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.chaos = c
}

// Harmed is how many messages were lost, held back or repeated.
func (b *Broadcast) Harmed() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.harmed
}

// Close ends all connections and waits for every goroutine.
func (b *Broadcast) Close() error {
	b.mu.Lock()
	b.closed = true
	for c := range b.conns {
		_ = c.Close()
	}
	b.mu.Unlock()
	err := b.listener.Close()
	b.wg.Wait()
	return err
}

func (b *Broadcast) accept() {
	for {
		client, err := b.listener.Accept()
		if err != nil {
			return
		}
		b.wg.Go(func() { b.serve(client) })
	}
}

// keep notes a connection, to be closed with the proxy.
func (b *Broadcast) keep(c net.Conn) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed {
		b.conns[c] = struct{}{}
	}
	return !b.closed
}

func (b *Broadcast) drop(conns ...net.Conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range conns {
		_ = c.Close()
		delete(b.conns, c)
	}
}

func (b *Broadcast) serve(client net.Conn) {
	defer b.drop(client)
	if !b.keep(client) {
		return
	}
	server, err := net.DialTimeout("tcp", b.target, 5*time.Second)
	if err != nil {
		return
	}
	defer b.drop(server)
	if !b.keep(server) {
		return
	}
	b.wg.Go(func() {
		_, _ = io.Copy(server, client)
		b.drop(client, server)
	})
	b.answers(client, server)
}

// held is a message that others may overtake.
type held struct {
	frame []byte
	after int // how many more
}

// answers passes on what the server sends, frame by frame.
func (b *Broadcast) answers(client io.Writer, server io.Reader) {
	in := bufio.NewReaderSize(server, 64<<10)
	out := bufio.NewWriterSize(client, 64<<10)
	var waiting []held
	for {
		frame, err := readFrame(in, nil)
		if err != nil {
			return
		}
		switch {
		case !isMessage(frame):
			_, _ = out.Write(frame)
		default:
			pass, again := b.decide()
			if pass {
				_, _ = out.Write(frame)
			}
			var still []held
			for _, h := range waiting {
				if h.after--; h.after > 0 {
					still = append(still, h)
				} else {
					_, _ = out.Write(h.frame)
				}
			}
			if waiting = still; again > 0 {
				waiting = append(waiting, held{frame, again})
			}
		}
		if in.Buffered() == 0 {
			if err := out.Flush(); err != nil {
				return
			}
		}
	}
}

// decide draws the fate of a message: whether it passes now, and after how many
// others it comes, 0 for never.
func (b *Broadcast) decide() (pass bool, again int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.chaos == (Chaos{}) {
		return true, 0
	}
	switch f := b.random.Float64(); {
	case f < b.chaos.Drop:
	case f < b.chaos.Drop+b.chaos.Hold:
		again = 1 + b.random.IntN(3)
	case f < b.chaos.Drop+b.chaos.Hold+b.chaos.Twice:
		pass, again = true, 1
	default:
		return true, 0
	}
	b.harmed++
	return pass, again
}

// isMessage reports whether a frame is a published message.
func isMessage(frame []byte) bool {
	return bytes.HasPrefix(frame, []byte("*3\r\n$7\r\nmessage\r\n")) || bytes.HasPrefix(frame, []byte("*3\r\n$8\r\nsmessage\r\n"))
}

var errFrame = errors.New("not a frame of RESP2")

// readFrame appends the next frame to dst.
func readFrame(in *bufio.Reader, dst []byte) ([]byte, error) {
	line, err := in.ReadBytes('\n')
	if err != nil {
		return nil, err
	}
	if len(line) < 3 {
		return nil, errFrame
	}
	dst = append(dst, line...)
	kind, text := line[0], string(line[1:len(line)-2])
	switch kind {
	case '+', '-', ':':
		return dst, nil
	case '$', '*':
		n, err := strconv.Atoi(text)
		if err != nil {
			return nil, errFrame
		}
		if n < 0 {
			return dst, nil
		}
		if kind == '$' {
			at := len(dst)
			dst = append(dst, make([]byte, n+2)...)
			_, err := io.ReadFull(in, dst[at:])
			return dst, err
		}
		for range n {
			if dst, err = readFrame(in, dst); err != nil {
				return nil, err
			}
		}
		return dst, nil
	}
	return nil, errFrame
}

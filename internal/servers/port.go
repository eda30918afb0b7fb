package servers

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// port is a TCP port of 127.0.0.1 that is ours until release, whether or not
// something listens on it at the moment.
//
// Asking the kernel for a free port is not enough for a server that is stopped
// and started again: while it is down any outgoing connection, or another test
// process, may be given the number. Ports are therefore taken from below the
// range of outgoing connections, and a lock on a file named after the port
// keeps other test processes of this user away.
type port struct {
	number int
	lock   *os.File
}

func (p *port) addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(p.number)) }

// release gives the port back.
func (p *port) release() {
	if p != nil && p.lock != nil {
		_ = p.lock.Close()
	}
}

// reservePort takes a free port; want 0 means any.
func reservePort(want int) (*port, error) {
	dir := filepath.Join(os.TempDir(), "lethe-ports-"+strconv.Itoa(os.Getuid()))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of port locks: %w", err)
	}
	if want != 0 {
		p, err := tryPort(dir, want)
		if err != nil {
			return nil, fmt.Errorf("reserve port %d: %w", want, err)
		}
		return p, nil
	}
	low, high := 15000, ephemeralStart()
	var err error
	for range 200 {
		var p *port
		if p, err = tryPort(dir, low+rand.IntN(high-low)); err == nil {
			return p, nil
		}
	}
	return nil, fmt.Errorf("find a free port between %d and %d: %w", low, high, err)
}

// ReserveAddr takes a free address of 127.0.0.1 for a server that its caller
// starts, and may stop and start again. release gives it back.
func ReserveAddr() (addr string, release func(), err error) {
	p, err := reservePort(0)
	if err != nil {
		return "", nil, err
	}
	return p.addr(), p.release, nil
}

// reservePair takes a free port whose number plus 10,000 is free too: Redis
// Cluster talks to itself there, and before 7.0 nothing could change that.
func reservePair() (client, bus *port, err error) {
	for range 200 {
		if client, err = reservePort(0); err != nil {
			return nil, nil, err
		}
		if client.number+10000 < ephemeralStart() {
			if bus, err = reservePort(client.number + 10000); err == nil {
				return client, bus, nil
			}
		}
		client.release()
	}
	return nil, nil, fmt.Errorf("find a pair of free ports: %w", err)
}

func tryPort(dir string, number int) (*port, error) {
	f, err := os.OpenFile(filepath.Join(dir, strconv.Itoa(number)), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, errors.New("reserved by another server of the harness")
	}
	p := &port{number: number, lock: f}
	l, err := net.Listen("tcp", p.addr())
	if err != nil {
		p.release()
		return nil, err
	}
	_ = l.Close()
	return p, nil
}

// ephemeralStart is the first port that the kernel hands out by itself.
func ephemeralStart() int {
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if f := strings.Fields(string(b)); err == nil && len(f) == 2 {
		if n, err := strconv.Atoi(f[0]); err == nil && n > 16000 {
			return n
		}
	}
	return 32768
}

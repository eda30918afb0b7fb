package cdc

import (
	"context"
	"encoding/binary"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/lethe-cache/lethe/change"
)

// msg builds pgoutput messages.
type msg []byte

func (m msg) u8(b byte) msg      { return append(m, b) }
func (m msg) u16(n int) msg      { return binary.BigEndian.AppendUint16(m, uint16(n)) }
func (m msg) u32(n int) msg      { return binary.BigEndian.AppendUint32(m, uint32(n)) }
func (m msg) u64(n uint64) msg   { return binary.BigEndian.AppendUint64(m, n) }
func (m msg) str(s string) msg   { return append(append(m, s...), 0) }
func (m msg) bytes(b []byte) msg { return append(m, b...) }

func (m msg) text(s string) msg { return m.u8('t').u32(len(s)).bytes([]byte(s)) }

func beginMsg(xid uint32, lsn change.LSN) msg {
	return msg{'B'}.u64(uint64(lsn)).u64(1_000_000).u32(int(xid))
}

func commitMsg(lsn, end change.LSN) msg {
	return msg{'C'}.u8(0).u64(uint64(lsn)).u64(uint64(end)).u64(1_000_000)
}

// relationMsg announces public.<name>, its first column the key.
func relationMsg(id int, name string, identity byte, columns ...string) msg {
	m := msg{'R'}.u32(id).str("public").str(name).u8(identity).u16(len(columns))
	for i, c := range columns {
		key := byte(0)
		if i == 0 || identity == 'f' {
			key = 1
		}
		m = m.u8(key).str(c).u32(25).u32(0)
	}
	return m
}

func insertMsg(id int, values ...string) msg {
	m := msg{'I'}.u32(id).u8('N').u16(len(values))
	for _, v := range values {
		m = m.text(v)
	}
	return m
}

// fakeServer is the server's end of a replication connection after
// START_REPLICATION. It speaks the protocol by pgproto3, and notes what it is
// told.
type fakeServer struct {
	backend *pgproto3.Backend
	conn    net.Conn
	mu      sync.Mutex
	// statuses are all that were received.
	statuses []statusMsg
	readers  sync.WaitGroup
	// deaf: requests for a reply are not answered.
	deaf bool
	// send guards the writing half.
	send sync.Mutex
}

type statusMsg struct {
	at                    time.Time
	written, flush, apply change.LSN
	reply                 bool
}

func newFakeServer(t testing.TB, conn net.Conn, deaf bool) *fakeServer {
	f := &fakeServer{backend: pgproto3.NewBackend(conn, conn), conn: conn, deaf: deaf}
	asked := make(chan struct{}, 1)
	f.readers.Go(func() {
		// By itself, for a pipe has no buffer: the client may be writing too.
		for range asked {
			_ = f.keepalive(0, false)
		}
	})
	f.readers.Go(func() {
		defer close(asked)
		for {
			m, err := f.backend.Receive()
			if err != nil {
				return
			}
			d, ok := m.(*pgproto3.CopyData)
			if !ok || d.Data[0] != 'r' {
				continue
			}
			lsn := func(i int) change.LSN { return change.LSN(binary.BigEndian.Uint64(d.Data[i:])) }
			f.mu.Lock()
			f.statuses = append(f.statuses, statusMsg{time.Now(), lsn(1), lsn(9), lsn(17), d.Data[33] == 1})
			f.mu.Unlock()
			if d.Data[33] == 1 && !f.deaf {
				select {
				case asked <- struct{}{}:
				default:
				}
			}
		}
	})
	t.Cleanup(f.close)
	return f
}

func (f *fakeServer) close() {
	_ = f.conn.Close()
	f.readers.Wait()
}

// data sends messages, each in an XLogData whose WALStart is start.
func (f *fakeServer) data(start change.LSN, messages ...msg) error {
	f.send.Lock()
	defer f.send.Unlock()
	for _, m := range messages {
		d := msg{'w'}.u64(uint64(start)).u64(uint64(start)).u64(0).bytes(m)
		f.backend.Send(&pgproto3.CopyData{Data: d})
	}
	return f.backend.Flush()
}

func (f *fakeServer) keepalive(end change.LSN, reply bool) error {
	m := msg{'k'}.u64(uint64(end)).u64(0)
	if reply {
		m = m.u8(1)
	} else {
		m = m.u8(0)
	}
	f.send.Lock()
	defer f.send.Unlock()
	f.backend.Send(&pgproto3.CopyData{Data: m})
	return f.backend.Flush()
}

func (f *fakeServer) seen() []statusMsg {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]statusMsg(nil), f.statuses...)
}

func (f *fakeServer) last() statusMsg {
	s := f.seen()
	if len(s) == 0 {
		return statusMsg{}
	}
	return s[len(s)-1]
}

// fakePrimary answers the gate.
type fakePrimary struct {
	mu   sync.Mutex
	snap Snapshot
	err  error
	took int
}

func (p *fakePrimary) snapshot(context.Context) (Snapshot, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.took++
	return p.snap, p.err
}

func (p *fakePrimary) gap(context.Context) (*Gap, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return NewGap(p.snap, p.snap.Xmax), nil
}

func (p *fakePrimary) insertLSN(context.Context) (change.LSN, error) { return 5000, nil }

func (p *fakePrimary) set(s *Snapshot) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.snap = *s
}

// rig is a receiver and a gate between a fake server and a sink, for tests in a
// synctest bubble.
type rig struct {
	server  *fakeServer
	primary *fakePrimary
	sink    *sink
	recv    *receiver
	gate    *gateRunner
	log     *appender
	cancel  context.CancelFunc
	recvErr chan error
	gateErr chan error
	deaf    bool
}

func newRig(t testing.TB, change ...func(*rig)) *rig {
	client, server := net.Pipe()
	w := newSink()
	g := &rig{
		primary: &fakePrimary{snap: *runningXids()}, sink: w,
		log:     &appender{writer: w, confirm: &confirmer{}, id: "test"},
		recvErr: make(chan error, 1), gateErr: make(chan error, 1),
	}
	g.log.confirm.restart(100)
	segments := make(chan *segment, 2)
	g.recv = &receiver{
		wire: newWire(client), dec: newDecoder(nil), out: segments, confirmed: g.log.position,
		interval: 10 * time.Second, silence: 30 * time.Second, maxChanges: segmentChanges, maxSize: segmentSize, sent: 100,
	}
	g.recv.wire.pace.sleep = time.Sleep
	g.recv.received.Store(100)
	r := newRaiser()
	g.gate = &gateRunner{
		gate: newGate(), in: segments, primary: g.primary, log: g.log, raises: r, kick: r.kick,
		markInterval: 100 * time.Millisecond, observer: NopObserver{}, logger: testLogger(t), nap: time.Sleep,
	}
	g.gate.gate.v = 100
	for _, f := range change {
		f(g)
	}
	g.server = newFakeServer(t, server, g.deaf)
	ctx, cancel := context.WithCancel(context.Background())
	g.cancel = cancel
	context.AfterFunc(ctx, func() { _ = client.SetReadDeadline(time.Unix(1, 0)) })
	go func() { g.recvErr <- g.recv.run(ctx) }()
	go func() { g.gateErr <- g.gate.run(ctx, ctx) }()
	t.Cleanup(func() {
		cancel()
		_ = client.Close()
	})
	return g
}

// row sends a transaction of one insert.
func (g *rig) row(t testing.TB, xid uint32, id string) {
	t.Helper()
	err := g.server.data(lsnOf(xid)-10, beginMsg(xid, lsnOf(xid)), relationMsg(1, "a", 'd', "id"), insertMsg(1, id), commitMsg(lsnOf(xid), lsnOf(xid)+50))
	if err != nil && err != io.ErrClosedPipe {
		t.Error(err)
	}
}

package cdc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/lethe-cache/lethe/change"
)

const (
	// wireBuffer is the receive buffer. A paused reader finds about 120 KB in
	// the socket; twice that leaves room for a burst.
	wireBuffer = 256 << 10
	// frameMax is more than Postgres can send in one message (1 GB).
	frameMax = 1<<30 + 1<<20
	// writeTimeout bounds the sending of a status: a socket that takes no 39
	// bytes for this long belongs to a dead connection.
	writeTimeout = 10 * time.Second
)

// wire reads frames from a replication connection and writes to it. It takes
// the place of pgconn's reader, which costs an allocation and a goroutine
// hand-over for each message, once the connection is hijacked. One goroutine
// uses it.
type wire struct {
	conn net.Conn
	buf  []byte
	r, w int
	pace pacer
	out  []byte
	// patience bounds each write.
	patience time.Duration
	// lastRead is when bytes last arrived.
	lastRead time.Time
}

func newWire(conn net.Conn) *wire {
	return &wire{conn: conn, buf: make([]byte, wireBuffer), pace: newPacer(), patience: writeTimeout, lastRead: time.Now()}
}

// frame is one protocol message; body aliases the buffer until the next call.
type frame struct {
	kind byte
	body []byte
}

// buffered returns a frame that is complete in the buffer, without reading.
func (w *wire) buffered() (frame, bool, error) {
	f, n, err := nextFrame(w.buf[w.r:w.w])
	w.r += n
	return f, n > 0, err
}

// nextFrame returns the frame that have begins with, and how many bytes it
// takes: 0 if it is not complete.
func nextFrame(have []byte) (frame, int, error) {
	if len(have) < 5 {
		return frame{}, 0, nil
	}
	n := int(binary.BigEndian.Uint32(have[1:]))
	if n < 4 || n > frameMax {
		return frame{}, 0, fmt.Errorf("read frame: length %d is not possible, the stream is out of step", n)
	}
	if len(have) < 1+n {
		return frame{}, 0, nil
	}
	return frame{have[0], have[5 : 1+n]}, 1 + n, nil
}

// fill reads once from the socket, up to its deadline.
func (w *wire) fill() error {
	switch {
	case w.r == w.w:
		w.r, w.w = 0, 0
		if len(w.buf) > 4*wireBuffer {
			w.buf = make([]byte, wireBuffer) // a huge message has gone by
		}
	case w.w == len(w.buf):
		// Move what is left of a frame to the front, and if it fills the buffer
		// grow it: twofold, so that a length that lies costs no memory.
		if w.r == 0 {
			w.buf = append(w.buf, make([]byte, len(w.buf))...)
		} else {
			w.w = copy(w.buf, w.buf[w.r:w.w])
			w.r = 0
		}
	}
	w.pace.before()
	n, err := w.conn.Read(w.buf[w.w:])
	w.w += n
	if n > 0 {
		w.lastRead = time.Now()
		w.pace.after(n, w.lastRead)
		return nil
	}
	return err
}

// next returns the next frame, reading as long as it must.
func (w *wire) next() (frame, error) {
	for {
		f, ok, err := w.buffered()
		if ok || err != nil {
			return f, err
		}
		if err := w.fill(); err != nil {
			return frame{}, err
		}
	}
}

func (w *wire) write(b []byte) error {
	if err := w.conn.SetWriteDeadline(time.Now().Add(w.patience)); err != nil {
		return fmt.Errorf("set write deadline: %w", err)
	}
	_, err := w.conn.Write(b)
	return err
}

// status sends a standby status update. All three positions are set: the
// server takes a zero for "as the one before", so that "received but not
// durable" could not be said with it.
func (w *wire) status(written, durable change.LSN, wantReply bool) error {
	const size = 1 + 8 + 8 + 8 + 8 + 1
	b := append(w.out[:0], 'd')
	b = binary.BigEndian.AppendUint32(b, 4+size)
	b = append(b, 'r')
	b = binary.BigEndian.AppendUint64(b, uint64(max(written, durable)))
	b = binary.BigEndian.AppendUint64(b, uint64(durable))
	b = binary.BigEndian.AppendUint64(b, uint64(durable))
	b = binary.BigEndian.AppendUint64(b, uint64(time.Since(pgEpoch).Microseconds()))
	if wantReply {
		b = append(b, 1)
	} else {
		b = append(b, 0)
	}
	w.out = b
	if err := w.write(b); err != nil {
		return fmt.Errorf("send standby status: %w", err)
	}
	return nil
}

// startReplication asks for the slot's stream from the position that the slot
// has confirmed. After an error that the server answered, the connection may be
// used again.
func (w *wire) startReplication(sql string) error {
	q, err := (&pgproto3.Query{String: sql}).Encode(nil)
	if err != nil {
		return fmt.Errorf("encode START_REPLICATION: %w", err)
	}
	if err := w.write(q); err != nil {
		return fmt.Errorf("send START_REPLICATION: %w", err)
	}
	var refused error
	for {
		f, err := w.next()
		if err != nil {
			return fmt.Errorf("read answer to START_REPLICATION: %w", err)
		}
		switch f.kind {
		case 'W': // CopyBothResponse
			return nil
		case 'E':
			refused = frameError(f.body)
		case 'Z': // ReadyForQuery
			if refused == nil {
				refused = errors.New("server ended START_REPLICATION at once")
			}
			return fmt.Errorf("start replication: %w", refused)
		case 'N', 'S', 'C':
		default:
			return fmt.Errorf("start replication: unexpected message %q", f.kind)
		}
	}
}

// frameError decodes an ErrorResponse; after CopyBoth those arrive as plain
// messages.
func frameError(body []byte) error {
	var e pgproto3.ErrorResponse
	if err := e.Decode(body); err != nil {
		return fmt.Errorf("decode error response: %w", err)
	}
	return pgconn.ErrorResponseToPgError(&e)
}

package cdc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/lethe-cache/lethe/change"
)

// pgPrimary is the primary as the gate asks it, over a connection of its own.
//
// Every commit waits for one snapshot, so how that is asked is most of what the
// gate adds to a quiet system's latency. A SELECT with a deadline of its own is
// an executor on the server and two timers here, and each timer may wake a
// thread. The snapshot is asked by the protocol's function call instead, which
// is one function in one transaction of its own, so under a snapshot that is
// taken after the message has arrived, as a SELECT's is; and its deadline moves
// once in seconds. What is asked seldom is asked in SQL.
//
// One goroutine uses it.
type pgPrimary struct {
	conn *pgx.Conn

	call    []byte // the function call, once its OID is known
	refused bool   // the server, or what stands before it, does not take it
	// answered and broken say what became of calls: one was answered, and one
	// has broken the connection.
	answered, broken bool
	// buf[used:have] was read and not looked at.
	buf        []byte
	used, have int
	deadline   time.Time
}

// askTimeout bounds what the gate asks: all of it is answered from memory. A
// snapshot may take half of it longer.
const askTimeout = 10 * time.Second

func (p *pgPrimary) snapshot(ctx context.Context) (Snapshot, error) {
	s, err := p.snapshotText(ctx)
	if err != nil {
		return Snapshot{}, err
	}
	return ParseSnapshot(s)
}

func (p *pgPrimary) snapshotText(ctx context.Context) (string, error) {
	if p.call == nil && !p.refused {
		oid, err := p.ask(ctx, `SELECT 'pg_catalog.pg_current_snapshot()'::pg_catalog.regprocedure::pg_catalog.oid::text`)
		if err != nil {
			return "", err
		}
		id, err := strconv.ParseUint(oid, 10, 32)
		if err != nil {
			return "", fmt.Errorf("parse the OID of pg_current_snapshot %q: %w", oid, err)
		}
		p.call = functionCall(uint32(id))
	}
	if !p.refused {
		s, refused, err := p.callFunction(ctx)
		if err != nil || refused == nil {
			return s, err
		}
		// To be asked otherwise: the connection is as good as before.
		p.refused = true
	}
	return p.ask(ctx, `SELECT pg_catalog.pg_current_snapshot()::text`)
}

// withoutCalls reports whether the next connection had better not be asked so:
// none was answered on this one, and the first has broken it. The server would
// have refused it in words; what stands before the server may know no function
// calls and hang up, each time anew.
func (p *pgPrimary) withoutCalls() bool { return p.refused || p.broken && !p.answered }

// functionCall is the message that calls a function without arguments and asks
// for its result as text.
func functionCall(oid uint32) []byte {
	const size = 4 + 4 + 2 + 2 + 2 // length, function, formats, arguments, format of the result
	b := append(make([]byte, 0, 1+size), 'F')
	b = binary.BigEndian.AppendUint32(b, size)
	b = binary.BigEndian.AppendUint32(b, oid)
	return append(b, 0, 0, 0, 0, 0, 0)
}

// interruptible lets the end of ctx end a call at once. Its result, called once
// nothing is asked any more, makes the connection usable for a farewell.
func (p *pgPrimary) interruptible(ctx context.Context) (stop func()) {
	conn := p.conn.PgConn().Conn()
	done := make(chan struct{})
	stopAfter := context.AfterFunc(ctx, func() {
		defer close(done)
		_ = conn.SetDeadline(time.Unix(1, 0))
	})
	return func() {
		if !stopAfter() {
			<-done
		}
		_ = conn.SetDeadline(time.Time{})
	}
}

// callFunction sends the call and reads to the end of its answer. refused is
// what the server said instead of an answer; the connection is usable then, and
// after err it is not.
func (p *pgPrimary) callFunction(ctx context.Context) (result string, refused, err error) {
	defer func() {
		switch {
		case err == nil:
			p.answered = true
			return
		case ctx.Err() != nil:
			err = ctx.Err()
			return
		}
		p.broken = true
		if refused != nil { // its last words say more than that it is gone
			err = refused
		}
		err = fmt.Errorf("call function: %w", err)
	}()
	pg := p.conn.PgConn()
	if err := pg.SyncConn(ctx); err != nil {
		return "", nil, err
	}
	conn := pg.Conn()
	if now := time.Now(); p.deadline.Sub(now) < askTimeout {
		p.deadline = now.Add(askTimeout + askTimeout/2)
		if err := conn.SetDeadline(p.deadline); err != nil {
			return "", nil, err
		}
	}
	if ctx.Err() != nil { // its end has set a deadline, which the one above may have undone
		return "", nil, ctx.Err()
	}
	if _, err := conn.Write(p.call); err != nil {
		return "", nil, err
	}
	p.used, p.have = 0, 0
	for {
		f, err := p.frame(conn)
		if err != nil {
			return "", refused, err
		}
		switch f.kind {
		case 'V':
			if len(f.body) < 4 || int(int32(binary.BigEndian.Uint32(f.body))) != len(f.body)-4 {
				return "", nil, errShort
			}
			result = string(f.body[4:])
		case 'E':
			refused = frameError(f.body)
		case 'Z':
			if refused == nil && result == "" {
				return "", nil, errors.New("there is no result")
			}
			return result, refused, nil
		case 'N', 'S', 'A': // notices, settings, notifications
		default:
			return "", nil, fmt.Errorf("unexpected message %q", f.kind)
		}
	}
}

// frame reads one message; its body aliases the buffer until the next call.
func (p *pgPrimary) frame(conn net.Conn) (frame, error) {
	for {
		f, n, err := nextFrame(p.buf[p.used:p.have])
		if n > 0 || err != nil {
			p.used += n
			return f, err
		}
		p.have = copy(p.buf, p.buf[p.used:p.have])
		p.used = 0
		if p.have == len(p.buf) {
			p.buf = append(p.buf, make([]byte, max(1<<10, len(p.buf)))...)
		}
		n, err = conn.Read(p.buf[p.have:])
		p.have += n
		if n == 0 && err != nil {
			return frame{}, err
		}
	}
}

// gap has an xid assigned, which costs one and tells which are older: what is
// running may be newer than everything that a snapshot lists.
func (p *pgPrimary) gap(ctx context.Context) (*Gap, error) {
	s, err := p.ask(ctx, `SELECT pg_catalog.pg_current_snapshot()::text || ' ' || pg_catalog.pg_current_xact_id()::text`)
	if err != nil {
		return nil, err
	}
	text, own, _ := strings.Cut(s, " ")
	snap, err := ParseSnapshot(text)
	if err != nil {
		return nil, err
	}
	next, err := strconv.ParseUint(own, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("parse xid %q: %w", own, err)
	}
	return NewGap(snap, next), nil
}

func (p *pgPrimary) insertLSN(ctx context.Context) (change.LSN, error) {
	s, err := p.ask(ctx, `SELECT pg_catalog.pg_current_wal_insert_lsn()::text`)
	if err != nil {
		return 0, err
	}
	return change.ParseLSN(s)
}

func (p *pgPrimary) ask(ctx context.Context, sql string) (string, error) {
	if !p.deadline.IsZero() { // the one of ctx counts
		p.deadline = time.Time{}
		if err := p.conn.PgConn().Conn().SetDeadline(time.Time{}); err != nil {
			return "", fmt.Errorf("set deadline: %w", err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	var s string
	err := p.conn.QueryRow(ctx, sql).Scan(&s) // prepared once, by pgx's cache
	return s, err
}

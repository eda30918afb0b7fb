package client

import (
	"bytes"
	"context"
	"encoding/binary"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/lethe-cache/lethe/internal/harness"
)

// otherBackend is a connection on which the last statement of a pipeline is
// answered by another process than the first: what a pooler that gave the
// connection away in the middle would do.
type otherBackend struct {
	net.Conn
	mu   sync.Mutex
	pid  []byte // as a column of an answer; nil: not yet
	seen int
}

// arm waits for the answers of the process pid.
func (o *otherBackend) arm(pid uint32) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.pid, o.seen = binary.BigEndian.AppendUint32([]byte{0, 0, 0, 4}, pid), 0
}

func (o *otherBackend) Read(b []byte) (int, error) {
	n, err := o.Conn.Read(b)
	o.mu.Lock()
	defer o.mu.Unlock()
	for rest := b[:n]; o.pid != nil; {
		i := bytes.Index(rest, o.pid)
		if i < 0 {
			break
		}
		rest = rest[i+len(o.pid):]
		if o.seen++; o.seen == 2 {
			b[n-len(rest)-1]++
		}
	}
	return n, err
}

// Stamp and data of one server each: nothing is known of the data.
func TestTwoBackendsNotCached(t *testing.T) {
	t.Parallel()
	w, p := newDatabase(t, harness.Database(t))
	var wire *otherBackend
	pooled := pool(t, p.Config().ConnString(), func(cfg *pgxpool.Config) {
		cfg.MaxConns = 1
		dial := cfg.ConnConfig.DialFunc
		cfg.ConnConfig.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := dial(ctx, network, addr)
			wire = &otherBackend{Conn: conn}
			return wire, err
		}
	})
	c := w.open(Options{Database: pooled}, hooks{})
	w.want("refused", refused(t, c, query(selectItem, 1)), "")
	w.unlink("item:1", 110)
	w.invalidate("item:1", 110)
	w.live(c)
	conn, err := pooled.Acquire(t.Context())
	w.must(err)
	wire.arm(conn.Conn().PgConn().PID())
	conn.Release()
	w.want("refused", refused(t, c, query(selectItem, 1)), "backend")
}

// Another server behind a connection that was the primary's: it may be a
// standby, whose process has the same number.
func TestOtherBackendThanKnownNotCached(t *testing.T) {
	t.Parallel()
	w, p := newDatabase(t, harness.Database(t))
	moved := pool(t, p.Config().ConnString(), func(cfg *pgxpool.Config) {
		cfg.MaxConns = 1
		cfg.PrepareConn = func(_ context.Context, conn *pgx.Conn) (bool, error) {
			if id, ok := conn.PgConn().CustomData()[identityKey].(*identity); ok {
				id.start = id.start.Add(-time.Hour) // the one that was known has started earlier
			}
			return true, nil
		}
	})
	c := w.open(Options{Database: moved, L1Bytes: -1}, hooks{})
	w.want("refused", refused(t, c, query(selectItem, 1)), "")
	w.unlink("item:1", 110)
	w.want("refused", refused(t, c, query(selectItem, 1)), "backend")
}

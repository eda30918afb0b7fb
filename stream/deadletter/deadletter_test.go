package deadletter_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/migrations"
	"github.com/lethe-cache/lethe/stream"
	"github.com/lethe-cache/lethe/stream/deadletter"
)

func TestMain(m *testing.M) { harness.Main(m) }

var letter = stream.DeadLetter{
	Reason: "decode", Err: "bad \x00 and \xff bytes", Partition: 3, Offset: 42,
	Position: change.Position{Era: 1, LSN: 0x10}, Table: "public.products", Payload: []byte("\x00\xff raw"),
}

// Letters land in the table that the migrations make, whatever bytes they quote.
func TestPostgres(t *testing.T) {
	t.Parallel()
	conn, err := pgx.Connect(t.Context(), harness.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := migrations.Apply(t.Context(), conn, migrations.Options{}); err != nil {
		t.Fatal(err)
	}
	d := deadletter.NewPostgres(conn)
	if err := d.Put(t.Context(), letter); err != nil {
		t.Fatal(err)
	}
	var reason, text, position, table string
	var part, offset int
	var payload []byte
	err = conn.QueryRow(t.Context(), `SELECT reason, error, part, log_offset, position, table_name, payload FROM lethe.dead_letters`).
		Scan(&reason, &text, &part, &offset, &position, &table, &payload)
	if err != nil {
		t.Fatal(err)
	}
	if reason != "decode" || text != "bad \uFFFD and \uFFFD bytes" || part != 3 || offset != 42 || position != "00010000000000000010" ||
		table != "public.products" || !bytes.Equal(payload, letter.Payload) {
		t.Errorf("row %q %q %d %d %q %q %q", reason, text, part, offset, position, table, payload)
	}
}

type broken struct{ payload int }

func (b *broken) Exec(_ context.Context, _ string, args ...any) (pgconn.CommandTag, error) {
	b.payload = len(args[6].([]byte))
	return pgconn.CommandTag{}, errors.New("no table")
}

func TestPostgresCutsAndReports(t *testing.T) {
	t.Parallel()
	var db broken
	big := letter
	big.Payload = make([]byte, deadletter.MaxPayload+1)
	err := deadletter.NewPostgres(&db).Put(t.Context(), big)
	if err == nil || !strings.Contains(err.Error(), "store dead letter 3/42: no table") {
		t.Errorf("Put: %v", err)
	}
	if db.payload != deadletter.MaxPayload {
		t.Errorf("%d bytes were stored, want %d", db.payload, deadletter.MaxPayload)
	}
}

func TestLog(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	big := letter
	big.Payload = bytes.Repeat([]byte("p"), 10_000)
	if err := deadletter.NewLog(slog.New(slog.NewJSONHandler(&out, nil))).Put(t.Context(), big); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"reason":"decode"`, `"partition":3`, `"offset":42`, `"position":"00010000000000000010"`, `"payload_bytes":10000`} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%s is not in %.300s", want, out.String())
		}
	}
	if out.Len() > 2000 {
		t.Errorf("a log line of %d bytes", out.Len())
	}
}

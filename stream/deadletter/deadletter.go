// Package deadletter keeps what could not be processed where people find it
// without a broker: in a table of the database, and in the program's log. The
// kafka transport has a topic for it instead.
package deadletter

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/lethe-cache/lethe/stream"
)

// MaxPayload bounds the payload of a stored letter in bytes; what is longer is
// cut. A letter is for people: the reason and the place matter more than the
// last byte of a huge row.
const MaxPayload = 256 << 10

// Execer is the part of *pgx.Conn and *pgxpool.Pool that Postgres needs.
type Execer interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// Postgres writes dead letters to the table lethe.dead_letters. It is as safe
// for concurrent use as its Execer.
type Postgres struct{ db Execer }

var _ stream.DeadLetters = (*Postgres)(nil)

// NewPostgres returns dead letters that go through db, an ordinary connection
// to the primary. The table is made by the migrations.
func NewPostgres(db Execer) *Postgres { return &Postgres{db: db} }

const insertSQL = `INSERT INTO lethe.dead_letters (reason, error, part, log_offset, position, table_name, payload)
VALUES ($1, $2, $3, $4, $5, $6, $7)`

// Put implements stream.DeadLetters.
func (p *Postgres) Put(ctx context.Context, d stream.DeadLetter) error {
	position := ""
	if !d.Position.IsZero() {
		position = d.Position.String()
	}
	_, err := p.db.Exec(ctx, insertSQL, text(d.Reason), text(d.Err), d.Partition, d.Offset, position, text(d.Table), Cut(d.Payload))
	if err != nil {
		return fmt.Errorf("store dead letter %d/%d: %w", d.Partition, d.Offset, err)
	}
	return nil
}

// Cut returns the part of a payload that is kept.
func Cut(payload []byte) []byte {
	if len(payload) > MaxPayload {
		return payload[:MaxPayload]
	}
	return payload
}

// text makes s fit for a text column: Postgres takes no zero byte and no
// invalid UTF-8, and an error message may quote either.
func text(s string) string {
	out := make([]rune, 0, len(s))
	for _, r := range s { // invalid bytes become U+FFFD
		if r == 0 {
			r = '\uFFFD'
		}
		out = append(out, r)
	}
	return string(out)
}

// Log writes dead letters to a logger and keeps nothing, for a database in
// which Lethe may not write. It is safe for concurrent use.
type Log struct{ log *slog.Logger }

var _ stream.DeadLetters = (*Log)(nil)

// NewLog returns dead letters that go to logger.
func NewLog(logger *slog.Logger) *Log { return &Log{log: logger} }

// logPayload bounds the payload in a log line.
const logPayload = 512

// Put implements stream.DeadLetters. It never fails.
func (l *Log) Put(ctx context.Context, d stream.DeadLetter) error {
	payload := d.Payload
	if len(payload) > logPayload {
		payload = payload[:logPayload]
	}
	l.log.LogAttrs(ctx, slog.LevelError, "dead letter",
		slog.String("reason", d.Reason), slog.String("error", d.Err),
		slog.Int("partition", d.Partition), slog.Int64("offset", d.Offset),
		slog.String("position", d.Position.String()), slog.String("table", d.Table),
		slog.Int("payload_bytes", len(d.Payload)), slog.String("payload", fmt.Sprintf("%q", payload)))
	return nil
}

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/redis/go-redis/v9"
)

// consumer is the invalidator that one writes by hand in an afternoon: the loop
// of pglogrepl's example, one key for each changed row, and either one DEL for
// each change or a pipeline of UNLINKs. It keeps none of Lethe's promises; it
// is here to be raced against.
type consumer struct {
	postgresURL string
	slot        string
	publication string
	redis       *redis.Client
	// pipeline is how many UNLINKs are sent at once; 0 sends a DEL for each
	// change and waits for the answer.
	pipeline int
}

// The consumer reports where it is every statusInterval, and empties a pipeline
// that is not full when nothing more has come for idleFlush.
const (
	statusInterval = 10 * time.Second
	idleFlush      = 5 * time.Millisecond
)

// run follows the slot until ctx ends.
func (c *consumer) run(ctx context.Context) error {
	config, err := pgconn.ParseConfig(c.postgresURL)
	if err != nil {
		return fmt.Errorf("parse the address of Postgres: %w", err)
	}
	config.RuntimeParams["replication"] = "database"
	conn, err := pgconn.ConnectConfig(ctx, config)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	options := pglogrepl.StartReplicationOptions{PluginArgs: []string{"proto_version '1'", "publication_names '" + c.publication + "'"}}
	if err := pglogrepl.StartReplication(ctx, conn, c.slot, 0, options); err != nil {
		return fmt.Errorf("start replication of slot %s: %w", c.slot, err)
	}
	if err := c.follow(ctx, conn); err != nil && ctx.Err() == nil {
		return err
	}
	return nil
}

func (c *consumer) follow(ctx context.Context, conn *pgconn.PgConn) error {
	pipe := c.redis.Pipeline()
	var end pglogrepl.LSN
	status := time.Now().Add(statusInterval)
	for {
		n, err := c.followFor(ctx, conn, pipe, &end)
		if err != nil && (!pgconn.Timeout(err) || ctx.Err() != nil) {
			return err
		}
		if n == 0 {
			if err := flush(ctx, pipe); err != nil {
				return err
			}
		}
		if time.Now().After(status) {
			if err := pglogrepl.SendStandbyStatusUpdate(ctx, conn, pglogrepl.StandbyStatusUpdate{WALWritePosition: end}); err != nil {
				return err
			}
			status = time.Now().Add(statusInterval)
		}
	}
}

// followFor handles messages until idleFlush has passed, and counts them. One
// context serves them all: one for each, as the example has it, would make the
// baseline slower than it has to be.
func (c *consumer) followFor(ctx context.Context, conn *pgconn.PgConn, pipe redis.Pipeliner, end *pglogrepl.LSN) (n int, err error) {
	wait, cancel := context.WithTimeout(ctx, idleFlush)
	defer cancel()
	for ; ; n++ {
		message, err := conn.ReceiveMessage(wait)
		if err != nil {
			return n, err
		}
		data, err := walData(message)
		if err != nil {
			return n, err
		}
		if data == nil {
			continue
		}
		*end = data.WALStart
		if err := c.handle(ctx, pipe, data.WALData); err != nil {
			return n, err
		}
	}
}

// handle forgets the row that a message changes.
func (c *consumer) handle(ctx context.Context, pipe redis.Pipeliner, wal []byte) error {
	message, err := pglogrepl.Parse(wal)
	if err != nil {
		return err
	}
	id := changedID(message)
	if id == nil {
		return nil
	}
	key := keyPrefix + string(id)
	if c.pipeline == 0 {
		return c.redis.Del(ctx, key).Err()
	}
	pipe.Unlink(ctx, key)
	if pipe.Len() >= c.pipeline {
		return flush(ctx, pipe)
	}
	return nil
}

// flush sends the pipeline and waits for the answers.
func flush(ctx context.Context, pipe redis.Pipeliner) error {
	if pipe.Len() == 0 {
		return nil
	}
	_, err := pipe.Exec(ctx)
	return err
}

// walData returns the piece of log in a message, nil if it is a keepalive.
func walData(message pgproto3.BackendMessage) (*pglogrepl.XLogData, error) {
	switch m := message.(type) {
	case *pgproto3.ErrorResponse:
		return nil, pgconn.ErrorResponseToPgError(m)
	case *pgproto3.CopyData:
		if len(m.Data) == 0 || m.Data[0] != pglogrepl.XLogDataByteID {
			return nil, nil
		}
		data, err := pglogrepl.ParseXLogData(m.Data[1:])
		return &data, err
	}
	return nil, errors.New("unexpected message from the walsender")
}

// changedID is the first column, the id, of the row that a message changes.
func changedID(message pglogrepl.Message) []byte {
	switch m := message.(type) {
	case *pglogrepl.UpdateMessage:
		return m.NewTuple.Columns[0].Data
	case *pglogrepl.InsertMessage:
		return m.Tuple.Columns[0].Data
	case *pglogrepl.DeleteMessage:
		return m.OldTuple.Columns[0].Data
	}
	return nil
}

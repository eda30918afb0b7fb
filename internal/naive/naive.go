// Package naive is the cache invalidator that everybody writes first: it reads
// the log and sends a plain DEL for each change. It is here to be compared
// with: the demonstration and the tests show with it each way in which such a
// cache goes stale.
package naive

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

// Consumer deletes one key for each changed row.
type Consumer struct {
	// PostgresURL is the primary's, without the replication parameter.
	PostgresURL string
	// Slot is created as a temporary slot: it goes with the connection.
	Slot        string
	Publication string
	Redis       redis.UniversalClient
	// Key renders the key of a row; "" deletes nothing.
	Key func(table string, row map[string]string) string
	// Deleted, if set, is called after each DEL.
	Deleted func(key string)
}

// Run makes the slot, calls ready, and deletes keys until ctx ends.
func (c *Consumer) Run(ctx context.Context, ready func()) error {
	config, err := pgconn.ParseConfig(c.PostgresURL)
	if err != nil {
		return fmt.Errorf("parse the address of Postgres: %w", err)
	}
	config.RuntimeParams["replication"] = "database"
	conn, err := pgconn.ConnectConfig(ctx, config)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if _, err := pglogrepl.CreateReplicationSlot(ctx, conn, c.Slot, "pgoutput", pglogrepl.CreateReplicationSlotOptions{Temporary: true}); err != nil {
		return fmt.Errorf("create slot %s: %w", c.Slot, err)
	}
	options := []string{"proto_version '1'", "publication_names '" + c.Publication + "'"}
	if err := pglogrepl.StartReplication(ctx, conn, c.Slot, 0, pglogrepl.StartReplicationOptions{PluginArgs: options}); err != nil {
		return fmt.Errorf("start replication of slot %s: %w", c.Slot, err)
	}
	ready()
	return c.receive(ctx, conn)
}

const statusInterval = time.Second

func (c *Consumer) receive(ctx context.Context, conn *pgconn.PgConn) error {
	relations := map[uint32]*pglogrepl.RelationMessage{}
	var end pglogrepl.LSN
	next := time.Now()
	for {
		if time.Now().After(next) {
			if err := pglogrepl.SendStandbyStatusUpdate(ctx, conn, pglogrepl.StandbyStatusUpdate{WALWritePosition: end}); err != nil {
				return err
			}
			next = time.Now().Add(statusInterval)
		}
		wait, cancel := context.WithDeadline(ctx, next)
		message, err := conn.ReceiveMessage(wait)
		cancel()
		if ctx.Err() != nil {
			return nil
		}
		if pgconn.Timeout(err) {
			continue
		}
		if err != nil {
			return err
		}
		switch m := message.(type) {
		case *pgproto3.ErrorResponse:
			return pgconn.ErrorResponseToPgError(m)
		case *pgproto3.CopyData:
			if len(m.Data) == 0 || m.Data[0] != pglogrepl.XLogDataByteID {
				continue
			}
			log, err := pglogrepl.ParseXLogData(m.Data[1:])
			if err != nil {
				return err
			}
			end = max(end, log.WALStart)
			if err := c.apply(ctx, log.WALData, relations); err != nil {
				return err
			}
		}
	}
}

// apply deletes the keys of one message's rows as soon as it is received,
// which is what makes the consumer naive.
func (c *Consumer) apply(ctx context.Context, data []byte, relations map[uint32]*pglogrepl.RelationMessage) error {
	if len(data) == 0 {
		return errors.New("empty message")
	}
	message, err := pglogrepl.Parse(data)
	if err != nil {
		return err
	}
	switch m := message.(type) {
	case *pglogrepl.RelationMessage:
		relations[m.RelationID] = m
	case *pglogrepl.InsertMessage:
		return c.delete(ctx, c.key(relations[m.RelationID], m.Tuple))
	case *pglogrepl.UpdateMessage:
		old, now := c.key(relations[m.RelationID], m.OldTuple), c.key(relations[m.RelationID], m.NewTuple)
		if old == now {
			old = "" // once: a second DEL would come after Deleted has told of the change
		}
		return errors.Join(c.delete(ctx, old), c.delete(ctx, now))
	case *pglogrepl.DeleteMessage:
		return c.delete(ctx, c.key(relations[m.RelationID], m.OldTuple))
	}
	return nil
}

// key is the key of a row, "" if there is none.
func (c *Consumer) key(relation *pglogrepl.RelationMessage, tuple *pglogrepl.TupleData) string {
	if tuple == nil || relation == nil {
		return ""
	}
	row := make(map[string]string, len(tuple.Columns))
	for i, column := range tuple.Columns {
		if column.DataType == pglogrepl.TupleDataTypeText {
			row[relation.Columns[i].Name] = string(column.Data)
		}
	}
	return c.Key(relation.RelationName, row)
}

func (c *Consumer) delete(ctx context.Context, key string) error {
	if key == "" {
		return nil
	}
	if err := c.Redis.Del(ctx, key).Err(); err != nil {
		return err
	}
	if c.Deleted != nil {
		c.Deleted(key)
	}
	return nil
}

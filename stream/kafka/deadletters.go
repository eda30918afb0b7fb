package kafka

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"

	"github.com/lethe-cache/lethe/stream"
	"github.com/lethe-cache/lethe/stream/deadletter"
)

// DeadLetterSuffix is what the topic of the dead letters has more than that of
// the changes.
const DeadLetterSuffix = ".dlq"

// deadLetterRetention is how long people have to look at a dead letter.
const deadLetterRetention = 30 * 24 * time.Hour

// Letter is the value of a message in the topic of dead letters, as JSON.
type Letter struct {
	Reason    string    `json:"reason"`
	Error     string    `json:"error"`
	Topic     string    `json:"topic"`
	Partition int       `json:"partition"`
	Offset    int64     `json:"offset"`
	Position  string    `json:"position,omitempty"`
	Table     string    `json:"table,omitempty"`
	At        time.Time `json:"at"`
	// Payload is what could not be processed, cut at 256 KiB; Bytes is how
	// long it was.
	Payload []byte `json:"payload,omitempty"`
	Bytes   int    `json:"bytes"`
}

// DeadLetters writes dead letters to the topic <topic>.dlq, which it creates
// with one partition when the first one comes. It is safe for concurrent use.
type DeadLetters struct {
	cfg       Config
	client    *kafka.Client
	transport *kafka.Transport
}

var _ stream.DeadLetters = (*DeadLetters)(nil)

// NewDeadLetters checks cfg; it does not connect. The caller closes it.
func NewDeadLetters(cfg Config) (*DeadLetters, error) {
	cfg = cfg.WithDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	client, transport, err := cfg.connect(cfg.Topic + DeadLetterSuffix)
	if err != nil {
		return nil, err
	}
	return &DeadLetters{cfg: cfg, client: client, transport: transport}, nil
}

// Put implements stream.DeadLetters. It returns when all in-sync replicas have
// the letter, and retries until ctx ends.
func (d *DeadLetters) Put(ctx context.Context, l stream.DeadLetter) error {
	letter := Letter{
		Reason: l.Reason, Error: l.Err, Topic: d.cfg.Topic, Partition: l.Partition, Offset: l.Offset,
		Table: l.Table, At: time.Now().UTC(), Payload: deadletter.Cut(l.Payload), Bytes: len(l.Payload),
	}
	if !l.Position.IsZero() {
		letter.Position = l.Position.String()
	}
	value, err := json.Marshal(letter)
	if err != nil {
		return fmt.Errorf("encode dead letter: %w", err)
	}
	topic := d.cfg.Topic + DeadLetterSuffix
	if _, err := ensureTopic(ctx, d.client, topicConfig{topic, 1, d.cfg.Replication, deadLetterRetention}); err != nil {
		return fmt.Errorf("write dead letter: %w", err)
	}
	var wait backoff
	for {
		err := d.produce(ctx, topic, value)
		if err == nil {
			return nil
		}
		if permanent(err) || wait.sleep(ctx) != nil {
			return fmt.Errorf("write dead letter to %s: %w", topic, err)
		}
	}
}

func (d *DeadLetters) produce(ctx context.Context, topic string, value []byte) error {
	limited, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	res, err := d.client.Produce(limited, &kafka.ProduceRequest{
		Topic: topic, Partition: 0, RequiredAcks: kafka.RequireAll,
		Records: kafka.NewRecordReader(kafka.Record{Value: protocol.NewBytes(value)}),
	})
	if err != nil {
		return err
	}
	return res.Error
}

// Close releases the connections.
func (d *DeadLetters) Close() error {
	d.transport.CloseIdleConnections()
	return nil
}

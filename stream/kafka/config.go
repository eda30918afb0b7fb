// Package kafka is the log between readers and workers in a Kafka topic.
//
// The Writer spreads the changes over the partitions by table and key, writes
// with acks=all and keeps the order of each partition. The Consumer is one
// member of a consumer group; it commits an offset only when the worker has
// said that everything up to it was applied, and it notices when the log was
// cut before it could read it.
//
// kafka-go's Writer and Reader are not used: the Writer can not say which
// batches are safe, the Reader commits for generations that have ended and
// hides gaps. What is used is its protocol, its connections and its
// ConsumerGroup.
package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/compress"

	"github.com/lethe-cache/lethe/stream"
)

// The defaults of a Config.
const (
	TopicDefault          = "lethe.changes"
	PartitionsDefault     = 12
	ReplicationDefault    = 3
	RetentionDefault      = 7 * 24 * time.Hour
	MaxRecordBytesDefault = 900_000
	MaxPendingDefault     = 16 << 20
	MarkIntervalDefault   = 10 * time.Millisecond
	CommitIntervalDefault = 200 * time.Millisecond
	MaxWaitDefault        = 500 * time.Millisecond
)

// The timing of the group, so that a killed worker is replaced within ten
// seconds: 6 s is the least session timeout that brokers take by default.
const (
	sessionTimeout         = 6 * time.Second
	heartbeatInterval      = 1500 * time.Millisecond
	rebalanceTimeout       = 6 * time.Second
	joinGroupBackoff       = 200 * time.Millisecond
	partitionWatchInterval = 2 * time.Second
)

// The timing of requests.
const (
	dialTimeout    = 5 * time.Second
	requestTimeout = 10 * time.Second // what a broker may take to answer
	requestGrace   = 5 * time.Second  // and the network, before the connection is given up
	metadataTTL    = time.Second      // how late a moved leader or a new partition is noticed
	backoffMin     = 20 * time.Millisecond
	backoffMax     = 2 * time.Second
)

// Config says where the topic is and how it is used. Only Brokers is required,
// and Group for a Consumer.
type Config struct {
	// Brokers are addresses, host:port, of some brokers of the cluster.
	Brokers []string
	// Topic holds the changes; lethe.changes if empty. Readers and workers of
	// one log name the same topic.
	Topic string
	// Group is the consumer group: workers with the same group share the
	// partitions. Each Redis that is kept true has a group of its own.
	Group string
	// Security says how to log in and whether to encrypt.
	Security Security

	// Partitions, Replication and Retention are used when the topic has to be
	// created; a topic that exists is taken as it is. 12 partitions, the less
	// of 3 and the number of brokers, 7 days if 0.
	Partitions  int
	Replication int
	Retention   time.Duration

	// MaxRecordBytes is the size at which a record is closed; 900,000 if 0,
	// below the 1 MB that brokers take by default. A single larger change is
	// tried alone, and goes to the dead letters if the broker refuses it.
	MaxRecordBytes int
	// MaxPendingBytes bounds what was appended and not yet acknowledged;
	// Append waits beyond it. 16 MiB if 0.
	MaxPendingBytes int
	// MarkInterval is how long a partition without changes may wait for a mark
	// that tells it how far the others are; 10 ms if 0. It delays the
	// watermark, not an invalidation.
	MarkInterval time.Duration
	// Compression is none (or empty), gzip, snappy, lz4 or zstd.
	Compression string

	// CommitInterval is how often applied offsets are committed; 200 ms if 0.
	// After a crash at most so much is applied again.
	CommitInterval time.Duration
	// MaxWait is how long a broker holds a fetch that has nothing to return;
	// 500 ms if 0. It does not delay what arrives, only the end of a Consumer.
	MaxWait time.Duration

	// DeadLetters takes changes that no broker takes; they are only logged if
	// it is nil.
	DeadLetters stream.DeadLetters
	// Logger gets what a person should know; slog.Default() if nil.
	Logger *slog.Logger
	// Dial opens connections; a net.Dialer with a timeout of 5 s if nil.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// WithDefaults returns a copy in which every field is set.
func (c Config) WithDefaults() Config {
	set := func(s *string, d string) {
		if *s == "" {
			*s = d
		}
	}
	num := func(n *int, d int) {
		if *n <= 0 {
			*n = d
		}
	}
	dur := func(n *time.Duration, d time.Duration) {
		if *n <= 0 {
			*n = d
		}
	}
	set(&c.Topic, TopicDefault)
	set(&c.Compression, "none")
	num(&c.Partitions, PartitionsDefault)
	num(&c.MaxRecordBytes, MaxRecordBytesDefault)
	num(&c.MaxPendingBytes, MaxPendingDefault)
	dur(&c.Retention, RetentionDefault)
	dur(&c.MarkInterval, MarkIntervalDefault)
	dur(&c.CommitInterval, CommitIntervalDefault)
	dur(&c.MaxWait, MaxWaitDefault)
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Dial == nil {
		c.Dial = (&net.Dialer{Timeout: dialTimeout}).DialContext
	}
	return c
}

// Validate returns everything that is wrong with c, joined.
func (c Config) Validate() error {
	var errs []error
	if len(c.Brokers) == 0 {
		errs = append(errs, errors.New("kafka brokers: none given"))
	}
	for _, b := range c.Brokers {
		if _, _, err := net.SplitHostPort(b); err != nil {
			errs = append(errs, fmt.Errorf("kafka broker %q: want host:port: %w", b, err))
		}
	}
	if c.Topic != "" && !validTopic(c.Topic) {
		errs = append(errs, fmt.Errorf("kafka topic %q: want at most 249 of a-z A-Z 0-9 . _ -", c.Topic))
	}
	if c.Replication < 0 || c.Replication > 1<<15-1 {
		errs = append(errs, fmt.Errorf("kafka replication %d: want 1 to 32767", c.Replication))
	}
	if c.Partitions < 0 || c.Partitions >= 1<<24 {
		errs = append(errs, fmt.Errorf("kafka partitions %d: want 1 to 16777215", c.Partitions))
	}
	if _, err := compression(c.Compression); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(append(errs, c.Security.Validate())...)
}

func validTopic(s string) bool {
	if s == "" || s == "." || s == ".." || len(s) > 249 {
		return false
	}
	return strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == ""
}

func compression(name string) (compress.Compression, error) {
	switch name {
	case "", "none":
		return compress.None, nil
	case "gzip":
		return compress.Gzip, nil
	case "snappy":
		return compress.Snappy, nil
	case "lz4":
		return compress.Lz4, nil
	case "zstd":
		return compress.Zstd, nil
	}
	return 0, fmt.Errorf("kafka compression %q: want none, gzip, snappy, lz4 or zstd", name)
}

// connect makes the connections that a Writer, a Consumer or a Check uses; the
// caller closes them with CloseIdleConnections. c is complete and valid.
func (c Config) connect(topics ...string) (*kafka.Client, *kafka.Transport, error) {
	tls, err := c.Security.tlsConfig()
	if err != nil {
		return nil, nil, err
	}
	mechanism, err := c.Security.mechanism()
	if err != nil {
		return nil, nil, err
	}
	transport := &kafka.Transport{
		Dial:           c.Dial,
		DialTimeout:    dialTimeout,
		IdleTimeout:    time.Minute,
		MetadataTTL:    metadataTTL,
		MetadataTopics: topics,
		ClientID:       "lethe",
		TLS:            tls,
		SASL:           mechanism,
	}
	return &kafka.Client{Addr: kafka.TCP(c.Brokers...), Transport: transport}, transport, nil
}

// dialer is connect for kafka.ConsumerGroup, which has connections of its own.
func (c Config) dialer() (*kafka.Dialer, error) {
	tls, err := c.Security.tlsConfig()
	if err != nil {
		return nil, err
	}
	mechanism, err := c.Security.mechanism()
	if err != nil {
		return nil, err
	}
	return &kafka.Dialer{ClientID: "lethe", DialFunc: c.Dial, Timeout: dialTimeout, TLS: tls, SASLMechanism: mechanism}, nil
}

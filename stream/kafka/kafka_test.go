package kafka_test

import (
	"context"
	"errors"
	"log/slog"
	"testing"
	"time"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/stream"
	"github.com/lethe-cache/lethe/stream/kafka"
	"github.com/lethe-cache/lethe/stream/streamtest"
)

func TestMain(m *testing.M) { harness.Main(m) }

const patience = harness.Patience

// fake starts a cluster in this process.
func fake(t *testing.T, opts ...kfake.Opt) *kfake.Cluster {
	t.Helper()
	c, err := kfake.NewCluster(append([]kfake.Opt{kfake.NumBrokers(1)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// settings are those of a test's own topic and group.
func settings(t *testing.T, brokers []string) kafka.Config {
	name := harness.Topic(t)
	return kafka.Config{
		Brokers: brokers, Topic: name, Group: name, Partitions: 4, Logger: slog.New(slog.DiscardHandler),
		CommitInterval: 20 * time.Millisecond, MaxWait: 50 * time.Millisecond, MaxPendingBytes: 256 << 10,
	}
}

func writer(t *testing.T, cfg kafka.Config) *kafka.Writer {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	w, err := kafka.NewWriter(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = w.Close(ctx)
	})
	return w
}

func consumer(t *testing.T, cfg kafka.Config) *kafka.Consumer {
	t.Helper()
	c, err := kafka.NewConsumer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func closeWriter(t *testing.T, w *kafka.Writer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := w.Close(ctx); err != nil {
		t.Errorf("Close: %v", err)
	}
}

func TestConformanceFake(t *testing.T) {
	t.Parallel()
	c := fake(t, kfake.NumBrokers(2))
	streamtest.Run(t, func(t *testing.T) streamtest.Transport {
		cfg := settings(t, c.ListenAddrs())
		return streamtest.Transport{
			Writer: writer(t, cfg), Consumer: func(t *testing.T) stream.Consumer { return consumer(t, cfg) }, Partitions: cfg.Partitions,
			Stall: func(*testing.T) func() {
				h := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: cfg.Topic, Err: kerr.NotEnoughReplicas, Count: -1})
				return h.Remove
			},
			Bound: 1000, Payload: 4000,
		}
	})
}

func TestConformanceReal(t *testing.T) {
	t.Parallel()
	k := harness.Kafka(t)
	if !k.Real() {
		t.Skip("left out: needs a real Kafka broker (java and mvn); the fake one is tested by TestConformanceFake")
	}
	streamtest.Run(t, func(t *testing.T) streamtest.Transport {
		cfg := settings(t, k.Brokers())
		return streamtest.Transport{
			Writer: writer(t, cfg), Consumer: func(t *testing.T) stream.Consumer { return consumer(t, cfg) }, Partitions: cfg.Partitions,
			Bound: 1000, Payload: 4000,
		}
	})
}

// A topic that was deleted and made again is another log: each of its partitions
// says so, to a group that had a place in the old one.
func TestTopicMadeAnew(t *testing.T) {
	t.Parallel()
	k := harness.Kafka(t)
	if !k.Real() {
		t.Skip("left out: needs a real Kafka broker (java and mvn), which forgets a group's offsets with their topic")
	}
	cfg := settings(t, k.Brokers())
	w := writer(t, cfg)
	feed, seen := streamtest.NewFeed(), streamtest.NewSeen()
	feed.Append(t, w, 50)
	worker := streamtest.Start(t, consumer(t, cfg), streamtest.Collect(seen))
	seen.UntilBatches(t, 50)
	if err := worker.Stop(); err != nil {
		t.Error(err)
	}
	closeWriter(t, w)
	transport := &kafkago.Transport{}
	defer transport.CloseIdleConnections()
	admin := &kafkago.Client{Addr: kafkago.TCP(k.Brokers()...), Transport: transport}
	res, err := admin.DeleteTopics(t.Context(), &kafkago.DeleteTopicsRequest{Topics: []string{cfg.Topic}})
	if err = errors.Join(err, res.Errors[cfg.Topic]); err != nil {
		t.Fatal(err)
	}
	harness.Eventually(t, patience, func() error {
		res, err := admin.CreateTopics(t.Context(), &kafkago.CreateTopicsRequest{Topics: []kafkago.TopicConfig{
			{Topic: cfg.Topic, NumPartitions: cfg.Partitions, ReplicationFactor: 1}}})
		if err != nil {
			return err
		}
		return res.Errors[cfg.Topic] // the old one is there for a while
	})
	again := streamtest.NewSeen()
	streamtest.NewFeed().Append(t, writer(t, cfg), 50)
	worker = streamtest.Start(t, consumer(t, cfg), streamtest.Collect(again))
	again.UntilBatches(t, 50)
	if err := worker.Stop(); err != nil {
		t.Error(err)
	}
	for p := range cfg.Partitions {
		if again.Firsts(p)+again.Gaps(p) == 0 {
			t.Errorf("partition %d does not say that it is another log", p)
		}
	}
}

package servers_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/segmentio/kafka-go"

	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/internal/servers"
)

// log writes and reads one topic, with connections that end with the test.
type log struct {
	topic  string
	writer *kafka.Writer
	dialer *kafka.Dialer
	addr   string
}

func newLog(t *testing.T, k *servers.Kafka, replicas int) *log {
	t.Helper()
	l := &log{topic: harness.Topic(t), addr: k.Brokers()[0], dialer: &kafka.Dialer{Timeout: 10 * time.Second}}
	transport := &kafka.Transport{}
	t.Cleanup(transport.CloseIdleConnections)
	client := &kafka.Client{Addr: kafka.TCP(k.Brokers()...), Transport: transport}
	res, err := client.CreateTopics(t.Context(), &kafka.CreateTopicsRequest{
		Topics: []kafka.TopicConfig{{Topic: l.topic, NumPartitions: 1, ReplicationFactor: replicas}},
	})
	if err == nil {
		err = res.Errors[l.topic]
	}
	if err != nil {
		t.Fatalf("create topic: %v", err)
	}
	l.writer = &kafka.Writer{
		Addr: kafka.TCP(k.Brokers()...), Topic: l.topic, RequiredAcks: kafka.RequireAll,
		BatchTimeout: time.Millisecond, MaxAttempts: 30, Transport: transport,
	}
	t.Cleanup(func() { _ = l.writer.Close() })
	return l
}

// last is the offset after the newest message.
func (l *log) last(t *testing.T) int64 {
	t.Helper()
	var last int64
	harness.Eventually(t, 30*time.Second, func() error {
		conn, err := l.dialer.DialLeader(t.Context(), "tcp", l.addr, l.topic, 0)
		if err != nil {
			return err
		}
		defer conn.Close()
		last, err = conn.ReadLastOffset()
		return err
	})
	return last
}

func TestKafkaKeepsItsData(t *testing.T) {
	t.Parallel()
	k := harness.NewKafka(t, servers.KafkaConfig{})
	t.Log(k)
	l := newLog(t, k, 1)
	for i := range 10 {
		if err := l.writer.WriteMessages(t.Context(), kafka.Message{Value: fmt.Append(nil, i)}); err != nil {
			t.Fatal(err)
		}
	}
	if !k.Real() {
		if err := k.Stop(0); err == nil {
			t.Error("Stop of a fake broker succeeded")
		}
		return
	}
	k.Kill(0)
	if err := k.Start(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if got := l.last(t); got != 10 {
		t.Errorf("last offset after a kill = %d, want 10", got)
	}
	if err := k.Stop(0); err != nil {
		t.Fatal(err)
	}
	if err := k.Start(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	if got := l.last(t); got != 10 {
		t.Errorf("last offset after a stop = %d, want 10", got)
	}
}

func TestKafkaOfThreeBrokersLosesOne(t *testing.T) {
	if testing.Short() {
		t.Skip("left out by -short: three brokers take 1.1 GB")
	}
	k := harness.RealKafka(t, servers.KafkaConfig{Brokers: 3})
	l := newLog(t, k, 3)
	if err := l.writer.WriteMessages(t.Context(), kafka.Message{Value: []byte("all")}); err != nil {
		t.Fatal(err)
	}
	k.Kill(2)
	if err := l.writer.WriteMessages(t.Context(), kafka.Message{Value: []byte("two of three")}); err != nil {
		t.Fatal(err)
	}
	// A write that was repeated because its answer was lost is there twice.
	if got := l.last(t); got < 2 {
		t.Errorf("last offset = %d, want at least 2", got)
	}
}

func TestKafkaFake(t *testing.T) {
	t.Parallel()
	k := harness.NewKafka(t, servers.KafkaConfig{Fake: true, Brokers: 2})
	if k.Real() || len(k.Brokers()) != 2 {
		t.Errorf("Real() = %v with brokers %v, want two fake ones", k.Real(), k.Brokers())
	}
	l := newLog(t, k, 1)
	if err := l.writer.WriteMessages(t.Context(), kafka.Message{Value: []byte("a")}); err != nil {
		t.Fatal(err)
	}
	if got := l.last(t); got != 1 {
		t.Errorf("last offset = %d, want 1", got)
	}
}

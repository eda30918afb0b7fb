package kafka_test

import (
	"testing"

	kafkago "github.com/segmentio/kafka-go"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/stream"
)

// The next reader learns the era from the log, although strangers have written
// behind the last record.
func TestLastSource(t *testing.T) {
	t.Parallel()
	cfg := settings(t, fake(t).ListenAddrs())
	want := change.Source{Era: 7, SystemID: 9, Timeline: 2}
	w := writer(t, cfg)
	last := func() change.Source {
		t.Helper()
		src, err := writer(t, cfg).LastSource(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return src
	}
	if got := last(); got != (change.Source{}) {
		t.Errorf("an empty log says %+v, want nothing", got)
	}
	for i, src := range []change.Source{{Era: 6, SystemID: 9, Timeline: 1}, want} {
		b := stream.Batch{Seq: uint64(i + 1), Record: &change.Record{Source: src, V: 100, Raises: []change.Raise{{Cause: "c", Classes: []string{"*"}}}}}
		if err := w.Append(t.Context(), b); err != nil {
			t.Fatal(err)
		}
	}
	harness.Eventually(t, patience, harness.True("both are durable", func() bool { return w.Durable() == 2 }))
	closeWriter(t, w)
	if got := last(); got != want {
		t.Errorf("the log says %+v, want %+v", got, want)
	}
	stranger := &kafkago.Writer{Addr: kafkago.TCP(cfg.Brokers...), Topic: cfg.Topic, Transport: &kafkago.Transport{}, BatchSize: 1, Balancer: &kafkago.RoundRobin{}}
	defer func() {
		_ = stranger.Close()
		stranger.Transport.(*kafkago.Transport).CloseIdleConnections()
	}()
	for range 3 * cfg.Partitions {
		if err := stranger.WriteMessages(t.Context(), kafkago.Message{Value: []byte("no record")}); err != nil {
			t.Fatal(err)
		}
	}
	if got := last(); got != want {
		t.Errorf("behind strangers the log says %+v, want %+v", got, want)
	}
}

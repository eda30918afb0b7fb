package kafka_test

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/lethe-cache/lethe/stream/streamtest"
)

// While a record is on its way to a broker that no longer leads, it is not sent
// to the new leader too: the two answers would be taken for those of two
// records, and the second record would be lost.
func TestLeaderMovesInFlight(t *testing.T) {
	t.Parallel()
	c := fake(t, kfake.NumBrokers(2), kfake.SleepOutOfOrder())
	cfg := settings(t, c.ListenAddrs())
	cfg.Partitions = 1
	w := writer(t, cfg)
	seen, feed := streamtest.NewSeen(), streamtest.NewFeed()
	worker := streamtest.Start(t, consumer(t, cfg), streamtest.Collect(seen))

	caught, release := make(chan struct{}), make(chan struct{})
	c.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		c.DropControl() // the first write only
		close(caught)
		c.SleepControl(func() { <-release })
		return nil, nil, false
	})
	feed.Append(t, w, 1)
	<-caught
	if err := c.MoveTopicPartition(cfg.Topic, 0, 1-c.LeaderFor(cfg.Topic, 0)); err != nil {
		t.Fatal(err)
	}
	// Until the writer must have heard of it: it asks every second.
	heard := make(chan struct{})
	var asked atomic.Int64
	c.ControlKey(int16(kmsg.Metadata), func(kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		if asked.Add(1) == 20 {
			close(heard)
		}
		return nil, nil, false
	})
	feed.Append(t, w, 20)
	<-heard
	if got := w.Durable(); got != 0 {
		t.Errorf("Durable is %d while the first record is on its way", got)
	}
	close(release)
	seen.UntilBatches(t, 21)
	closeWriter(t, w)
	if err := worker.Stop(); err != nil {
		t.Error(err)
	}
	seen.Check(t)
}

// A hole inside the log, which compaction or a broken broker leaves, is a gap
// like a cut: what stood there may have named keys that nothing else names.
func TestHoleInTheLog(t *testing.T) {
	t.Parallel()
	c := fake(t)
	cfg := settings(t, c.ListenAddrs())
	err := c.CreateTopic(cfg.Topic, 1, map[string]string{"cleanup.policy": "compact", "segment.bytes": "1", "min.cleanable.dirty.ratio": "0"})
	if err != nil {
		t.Fatal(err)
	}
	for i, key := range []int{9, 0, 0, 1, 0, 2} { // the first stays, the next two go
		value := fmt.Sprintf(`{"op":"c","after":{"id":%d},"source":{"schema":"public","table":"t"}}`, i)
		produce(t, cfg, fmt.Appendf(nil, `{"id":%d}`, key), []byte(value))
	}
	c.Compact()
	seen := streamtest.NewSeen()
	worker := streamtest.Start(t, consumer(t, cfg), streamtest.Collect(seen))
	seen.Until(t, "the last record", func() bool {
		rs := seen.Locked(0)
		return len(rs) > 0 && string(rs[len(rs)-1].Changes[0].New[0].Bytes) == "5"
	})
	if err := worker.Stop(); err != nil {
		t.Error(err)
	}
	if n := len(seen.Records(0)); n == 6 {
		t.Fatal("nothing was compacted, the test shows nothing")
	}
	if got := seen.Gaps(0); got == 0 {
		t.Error("a hole in the log, and no gap")
	}
}

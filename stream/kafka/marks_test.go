package kafka_test

import (
	"fmt"
	"strconv"
	"testing"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/stream"
	"github.com/lethe-cache/lethe/stream/streamtest"
)

// wide is a batch of one commit that changes many rows.
func wide(seq uint64, rows, payload int) stream.Batch {
	r := &change.Record{Source: streamtest.Source(), V: streamtest.V(seq)}
	table := streamtest.Products()
	commit := &change.Commit{XID: seq, LSN: streamtest.Commit(seq)}
	for i := range rows {
		r.Changes = append(r.Changes, change.Change{Op: change.Insert, Table: table, Commit: commit, Ordinal: uint32(i), New: change.Row{
			{Kind: change.Text, Bytes: []byte(strconv.Itoa(i))}, {Kind: change.Text, Bytes: make([]byte, payload)},
		}})
	}
	return stream.Batch{Seq: seq, Record: r}
}

// V in a partition stands behind every change of that partition that it covers:
// when a batch fills several records, when a partition can not be written while
// the others can, and in marks.
func TestPartitionMarks(t *testing.T) {
	t.Parallel()
	c := fake(t)
	cfg := settings(t, c.ListenAddrs())
	cfg.MaxRecordBytes, cfg.MaxPendingBytes = 2000, 8<<20
	w := writer(t, cfg)
	seen := streamtest.NewSeen()
	worker := streamtest.Start(t, consumer(t, cfg), streamtest.Collect(seen))

	// Partition 0 takes nothing. The others go on, and tell V.
	fault := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: cfg.Topic, Partitions: []int32{0}, Err: kerr.NotEnoughReplicas, Count: -1})
	const batches = 20
	for seq := uint64(1); seq <= batches; seq++ {
		if err := w.Append(t.Context(), wide(seq, 100, 100)); err != nil {
			t.Fatal(err)
		}
	}
	last := streamtest.V(batches)
	seen.Until(t, "V of the partitions that can be written", func() bool {
		vs := map[int]change.LSN{}
		for p := 1; p < cfg.Partitions; p++ {
			for _, r := range seen.Locked(p) {
				vs[p] = max(vs[p], r.V)
			}
		}
		return vs[1] == last && vs[2] == last && vs[3] == last
	})
	if rs := seen.Records(0); len(rs) != 0 {
		t.Errorf("%d records came from the partition that takes nothing", len(rs))
	}
	if got := w.Durable(); got != 0 {
		t.Errorf("Durable is %d, and partition 0 has nothing of batch 1", got)
	}
	fault.Remove()
	seen.UntilV(t, cfg.Partitions, last)
	closeWriter(t, w)
	if got := w.Durable(); got != batches {
		t.Errorf("Durable is %d at the end, want %d", got, batches)
	}
	if err := worker.Stop(); err != nil {
		t.Error(err)
	}
	seen.Check(t)
	changes, records := 0, 0
	for p := range cfg.Partitions {
		for _, r := range seen.Records(p) {
			changes += len(r.Changes)
			records++
		}
	}
	if changes != batches*100 {
		t.Errorf("%d changes, want %d", changes, batches*100)
	}
	if records < batches*3 {
		t.Errorf("only %d records: the batches did not fill several, the test shows nothing", records)
	}
}

// A V above the growth of the map stands only in records that name the new
// number of partitions, so a watermark over those it names can not pass what
// stands in a new partition; and nothing is lost on the way.
func TestMapChange(t *testing.T) {
	t.Parallel()
	c := fake(t)
	cfg := settings(t, c.ListenAddrs())
	w := writer(t, cfg)
	seen, feed := streamtest.NewSeen(), streamtest.NewFeed()
	worker := streamtest.Start(t, consumer(t, cfg), streamtest.Collect(seen))
	feed.Append(t, w, 100)
	seen.UntilBatches(t, 100)

	client := &kafkago.Client{Addr: kafkago.TCP(cfg.Brokers...), Transport: &kafkago.Transport{}}
	defer client.Transport.(*kafkago.Transport).CloseIdleConnections()
	const more = 7
	res, err := client.CreatePartitions(t.Context(), &kafkago.CreatePartitionsRequest{Topics: []kafkago.TopicPartitionsConfig{{Name: cfg.Topic, Count: more}}})
	if err != nil || res.Errors[cfg.Topic] != nil {
		t.Fatal(err, res)
	}
	// Batches come all the time; the writer notices between two of them.
	n, moved := 100, false
	for !moved {
		feed.Append(t, w, 1)
		n++
		seen.Until(t, "the batch", func() bool {
			for p := cfg.Partitions; p < more; p++ {
				for _, r := range seen.Locked(p) {
					moved = moved || len(r.Changes) > 0
				}
			}
			return seen.Batches() >= n || moved
		})
	}
	closeWriter(t, w)
	seen.UntilV(t, more, streamtest.V(uint64(n)))
	if err := worker.Stop(); err != nil {
		t.Error(err)
	}

	// The first position that was told under the new map.
	changed := change.LSN(1<<64 - 1)
	inNew := change.LSN(1<<64 - 1)
	for p := range more {
		version := uint32(0)
		for i, r := range seen.Records(p) {
			if r.MapVersion < version {
				t.Errorf("partition %d, record %d: map version %d after %d", p, i, r.MapVersion, version)
			}
			version = r.MapVersion
			if r.Partitions == more {
				changed = min(changed, r.V)
			}
			if p >= cfg.Partitions {
				for j := range r.Changes {
					inNew = min(inNew, r.Changes[j].Commit.LSN)
				}
			}
		}
	}
	for p := range cfg.Partitions {
		for _, r := range seen.Records(p) {
			if r.Partitions != more && r.V > inNew {
				t.Errorf("partition %d: V %s of a record for %d partitions passes commit %s of a new one", p, r.V, r.Partitions, inNew)
			}
		}
	}
	if changed == 1<<64-1 || inNew == 1<<64-1 {
		t.Error("the map did not change")
	}
	if got, want := fmt.Sprintf("%#x", seen.Records(more - 1)[0].MapVersion), "0x1000007"; got != want {
		t.Errorf("map version is %s, want %s", got, want)
	}
}

// Each worker's partitions are told when the writer makes a mark, but marks do
// not flood the log: they are coalesced.
func TestMarksAreCoalesced(t *testing.T) {
	t.Parallel()
	c := fake(t)
	cfg := settings(t, c.ListenAddrs())
	cfg.MarkInterval = patience // longer than the test
	w := writer(t, cfg)
	feed := streamtest.NewFeed()
	feed.Keys = 1
	for seq := uint64(1); seq <= 50; seq++ { // one record each in the busy partition
		feed.Append(t, w, 1)
		for w.Durable() < seq {
			<-w.Advanced()
		}
	}
	closeWriter(t, w) // tells the others
	total := int64(0)
	quiet := 0
	for _, p := range c.PartitionInfos(cfg.Topic) {
		total += p.HighWatermark
		if p.HighWatermark <= 2 {
			quiet++
		}
	}
	if quiet != cfg.Partitions-1 {
		t.Errorf("%d of %d partitions have two marks or fewer, want all but the busy one; %d records in all", quiet, cfg.Partitions, total)
	}
}

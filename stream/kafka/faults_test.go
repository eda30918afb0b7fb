package kafka_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"strings"
	"sync"
	"testing"

	kafkago "github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/stream"
	"github.com/lethe-cache/lethe/stream/kafka"
	"github.com/lethe-cache/lethe/stream/streamtest"
)

// letters keeps dead letters for a test to look at.
type letters struct {
	mu  sync.Mutex
	all []stream.DeadLetter
}

func (l *letters) Put(_ context.Context, d stream.DeadLetter) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, d)
	return nil
}

// Errors of a broker and connections that are cut in the middle of a write or
// of a fetch lose nothing and keep the order of each key.
func TestFaultsLoseNothing(t *testing.T) {
	t.Parallel()
	for name, inject := range map[string]func(*kfake.Cluster, string){
		"not enough replicas": func(c *kfake.Cluster, topic string) {
			c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: topic, Err: kerr.NotEnoughReplicas, Count: 5})
		},
		"not enough replicas after append": func(c *kfake.Cluster, topic string) {
			c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: topic, Err: kerr.NotEnoughReplicasAfterAppend, Count: 3})
		},
		"leader moved": func(c *kfake.Cluster, topic string) {
			c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce, kmsg.Fetch}, Topic: topic, Err: kerr.NotLeaderForPartition, Count: 4})
		},
		"write cut": func(c *kfake.Cluster, _ string) {
			for range 4 {
				c.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) { return nil, errors.New("cut"), true })
			}
		},
		"fetch cut": func(c *kfake.Cluster, _ string) {
			for range 8 {
				c.ControlKey(int16(kmsg.Fetch), func(kmsg.Request) (kmsg.Response, error, bool) { return nil, errors.New("cut"), true })
			}
		},
		"coordinator unknown": func(c *kfake.Cluster, _ string) {
			c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.FindCoordinator}, Err: kerr.CoordinatorNotAvailable, Count: 2})
		},
		"commit refused": func(c *kfake.Cluster, _ string) {
			c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetCommit}, Err: kerr.CoordinatorLoadInProgress, Count: 3})
		},
		"leaders shuffled": func(c *kfake.Cluster, _ string) { c.ShufflePartitionLeaders() },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := fake(t, kfake.NumBrokers(3))
			cfg := settings(t, c.ListenAddrs())
			w := writer(t, cfg)
			inject(c, cfg.Topic)
			seen, feed := streamtest.NewSeen(), streamtest.NewFeed()
			worker := streamtest.Start(t, consumer(t, cfg), streamtest.Collect(seen))
			for range 10 {
				feed.Append(t, w, 50)
				seen.UntilBatches(t, int(w.Durable()))
			}
			seen.UntilBatches(t, 500)
			closeWriter(t, w)
			seen.UntilV(t, cfg.Partitions, streamtest.V(500))
			if err := worker.Stop(); err != nil {
				t.Error(err)
			}
			if name != "not enough replicas after append" { // there the broker keeps both copies, the older behind the newer
				seen.Check(t)
			}
			for p := range cfg.Partitions {
				if n := seen.Gaps(p); n != 0 {
					t.Errorf("partition %d: %d gaps, and nothing was lost", p, n)
				}
			}
		})
	}
}

// A record that the broker finds too large is split; a change that is too large
// alone goes to the dead letters, and the classes of its table are raised.
func TestMessageTooLarge(t *testing.T) {
	t.Parallel()
	c := fake(t)
	cfg := settings(t, c.ListenAddrs())
	dead := &letters{}
	cfg.DeadLetters, cfg.MaxPendingBytes = dead, 8<<20
	if err := c.CreateTopic(cfg.Topic, int32(cfg.Partitions), map[string]string{"max.message.bytes": "3000"}); err != nil {
		t.Fatal(err)
	}
	w := writer(t, cfg)
	seen := streamtest.NewSeen()
	worker := streamtest.Start(t, consumer(t, cfg), streamtest.Collect(seen))
	if err := w.Append(t.Context(), wide(1, 200, 100)); err != nil { // 20 KB
		t.Fatal(err)
	}
	big := wide(2, 3, 10)
	big.Record.Changes[1].New[1].Bytes = make([]byte, 5000)
	if err := w.Append(t.Context(), big); err != nil {
		t.Fatal(err)
	}
	seen.UntilV(t, cfg.Partitions, streamtest.V(2))
	closeWriter(t, w)
	if err := worker.Stop(); err != nil {
		t.Error(err)
	}
	seen.Check(t)
	changes := 0
	var raises []change.Raise
	for p := range cfg.Partitions {
		for _, r := range seen.Records(p) {
			changes += len(r.Changes)
			raises = append(raises, r.Raises...)
		}
	}
	if changes != 202 {
		t.Errorf("%d changes, want 202", changes)
	}
	want := change.Position{Era: 1, LSN: streamtest.Commit(2)}
	if len(raises) != 1 || raises[0].Reason != change.ReasonDeadLetter || raises[0].Tables[0] != "public.products" || raises[0].X != want {
		t.Errorf("raises %+v, want one of public.products at %s", raises, want)
	}
	if len(dead.all) != 1 || dead.all[0].Reason != "oversize" || dead.all[0].Table != "public.products" || len(dead.all[0].Payload) < 5000 {
		t.Errorf("%d dead letters, want the one change", len(dead.all))
	}
	if got := w.Durable(); got != 2 {
		t.Errorf("Durable is %d, want 2", got)
	}
}

// A log that was cut behind a worker's back is told, where it was cut, and
// nowhere else; at once even if nothing stands behind the cut.
func TestGap(t *testing.T) {
	t.Parallel()
	for name, more := range map[string]int{"with records behind it": 100, "at the end of the log": 0} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := fake(t)
			cfg := settings(t, c.ListenAddrs())
			w := writer(t, cfg)
			seen, feed := streamtest.NewSeen(), streamtest.NewFeed()
			first := streamtest.Start(t, consumer(t, cfg), streamtest.Collect(seen))
			feed.Append(t, w, 100)
			seen.UntilBatches(t, 100)
			if err := first.Stop(); err != nil {
				t.Fatal(err)
			}
			for range 50 { // while no worker looks, and in records of their own
				feed.Append(t, w, 1)
				for w.Durable() < uint64(feed.Appended()) {
					<-w.Advanced()
				}
			}
			if more == 0 {
				closeWriter(t, w) // its last marks go with the rest
			}
			const cut = 2
			if err := c.DeleteRecords(cfg.Topic, cut, -1); err != nil {
				t.Fatal(err)
			}
			feed.Append(t, w, more)
			again := streamtest.NewSeen()
			second := streamtest.Start(t, consumer(t, cfg), streamtest.Collect(again))
			again.Until(t, "the gap", func() bool { return again.LockedGaps(cut) > 0 })
			if more > 0 {
				again.UntilV(t, cfg.Partitions, streamtest.V(uint64(150+more)))
			}
			if err := second.Stop(); err != nil {
				t.Error(err)
			}
			for p := range cfg.Partitions {
				want := 0
				if p == cut {
					want = 1
				}
				if got := again.Gaps(p); got != want {
					t.Errorf("partition %d: %d gaps, want %d", p, got, want)
				}
				if got := seen.Gaps(p); got != 0 {
					t.Errorf("partition %d: %d gaps before anything was cut", p, got)
				}
			}
			// The gap was acknowledged, and is not told again.
			third := streamtest.NewSeen()
			last := streamtest.Start(t, consumer(t, cfg), streamtest.Collect(third))
			_, err := c.WaitGroupStable(t.Context(), cfg.Group, 1)
			if err != nil {
				t.Fatal(err)
			}
			if err := last.Stop(); err != nil {
				t.Error(err)
			}
			if got := third.Gaps(cut); got != 0 {
				t.Errorf("the gap was told again %d times", got)
			}
		})
	}
}

// A group without offsets starts at the earliest record; if that is not the
// first that ever was, something is gone: the group may be an old one.
func TestNewGroupStartsAtTheEarliest(t *testing.T) {
	t.Parallel()
	c := fake(t)
	cfg := settings(t, c.ListenAddrs())
	w := writer(t, cfg)
	feed := streamtest.NewFeed()
	feed.Append(t, w, 50)
	closeWriter(t, w)
	seen := streamtest.NewSeen()
	worker := streamtest.Start(t, consumer(t, cfg), streamtest.Collect(seen))
	seen.UntilBatches(t, 50)
	if err := worker.Stop(); err != nil {
		t.Error(err)
	}
	same := streamtest.NewSeen()
	worker = streamtest.Start(t, consumer(t, cfg), streamtest.Collect(same))
	if _, err := c.WaitGroupStable(t.Context(), cfg.Group, 1); err != nil {
		t.Fatal(err)
	}
	if err := worker.Stop(); err != nil {
		t.Error(err)
	}
	for p := range cfg.Partitions {
		if seen.Firsts(p) != 1 || same.Firsts(p) != 0 {
			t.Errorf("partition %d began %d times for a new group and %d times for one that has a place in it, want once and never", p, seen.Firsts(p), same.Firsts(p))
		}
	}
	if err := c.DeleteRecords(cfg.Topic, 1, 1); err != nil {
		t.Fatal(err)
	}
	cfg.Group += "-other"
	again := streamtest.NewSeen()
	worker = streamtest.Start(t, consumer(t, cfg), streamtest.Collect(again))
	again.Until(t, "the gap", func() bool { return again.LockedGaps(1) > 0 })
	if err := worker.Stop(); err != nil {
		t.Error(err)
	}
	if got := again.Gaps(0); got != 0 {
		t.Errorf("a partition that begins at 0 has %d gaps", got)
	}
}

// A worker that was replaced commits nothing any more: its late Ack does not
// move the group back (PITFALLS, kafka-go 4).
func TestStaleCommit(t *testing.T) {
	t.Parallel()
	c := fake(t)
	cfg := settings(t, c.ListenAddrs())
	cfg.Partitions = 1
	w := writer(t, cfg)
	feed := streamtest.NewFeed()
	feed.Append(t, w, 1)
	for w.Durable() < 1 {
		<-w.Advanced()
	}

	held := make(chan stream.Partition, 1)
	release := make(chan struct{})
	ended := make(chan struct{})
	first := streamtest.Start(t, consumer(t, cfg), func(ctx context.Context, p stream.Partition) error {
		if _, err := p.Fetch(ctx, 1); err != nil {
			return nil
		}
		select {
		case held <- p:
		default:
			<-ctx.Done()
			return nil
		}
		<-ctx.Done() // the partition is taken away, and the worker does not hear it
		close(ended)
		<-release
		return p.Ack(ctx, 0)
	})
	<-held
	// The coordinator does not hear of the first worker any more.
	c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Heartbeat}, Group: cfg.Group, Err: kerr.UnknownMemberID, Count: 1})
	<-ended

	seen := streamtest.NewSeen()
	second := streamtest.Start(t, consumer(t, cfg), streamtest.Collect(seen))
	feed.Append(t, w, 50)
	for w.Durable() < 51 {
		<-w.Advanced()
	}
	seen.UntilBatches(t, 51)
	committed := func() int64 {
		if g := c.GroupInfo(cfg.Group); g != nil {
			return g.Commits[cfg.Topic][0].Offset
		}
		return -1
	}
	harness.Eventually(t, patience, func() error {
		if committed() <= 1 {
			return errors.New("the second worker's commit is not there")
		}
		return nil
	})
	before := committed()
	close(release)
	if err := first.Stop(); err != nil {
		t.Errorf("first worker: %v", err)
	}
	if got := committed(); got < before {
		t.Errorf("the group went back from offset %d to %d", before, got)
	}
	if err := second.Stop(); err != nil {
		t.Errorf("second worker: %v", err)
	}
}

// What can not be decoded is delivered as that, and the log goes on behind it.
func TestUndecodable(t *testing.T) {
	t.Parallel()
	c := fake(t)
	cfg := settings(t, c.ListenAddrs())
	cfg.Partitions = 1
	w := writer(t, cfg)
	produce(t, cfg, nil, []byte("\x00garbage"))
	produce(t, cfg, nil, []byte("LTHC\x07from the future"))
	produce(t, cfg, []byte(`{"id":1}`), []byte(`{"op":"c","after":{"id":1},"source":{"schema":"public","table":"t"}}`))
	produce(t, cfg, []byte(`{"id":1}`), nil)
	produce(t, cfg, nil, []byte(`{"op":"?"}`))
	feed := streamtest.NewFeed()
	feed.Append(t, w, 1)

	var mu sync.Mutex
	var got []stream.Delivery
	enough := make(chan struct{})
	worker := streamtest.Start(t, consumer(t, cfg), func(ctx context.Context, p stream.Partition) error {
		for {
			ds, err := p.Fetch(ctx, 1)
			if err != nil {
				return nil
			}
			mu.Lock()
			if got = append(got, ds...); len(got) == 6 {
				close(enough)
			}
			mu.Unlock()
		}
	})
	<-enough
	if err := worker.Stop(); err != nil {
		t.Error(err)
	}
	closeWriter(t, w)
	for i, want := range []error{change.ErrNotRecord, change.ErrFutureVersion, nil, nil, nil, nil} {
		if want != nil && !errors.Is(got[i].Err, want) {
			t.Errorf("record %d: error %v, want %v", i, got[i].Err, want)
		}
		if bad := want != nil || i == 4; bad != (got[i].Record == nil) || bad != (len(got[i].Raw) > 0) || bad != (got[i].Err != nil) {
			t.Errorf("record %d: %+v", i, got[i])
		}
		if got[i].Gap {
			t.Errorf("record %d: a gap", i)
		}
	}
	if r := got[2].Record; !r.InsertLSN || r.Changes[0].Op != change.Insert || r.Partitions != 1 {
		t.Errorf("the event of Debezium became %s", r.Dump())
	}
	if r := got[3].Record; len(r.Changes) != 0 {
		t.Errorf("a tombstone became %s", r.Dump())
	}
}

// produce writes one message to partition 0, as another program would.
func produce(t *testing.T, cfg kafka.Config, key, value []byte) {
	t.Helper()
	tr := &kafkago.Transport{}
	defer tr.CloseIdleConnections()
	rec := kafkago.Record{Key: kafkago.NewBytes(key), Value: kafkago.NewBytes(value)}
	res, err := (&kafkago.Client{Addr: kafkago.TCP(cfg.Brokers...), Transport: tr}).Produce(t.Context(), &kafkago.ProduceRequest{
		Topic: cfg.Topic, RequiredAcks: kafkago.RequireAll, Records: kafkago.NewRecordReader(rec),
	})
	if err != nil || res.Error != nil {
		t.Fatal(err, res)
	}
}

func TestDeadLetterTopic(t *testing.T) {
	t.Parallel()
	c := fake(t)
	cfg := settings(t, c.ListenAddrs())
	d, err := kafka.NewDeadLetters(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	letter := stream.DeadLetter{Reason: "rule", Err: "no such column", Partition: 3, Offset: 42,
		Position: change.Position{Era: 1, LSN: 2}, Table: "public.products", Payload: make([]byte, 300<<10)}
	c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Err: kerr.NotEnoughReplicas, Count: 2})
	for range 2 {
		if err := d.Put(t.Context(), letter); err != nil {
			t.Fatal(err)
		}
	}
	tr := &kafkago.Transport{}
	defer tr.CloseIdleConnections()
	res, err := (&kafkago.Client{Addr: kafkago.TCP(cfg.Brokers...), Transport: tr}).Fetch(t.Context(), &kafkago.FetchRequest{Topic: cfg.Topic + ".dlq", MaxBytes: 1 << 20})
	if err != nil || res.Error != nil {
		t.Fatal(err, res)
	}
	rec, err := res.Records.ReadRecord()
	if err != nil {
		t.Fatal(err)
	}
	value, err := protocol.ReadAll(rec.Value)
	if err != nil {
		t.Fatal(err)
	}
	var got kafka.Letter
	if err := json.Unmarshal(value, &got); err != nil {
		t.Fatal(err)
	}
	if got.Reason != "rule" || got.Error != "no such column" || got.Partition != 3 || got.Offset != 42 || got.Topic != cfg.Topic ||
		got.Position != "00010000000000000002" || got.Bytes != 300<<10 || len(got.Payload) != 256<<10 || got.At.IsZero() {
		got.Payload = nil
		t.Errorf("letter %+v", got)
	}
	for {
		if _, err := res.Records.ReadRecord(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// What no retry cures ends the Writer and the Consumer, with the broker's word.
func TestRefused(t *testing.T) {
	t.Parallel()
	c := fake(t)
	cfg := settings(t, c.ListenAddrs())
	w := writer(t, cfg)
	c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Produce}, Topic: cfg.Topic, Err: kerr.TopicAuthorizationFailed, Count: -1})
	feed := streamtest.NewFeed()
	var err error
	for err == nil {
		err = w.Append(t.Context(), feed.Next())
	}
	if !errors.Is(err, kafkago.TopicAuthorizationFailed) || !strings.Contains(err.Error(), cfg.Topic) {
		t.Errorf("Append: %v", err)
	}
	if err := w.Close(t.Context()); !errors.Is(err, kafkago.TopicAuthorizationFailed) {
		t.Errorf("Close: %v", err)
	}
	c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.JoinGroup}, Group: cfg.Group, Err: kerr.GroupAuthorizationFailed, Count: -1})
	err = consumer(t, cfg).Run(t.Context(), func(context.Context, stream.Partition) error { return nil })
	if !errors.Is(err, kafkago.GroupAuthorizationFailed) {
		t.Errorf("Run: %v", err)
	}
}

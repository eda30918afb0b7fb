package kafka_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/stream"
	"github.com/lethe-cache/lethe/stream/kafka"
	"github.com/lethe-cache/lethe/stream/streamtest"
)

// BenchmarkLatency measures from Append to the worker at 2,000 batches a second.
func BenchmarkLatency(b *testing.B) {
	cfg := kafka.Config{Brokers: harness.Kafka(b).Brokers(), Topic: harness.Topic(b), Group: harness.Topic(b)}
	w, c := open(b, cfg)
	const batches = 4000
	sent, took := make([]time.Time, batches+1), make([]time.Duration, 0, batches)
	arrived := make(chan time.Duration, batches)
	done := start(b, c, func(d stream.Delivery) {
		if d.Record != nil {
			for i := range d.Record.Changes {
				arrived <- time.Since(sent[int(d.Record.Changes[i].Commit.XID)])
			}
		}
	})
	feed := streamtest.NewFeed()
	for b.Loop() {
		tick := time.NewTicker(500 * time.Microsecond)
		for range batches {
			<-tick.C
			if feed.Appended() == batches {
				break
			}
			sent[feed.Appended()+1] = time.Now()
			if err := w.Append(b.Context(), feed.Next()); err != nil {
				b.Fatal(err)
			}
		}
		tick.Stop()
		for len(took) < batches {
			took = append(took, <-arrived)
		}
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "p99-ms")
	done()
}

// BenchmarkThroughput measures changes a second through the broker, in batches
// of 100 rows of about 200 bytes.
func BenchmarkThroughput(b *testing.B) {
	cfg := kafka.Config{Brokers: harness.Kafka(b).Brokers(), Topic: harness.Topic(b), Group: harness.Topic(b)}
	w, c := open(b, cfg)
	arrived := make(chan int, 1024)
	done := start(b, c, func(d stream.Delivery) {
		if d.Record != nil && len(d.Record.Changes) > 0 {
			arrived <- len(d.Record.Changes)
		}
	})
	const batches, rows = 3000, 100
	began, seq := time.Now(), uint64(0)
	for b.Loop() {
		go func() {
			for range batches {
				seq++
				if err := w.Append(b.Context(), wide(seq, rows, 200)); err != nil {
					b.Error(err)
					return
				}
			}
		}()
		for n := 0; n < batches*rows; {
			n += <-arrived
		}
	}
	b.ReportMetric(float64(b.N*batches*rows)/time.Since(began).Seconds(), "changes/s")
	done()
}

func open(b *testing.B, cfg kafka.Config) (*kafka.Writer, *kafka.Consumer) {
	b.Helper()
	w, err := kafka.NewWriter(b.Context(), cfg)
	if err != nil {
		b.Fatal(err)
	}
	c, err := kafka.NewConsumer(cfg)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := w.Close(ctx); err != nil {
			b.Error(err)
		}
	})
	return w, c
}

// start runs a worker, and waits until it has its partitions.
func start(b *testing.B, c *kafka.Consumer, see func(stream.Delivery)) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- c.Run(ctx, func(ctx context.Context, p stream.Partition) error {
			for {
				ds, err := p.Fetch(ctx, 1000)
				if err != nil {
					return nil
				}
				for _, d := range ds {
					see(d)
				}
				if err := p.Ack(ctx, ds[len(ds)-1].Offset); err != nil {
					return err
				}
			}
		})
	}()
	harness.Eventually(b, patience, func() error {
		if c.Assigned() < kafka.PartitionsDefault {
			return context.DeadlineExceeded
		}
		return nil
	})
	return func() {
		cancel()
		if err := <-ended; err != nil {
			b.Error(err)
		}
	}
}

package kafka_test

import (
	"context"
	"testing"

	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/stream"
	"github.com/lethe-cache/lethe/stream/kafka"
	"github.com/lethe-cache/lethe/stream/streamtest"
)

// slow acknowledges what it takes only once it is let.
func slow(let <-chan struct{}) func(context.Context, stream.Partition) error {
	return func(ctx context.Context, p stream.Partition) error {
		for {
			ds, err := p.Fetch(ctx, 100)
			if err != nil {
				return err
			}
			select {
			case <-let:
			case <-ctx.Done():
				return ctx.Err()
			}
			if err := p.Ack(ctx, ds[len(ds)-1].Offset); err != nil {
				return err
			}
		}
	}
}

// A worker has caught up when it has applied what stood in the log, not when it
// has been given partitions or has read it.
func TestCaughtUp(t *testing.T) {
	t.Parallel()
	cfg := settings(t, fake(t).ListenAddrs())
	w := writer(t, cfg)
	c := consumer(t, cfg)
	if c.CaughtUp() {
		t.Error("caught up without a partition")
	}
	caughtUp := func(what string) {
		t.Helper()
		harness.Eventually(t, patience, harness.True(what, c.CaughtUp))
	}
	append := func(from, to uint64) {
		t.Helper()
		for seq := from; seq <= to; seq++ {
			if err := w.Append(t.Context(), wide(seq, 20, 10)); err != nil {
				t.Fatal(err)
			}
		}
		harness.Eventually(t, patience, harness.True("the batches are durable", func() bool { return w.Durable() == w.Appended() && w.Appended() == to }))
	}
	append(1, 5)
	let := make(chan struct{})
	worker := streamtest.Start(t, c, slow(let))
	harness.Eventually(t, patience, harness.True("partitions are assigned", func() bool { return c.Assigned() == cfg.Partitions }))
	if c.CaughtUp() {
		t.Error("caught up before anything was applied")
	}
	for range cfg.Partitions - 1 {
		let <- struct{}{}
	}
	if c.CaughtUp() {
		t.Error("caught up although a partition is not")
	}
	go func() {
		for {
			select {
			case let <- struct{}{}:
			case <-t.Context().Done():
				return
			}
		}
	}()
	caughtUp("what stood in the log is applied")
	append(6, 10)
	c.Follow()
	caughtUp("what came since is applied")
	if err := worker.Stop(); err != nil {
		t.Error(err)
	}
	if c.CaughtUp() {
		t.Error("caught up without a partition any more")
	}

	// Another member of the group has nothing to apply: all is committed.
	closeWriter(t, w)
	second, err := kafka.NewConsumer(cfg)
	if err != nil {
		t.Fatal(err)
	}
	open := make(chan struct{})
	close(open) // a mark may have come late
	worker = streamtest.Start(t, second, slow(open))
	harness.Eventually(t, patience, harness.True("a worker with nothing to do has caught up", second.CaughtUp))
	if err := worker.Stop(); err != nil {
		t.Error(err)
	}
}

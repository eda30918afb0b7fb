package streamtest

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/stream"
)

func delivers(t *testing.T, tr Transport) {
	seen, feed := NewSeen(), NewFeed()
	w := Start(t, tr.Consumer(t), Collect(seen))
	feed.Append(t, tr.Writer, 500)
	seen.UntilBatches(t, 500)
	seen.UntilV(t, tr.Partitions, V(500))
	if err := w.Stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	seen.Check(t)
	closeWriter(t, tr.Writer)
	for p := range tr.Partitions {
		for _, r := range seen.Records(p) {
			if r.Partitions != tr.Partitions || r.Source != Source() {
				t.Fatalf("partition %d: record of %d partitions, source %+v, want %d and %+v", p, r.Partitions, r.Source, tr.Partitions, Source())
			}
		}
	}
}

func marks(t *testing.T, tr Transport) {
	seen, feed := NewSeen(), NewFeed()
	w := Start(t, tr.Consumer(t), Collect(seen))
	feed.Keys = 1 // one partition has all the changes
	feed.Append(t, tr.Writer, 20)
	if err := tr.Writer.Append(t.Context(), feed.Mark()); err != nil {
		t.Fatal(err)
	}
	seen.UntilV(t, tr.Partitions, V(21))
	if err := w.Stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	seen.Check(t)
	closeWriter(t, tr.Writer)
}

func raises(t *testing.T, tr Transport) {
	seen, feed := NewSeen(), NewFeed()
	w := Start(t, tr.Consumer(t), Collect(seen))
	feed.Append(t, tr.Writer, 5)
	if err := tr.Writer.Append(t.Context(), feed.Raise("r1")); err != nil {
		t.Fatal(err)
	}
	seen.Until(t, "a raise in every partition", func() bool {
		found := 0
		for p := range tr.Partitions {
			for _, r := range seen.records[p] {
				for i := range r.Raises {
					if r.Raises[i].Cause == "r1" && r.Raises[i].Classes[0] == "*" {
						found++
					}
				}
			}
		}
		return found == tr.Partitions
	})
	if err := w.Stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	seen.Check(t)
	closeWriter(t, tr.Writer)
}

// A worker that dies with things in its hands has not had them.
func deadWorker(t *testing.T, tr Transport) {
	seen, feed := NewSeen(), NewFeed()
	feed.Append(t, tr.Writer, 50)
	first := Start(t, tr.Consumer(t), func(ctx context.Context, p stream.Partition) error {
		for {
			ds, err := p.Fetch(ctx, 10)
			if err != nil {
				if ctx.Err() != nil {
					return nil
				}
				return err
			}
			for _, d := range ds {
				seen.Add(p.ID(), d)
			}
		}
	})
	seen.UntilBatches(t, 50)
	if err := first.Stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	again := NewSeen()
	second := Start(t, tr.Consumer(t), Collect(again))
	again.UntilBatches(t, 50)
	if err := second.Stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	again.Check(t)
	closeWriter(t, tr.Writer)
}

func acked(t *testing.T, tr Transport) {
	seen, feed := NewSeen(), NewFeed()
	feed.Append(t, tr.Writer, 50)
	first := Start(t, tr.Consumer(t), Collect(seen))
	seen.UntilBatches(t, 50)
	seen.UntilV(t, tr.Partitions, V(50))
	if err := first.Stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	feed.Append(t, tr.Writer, 50)
	again := NewSeen()
	second := Start(t, tr.Consumer(t), Collect(again))
	again.UntilBatches(t, 50)
	again.UntilV(t, tr.Partitions, V(100))
	if err := second.Stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	again.Check(t)
	for seq := uint64(1); seq <= 100; seq++ {
		want := 0
		if seq > 50 {
			want = 1
		}
		if got := again.batches[seq]; got != want {
			t.Errorf("batch %d was delivered %d times to the second worker, want %d", seq, got, want)
		}
	}
	closeWriter(t, tr.Writer)
}

func durable(t *testing.T, tr Transport) {
	seen, feed := NewSeen(), NewFeed()
	if got := tr.Writer.Durable(); got != 0 {
		t.Errorf("Durable of an empty log is %d, want 0", got)
	}
	var w *Worker
	if tr.DurableAfterAck {
		hold := make(chan struct{})
		w = Start(t, tr.Consumer(t), func(ctx context.Context, p stream.Partition) error {
			<-hold
			return Collect(seen)(ctx, p)
		})
		feed.Append(t, tr.Writer, 100)
		if got := tr.Writer.Durable(); got != 0 {
			t.Errorf("Durable is %d before anything was applied, want 0", got)
		}
		close(hold)
	} else {
		w = Start(t, tr.Consumer(t), Collect(seen))
		feed.Append(t, tr.Writer, 100)
	}
	last := uint64(0)
	for range 100 {
		if now := tr.Writer.Durable(); now < last || now > 100 {
			t.Fatalf("Durable went from %d to %d", last, now)
		} else {
			last = now
		}
	}
	untilDurable(t, tr.Writer, 100)
	// A mark has nothing that could be lost, and must not hold the slot back.
	if err := tr.Writer.Append(t.Context(), feed.Mark()); err != nil {
		t.Fatal(err)
	}
	untilDurable(t, tr.Writer, 101)
	seen.UntilBatches(t, 100)
	if err := w.Stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	closeWriter(t, tr.Writer)
}

func backpressure(t *testing.T, tr Transport) {
	seen, feed := NewSeen(), NewFeed()
	feed.Payload = bytes.Repeat([]byte("x"), tr.Payload)
	if tr.Stall == nil {
		t.Skip("left out: this log can not be stalled")
	}
	resume := tr.Stall(t)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	n := 0
	for ; n < tr.Bound; n++ {
		if err := tr.Writer.Append(ctx, feed.Next()); err != nil {
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("Append to a full log: %v, want the context's error", err)
			}
			break
		}
	}
	if n == tr.Bound || n == 0 {
		t.Fatalf("a log that takes nothing took %d batches of %d bytes", n, tr.Payload)
	}
	resume()
	w := Start(t, tr.Consumer(t), Collect(seen))
	feed.seq = uint64(n) // the batch that was refused comes again
	feed.Append(t, tr.Writer, 10)
	seen.UntilBatches(t, n+10)
	if err := w.Stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	seen.Check(t)
	closeWriter(t, tr.Writer)
}

func closeDrains(t *testing.T, tr Transport) {
	seen, feed := NewSeen(), NewFeed()
	w := Start(t, tr.Consumer(t), Collect(seen))
	feed.Append(t, tr.Writer, 200)
	closeWriter(t, tr.Writer)
	closeWriter(t, tr.Writer) // twice is fine
	seen.UntilBatches(t, 200)
	seen.UntilV(t, tr.Partitions, V(200)) // the last marks too
	if err := w.Stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	seen.Check(t)
	if err := tr.Writer.Append(t.Context(), feed.Next()); !errors.Is(err, stream.ErrClosed) {
		t.Errorf("Append after Close: %v, want ErrClosed", err)
	}
}

func workError(t *testing.T, tr Transport) {
	feed := NewFeed()
	feed.Append(t, tr.Writer, 1)
	bad := errors.New("the worker's own trouble")
	w := Start(t, tr.Consumer(t), func(ctx context.Context, p stream.Partition) error {
		if _, err := p.Fetch(ctx, 1); err != nil {
			return nil
		}
		return bad
	})
	if err := w.Wait(); !errors.Is(err, bad) {
		t.Errorf("Run: %v, want the worker's error", err)
	}
	seen := NewSeen()
	w = Start(t, tr.Consumer(t), Collect(seen))
	seen.UntilBatches(t, 1)
	if err := w.Stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	closeWriter(t, tr.Writer)
}

func holes(t *testing.T, tr Transport) {
	seen := NewSeen()
	w := Start(t, tr.Consumer(t), Collect(seen))
	r := func() *change.Record { return &change.Record{Source: Source(), V: 1} }
	if err := tr.Writer.Append(t.Context(), stream.Batch{Seq: 1, Record: r()}); err != nil {
		t.Fatal(err)
	}
	for _, seq := range []uint64{3, 1} {
		err := tr.Writer.Append(t.Context(), stream.Batch{Seq: seq, Record: r()})
		if err == nil || !strings.Contains(err.Error(), "no holes") {
			t.Errorf("batch %d after batch 1: error %v", seq, err)
		}
	}
	if err := w.Stop(); err != nil {
		t.Errorf("Run: %v", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = tr.Writer.Close(ctx)
}

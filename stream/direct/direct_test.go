package direct_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/lethe-cache/lethe/stream"
	"github.com/lethe-cache/lethe/stream/direct"
	"github.com/lethe-cache/lethe/stream/streamtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConformance(t *testing.T) {
	t.Parallel()
	streamtest.Run(t, func(t *testing.T) streamtest.Transport {
		l := direct.New(direct.Config{MaxBytes: 64 << 10, Keep: 20 * time.Millisecond})
		t.Cleanup(func() {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			_ = l.Close(ctx) // stops the clock of what was applied last
		})
		return streamtest.Transport{
			Writer: l, Consumer: func(*testing.T) stream.Consumer { return l }, Partitions: 1, DurableAfterAck: true,
			Stall: func(*testing.T) func() { return func() {} }, Bound: 1000, Payload: 1000,
		}
	})
}

// Durable follows an Ack by Keep, neither sooner nor much later.
func TestDurableAfterKeep(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := direct.New(direct.Config{})
		feed, seen := streamtest.NewFeed(), streamtest.NewSeen()
		w := streamtest.Start(t, l, streamtest.Collect(seen))
		start := time.Now()
		feed.Append(t, l, 3)
		seen.UntilBatches(t, 3)
		synctest.Wait()
		if got := l.Durable(); got != 0 {
			t.Errorf("Durable is %d right after the Ack, want 0", got)
		}
		<-l.Advanced()
		if got, want := time.Since(start), direct.KeepDefault; got != want {
			t.Errorf("Durable advanced after %v, want %v", got, want)
		}
		if got := l.Durable(); got != 3 {
			t.Errorf("Durable is %d after Keep, want 3", got)
		}

		// A steady stream becomes durable Keep and at most one step behind.
		var worst time.Duration
		soonest := time.Hour
		appended := map[uint64]time.Time{}
		go func() {
			for range l.Advanced() {
				if at, ok := appended[l.Durable()]; ok {
					worst, soonest = max(worst, time.Since(at)), min(soonest, time.Since(at))
				}
				if l.Durable() == 2003 {
					return
				}
			}
		}()
		for i := range 2000 {
			appended[uint64(4+i)] = time.Now()
			feed.Append(t, l, 1)
			<-time.After(10 * time.Millisecond)
			synctest.Wait()
		}
		<-time.After(direct.KeepDefault)
		synctest.Wait()
		if got := l.Durable(); got != 2003 {
			t.Errorf("Durable is %d, want 2003", got)
		}
		if soonest < direct.KeepDefault {
			t.Errorf("a batch became durable %v after it was applied, want at least %v", soonest, direct.KeepDefault)
		}
		if limit := direct.KeepDefault + direct.KeepDefault/50; worst > limit {
			t.Errorf("a batch became durable %v after it was applied, want at most %v", worst, limit)
		}
		if err := l.Close(t.Context()); err != nil {
			t.Errorf("Close: %v", err)
		}
		if err := w.Stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

// A batch that is larger than the log alone is taken when the log is empty.
func TestHugeBatch(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := direct.New(direct.Config{MaxBytes: 1000, MaxChanges: 10})
		feed, seen := streamtest.NewFeed(), streamtest.NewSeen()
		feed.Payload = make([]byte, 100_000)
		w := streamtest.Start(t, l, streamtest.Collect(seen))
		feed.Append(t, l, 5)
		seen.UntilBatches(t, 5)
		if err := l.Close(t.Context()); err != nil {
			t.Errorf("Close: %v", err)
		}
		if err := w.Wait(); err != nil {
			t.Errorf("Run of a closed log: %v, want nil", err)
		}
	})
}

func TestCloseGivesUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := direct.New(direct.Config{})
		streamtest.NewFeed().Append(t, l, 2)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := l.Close(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Close without a worker: %v, want the context's error", err)
		}
	})
}

func TestAckOfTheFuture(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := direct.New(direct.Config{})
		streamtest.NewFeed().Append(t, l, 2)
		w := streamtest.Start(t, l, func(ctx context.Context, p stream.Partition) error {
			if _, err := p.Fetch(ctx, 1); err != nil {
				return err
			}
			return p.Ack(ctx, 2)
		})
		if err := w.Wait(); err == nil {
			t.Error("Ack of a batch that was not delivered: no error")
		}
	})
}

func TestOneRunAtATime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := direct.New(direct.Config{})
		w := streamtest.Start(t, l, streamtest.Collect(streamtest.NewSeen()))
		synctest.Wait()
		if got := l.Assigned(); got != 1 {
			t.Errorf("Assigned is %d, want 1", got)
		}
		if err := l.Run(t.Context(), nil); err == nil {
			t.Error("a second Run: no error")
		}
		if err := w.Stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
		if got := l.Assigned(); got != 0 {
			t.Errorf("Assigned is %d after Run, want 0", got)
		}
	})
}

func BenchmarkLog(b *testing.B) {
	l := direct.New(direct.Config{})
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- l.Run(ctx, streamtest.Collect(streamtest.NewSeen())) }()
	feed := streamtest.NewFeed()
	b.ReportAllocs()
	for b.Loop() {
		if err := l.Append(ctx, feed.Next()); err != nil {
			b.Fatal(err)
		}
	}
	cancel()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
}

package invalidator

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/coherence"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/stream"
	"github.com/lethe-cache/lethe/stream/direct"
)

// A standby's fill is judged by the table: whatever the worker unlinks it has
// raised there first, for every kind of key.
func TestRaiseBeforeUnlink(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldConfig{})
	w.ready()
	for _, local := range []string{"product:1", "kept:1", "raw:1"} {
		b := w.begin(local)
		w.commit(update("products", "1", "n"))
		w.settle()
		pos, closed, err := w.store.TablePosition(t.Context(), w.name(local), 1)
		if err != nil || closed || pos.Less(w.x()) {
			t.Errorf("table of %s stands at %v (closed %v), %v; want %v", local, pos, closed, err, w.x())
		}
		// A new ticket, data from a standby that has replayed up to X only.
		b = w.begin(local)
		r := coherence.FillRequest{Ticket: b.Ticket, Standby: true, Stamp: w.x(), Payload: []byte("old")}
		if reason, err := w.store.Fill(t.Context(), r); err != nil || reason != coherence.RefusedTable {
			t.Errorf("fill of %s by a standby at X: %v, %v; want refused by the table", local, reason, err)
		}
	}
}

func TestTruncateRaisesAfterVisible(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldConfig{})
	w.ready()
	w.cache("product:1", "v")
	w.cache("raw:1", "v")
	inFlight := w.begin("product:2")
	w.commit(change.Change{Op: change.Truncate, Table: shopTables["products"]})
	w.settle()
	w.wantState("product:1", "dead")
	w.wantState("raw:1", "absent")
	// It knew the generation before: its value is born dead.
	w.fill(inFlight, "old")
	w.wantState("product:2", "dead")
	w.cache("product:1", "after")
	// Delivered again it forgets nothing more.
	truncate := change.Change{Op: change.Truncate, Table: shopTables["products"]}
	w.hand(w.lsn+50, []change.Change{dup(w, truncate)})
	w.settle()
	w.wantState("product:1", "after")
}

// blocker stops a worker at a step until it is let go.
type blocker struct {
	step    string
	reached chan struct{}
	let     chan struct{}
	once    sync.Once
}

func newBlocker(step string) *blocker {
	return &blocker{step: step, reached: make(chan struct{}), let: make(chan struct{})}
}

func (b *blocker) hook(step string) {
	if step == b.step {
		b.once.Do(func() {
			close(b.reached)
			<-b.let
		})
	}
}

func (b *blocker) wait(t testing.TB) {
	t.Helper()
	select {
	case <-b.reached:
	case <-time.After(patience):
		t.Fatalf("step %q was not reached", b.step)
	}
}

// watermark is that of the log's only partition.
func (w *world) watermark() change.Position {
	w.t.Helper()
	marks, err := w.store.ReadWatermarks(w.t.Context(), watermarkField(0, 1))
	if err != nil || len(marks) != 1 {
		w.t.Fatalf("watermarks %v, %v", marks, err)
	}
	return marks[0].Position
}

func TestPlainRaiseWalks(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldConfig{})
	b := newBlocker("walk")
	w.ready(func(k *Worker) { k.hook = b.hook })
	for i := range 5 {
		w.cache("raw:"+itoa(i), "v")
	}
	w.cache("product:1", "v")
	inFlight := w.begin("raw:9")
	w.hand(w.lsn+60, nil, change.Raise{Cause: "c", Reason: change.ReasonManual, Classes: []string{"raw"}})
	b.wait(t)
	// The stream goes on, the watermark does not.
	before := w.watermark()
	w.cache("product:2", "v")
	w.commit(update("products", "2", "n"))
	harness.Eventually(t, patience, harness.True("product:2 absent", func() bool { return w.state("product:2") == "absent" }))
	if got := w.watermark(); got != before {
		t.Errorf("watermark passed an unfinished walk: %v, was %v", got, before)
	}
	close(b.let)
	w.settle()
	for i := range 5 {
		w.wantState("raw:"+itoa(i), "absent")
	}
	w.wantState("product:1", "v")
	if reason := w.fill(inFlight, "old"); reason != coherence.RefusedAbsent {
		t.Errorf("fill with a ticket from before the raise: %v, want absent", reason)
	}
	if got, want := w.watermark(), (change.Position{Era: 1, LSN: w.lsn + 50}); got != want {
		t.Errorf("watermark %v, want %v", got, want)
	}
}

func TestSweptAfterSweep(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldConfig{cfg: func(c *Config) { c.SweepBatch = 2 }})
	b := newBlocker("close")
	w.ready(func(k *Worker) { k.hook = b.hook })
	for i := range 7 {
		w.cache("product:"+itoa(i), "v", "category:5")
	}
	from := len(w.messages())
	before := w.watermark()
	w.commit(update("categories", "5"))
	b.wait(t)
	if got, want := w.kinds(from), []string{"p category:5"}; !slices.Equal(got, want) {
		t.Errorf("broadcasts before the end of the sweep: %q, want %q", got, want)
	}
	for i := range 7 {
		w.wantState("product:"+itoa(i), "absent")
	}
	if got := w.watermark(); got != before {
		t.Errorf("watermark passed an unfinished sweep: %v", got)
	}
	close(b.let)
	w.settle()
	if got, want := w.kinds(from), []string{"p category:5", "s category:5"}; !slices.Equal(got, want) {
		t.Errorf("broadcasts %q, want %q", got, want)
	}
}

func TestPurgeTwiceAndDead(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldConfig{cfg: func(c *Config) { c.SweepBatch = 2 }})
	var steps atomic.Int32
	dying := newBlocker("third batch")
	first := w.ready(func(k *Worker) {
		k.hook = func(step string) {
			if step == "members" && steps.Add(1) == 3 {
				dying.hook("third batch")
			}
		}
	})
	// More than fits the small encoding of a hash, which is scanned at once.
	for i := range 600 {
		w.cache("product:"+itoa(i), "v", "category:5")
	}
	w.commit(update("categories", "5"))
	dying.wait(t)
	// A second purge of the tag, by a late duplicate, and the death of the first.
	w.hand(w.lsn+50, []change.Change{dup(w, update("categories", "5"))})
	first.Hurry()
	close(dying.let)
	first.kill()
	if control, err := w.store.Control(t.Context()); err != nil || len(control.Purges) == 0 {
		t.Fatalf("open purges %v, %v: the dead worker's should be listed", control.Purges, err)
	}
	w.worker()
	w.settle()
	for i := range 600 {
		if got := w.state("product:" + itoa(i)); got != "absent" {
			t.Fatalf("product:%d is %q", i, got)
		}
	}
	harness.Eventually(t, patience, func() error {
		if control, err := w.store.Control(t.Context()); err != nil || len(control.Purges) > 0 {
			return fmt.Errorf("open purges %v, %v", control.Purges, err)
		}
		return nil
	})
}

// partitions makes several logs one stream with several partitions.
type partitions struct{ logs []*direct.Log }

type numbered struct {
	stream.Partition
	id, count int
}

func (n numbered) ID() int    { return n.id }
func (n numbered) Count() int { return n.count }

func (p partitions) Run(ctx context.Context, work func(context.Context, stream.Partition) error) error {
	var wait sync.WaitGroup
	for i, l := range p.logs {
		wait.Go(func() {
			_ = l.Run(ctx, func(ctx context.Context, q stream.Partition) error {
				return work(ctx, numbered{q, i, len(p.logs)})
			})
		})
	}
	wait.Wait()
	return nil
}

// w of the heartbeat is the least over all partitions, and what stands in one
// partition's queue is not passed by the marks of another.
func TestPartitionMarks(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldConfig{})
	other := direct.New(direct.Config{Keep: time.Millisecond})
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = other.Close(ctx)
	})
	stuck := newBlocker("keys")
	worker, err := New(w.cfg)
	if err != nil {
		t.Fatal(err)
	}
	worker.hook = stuck.hook
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = partitions{[]*direct.Log{w.log, other}}.Run(ctx, worker.Work)
	}()
	t.Cleanup(func() { worker.Hurry(); cancel(); <-done })

	mark := func(l *direct.Log, seq uint64, v change.LSN, changes ...change.Change) {
		t.Helper()
		if err := l.Append(t.Context(), stream.Batch{Seq: seq, Record: &change.Record{Source: w.source, V: v, Changes: changes}}); err != nil {
			t.Fatal(err)
		}
	}
	readW := func() change.LSN {
		control, err := w.store.Control(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return control.W.LSN
	}
	reach := func(want change.LSN) {
		t.Helper()
		harness.Eventually(t, patience, func() error {
			if got := readW(); got != want {
				return fmt.Errorf("w is %v, want %v", got, want)
			}
			return nil
		})
	}
	mark(w.log, 1, 5000)
	mark(other, 1, 4000)
	reach(4000)
	// A commit of partition 1 is fetched and not applied; marks of partition 0
	// go far beyond it.
	w.lsn = 6000
	mark(other, 2, 7000, w.nextCommit(update("products", "1", "n"))...)
	stuck.wait(t)
	mark(w.log, 2, 9000)
	harness.Eventually(t, patience, harness.True("partition 0 acknowledged", func() bool { return w.log.Durable() == 2 }))
	sub := w.rdb.Subscribe(t.Context(), w.store.Layout().Control("stream"))
	defer sub.Close()
	for beats := 0; beats < 3; { // heartbeats that were sent after that
		m, err := sub.ReceiveMessage(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if p, err := coherence.ParseMessage([]byte(m.Payload)); err != nil {
			t.Fatal(err)
		} else if p.Kind == coherence.KindHeartbeat {
			beats++
			if p.W.LSN != 4000 {
				t.Errorf("w of the heartbeat is %v, want 4000", p.W.LSN)
			}
			if p.V.LSN != 9000 {
				t.Errorf("v of the heartbeat is %v, want 9000", p.V.LSN)
			}
		}
	}
	close(stuck.let)
	reach(7000)
}

func TestLogGapRaises(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldConfig{})
	worker, err := New(w.cfg)
	if err != nil {
		t.Fatal(err)
	}
	w.ready().drain()
	w.cache("product:1", "v")
	p := &scripted{deliveries: [][]stream.Delivery{
		{{Record: &change.Record{Source: w.source, V: 5000}, Offset: 1}},
		{{Record: &change.Record{Source: w.source, V: 5001}, Offset: 9, Gap: true}},
		{{Err: fmt.Errorf("version 200"), Raw: []byte{200, 1}, Offset: 10}},
	}, acked: make(chan int64, 10), let: make(chan struct{})}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- worker.Work(ctx, p) }()
	p.reach(t, 1)
	w.wantState("product:1", "v")
	p.let <- struct{}{}
	p.reach(t, 9)
	w.wantState("product:1", "dead")
	w.cache("product:1", "v")
	p.let <- struct{}{}
	p.reach(t, 10)
	w.wantState("product:1", "dead")
	if got := w.dead.all(); len(got) != 1 || got[0].Reason != "decode" || got[0].Offset != 10 || string(got[0].Payload) != "\xc8\x01" {
		t.Errorf("dead letters %+v", got)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// scripted is a partition that delivers what a test says.
type scripted struct {
	deliveries [][]stream.Delivery
	acked      chan int64
	let        chan struct{}
	next       int
}

func (p *scripted) ID() int    { return 0 }
func (p *scripted) Count() int { return 1 }

func (p *scripted) Fetch(ctx context.Context, _ int) ([]stream.Delivery, error) {
	if p.next > 0 && p.next < len(p.deliveries) {
		select {
		case <-p.let:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if p.next == len(p.deliveries) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	p.next++
	return p.deliveries[p.next-1], nil
}

func (p *scripted) Ack(_ context.Context, offset int64) error {
	p.acked <- offset
	return nil
}

func (p *scripted) reach(t testing.TB, offset int64) {
	t.Helper()
	for {
		select {
		case got := <-p.acked:
			if got == offset {
				return
			}
		case <-time.After(patience):
			t.Fatalf("offset %d was not acknowledged", offset)
		}
	}
}

// subscribed waits for a broadcast of a kind in the stream behind a number.
func (w *world) waitMessage(from uint64, kind coherence.Kind) {
	w.t.Helper()
	harness.Eventually(w.t, patience, func() error {
		entries, err := w.rdb.XRange(w.t.Context(), w.store.Layout().Control("stream"), "-", "+").Result()
		if err != nil {
			return err
		}
		var seen []string
		for _, e := range entries {
			m, err := coherence.ParseMessage([]byte(e.Values["m"].(string)))
			if err != nil {
				return err
			}
			if m.Number > from && m.Kind == kind {
				return nil
			}
			seen = append(seen, fmt.Sprintf("%d%c", m.Number, m.Kind))
		}
		return fmt.Errorf("no message %c in %s", kind, strings.Join(seen, " "))
	})
}

package invalidator

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/internal/harness"
	"github.com/lethe-cache/lethe/stream"
)

// play gives a worker the deliveries of a partition, one Fetch each, and waits
// until the offset is acknowledged; then the partition is taken away.
func play(t *testing.T, w *world, until int64, deliveries ...stream.Delivery) {
	t.Helper()
	worker, err := New(w.cfg)
	if err != nil {
		t.Fatal(err)
	}
	p := &scripted{acked: make(chan int64, len(deliveries)), let: make(chan struct{}, len(deliveries))}
	for _, d := range deliveries {
		p.deliveries = append(p.deliveries, []stream.Delivery{d})
		p.let <- struct{}{}
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- worker.Work(ctx, p) }()
	p.reach(t, until)
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// The record that carries the news of a gap names no source. That is no source
// which can not be known: the recorded one stays.
func TestGapCarrierLeavesTheSource(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldConfig{})
	w.ready().drain()
	w.cache("product:1", "v")
	play(t, w, 8,
		stream.Delivery{Record: &change.Record{Source: w.source, V: 5000}, Offset: 1},
		stream.Delivery{Record: &change.Record{Partitions: 1}, Offset: 8, Gap: true})
	w.wantState("product:1", "dead")
	if got, err := w.store.Source(t.Context()); err != nil || got != testSource {
		t.Errorf("source is %+v (%v), want %+v", got, err, testSource)
	}
}

// The first record of a log is the beginning to who was never there, and another
// log to who was: what the old one held and nobody applied is gone.
func TestLogThatBeginsAnewRaises(t *testing.T) {
	t.Parallel()
	for name, was := range map[string]bool{"never there": false, "was there": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, worldConfig{})
			first := stream.Delivery{Record: &change.Record{Source: w.source, V: 5000}, Offset: 1, First: true}
			if was {
				play(t, w, 8, stream.Delivery{Record: &change.Record{Source: w.source, V: 4000}, Offset: 8})
			}
			generation := func() uint64 {
				control, err := w.store.Control(t.Context(), "product")
				if err != nil {
					t.Fatal(err)
				}
				return control.Known("product").Generation
			}
			before := generation()
			play(t, w, 1, first)
			if raised := generation() > before; raised != was {
				t.Errorf("raised: %v, want %v", raised, was)
			}
		})
	}
}

// Records that do not name their commits' positions are placed at the insert
// LSN of the primary, in the recorded era, and never taken for applied.
func TestInsertLSNPlacesChanges(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldConfig{})
	w.ready().drain()
	w.cache("kept:1", "v")
	w.cache("product:2", "v")
	w.insert.Store(9000)
	c := update("products", "1", "n")
	c.Commit = &change.Commit{XID: 77, Time: time.Now()}
	play(t, w, 3,
		stream.Delivery{Record: &change.Record{Source: w.source, V: 5000}, Offset: 1},
		stream.Delivery{Record: &change.Record{InsertLSN: true}, Offset: 2}, // a tombstone
		stream.Delivery{Record: &change.Record{InsertLSN: true, Changes: []change.Change{c}}, Offset: 3})
	w.wantState("kept:1", "absent")
	w.wantState("product:2", "v")
	if got, err := w.store.Source(t.Context()); err != nil || got != testSource {
		t.Errorf("source is %+v (%v), want %+v", got, err, testSource)
	}
	pos, _, err := w.store.TablePosition(t.Context(), w.name("kept:1"), 1)
	if want := (change.Position{Era: 1, LSN: 9000}); err != nil || pos != want {
		t.Errorf("table knows %v (%v), want %v", pos, err, want)
	}
	control, err := w.store.Control(t.Context())
	if err != nil || control.V.LSN > 5000 {
		t.Errorf("v is %v (%v), want no more than 5000: such a record says nothing of it", control.V, err)
	}
}

// lines is where a logger writes.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// closing is a partition whose log is closed while its worker is told to stop.
type closing struct {
	scripted
	fetched chan struct{}
}

func (p *closing) Fetch(ctx context.Context, _ int) ([]stream.Delivery, error) {
	close(p.fetched)
	<-ctx.Done()
	return nil, stream.ErrClosed
}

// A log that was closed and is empty is a normal end.
func TestClosedLogIsANormalEnd(t *testing.T) {
	t.Parallel()
	var out lines
	w := newWorld(t, worldConfig{cfg: func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&out, nil)) }})
	w.ready().drain()
	worker, err := New(w.cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	p := &closing{fetched: make(chan struct{})}
	go func() { <-p.fetched; cancel() }()
	if err := worker.Work(ctx, p); err != nil {
		t.Errorf("ended with %v", err)
	}
	if strings.Contains(out.String(), "left unfinished") {
		t.Errorf("a graceful end logged\n%s", out.String())
	}
	// Without a signal the transport is told, which would else call it again.
	w.newLog()
	r := w.worker()
	w.hand(w.lsn+50, nil)
	w.settle()
	if err := w.log.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.wait()
}

// Until v covers what the tables were seeded with, they refuse every
// registration: that is not ready.
func TestUnreadyUntilSeedIsCovered(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldConfig{})
	r := w.worker()
	w.insert.Store(9000)
	w.hand(2000, nil)
	w.settle()
	harness.Eventually(t, patience, harness.True("the tables seeded", func() bool { return !r.sources.unseeded() }))
	if why := strings.Join(r.Unready(), "; "); !strings.Contains(why, "seeded at 0001"+"0000000000002300") {
		t.Errorf("unready because of %q, want the seed at 0x2328-40", why)
	}
	w.hand(8960, nil)
	w.settle()
	if len(r.Unready()) == 0 {
		t.Error("ready although v does not cover the seed")
	}
	w.hand(8961, nil)
	w.settle()
	w.waitReady(r)
	w.waitV(8961)
	w.cache("product:1", "v", "category:1")
	r.drain()
	// Seeded tables ask nothing of a restart.
	w.newLog()
	r = w.worker()
	w.waitReady(r)
}

// A record that names more partitions than the worker knows of was written
// after the map had grown: what its V counts may stand in a partition that
// nobody looks at yet, so w stays where it is.
func TestMapChange(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldConfig{})
	w.ready().drain()
	w.cache("product:1", "v")
	c := update("products", "1", "n")
	w.lsn = 6000
	play(t, w, 3,
		stream.Delivery{Record: &change.Record{Source: w.source, V: 5000, Partitions: 1}, Offset: 1},
		stream.Delivery{Record: &change.Record{Source: w.source, V: 7000, Partitions: 2, Changes: w.nextCommit(c)}, Offset: 2},
		stream.Delivery{Record: &change.Record{Source: w.source, V: 7001, Partitions: 2}, Offset: 3})
	w.wantState("product:1", "absent") // applied all the same
	if got, want := w.watermark(), (change.Position{Era: 1, LSN: 5000}); got != want {
		t.Errorf("watermark %v, want %v", got, want)
	}
	if control, err := w.store.Control(t.Context()); err != nil || control.W.LSN > 5000 {
		t.Errorf("w is %v (%v), want no more than 5000", control.W, err)
	}
}

// What is left to prune is left to the next purge when the worker ends.
func TestEndDoesNotWaitForPruning(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldConfig{cfg: func(c *Config) { c.DrainTimeout, c.SweepBatch = time.Hour, 1 }})
	prune := make(chan struct{})
	r := w.ready(func(k *Worker) {
		k.hook = func(step string) {
			if step == "prune" { // until the worker ends
				select {
				case prune <- struct{}{}:
				case <-k.hurry.Done():
				}
			}
		}
	})
	for i := range 600 {
		w.cache("product:"+itoa(i), "v", "category:5")
	}
	w.commit(update("categories", "5"))
	w.settle()
	<-prune
	r.stop()
	steps := 0
	for over := false; !over; {
		select {
		case <-prune:
			steps++
		case err := <-r.done:
			r.done <- err
			over = true
		}
	}
	if steps > 100 { // of about 600: it may take some before it sees the end
		t.Errorf("%d more steps of pruning", steps)
	}
	r.wait()
}

// A store of dead letters that is away holds the stream once, not once for
// each letter of a batch.
func TestDeadLettersWaitTogether(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldConfig{cfg: func(c *Config) { c.DeadLetterWait = 150 * time.Millisecond }})
	w.dead.err = errors.New("no table")
	w.ready()
	var bad []change.Change
	for range 40 {
		bad = append(bad, change.Change{Op: change.Message, Prefix: "lethe", Content: []byte("{")})
	}
	w.commit(bad...)
	w.settle()
	patient := 0
	for _, wait := range w.dead.waits() {
		if wait > deadLetterNext {
			patient++
		}
	}
	if patient > 1 { // 0 if the machine slept before the first try
		t.Errorf("%d letters of %d had the whole of DeadLetterWait, want the first alone", patient, len(bad))
	}
}

// A walk that ended with an earlier run is none that a later one can wait for.
func TestWalkBelongsToItsRun(t *testing.T) {
	t.Parallel()
	w := newWorld(t, worldConfig{})
	r := w.ready()
	dead := &walk{run: &run{}}
	r.walks.mu.Lock()
	r.walks.running["c\x00raw"] = dead
	r.walks.mu.Unlock()
	w.hand(w.lsn+60, nil, change.Raise{Cause: "c", Reason: change.ReasonManual, Classes: []string{"raw"}})
	w.settle()
}

// Package streamtest holds what every transport of a stream must do, as one
// suite of tests that is run against each of them.
package streamtest

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/stream"
)

// patience is how long a test waits for what must happen.
const patience = 30 * time.Second

// Transport is one fresh log, for one test.
type Transport struct {
	// Writer and Consumer are the ends. Consumer returns another member of the
	// same group each time; direct returns its log.
	Writer   stream.Writer
	Consumer func(t *testing.T) stream.Consumer
	// Partitions is how many the log has.
	Partitions int
	// DurableAfterAck says that a batch is durable only when a worker has
	// acknowledged it.
	DurableAfterAck bool
	// Stall makes the log take nothing more once its bounds are reached, until
	// resume is called.
	Stall func(t *testing.T) (resume func())
	// Bound is how many changes of Payload bytes are certainly more than the
	// log holds while it stalls.
	Bound, Payload int
}

// Run runs the suite. open makes a fresh log for each test and cleans up after
// it with t.Cleanup.
func Run(t *testing.T, open func(t *testing.T) Transport) {
	for name, test := range map[string]func(*testing.T, Transport){
		"Delivers":                 delivers,
		"MarksReachEveryPartition": marks,
		"RaisesReachEveryWorker":   raises,
		"DeadWorkerIsReplaced":     deadWorker,
		"AckedIsNotDeliveredAgain": acked,
		"DurableIsContiguous":      durable,
		"AppendWaitsForRoom":       backpressure,
		"CloseDrains":              closeDrains,
		"WorkErrorEndsRun":         workError,
		"NumbersHaveNoHoles":       holes,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, open(t))
		})
	}
}

// Products is the table of the suite's changes.
func Products() *change.Table {
	return &change.Table{ID: 16385, Schema: "public", Name: "products", Identity: change.IdentityDefault, Columns: []change.Column{
		{Name: "id", Type: 20, Key: true}, {Name: "name", Type: 25},
	}}
}

// Source is the source of the suite's records.
func Source() change.Source { return change.Source{Era: 1, SystemID: 7, Timeline: 1} }

// step is the distance of two commits of the suite.
const step = 0x100

// Feed makes batches: one commit each, of one change to one of some keys.
type Feed struct {
	table *change.Table
	seq   uint64
	// Keys is how many keys there are, 50 by default; Payload is added to each
	// row.
	Keys    int
	Payload []byte
}

// NewFeed returns a feed that begins with batch 1.
func NewFeed() *Feed { return &Feed{table: Products(), Keys: 50} }

// Commit returns the LSN of the commit in batch seq, V the position behind it.
func Commit(seq uint64) change.LSN { return change.LSN(seq * step) }

// V returns the position behind batch seq.
func V(seq uint64) change.LSN { return Commit(seq) + step/2 }

// Next returns the next batch: an update of one key.
func (f *Feed) Next() stream.Batch {
	f.seq++
	key := strconv.Itoa(int(f.seq) % f.Keys)
	name := append([]byte(strconv.FormatUint(f.seq, 10)+" "), f.Payload...)
	return stream.Batch{Seq: f.seq, Record: &change.Record{Source: Source(), V: V(f.seq), Changes: []change.Change{{
		Op: change.Update, Table: f.table,
		Commit: &change.Commit{XID: f.seq, LSN: Commit(f.seq), End: Commit(f.seq) + 48},
		New:    change.Row{{Kind: change.Text, Bytes: []byte(key)}, {Kind: change.Text, Bytes: name}},
	}}}}
}

// Raise returns the next batch: a raise of every class.
func (f *Feed) Raise(cause string) stream.Batch {
	f.seq++
	return stream.Batch{Seq: f.seq, Record: &change.Record{Source: Source(), V: V(f.seq), Raises: []change.Raise{
		{Cause: cause, Reason: change.ReasonManual, Classes: []string{"*"}},
	}}}
}

// Mark returns the next batch: V and nothing else.
func (f *Feed) Mark() stream.Batch {
	f.seq++
	return stream.Batch{Seq: f.seq, Record: &change.Record{Source: Source(), V: V(f.seq)}}
}

// Appended is the number of the last batch.
func (f *Feed) Appended() int { return int(f.seq) }

// Append appends n batches.
func (f *Feed) Append(t *testing.T, w stream.Writer, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for range n {
		if err := w.Append(ctx, f.Next()); err != nil {
			t.Fatal(err)
		}
	}
}

// Seen is what workers have received.
type Seen struct {
	mu      sync.Mutex
	moved   chan struct{}
	records map[int][]*change.Record
	offsets map[int]int64
	batches map[uint64]int
	gaps    map[int]int
	firsts  map[int]int
	errs    []error
	faults  []string
}

// NewSeen returns an empty Seen.
func NewSeen() *Seen {
	return &Seen{moved: make(chan struct{}, 1), records: make(map[int][]*change.Record), offsets: make(map[int]int64),
		batches: make(map[uint64]int), gaps: make(map[int]int), firsts: make(map[int]int)}
}

// Add notes a delivery of a partition.
func (s *Seen) Add(p int, d stream.Delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if last, ok := s.offsets[p]; ok && d.Offset <= last {
		s.faults = append(s.faults, fmt.Sprintf("partition %d: offset %d after %d", p, d.Offset, last))
	}
	s.offsets[p] = d.Offset
	if d.Gap {
		s.gaps[p]++
	}
	if d.First {
		s.firsts[p]++
	}
	if d.Err != nil {
		s.errs = append(s.errs, d.Err)
	}
	if d.Record != nil {
		if d.Record.Partition != p {
			s.faults = append(s.faults, fmt.Sprintf("partition %d: record of partition %d", p, d.Record.Partition))
		}
		s.records[p] = append(s.records[p], d.Record)
		for i := range d.Record.Changes {
			s.batches[uint64(d.Record.Changes[i].Commit.LSN)/step]++
		}
	}
	select {
	case s.moved <- struct{}{}:
	default:
	}
}

// Forget says that a worker has died: offsets may repeat from here on.
func (s *Seen) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.offsets)
	clear(s.records)
}

// Reassigned says that a partition has a new worker, which may begin again.
func (s *Seen) Reassigned(p int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.offsets, p)
}

// Until waits until done, which is called with s locked, is true.
func (s *Seen) Until(t *testing.T, what string, done func() bool) {
	t.Helper()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	for {
		s.mu.Lock()
		ok := done()
		s.mu.Unlock()
		if ok {
			return
		}
		select {
		case <-s.moved:
		case <-limit.C:
			s.mu.Lock()
			defer s.mu.Unlock()
			t.Fatalf("%s: not after %v; %d batches seen, V by partition %v", what, patience, len(s.batches), s.vs())
		}
	}
}

func (s *Seen) vs() map[int]change.LSN {
	out := make(map[int]change.LSN)
	for p, rs := range s.records {
		for _, r := range rs {
			out[p] = max(out[p], r.V)
		}
	}
	return out
}

// UntilBatches waits until the changes of batches 1 to n were received.
func (s *Seen) UntilBatches(t *testing.T, n int) {
	t.Helper()
	s.Until(t, fmt.Sprintf("%d batches", n), func() bool { return len(s.batches) >= n })
}

// UntilV waits until every partition has told v.
func (s *Seen) UntilV(t *testing.T, partitions int, v change.LSN) {
	t.Helper()
	s.Until(t, fmt.Sprintf("V %s in %d partitions", v, partitions), func() bool {
		vs := s.vs()
		for p := range partitions {
			if vs[p] < v {
				return false
			}
		}
		return true
	})
}

// Gaps returns how many gaps a partition has told of.
func (s *Seen) Gaps(p int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gaps[p]
}

// Firsts returns how often a partition has said that its log begins.
func (s *Seen) Firsts(p int) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.firsts[p]
}

// Records returns what a partition has brought.
func (s *Seen) Records(p int) []*change.Record {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*change.Record(nil), s.records[p]...)
}

// Locked is Records for a condition of Until, which has s locked.
func (s *Seen) Locked(p int) []*change.Record { return s.records[p] }

// Batches is how many batches' changes have come, for a condition of Until.
func (s *Seen) Batches() int { return len(s.batches) }

// LockedGaps is Gaps for a condition of Until.
func (s *Seen) LockedGaps(p int) int { return s.gaps[p] }

// Check fails the test if a partition's V ever ran ahead of a change that came
// later in it, or if two changes of one key came in the wrong order.
func (s *Seen) Check(t *testing.T) {
	t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.faults {
		t.Error(f)
	}
	for _, err := range s.errs {
		t.Error(err)
	}
	for p, rs := range s.records {
		var v change.LSN
		last := make(map[string]change.LSN)
		for i, r := range rs {
			for j := range r.Changes {
				c := &r.Changes[j]
				if c.Commit.LSN < v {
					t.Errorf("partition %d, record %d: a change of commit %s stands behind V %s", p, i, c.Commit.LSN, v)
				}
				if c.New == nil {
					continue
				}
				key := string(c.New[0].Bytes)
				if c.Commit.LSN < last[key] {
					t.Errorf("partition %d, record %d: key %s: commit %s after %s", p, i, key, c.Commit.LSN, last[key])
				}
				last[key] = c.Commit.LSN
			}
			v = max(v, r.V)
		}
	}
}

// Worker is a running Consumer.
type Worker struct {
	cancel context.CancelFunc
	done   chan struct{}
	err    error
}

// Start runs a consumer with work; the test's end stops it.
func Start(t *testing.T, c stream.Consumer, work func(context.Context, stream.Partition) error) *Worker {
	ctx, cancel := context.WithCancel(context.Background())
	w := &Worker{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		w.err = c.Run(ctx, work)
	}()
	t.Cleanup(func() { w.cancel(); <-w.done })
	return w
}

// Stop ends the worker and returns Run's error.
func (w *Worker) Stop() error {
	w.cancel()
	return w.Wait()
}

// Wait waits for the end of Run and returns its error.
func (w *Worker) Wait() error {
	<-w.done
	return w.err
}

// Collect is a work function that notes and acknowledges everything.
func Collect(s *Seen) func(context.Context, stream.Partition) error {
	return func(ctx context.Context, p stream.Partition) error {
		for {
			ds, err := p.Fetch(ctx, 1000)
			if err != nil {
				if ctx.Err() != nil {
					return nil
				}
				return err
			}
			for _, d := range ds {
				s.Add(p.ID(), d)
			}
			if err := p.Ack(ctx, ds[len(ds)-1].Offset); err != nil {
				return err
			}
		}
	}
}

// untilDurable waits for Durable to reach seq, by its signal.
func untilDurable(t *testing.T, w stream.Writer, seq uint64) {
	t.Helper()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	for w.Durable() < seq {
		select {
		case <-w.Advanced():
		case <-limit.C:
			t.Fatalf("Durable is %d after %v, want %d", w.Durable(), patience, seq)
		}
	}
}

func closeWriter(t *testing.T, w stream.Writer) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := w.Close(ctx); err != nil && !errors.Is(err, stream.ErrClosed) {
		t.Errorf("Close: %v", err)
	}
}

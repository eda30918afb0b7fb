package kafka

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/compress"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/stream"
)

// Writer is the reader's end of a topic.
//
// Append encodes a batch into the open record of each partition it concerns;
// one goroutine, the sender, takes what there is and writes it: one request at
// a time to each broker, with one record for each partition. So under load a
// record holds what arrived while the last request was on its way, and when it
// is quiet a change leaves at once.
//
// What the two agree on, under mu: records are closed only between batches,
// and then carry V as it stands behind the last batch; a record that had to be
// closed inside a batch, because it was full, carries V as it stood before it.
// So V is never above a change that is still to come in its partition.
type Writer struct {
	cfg       Config
	client    *kafka.Client
	transport *kafka.Transport
	codec     compress.Compression
	room      chan struct{} // Append may try again; capacity one
	advanced  chan struct{}
	wake      chan struct{} // the sender has something to look at; capacity one
	results   chan result
	drained   chan struct{} // closed when a closed writer has nothing left
	cancel    context.CancelFunc
	wg        sync.WaitGroup

	mu struct {
		sync.Mutex
		parts    []*queue
		header   change.Record // Source, InsertLSN and V as they stand behind the last batch
		vSeen    uint64        // counts the moves of V, so that a queue knows whether it has told it
		last     uint64        // number of the last batch
		durable  uint64
		pending  int // bytes that were appended and not acknowledged
		err      error
		closed   bool
		empty    bool // drained is closed
		leaders  []int
		inflight map[int]bool // by leader
	}
}

var _ stream.Writer = (*Writer)(nil)

// NewWriter connects to the brokers and creates the topic if it is absent. It
// waits until a broker answers or ctx ends. The caller closes the Writer.
func NewWriter(ctx context.Context, cfg Config) (*Writer, error) {
	cfg = cfg.WithDefaults()
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	codec, err := compression(cfg.Compression)
	if err != nil {
		return nil, err
	}
	client, transport, err := cfg.connect(cfg.Topic)
	if err != nil {
		return nil, err
	}
	l, err := ensureTopic(ctx, client, topicConfig{cfg.Topic, cfg.Partitions, cfg.Replication, cfg.Retention})
	if err != nil {
		transport.CloseIdleConnections()
		return nil, fmt.Errorf("open kafka writer: %w", err)
	}
	w := &Writer{
		cfg: cfg, client: client, transport: transport, codec: codec,
		room:     make(chan struct{}, 1),
		advanced: make(chan struct{}, 1),
		wake:     make(chan struct{}, 1),
		results:  make(chan result),
		drained:  make(chan struct{}),
	}
	w.mu.inflight = make(map[int]bool)
	w.mu.leaders = l.leaders
	w.grow(len(l.leaders))
	// The sender outlives ctx, which is the caller's patience with the start.
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	w.cancel = cancel
	w.wg.Go(func() { w.send(run) })
	return w, nil
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// grow begins a new version of the partition map. Called with mu held, or
// before the sender runs; always between batches.
func (w *Writer) grow(n int) {
	m := &w.mu
	for _, q := range m.parts {
		w.close(q) // what is open was placed by the old map, and says so
	}
	for len(m.parts) < n {
		m.parts = append(m.parts, &queue{id: len(m.parts)})
	}
	m.header.Partitions, m.header.MapVersion = n, mapVersion(n)
	m.vSeen++ // every partition, new ones first of all, is told V under the new map
}

// Append implements stream.Writer. It waits while more than MaxPendingBytes
// are on their way. Besides the end of ctx and the writer's, it fails when the
// brokers refuse the topic or the login, which no retry cures.
func (w *Writer) Append(ctx context.Context, b stream.Batch) error {
	for {
		done, err := w.append(b)
		if err != nil {
			return fmt.Errorf("append batch %d to topic %s: %w", b.Seq, w.cfg.Topic, err)
		}
		if done {
			signal(w.wake)
			return nil
		}
		select {
		case <-w.room:
		case <-ctx.Done():
			return fmt.Errorf("append batch %d to topic %s: %w", b.Seq, w.cfg.Topic, ctx.Err())
		}
	}
}

func (w *Writer) append(b stream.Batch) (bool, error) {
	m, r := &w.mu, b.Record
	m.Lock()
	defer m.Unlock()
	switch {
	case m.err != nil:
		return false, m.err
	case m.closed:
		return false, stream.ErrClosed
	case m.last != 0 && b.Seq != m.last+1:
		return false, fmt.Errorf("it follows batch %d, numbers must have no holes", m.last)
	case m.pending > w.cfg.MaxPendingBytes:
		return false, nil
	}
	if m.last == 0 {
		m.durable = b.Seq - 1
	}
	m.last = b.Seq
	if r.Source != m.header.Source || r.InsertLSN != m.header.InsertLSN {
		// A record belongs to one source, and V of another says nothing here.
		for _, q := range m.parts {
			w.close(q)
		}
		m.header.Source, m.header.InsertLSN, m.header.V = r.Source, r.InsertLSN, 0
		m.vSeen++
	}
	for i := range r.Changes {
		c := &r.Changes[i]
		first, second := partitionsOf(c, len(m.parts))
		w.add(m.parts[first], c)
		if second >= 0 {
			w.add(m.parts[second], c)
		}
	}
	for i := range r.Raises {
		for _, q := range m.parts {
			w.raise(q, &r.Raises[i])
		}
	}
	if r.V > m.header.V {
		m.header.V = r.V
		m.vSeen++
	}
	w.advance()
	return true, nil
}

// add puts a change into the open record of q. Called with mu held.
func (w *Writer) add(q *queue, c *change.Change) {
	if q.open && q.enc.Len()+size(c) > w.cfg.MaxRecordBytes {
		w.close(q)
	}
	w.begin(q)
	before := q.enc.Len()
	if err := q.enc.AddChange(c); err != nil {
		// The reader made something that no worker could read. Its keys are
		// unknown to everybody, so the classes of its table are forgotten.
		w.cfg.Logger.Error("kafka writer: change can not be encoded", "error", err)
		x := oversizeRaise(w.mu.header.Source, c)
		w.raise(q, &x)
		return
	}
	w.mu.pending += q.enc.Len() - before
}

// size is at least what a change adds to a record.
func size(c *change.Change) int {
	const fixed, perValue = 64, 5
	n := fixed + len(c.Content) + len(c.Prefix)
	for _, row := range [2]change.Row{c.Old, c.New} {
		for i := range row {
			n += perValue + len(row[i].Bytes)
		}
	}
	return n
}

func (w *Writer) raise(q *queue, x *change.Raise) {
	if q.open && q.enc.Len()+raiseSize(x) > w.cfg.MaxRecordBytes {
		w.close(q)
	}
	w.begin(q)
	before := q.enc.Len()
	if err := q.enc.AddRaise(x); err != nil {
		w.cfg.Logger.Error("kafka writer: raise can not be encoded, everything is raised instead", "cause", x.Cause, "error", err)
		all := change.Raise{Cause: "all", Reason: x.Reason, Classes: []string{"*"}, X: x.X, Bound: x.Bound}
		if len(x.Cause) <= change.MaxNameBytes {
			all.Cause = x.Cause
		}
		_ = q.enc.AddRaise(&all) // nothing in it is long
	}
	w.mu.pending += q.enc.Len() - before
}

// raiseSize is at least what a raise adds to a record.
func raiseSize(x *change.Raise) int {
	const fixed, perName = 64, 5
	n := fixed + len(x.Cause) + len(x.Reason)
	for _, list := range [2][]string{x.Classes, x.Tables} {
		for _, name := range list {
			n += perName + len(name)
		}
	}
	return n
}

// begin opens the record of q, if none is open. Called with mu held.
func (w *Writer) begin(q *queue) {
	if q.open {
		return
	}
	head := w.mu.header
	head.Partition = q.id
	q.enc.Begin(q.buffer(), &head)
	q.open, q.seq = true, w.mu.last
	w.mu.pending += q.enc.Len()
}

// close completes the open record of q, with V as it stands now. Called with
// mu held.
func (w *Writer) close(q *queue) {
	if !q.open {
		return
	}
	q.enc.SetV(w.mu.header.V)
	q.ready = append(q.ready, outgoing{value: q.enc.Finish(), seq: q.seq})
	q.open = false
	q.told, q.toldAt = w.mu.vSeen, time.Now()
}

// untold reports whether q has still to be told where V stands. While there
// is no V (nothing was appended, or a log without V is copied) there is nothing
// to tell. Called with mu held.
func (w *Writer) untold(q *queue) bool { return q.told != w.mu.vSeen && w.mu.header.V != 0 }

// advance moves durable up to before the first batch that some partition still
// has to write. Called with mu held.
func (w *Writer) advance() {
	m := &w.mu
	durable := m.last
	waiting := false
	for _, q := range m.parts {
		waiting = waiting || q.open || len(q.ready) > 0 || w.untold(q)
		if seq := q.first(); seq != 0 && seq-1 < durable {
			durable = seq - 1
		}
	}
	if durable > m.durable {
		m.durable = durable
		signal(w.advanced)
	}
	if m.closed && !waiting && !m.empty {
		m.empty = true
		close(w.drained)
	}
}

// Durable implements stream.Writer: everything up to this batch was
// acknowledged by all in-sync replicas.
func (w *Writer) Durable() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.mu.durable
}

// Advanced implements stream.Writer.
func (w *Writer) Advanced() <-chan struct{} { return w.advanced }

// Close implements stream.Writer: it writes what was appended and the marks
// behind it, within ctx, and ends the sender. Closing twice is fine.
func (w *Writer) Close(ctx context.Context) error {
	m := &w.mu
	m.Lock()
	m.closed = true
	w.advance()
	refused := m.err != nil
	m.Unlock()
	signal(w.wake)
	signal(w.room)
	if refused { // nothing will change that: do not wait
		var cancel context.CancelFunc
		ctx, cancel = context.WithCancel(ctx)
		cancel()
	}
	var err error
	select {
	case <-w.drained:
	case <-ctx.Done():
		m.Lock()
		if !m.empty {
			err = fmt.Errorf("close kafka writer of topic %s: batches %d to %d are not acknowledged: %w",
				w.cfg.Topic, m.durable+1, m.last, errors.Join(ctx.Err(), m.err))
			if m.durable == m.last { // only marks were on their way
				err = nil
			}
		}
		m.Unlock()
	}
	w.cancel()
	w.wg.Wait()
	w.transport.CloseIdleConnections()
	return err
}

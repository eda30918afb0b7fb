// Package direct is the log between a reader and a worker of one process: a
// bounded queue in memory, one partition, no broker.
//
// What makes it durable is the slot of the database: a batch counts as durable
// only some time after the worker has applied it (Config.Keep), so that the
// reader leaves it in the write-ahead log until then. After a crash, or when a
// Redis that was restored lost its last writes, the reader gets it again.
package direct

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/stream"
)

// The defaults of a Config.
const (
	MaxBytesDefault   = 16 << 20
	MaxChangesDefault = 65536
	KeepDefault       = 10 * time.Second
)

// restartPause is how long Run waits before it calls a work function again
// that has returned although its context goes on.
const restartPause = 200 * time.Millisecond

// Config bounds a Log. The zero Config means the defaults.
type Config struct {
	// MaxBytes bounds the memory of what was appended and not yet applied, in
	// bytes; 16 MiB if 0. A batch that is larger alone is taken when the log
	// is empty.
	MaxBytes int
	// MaxChanges bounds the number of changes in the same way; 65,536 if 0.
	MaxChanges int
	// Keep is how long an applied batch stays in the database's log before it
	// counts as durable; 10 s if 0. It is the time within which a Redis that
	// loses its last writes (a failover, a restore) is noticed and repaired
	// from the log; what was lost longer ago is repaired by a raise.
	Keep time.Duration
}

func (c Config) withDefaults() Config {
	if c.MaxBytes <= 0 {
		c.MaxBytes = MaxBytesDefault
	}
	if c.MaxChanges <= 0 {
		c.MaxChanges = MaxChangesDefault
	}
	if c.Keep <= 0 {
		c.Keep = KeepDefault
	}
	return c
}

// entry is one batch; its offset is its number.
type entry struct {
	record *change.Record
	seq    uint64
	bytes  int
}

// applied says that everything up to seq was applied between since and at.
type applied struct {
	seq       uint64
	since, at time.Time
}

// Log is both ends of the stream: a stream.Writer and a stream.Consumer. All
// methods may be called by several goroutines, except Append and the methods
// of its partition, which belong to one each.
type Log struct {
	cfg      Config
	room     chan struct{} // Append may try again; capacity one
	ready    chan struct{} // Fetch may try again; capacity one
	advanced chan struct{}
	closing  chan struct{} // closed by the first Close
	drained  chan struct{} // closed when the log is empty after that

	mu struct {
		sync.Mutex
		queue   []entry // appended and not applied, in order
		cursor  int     // index in queue of what Fetch delivers next
		bytes   int
		changes int
		last    uint64 // number of the last batch
		acked   uint64 // number of the last applied batch
		waiting []applied
		durable uint64
		timer   *time.Timer // runs when the first of waiting becomes durable
		running bool
		closed  bool
		empty   bool // drained is closed
	}
}

var (
	_ stream.Writer   = (*Log)(nil)
	_ stream.Consumer = (*Log)(nil)
)

// New returns an empty log.
func New(cfg Config) *Log {
	return &Log{
		cfg:      cfg.withDefaults(),
		room:     make(chan struct{}, 1),
		ready:    make(chan struct{}, 1),
		advanced: make(chan struct{}, 1),
		closing:  make(chan struct{}),
		drained:  make(chan struct{}),
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Append implements stream.Writer.
func (l *Log) Append(ctx context.Context, b stream.Batch) error {
	e := entry{record: b.Record, seq: b.Seq, bytes: size(b.Record)}
	b.Record.Partition, b.Record.Partitions, b.Record.MapVersion = 0, 1, 1
	for {
		taken, err := l.push(e)
		if err != nil {
			return fmt.Errorf("append batch %d: %w", b.Seq, err)
		}
		if taken {
			signal(l.ready)
			return nil
		}
		select {
		case <-l.room:
		case <-l.closing:
		case <-ctx.Done():
			return fmt.Errorf("append batch %d: %w", b.Seq, ctx.Err())
		}
	}
}

func (l *Log) push(e entry) (bool, error) {
	m := &l.mu
	m.Lock()
	defer m.Unlock()
	if m.closed {
		return false, stream.ErrClosed
	}
	if m.last != 0 && e.seq != m.last+1 {
		return false, fmt.Errorf("it follows batch %d, numbers must have no holes", m.last)
	}
	if n := len(e.record.Changes); len(m.queue) > 0 && (m.bytes+e.bytes > l.cfg.MaxBytes || m.changes+n > l.cfg.MaxChanges) {
		return false, nil
	}
	if m.last == 0 {
		m.acked = e.seq - 1
		m.durable = e.seq - 1
	}
	m.queue = append(m.queue, e)
	m.bytes += e.bytes
	m.changes += len(e.record.Changes)
	m.last = e.seq
	return true, nil
}

// size estimates the memory of a record.
func size(r *change.Record) int {
	const perRecord, perChange, perValue = 256, 160, 32
	n := perRecord
	for i := range r.Changes {
		c := &r.Changes[i]
		n += perChange + perValue*(len(c.Old)+len(c.New)) + len(c.Content)
		for j := range c.Old {
			n += len(c.Old[j].Bytes)
		}
		for j := range c.New {
			n += len(c.New[j].Bytes)
		}
	}
	return n
}

// Durable implements stream.Writer: the last batch that was applied at least
// Keep ago, together with every batch before it.
func (l *Log) Durable() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.mu.durable
}

// Advanced implements stream.Writer.
func (l *Log) Advanced() <-chan struct{} { return l.advanced }

// Close implements stream.Writer. It refuses further batches and waits until
// the worker has applied those that it took; they need not be durable then.
// Closing twice is fine.
func (l *Log) Close(ctx context.Context) error {
	l.mu.Lock()
	if !l.mu.closed {
		l.mu.closed = true
		close(l.closing)
	}
	l.finish()
	l.mu.Unlock()
	signal(l.ready)
	select {
	case <-l.drained:
		return nil
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stopTimer()
	if l.mu.empty {
		return nil
	}
	return fmt.Errorf("close direct stream with %d batches not applied: %w", len(l.mu.queue), ctx.Err())
}

// finish closes drained once there is nothing left to apply. Called with the
// lock held.
func (l *Log) finish() {
	if l.mu.closed && len(l.mu.queue) == 0 && !l.mu.empty {
		l.mu.empty = true
		l.stopTimer()
		close(l.drained)
	}
}

func (l *Log) stopTimer() {
	if l.mu.timer != nil {
		l.mu.timer.Stop()
		l.mu.timer = nil
	}
}

// Assigned implements stream.Consumer: 1 while Run runs.
func (l *Log) Assigned() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.running {
		return 1
	}
	return 0
}

// Run implements stream.Consumer. Only one Run at a time is possible. A run
// begins with the first batch that was not applied, so what an earlier worker
// took and did not Ack is delivered again. A work function that returns nil
// although ctx goes on is called again. Run returns nil once the log is closed
// and its work function has noticed.
func (l *Log) Run(ctx context.Context, work func(context.Context, stream.Partition) error) error {
	if err := l.begin(); err != nil {
		return err
	}
	defer l.end()
	for {
		l.rewind()
		err := work(ctx, &partition{log: l})
		switch {
		case errors.Is(err, stream.ErrClosed):
			return nil
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("work on partition 0: %w", err)
		}
		pause := time.NewTimer(restartPause)
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return nil
		case <-l.drained:
			pause.Stop()
			return nil
		}
	}
}

func (l *Log) begin() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.running {
		return errors.New("run direct stream: it is running already, and it has one partition only")
	}
	l.mu.running = true
	return nil
}

func (l *Log) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.running = false
}

func (l *Log) rewind() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.cursor = 0
}

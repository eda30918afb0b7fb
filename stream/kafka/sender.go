package kafka

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"
	"github.com/segmentio/kafka-go/protocol/produce"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/stream"
)

// item is one partition's part of a request, and what became of it.
type item struct {
	queue *queue
	value []byte
	err   error
	parts [][]byte // what takes its place, if it was too large
}

// result is a request that has ended.
type result struct {
	leader int
	items  []item
}

// send is the sender: it alone starts requests, and handles what becomes of
// them.
func (w *Writer) send(ctx context.Context) {
	refresh := time.NewTicker(metadataTTL)
	defer refresh.Stop()
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	requests := 0
	defer func() { // every request ends, because its context has
		for ; requests > 0; requests-- {
			<-w.results
		}
	}()
	for {
		batches, next := w.take(time.Now())
		for leader, items := range batches {
			requests++
			w.wg.Go(func() { w.results <- w.request(ctx, leader, items) })
		}
		timer.Reset(next)
		select {
		case <-ctx.Done():
			return
		case <-w.wake:
		case <-timer.C:
		case <-refresh.C:
			w.refresh(ctx)
		case r := <-w.results:
			requests--
			if w.settle(r) {
				w.refresh(ctx)
			}
		}
	}
}

// take closes what is open and returns the next record of every partition that
// may be written now, by leader, and when to look again.
func (w *Writer) take(now time.Time) (map[int][]item, time.Duration) {
	m := &w.mu
	m.Lock()
	defer m.Unlock()
	next := time.Hour
	var batches map[int][]item
	for i, q := range m.parts {
		if q.sent {
			continue
		}
		leader := -1
		if i < len(m.leaders) {
			leader = m.leaders[i]
		}
		if leader < 0 || m.inflight[leader] {
			continue // looked at again when the answer, or the leader, is there
		}
		if d := q.until.Sub(now); d > 0 {
			next = min(next, d)
			continue
		}
		if len(q.ready) == 0 {
			if q.open {
				w.close(q)
			} else if w.untold(q) {
				if d := q.toldAt.Add(w.cfg.MarkInterval).Sub(now); d > 0 && !m.closed {
					next = min(next, d)
					continue
				}
				mark := q.mark(m.header)
				m.pending += len(mark.value)
				q.ready = append(q.ready, mark)
				q.told, q.toldAt = m.vSeen, now
			} else {
				continue
			}
		}
		q.sent = true
		if batches == nil {
			batches = make(map[int][]item)
		}
		batches[leader] = append(batches[leader], item{queue: q, value: q.ready[0].value})
	}
	for leader := range batches {
		m.inflight[leader] = true
	}
	return batches, next
}

// request writes one record to each of some partitions that one broker leads.
func (w *Writer) request(ctx context.Context, leader int, items []item) result {
	partitions := make([]produce.RequestPartition, len(items))
	for i := range items {
		partitions[i] = produce.RequestPartition{
			Partition: int32(items[i].queue.id),
			RecordSet: protocol.RecordSet{
				Attributes: protocol.Attributes(w.codec),
				Records:    protocol.NewRecordReader(protocol.Record{Value: protocol.NewBytes(items[i].value)}),
			},
		}
	}
	limited, cancel := context.WithTimeout(ctx, requestTimeout+requestGrace)
	defer cancel()
	answer, err := w.transport.RoundTrip(limited, w.client.Addr, &produce.Request{
		Acks:    int16(kafka.RequireAll),
		Timeout: int32(requestTimeout.Milliseconds()),
		Topics:  []produce.RequestTopic{{Topic: w.cfg.Topic, Partitions: partitions}},
	})
	res, _ := answer.(*produce.Response)
	if err == nil && res == nil {
		err = fmt.Errorf("produce: unexpected answer %T", answer)
	}
	codes := make(map[int]error)
	if res != nil {
		for i := range res.Topics {
			for _, p := range res.Topics[i].Partitions {
				codes[int(p.Partition)] = nil
				if p.ErrorCode != 0 {
					codes[int(p.Partition)] = kafka.Error(p.ErrorCode)
				}
			}
		}
	}
	for i := range items {
		code, answered := codes[items[i].queue.id]
		switch {
		case err != nil:
			items[i].err = err
		case !answered:
			items[i].err = errors.New("produce: the broker did not answer for the partition")
		default:
			items[i].err = code
		}
		if errors.Is(items[i].err, kafka.MessageSizeTooLarge) || errors.Is(items[i].err, kafka.InvalidMessageSize) {
			w.tooLarge(ctx, &items[i])
		}
	}
	return result{leader: leader, items: items}
}

// tooLarge finds what to write in place of a record that the broker refused
// for its size.
func (w *Writer) tooLarge(ctx context.Context, it *item) {
	parts, lost, ok, err := split(it.value)
	if !ok || err != nil {
		it.err = errors.Join(it.err, err)
		return
	}
	it.parts = parts
	if lost == nil {
		return
	}
	w.cfg.Logger.Error("kafka writer: a change is larger than the broker takes; the classes of its table are raised instead",
		"topic", w.cfg.Topic, "partition", it.queue.id, "bytes", len(it.value), "commit", lost.Commit.LSN, "error", it.err)
	if w.cfg.DeadLetters == nil {
		return
	}
	letter := stream.DeadLetter{
		Reason: "oversize", Err: it.err.Error(), Partition: it.queue.id, Offset: -1,
		Position: change.Position{LSN: lost.Commit.LSN}, Payload: it.value,
	}
	if lost.Table != nil {
		letter.Table = lost.Table.QualifiedName()
	}
	limited, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if err := w.cfg.DeadLetters.Put(limited, letter); err != nil {
		// The raise keeps the cache right without it.
		w.cfg.Logger.Error("kafka writer: dead letter was not kept", "error", err)
	}
}

// settle books a request that has ended. It reports whether the layout should
// be read again.
func (w *Writer) settle(r result) (refresh bool) {
	m := &w.mu
	m.Lock()
	defer m.Unlock()
	delete(m.inflight, r.leader)
	now := time.Now()
	for i := range r.items {
		it := &r.items[i]
		q := it.queue
		q.sent = false
		switch {
		case it.parts != nil:
			seq := q.ready[0].seq
			replaced := make([]outgoing, 0, len(it.parts)+len(q.ready)-1)
			m.pending -= len(q.ready[0].value)
			for _, b := range it.parts {
				replaced = append(replaced, outgoing{value: b, seq: seq})
				m.pending += len(b)
			}
			q.ready = append(replaced, q.ready[1:]...)
		case it.err == nil:
			m.pending -= len(q.ready[0].value)
			q.recycle(q.ready[0].value)
			q.ready[0] = outgoing{}
			if q.ready = q.ready[1:]; len(q.ready) == 0 {
				q.ready = nil
			}
			q.wait.reset()
		default:
			refresh = true
			q.until = now.Add(q.wait.next())
			if q.wait.attempt == 3 || q.wait.attempt%16 == 0 {
				w.cfg.Logger.Warn("kafka writer: write failed, trying again", "topic", w.cfg.Topic,
					"partition", q.id, "attempt", q.wait.attempt, "error", it.err)
			}
			if permanent(it.err) && m.err == nil {
				m.err = fmt.Errorf("write to partition %d: %w", q.id, it.err)
			}
		}
	}
	w.advance()
	if m.pending <= w.cfg.MaxPendingBytes || m.err != nil {
		signal(w.room)
	}
	return refresh
}

// refresh reads who leads which partition, and whether there are more.
func (w *Writer) refresh(ctx context.Context) {
	limited, cancel := context.WithTimeout(ctx, requestGrace)
	defer cancel()
	l, err := describe(limited, w.client, w.cfg.Topic)
	if err != nil {
		if ctx.Err() == nil && !errors.Is(err, errNoTopic) {
			w.cfg.Logger.Warn("kafka writer: layout is unknown", "topic", w.cfg.Topic, "error", err)
		}
		if !errors.Is(err, errNoTopic) {
			return
		}
		// Somebody deleted the topic, or the cluster has not told everybody yet.
		l, err = ensureTopic(limited, w.client, topicConfig{w.cfg.Topic, w.cfg.Partitions, w.cfg.Replication, w.cfg.Retention})
		if err != nil {
			return
		}
	}
	m := &w.mu
	m.Lock()
	defer m.Unlock()
	switch n := len(l.leaders); {
	case n < len(m.parts):
		if m.err == nil {
			m.err = fmt.Errorf("the topic has %d partitions and had %d: it was made anew, the reader has to start again", n, len(m.parts))
		}
		signal(w.room)
		return
	case n > len(m.parts):
		w.cfg.Logger.Info("kafka writer: the topic has more partitions", "topic", w.cfg.Topic, "before", len(m.parts), "now", n)
		w.grow(n)
	}
	m.leaders = l.leaders
}

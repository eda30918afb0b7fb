package kafka

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/segmentio/kafka-go"
	"github.com/segmentio/kafka-go/protocol"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/stream"
)

// maxFetchBytes bounds one answer of a broker; it returns a larger record alone.
const maxFetchBytes = 1 << 20

// fetched is what one fetch brought, or the error that ends the fetches.
type fetched struct {
	deliveries []stream.Delivery
	err        error
}

// partition is one assignment of a partition to this worker.
type partition struct {
	c         *Consumer
	id, count int
	acked     atomic.Int64 // the next offset to commit; -1: nothing was applied
	tracker

	// chunks carries what was fetched ahead: while the worker applies one
	// answer the next one is read and decoded, and no more than that.
	chunks chan fetched
	rest   fetched // what Fetch has not handed out yet

	// Of the fetching goroutine.
	wire     change.Decoder
	debezium change.DebeziumDecoder
	next     int64 // the offset that must come next
	gap      bool  // records before next are gone, and nobody was told yet
	first    bool  // the group has left no offset, and nobody was told yet
}

func newPartition(c *Consumer, id, count int) *partition {
	p := &partition{c: c, id: id, count: count, chunks: make(chan fetched)}
	p.acked.Store(-1)
	return p
}

// ID implements stream.Partition.
func (p *partition) ID() int { return p.id }

// Count implements stream.Partition.
func (p *partition) Count() int { return p.count }

// Fetch implements stream.Partition.
func (p *partition) Fetch(ctx context.Context, most int) ([]stream.Delivery, error) {
	for len(p.rest.deliveries) == 0 {
		if p.rest.err != nil {
			return nil, p.rest.err
		}
		select {
		case p.rest = <-p.chunks:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	all := p.rest.deliveries
	i, n := 0, 0
	for i < len(all) && (i == 0 || n < most) {
		if r := all[i].Record; r != nil {
			n += len(r.Changes)
		}
		i++
	}
	p.rest.deliveries = all[i:]
	return all[:i:i], nil
}

// Ack implements stream.Partition. The offset is committed within
// CommitInterval, and at the end of the assignment.
func (p *partition) Ack(_ context.Context, offset int64) error {
	if offset+1 > p.acked.Load() {
		p.acked.Store(offset + 1)
	}
	return nil
}

// commitLoop commits what was applied through the generation of this very
// assignment, which refuses it once the generation is over.
func (p *partition) commitLoop(gen *kafka.Generation, stop <-chan struct{}) {
	tick := time.NewTicker(p.c.cfg.CommitInterval)
	defer tick.Stop()
	committed, failing := int64(-1), false
	for over := false; !over; {
		select {
		case <-tick.C:
		case <-stop:
			over = true
		}
		offset := p.acked.Load()
		if offset <= committed {
			continue
		}
		err := gen.CommitOffsets(map[string]map[int]int64{p.c.cfg.Topic: {p.id: offset}})
		if err == nil {
			committed, failing = offset, false
			continue
		}
		// What was not committed is applied again, which does no harm.
		if !failing {
			p.c.cfg.Logger.Warn("kafka consumer: commit failed", "partition", p.id, "offset", offset, "error", err)
		}
		failing = true
	}
}

// fetchLoop reads from offset on until ctx ends or the broker refuses.
func (p *partition) fetchLoop(ctx context.Context, offset int64) {
	var wait backoff
	p.next = offset
	for ctx.Err() == nil {
		out, err := p.fetch(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			wait.reset()
			if len(out) == 0 {
				continue
			}
		case permanent(err):
			out = nil
		default:
			if wait.attempt == 3 || wait.attempt%16 == 15 {
				p.c.cfg.Logger.Warn("kafka consumer: fetch failed, trying again", "topic", p.c.cfg.Topic,
					"partition", p.id, "offset", p.next, "attempt", wait.attempt, "error", err)
			}
			_ = wait.sleep(ctx)
			continue
		}
		select {
		case p.chunks <- fetched{deliveries: out, err: err}:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

// fetch reads what stands at p.next. A request that is not answered in time,
// over a dead connection or from a deaf broker, ends with its context, so no
// partition stays silent for ever.
func (p *partition) fetch(ctx context.Context) ([]stream.Delivery, error) {
	if p.next < 0 { // the group has no offset: begin at the earliest
		first, _, err := p.bounds(ctx)
		if err != nil {
			return nil, err
		}
		// If that is not the beginning, this may be a group whose offsets have
		// expired: what it missed is gone.
		p.next, p.gap, p.first = first, first > 0, true
	}
	limited, cancel := context.WithTimeout(ctx, p.c.cfg.MaxWait+requestTimeout)
	defer cancel()
	res, err := p.c.client.Fetch(limited, &kafka.FetchRequest{
		Topic: p.c.cfg.Topic, Partition: p.id, Offset: p.next,
		MinBytes: 1, MaxBytes: maxFetchBytes, MaxWait: p.c.cfg.MaxWait,
	})
	if err != nil {
		return nil, err
	}
	if errors.Is(res.Error, kafka.OffsetOutOfRange) {
		return p.outOfRange(ctx)
	}
	if res.Error != nil {
		return nil, fmt.Errorf("fetch partition %d at offset %d: %w", p.id, p.next, res.Error)
	}
	out, err := p.read(res.Records)
	switch {
	case len(out) > 0:
		return out, nil // what is damaged behind it fails again, alone
	case err == nil && p.gap:
		// Nothing stands behind the gap to carry the news: the next record may
		// come much later, or never.
		p.gap, p.first = false, false
		return []stream.Delivery{{Record: &change.Record{Partition: p.id, Partitions: p.count}, Offset: p.next - 1, Gap: true}}, nil
	}
	return nil, err
}

// outOfRange moves to where the log begins now: it was cut beyond p.next, or
// it is another log, shorter than what was read of the old one.
func (p *partition) outOfRange(ctx context.Context) ([]stream.Delivery, error) {
	first, last, err := p.bounds(ctx)
	if err != nil {
		return nil, err
	}
	if p.next >= first && p.next <= last {
		return nil, fmt.Errorf("fetch partition %d at offset %d: %w", p.id, p.next, kafka.OffsetOutOfRange) // a new leader that is behind
	}
	p.c.cfg.Logger.Error("kafka consumer: the log was cut before it was read", "topic", p.c.cfg.Topic, "partition", p.id,
		"offset", p.next, "first", first, "last", last)
	p.next, p.gap = first, true
	return nil, nil
}

// bounds asks for the first offset and the one behind the last.
func (p *partition) bounds(ctx context.Context) (first, last int64, err error) {
	limited, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	res, err := p.c.client.ListOffsets(limited, &kafka.ListOffsetsRequest{Topics: map[string][]kafka.OffsetRequest{
		p.c.cfg.Topic: {kafka.FirstOffsetOf(p.id), kafka.LastOffsetOf(p.id)},
	}})
	if err != nil {
		return 0, 0, fmt.Errorf("read the bounds of partition %d: %w", p.id, err)
	}
	for _, o := range res.Topics[p.c.cfg.Topic] {
		if o.Partition == p.id {
			if o.Error != nil {
				return 0, 0, fmt.Errorf("read the bounds of partition %d: %w", p.id, o.Error)
			}
			return o.FirstOffset, o.LastOffset, nil
		}
	}
	return 0, 0, fmt.Errorf("read the bounds of partition %d: no answer", p.id)
}

// read decodes the records of an answer.
func (p *partition) read(records kafka.RecordReader) ([]stream.Delivery, error) {
	batches := []protocol.RecordReader{records}
	if s, ok := records.(*protocol.RecordStream); ok {
		batches = s.Records
	}
	var out []stream.Delivery
	for _, b := range batches {
		if c, ok := b.(*protocol.ControlBatch); ok {
			// The end of a transaction of another program (Debezium may use
			// them): it has an offset and is no record.
			if c.BaseOffset >= p.next {
				from := p.next
				if h := p.hole.Load(); h != nil && h.to == from {
					from = h.from
				}
				p.next = c.BaseOffset + 1
				p.hole.Store(&hole{from, p.next})
			}
			continue
		}
		for {
			rec, err := b.ReadRecord()
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return out, fmt.Errorf("read partition %d at offset %d: %w", p.id, p.next, err)
			}
			key, err := readAll(rec.Key)
			if err != nil {
				return out, err
			}
			value, err := readAll(rec.Value)
			if err != nil {
				return out, err
			}
			if rec.Offset < p.next {
				continue // a broker returns whole batches
			}
			out = append(out, p.delivery(rec.Offset, key, value))
		}
	}
	return out, nil
}

func readAll(b protocol.Bytes) ([]byte, error) {
	if b == nil {
		return nil, nil
	}
	v, err := protocol.ReadAll(b)
	return v, errors.Join(err, b.Close())
}

// delivery decodes one record. It never loses one: what can not be decoded is
// delivered as that.
func (p *partition) delivery(offset int64, key, value []byte) stream.Delivery {
	d := stream.Delivery{Offset: offset, Gap: p.gap || offset != p.next, First: p.first}
	p.next, p.gap, p.first = offset+1, false, false
	r := new(change.Record)
	var err error
	trimmed := bytes.TrimSpace(value)
	if change.IsWire(value) {
		err = p.wire.Decode(r, value)
	} else if len(trimmed) == 0 || trimmed[0] == '{' {
		err = p.debezium.Decode(r, key, value)
		r.Partition, r.Partitions = p.id, p.count
	} else {
		err = fmt.Errorf("neither a record of ours nor an event of Debezium: %w", change.ErrNotRecord)
	}
	if err != nil {
		d.Err = fmt.Errorf("partition %d, offset %d: %w", p.id, offset, err)
		d.Raw = value
		return d
	}
	d.Record = r
	return d
}

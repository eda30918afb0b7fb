package kafka

import (
	"context"
	"errors"
	"fmt"

	"github.com/lethe-cache/lethe/change"
)

// lastLook is how far back a partition is read for a record of ours, at first
// and if that is none: strangers may have written behind it.
var lastLook = [...]int64{1, 100}

// LastSource returns the source of the last records in the topic, the one of
// the greatest era; zero if none says anything of it. A reader must not begin an
// era that the log knows already: workers would take what is new for old. It
// blocks for a few requests for each partition.
func (w *Writer) LastSource(ctx context.Context) (change.Source, error) {
	var last change.Source
	l, err := describe(ctx, w.client, w.cfg.Topic)
	if errors.Is(err, errNoTopic) {
		return last, nil
	}
	if err != nil {
		return last, err
	}
	c := &Consumer{cfg: w.cfg, client: w.client}
	for id := range l.leaders {
		src, err := lastSource(ctx, newPartition(c, id, len(l.leaders)))
		if err != nil {
			return change.Source{}, fmt.Errorf("read the last source of topic %s: %w", w.cfg.Topic, err)
		}
		if src.Era > last.Era {
			last = src
		}
	}
	return last, nil
}

func lastSource(ctx context.Context, p *partition) (last change.Source, err error) {
	first, end, err := p.bounds(ctx)
	if err != nil {
		return last, err
	}
	for _, back := range lastLook {
		if p.next = max(first, end-back); p.next == end {
			return last, nil // empty
		}
		for p.next < end && last.Era == 0 {
			at := p.next
			deliveries, err := p.fetch(ctx)
			if err != nil {
				return last, err
			}
			for _, d := range deliveries {
				if d.Record != nil && d.Record.Source.Era >= last.Era {
					last = d.Record.Source
				}
			}
			if p.next == at {
				break // nothing more to be had
			}
		}
		if last.Era != 0 {
			return last, nil
		}
	}
	return last, nil
}

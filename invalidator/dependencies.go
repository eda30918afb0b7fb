package invalidator

import (
	"context"
	"fmt"
	"slices"

	"github.com/lethe-cache/lethe/change"
	"github.com/lethe-cache/lethe/stream"
)

// learn makes the rules hold every dependency that the log has told of up to the
// end of the deliveries, before any of them is worked on. What that newly touches
// follow raises, as it does when the rules' files have changed.
//
// It does not matter that changes which stand before the news are then looked at
// with what came after them: a dependency more forgets more, and one that is gone
// was taken away by somebody. Nor does it that a change may stand before news of
// an earlier commit, in a batch that was cut into records: the raise that the news
// brings comes after it and forgets what it should have.
//
// Whatever raises everything may have hidden such news: a slot that was lost, a
// cut log, another server.
func (l *lane) learn(ctx context.Context, deliveries []stream.Delivery) error {
	if l.w.cfg.Dependencies == nil {
		return nil
	}
	for i := range deliveries {
		d := &deliveries[i]
		if l.cut(d) || d.Record == nil {
			if err := l.learnOf(ctx, l.w.uniqueCause(fmt.Sprintf("lost:%d:%d", l.p.ID(), d.Offset))); err != nil {
				return err
			}
			continue
		}
		for k := range d.Record.Raises {
			r := &d.Record.Raises[k]
			if r.Reason != change.ReasonDependencies && !slices.Contains(r.Classes, "*") {
				continue
			}
			if err := l.learnOf(ctx, r.Cause); err != nil {
				return err
			}
		}
	}
	return nil
}

func (l *lane) learnOf(ctx context.Context, cause string) error {
	return l.w.retry(ctx, "read dependencies", func(ctx context.Context) error { return l.w.cfg.Dependencies(ctx, cause) })
}

package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// settle is how long a consumer that has its slot is held back before its
// round: its other connections, rules and tables are then in place, and the
// round measures the drain and nothing else.
const settle = 300 * time.Millisecond

// running is a consumer that has been started.
type running struct {
	// failed receives why it ended, if it ends by itself.
	failed <-chan error
	// ready, if set, waits for what the consumer needs besides its slot.
	ready func(ctx context.Context) error
	// stop ends it and waits; nil-safe to call once.
	stop func() error
}

// subject is one way of emptying Redis from the log.
type subject struct {
	name  string
	start func(ctx context.Context, slot string) (*running, error)
	// limit, if set, ends the drain early; the rate is then what was done until
	// then.
	limit time.Duration
}

// start runs the consumer in a goroutine of this process.
func (c consumer) start(ctx context.Context, slot string) (*running, error) {
	c.slot = slot
	ctx, cancel := context.WithCancel(ctx)
	failed, done := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(done)
		if err := c.run(ctx); err != nil {
			failed <- err
		}
	}()
	return &running{failed: failed, stop: func() error { cancel(); <-done; return nil }}, nil
}

// drain fills Redis with the keys of the workload, lets the subject follow the
// log from before the workload, and returns the rows per second between the
// moment at which the walsender begins to send and the moment at which the last
// key has gone.
func (e *env) drain(ctx context.Context, w *workload, s subject) (rate float64, err error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	defer func() {
		if err != nil {
			err = fmt.Errorf("%s: %w", s.name, err)
		}
	}()
	const slot = "bench_drain"
	from, to := w.ids()
	if err := e.cache.reset(ctx, from, to); err != nil {
		return 0, err
	}
	if err := e.db.copySlot(ctx, w.slot(), slot); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, e.db.dropSlot(context.WithoutCancel(ctx), slot)) }()
	r, err := s.start(ctx, slot)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, r.stop()) }()
	h, err := e.db.hold(ctx, slot, r.failed)
	if err != nil {
		return 0, err
	}
	if r.ready != nil {
		err = r.ready(ctx)
	}
	if err == nil {
		err = pause(ctx, settle)
	}
	before, sizeErr := e.cache.size(ctx)
	ahead, aheadErr := h.ahead(ctx, e.db, w)
	start, released := h.release()
	if err := errors.Join(err, sizeErr, aheadErr, released); err != nil {
		return 0, err
	}
	if s.limit > 0 {
		return e.drainFor(ctx, s.limit, before, start, w, r)
	}
	first, last := w.sentinels()
	if err := e.cache.waitGone(ctx, first, last, r.failed); err != nil {
		return 0, err
	}
	took := time.Since(start)
	left, err := e.cache.remaining(ctx, from, to)
	if err == nil && left != 0 {
		err = fmt.Errorf("%d of 1000 keys of changed rows are still there", left)
	}
	return perSecond(w.rest(ahead), took), err
}

// drainFor counts the keys that go within limit, or until there are no more.
func (e *env) drainFor(ctx context.Context, limit time.Duration, before int64, start time.Time, w *workload, r *running) (float64, error) {
	first, last := w.sentinels()
	// No deadline: the client would hand it to the socket, whose timeout can
	// come before the context knows that it has ended.
	bounded, cancel := context.WithCancel(ctx)
	defer cancel()
	defer time.AfterFunc(time.Until(start.Add(limit)), cancel).Stop()
	err := e.cache.waitGone(bounded, first, last, r.failed)
	if err != nil && bounded.Err() == nil {
		return 0, err
	}
	took := time.Since(start)
	after, err := e.cache.size(ctx)
	return perSecond(int(before-after), took), err
}

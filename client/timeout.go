package client

import (
	"context"
	"sync"
	"time"
)

// timeouts bound steps that ask Redis. context.WithTimeout costs more than all
// else that a hit in Redis does beside the question and the decoding, most of it
// for a timer that in all but a few steps is stopped unused. So timers are used
// again.
type timeouts struct{ idle sync.Pool }

// timeout is a timer, and what it ends.
type timeout struct {
	timer  *time.Timer
	cancel context.CancelCauseFunc
}

// begin is context.WithTimeout, at a moment that the caller knows. What it
// returns is given to end.
func (s *timeouts) begin(ctx context.Context, now time.Time, d time.Duration) (context.Context, *timeout) {
	at := now.Add(d)
	if own, ok := ctx.Deadline(); ok && !at.Before(own) {
		return ctx, nil // it ends by itself
	}
	inner, cancel := context.WithCancelCause(ctx)
	t, _ := s.idle.Get().(*timeout)
	if t == nil {
		t = &timeout{cancel: cancel}
		t.timer = time.AfterFunc(d, t.late)
	} else {
		t.cancel = cancel // before Reset: late reads it
		t.timer.Reset(d)
	}
	return &stepContext{Context: inner, deadline: at}, t
}

func (t *timeout) late() { t.cancel(context.DeadlineExceeded) }

// end ends the context. A timer that has gone off, or is just about to, is not
// used again: it would end the step of another.
func (s *timeouts) end(t *timeout) {
	if t == nil {
		return
	}
	idle := t.timer.Stop()
	t.cancel(context.Canceled)
	if idle {
		t.cancel = nil
		s.idle.Put(t)
	}
}

// stepContext is a context that is cancelled at its deadline.
type stepContext struct {
	context.Context
	deadline time.Time
}

// Deadline is the end of the step's time.
func (c *stepContext) Deadline() (time.Time, bool) { return c.deadline, true }

// Err tells the end of the step's time from the end of the step.
func (c *stepContext) Err() error {
	err := c.Context.Err()
	if err != nil && context.Cause(c.Context) == context.DeadlineExceeded { //nolint:errorlint // it is late's own
		return context.DeadlineExceeded
	}
	return err
}

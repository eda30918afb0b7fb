package invalidator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v4"
)

// The back-off between two attempts of a call to Redis or to the database.
const (
	retryFirst = 20 * time.Millisecond
	retryMost  = 2 * time.Second
)

// newBackoff never gives up: what a worker could not apply holds its offset
// until it is applied, or until the partition is taken away.
func newBackoff() *backoff.ExponentialBackOff {
	return backoff.NewExponentialBackOff(
		backoff.WithInitialInterval(retryFirst),
		backoff.WithMaxInterval(retryMost),
		backoff.WithMultiplier(2),
		backoff.WithMaxElapsedTime(0),
	)
}

// retry repeats call as a whole until it succeeds or ctx ends. Repeating whole
// calls, never the part that failed, is what H6 of PROTOCOL asks for.
//
// A node that may have lost writes answers nothing until it was redone, so that
// is done first; there is nothing to wait for then.
func (w *Worker) retry(ctx context.Context, what string, call func(context.Context) error) error {
	var wait *backoff.ExponentialBackOff
	for {
		err := call(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return errors.Join(context.Cause(ctx), fmt.Errorf("%s: %w", what, err))
		}
		w.metrics.retries.WithLabelValues(what).Inc()
		if w.isLost(err) {
			redone, redoErr := w.redo(ctx)
			if redone && redoErr == nil {
				continue
			}
			if redoErr != nil {
				err = redoErr
			}
		}
		if wait == nil {
			wait = newBackoff()
			w.log.WarnContext(ctx, "call failed, repeating it until it succeeds", "call", what, "error", err)
		}
		if err := pause(ctx, wait.NextBackOff()); err != nil {
			return err
		}
	}
}

// pause waits for d or for the end of ctx, whose cause it returns then.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

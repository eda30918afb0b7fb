package main

import (
	"context"
	"errors"
	"testing"
)

// A service that fails ends the others, and serve waits for all of them.
func TestServiceThatFailsEndsTheOthers(t *testing.T) {
	t.Parallel()
	failed := errors.New("failed")
	var ended bool
	err := serve(t.Context(), []service{
		{"one", func(ctx context.Context) error { <-ctx.Done(); ended = true; return ctx.Err() }},
		{"two", func(context.Context) error { return failed }},
	})
	if !errors.Is(err, failed) || !ended {
		t.Errorf("err = %v, the other has ended: %v; want the error of two, and true", err, ended)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := serve(ctx, []service{{"one", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }}}); err != nil {
		t.Errorf("asked to end: %v", err)
	}
}

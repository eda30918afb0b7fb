package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// service is something that a worker's process does beside the stream: on a
// clock, or behind the worker. run blocks until ctx ends, and then returns once
// nothing of it is left; an error before that is one that a retry does not cure.
type service struct {
	name string
	run  func(ctx context.Context) error
}

// serve runs services until ctx ends or one of them fails, which ends the
// others. It returns when the last one is over.
func serve(ctx context.Context, services []service) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	errs := make([]error, len(services))
	var wait sync.WaitGroup
	for i, s := range services {
		wait.Go(func() {
			err := s.run(ctx)
			if err != nil && !(ctx.Err() != nil && errors.Is(err, context.Canceled)) {
				errs[i] = fmt.Errorf("%s: %w", s.name, err)
				cancel()
			}
		})
	}
	<-ctx.Done()
	wait.Wait()
	return errors.Join(errs...)
}

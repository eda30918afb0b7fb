package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"
)

// errSignal is why a context ended when a person or a supervisor asked for it.
var errSignal = errors.New("asked to stop")

// stopSignals returns two contexts: the first ends with the first SIGINT or
// SIGTERM and means "take no more work, finish what was begun"; the second ends
// with the second signal and means "leave what was begun". SIGHUP, which asks
// daemons to read their files again, does nothing: this version reads its rules
// at the start. release must be called.
func stopSignals(parent context.Context) (graceful, hurry context.Context, release func()) {
	graceful, stopGraceful := context.WithCancelCause(parent)
	hurry, stopHurry := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	signal.Ignore(syscall.SIGHUP)
	done, quit := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for _, stop := range []context.CancelCauseFunc{stopGraceful, stopHurry} {
			select {
			case <-signals:
				stop(errSignal)
			case <-quit:
				return
			}
		}
	}()
	return graceful, hurry, func() {
		signal.Stop(signals)
		signal.Reset(syscall.SIGHUP)
		close(quit)
		<-done
		stopGraceful(nil)
		stopHurry(nil)
	}
}

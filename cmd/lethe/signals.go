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
// SIGTERM, or one of the others, and means "take no more work, finish what was
// begun"; the second ends with the second signal and means "leave what was
// begun". release must be called.
func stopSignals(parent context.Context, others ...os.Signal) (graceful, hurry context.Context, release func()) {
	graceful, stopGraceful := context.WithCancelCause(parent)
	hurry, stopHurry := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, append(others, os.Interrupt, syscall.SIGTERM)...)
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
		close(quit)
		<-done
		stopGraceful(nil)
		stopHurry(nil)
	}
}

// reloadSignals returns a channel that SIGHUP, which asks daemons to read their
// files again, puts a value into; several that come together are one. release
// must be called.
func reloadSignals() (asked <-chan struct{}, release func()) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGHUP)
	out := make(chan struct{}, 1)
	done, quit := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-signals:
				select {
				case out <- struct{}{}:
				default:
				}
			case <-quit:
				return
			}
		}
	}()
	return out, func() {
		signal.Stop(signals)
		close(quit)
		<-done
	}
}

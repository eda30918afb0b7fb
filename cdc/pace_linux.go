package cdc

import (
	"syscall"
	"time"
)

// nap sleeps for less than a millisecond, precisely. time.Sleep does not: in an
// otherwise idle process the runtime's timers wait in epoll, whose unit is a
// millisecond. The thread is blocked meanwhile, which is what a pause is.
func nap(d time.Duration) {
	ts := syscall.NsecToTimespec(int64(d))
	_ = syscall.Nanosleep(&ts, nil) // a signal ends it early, and no harm is done
}

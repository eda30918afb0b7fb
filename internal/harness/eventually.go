package harness

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// Patience is how long a test waits for what must happen before it calls that a
// hang. A machine that runs two packages of servers beside this one on two cores
// has been seen to stand still for 20 s; a minute and a half is no slowness.
const Patience = 90 * time.Second

// Eventually calls check every 5 ms until it returns nil, and fails the test
// with its last error if that has not happened after d, or after Patience if
// that is longer: d says how long it ought to take, and tells nothing of a machine
// that has other things to do. It is the only place where tests poll: for what a
// server does by itself and tells nobody.
func Eventually(t testing.TB, d time.Duration, check func() error) {
	t.Helper()
	Within(t, max(d, Patience), check)
}

// Within is Eventually with a bound that is meant: it fails the test after d.
func Within(t testing.TB, d time.Duration, check func() error) {
	t.Helper()
	deadline := time.NewTimer(d)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-deadline.C:
			if err = check(); err == nil { // the process may have stood still until now
				return
			}
			t.Fatalf("not after %v: %v", d, err)
		case <-tick.C:
		}
	}
}

// True is a check for Eventually made of a condition.
func True(what string, condition func() bool) func() error {
	return func() error {
		if !condition() {
			return errors.New("never came true: " + what)
		}
		return nil
	}
}

// Namespace is a prefix for this test's names in a shared Redis: letters,
// digits and dashes of the test's name.
func Namespace(t testing.TB) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '-'
	}, t.Name())
}

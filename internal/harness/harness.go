// Package harness gives tests the real servers of package servers: started once
// for a test process where they can be shared, and stopped at the end whatever
// happens. A test package calls Main from its TestMain.
//
// A server that is not on this machine skips the test that asks for it, with a
// line that says so.
package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/lethe-cache/lethe/internal/servers"
)

// shared holds the servers of this test process. It is the one global of the
// harness: the process is what they are shared by.
var shared struct {
	mu       sync.Mutex
	postgres *servers.Postgres
	redis    *servers.Redis
	kafka    *servers.Kafka
	database int // number of the last database made
	topic    int // and of the last topic named
	atEnd    []func() error
}

// Main runs the tests of a package, stops the shared servers and fails the
// package if a goroutine is left. It does not return.
//
//	func TestMain(m *testing.M) { harness.Main(m) }
func Main(m *testing.M, ignore ...goleak.Option) {
	os.Exit(run(m, ignore))
}

func run(m *testing.M, ignore []goleak.Option) int {
	// Ctrl-C and a runner's SIGTERM. A panic and SIGKILL need nothing here: the
	// servers die with this process.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	finished := make(chan struct{})
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		select {
		case <-finished:
		case sig := <-signals:
			fmt.Fprintf(os.Stderr, "%v: stopping the servers\n", sig)
			_ = closeShared()
			os.Exit(1)
		}
	}()
	code := m.Run()
	if err := closeShared(); err != nil {
		fmt.Fprintln(os.Stderr, "stop the shared servers:", err)
		code = max(code, 1)
	}
	signal.Stop(signals)
	close(finished)
	<-watched
	if code == 0 {
		// signal.Notify starts a goroutine of the runtime that never ends.
		ignore = append(ignore, goleak.IgnoreTopFunction("os/signal.signal_recv"), goleak.IgnoreTopFunction("os/signal.loop"))
		if err := goleak.Find(ignore...); err != nil {
			fmt.Fprintln(os.Stderr, "goroutines left behind:", err)
			return 1
		}
	}
	return code
}

// AtEnd has f called when the tests of this process are over, also if they are
// ended by a signal: for what they share and no single test can clean up.
func AtEnd(f func() error) {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	shared.atEnd = append(shared.atEnd, f)
}

// closeShared stops what the tests shared, at the end of the process.
func closeShared() error {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	var errs []error
	if shared.postgres != nil {
		errs = append(errs, shared.postgres.Close())
		shared.postgres = nil
	}
	if shared.redis != nil {
		errs = append(errs, shared.redis.Close())
		shared.redis = nil
	}
	if shared.kafka != nil {
		errs = append(errs, shared.kafka.Close())
		shared.kafka = nil
	}
	for _, f := range shared.atEnd {
		errs = append(errs, f())
	}
	shared.atEnd = nil
	return errors.Join(errs...)
}

// startTimeout bounds the start of one server; a first start may download.
const startTimeout = 5 * time.Minute

// started fails the test unless the start succeeded, and skips it where there
// is no such server.
func started(t testing.TB, err error) {
	t.Helper()
	if errors.Is(err, servers.ErrNotInstalled) {
		t.Skipf("left out: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func startContext(t testing.TB) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), startTimeout)
}

// closed closes c at the end of the test.
func closed(t testing.TB, c interface{ Close() error }) {
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
}

package harness_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lethe-cache/lethe/internal/harness"
)

func TestMain(m *testing.M) { harness.Main(m) }

func TestServersAreSharedAndDatabasesAreNot(t *testing.T) {
	t.Parallel()
	if a, b := harness.Postgres(t), harness.Postgres(t); a != b {
		t.Error("Postgres started two servers")
	}
	if a, b := harness.Redis(t), harness.Redis(t); a != b {
		t.Error("Redis started two servers")
	}
	if a, b := harness.Database(t), harness.Database(t); a == b {
		t.Errorf("Database returned %s twice", a)
	}
	if a, b := harness.Topic(t), harness.Topic(t); a == b {
		t.Errorf("Topic returned %s twice", a)
	}
}

// failing is a test whose end is observed instead of suffered.
type failing struct {
	testing.TB
	message string
}

func (f *failing) Helper() {}

func (f *failing) Fatalf(format string, args ...any) {
	f.message = fmt.Sprintf(format, args...)
	panic(f) // like runtime.Goexit, but it can be caught here
}

func TestEventually(t *testing.T) {
	t.Parallel()
	calls := 0
	harness.Eventually(t, 10*time.Second, harness.True("three calls", func() bool { calls++; return calls == 3 }))
	if calls != 3 {
		t.Errorf("check was called %d times, want 3", calls)
	}
	f := &failing{TB: t}
	func() {
		defer func() { _ = recover() }()
		harness.Within(f, 10*time.Millisecond, func() error { return errors.New("still cold") })
	}()
	if !strings.Contains(f.message, "still cold") {
		t.Errorf("what fails the test: %q, want the last error in it", f.message)
	}
}

func TestNamespaceIsPlain(t *testing.T) {
	t.Parallel()
	t.Run("a {b}:c", func(t *testing.T) {
		if got, want := harness.Namespace(t), "TestNamespaceIsPlain-a--b--c"; got != want {
			t.Errorf("Namespace() = %q, want %q", got, want)
		}
	})
}

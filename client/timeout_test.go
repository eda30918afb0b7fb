package client

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/lethe-cache/lethe/internal/harness"
)

func TestTimeoutEndsItsContext(t *testing.T) {
	t.Parallel()
	var s timeouts
	ctx, one := s.begin(t.Context(), time.Now(), time.Nanosecond)
	<-ctx.Done()
	if err, cause := ctx.Err(), context.Cause(ctx); err != context.DeadlineExceeded || cause != context.DeadlineExceeded { //nolint:errorlint // as the library says
		t.Errorf("at its end: %v, because of %v", err, cause)
	}
	s.end(one)
	if again := s.idle.Get(); again != nil {
		t.Error("a timer that has gone off is used again: it may just be ending somebody's context")
	}

	now := time.Now()
	ctx, one = s.begin(t.Context(), now, time.Hour)
	if at, ok := ctx.Deadline(); !ok || !at.Equal(now.Add(time.Hour)) || ctx.Err() != nil {
		t.Errorf("before its end: %v, %v, until %v", ctx.Err(), ok, at)
	}
	s.end(one)
	<-ctx.Done()
	if err := ctx.Err(); err != context.Canceled { //nolint:errorlint // as the library says
		t.Errorf("after the step: %v", err)
	}
}

// The next step has the timer of the last one and nothing else of it.
func TestTimeoutIsUsedAgain(t *testing.T) {
	t.Parallel()
	var s timeouts
	for range 100 {
		old, one := s.begin(t.Context(), time.Now(), time.Hour)
		s.end(one)
		ctx, two := s.begin(t.Context(), time.Now(), time.Nanosecond)
		<-ctx.Done()
		s.end(two)
		if old.Err() != context.Canceled || ctx.Err() != context.DeadlineExceeded { //nolint:errorlint // as the library says
			t.Fatalf("the first: %v, the second: %v", old.Err(), ctx.Err())
		}
	}
}

func TestTimeoutFollowsTheCaller(t *testing.T) {
	t.Parallel()
	var s timeouts
	errGone := errors.New("gone")
	caller, leave := context.WithCancelCause(t.Context())
	ctx, one := s.begin(caller, time.Now(), time.Hour)
	child, cancel := context.WithCancel(ctx)
	defer cancel()
	leave(errGone)
	<-child.Done()
	if err, cause := ctx.Err(), context.Cause(child); err != context.Canceled || cause != errGone { //nolint:errorlint // as the library says
		t.Errorf("the caller left: %v, because of %v", err, cause)
	}
	s.end(one)

	// A caller who is in a greater hurry.
	caller, cancel = context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	if ctx, one := s.begin(caller, time.Now(), 2*time.Hour); ctx != caller || one != nil {
		t.Error("the caller's own end is not enough")
	}
	s.end(nil)
}

// TestTimeoutBoundsWaitForConnection: no socket has a deadline yet.
func TestTimeoutBoundsWaitForConnection(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	rdb := redis.NewClient(&redis.Options{Addr: w.addr, PoolSize: 1, PoolTimeout: time.Hour})
	t.Cleanup(func() { _ = rdb.Close() })
	c, err := Open(w.ctx(), Options{Redis: rdb, Namespace: w.ns, MaxStale: -1, RedisTimeout: 50 * time.Millisecond, OpenTimeout: 30 * time.Second})
	w.must(err)
	t.Cleanup(func() { _ = c.Close() })
	e := w.items(c)
	harness.Eventually(t, 30*time.Second, func() error { return c.data.Ping(w.ctx()).Err() })
	only := c.data.(*redis.Client).Conn() // takes the connection, and keeps it
	w.must(only.Ping(w.ctx()).Err())
	ctx, cancel := context.WithTimeout(w.ctx(), time.Minute)
	defer cancel()
	if v, err := e.Get(ctx, "item:1"); v != 1 || err != nil {
		t.Errorf("got %d, %v; want what the loader has", v, err)
	}
	if n := c.counts.kinds.snapshot()["timeout"]; n == 0 {
		t.Errorf("errors: %v, want a timeout", c.counts.kinds.snapshot())
	}
	w.must(only.Close())
}

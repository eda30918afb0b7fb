package client

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// lines is a logger's text without times.
func lines(b *bytes.Buffer) []string {
	text := strings.TrimSpace(b.String())
	b.Reset()
	if text == "" {
		return nil
	}
	return strings.Split(text, "\n")
}

func newTestLog(b *bytes.Buffer, burst int, interval time.Duration) *limited {
	return newLimited(slog.NewTextHandler(b, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}), burst, interval)
}

func wantLines(t *testing.T, b *bytes.Buffer, want ...string) {
	t.Helper()
	if got := lines(b); fmt.Sprintf("%q", got) != fmt.Sprintf("%q", want) {
		t.Errorf("log:\n got %q\nwant %q", got, want)
	}
}

// TestLogIsLimited: a message is written so often in an interval, whatever its
// attributes and whichever logger derived from the same writes it; the next one
// tells how many were not; other messages are not concerned.
func TestLogIsLimited(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		h := newTestLog(&b, 2, time.Minute)
		log := slog.New(h)
		derived := log.With("x", 1).WithGroup("g")
		log.Warn("away", "err", "a")
		derived.Warn("away", "err", "b")
		log.Warn("away", "err", "c")
		derived.Warn("away", "err", "d")
		log.Warn("other")
		wantLines(t, &b, "level=WARN msg=away err=a", "level=WARN msg=away x=1 g.err=b", "level=WARN msg=other")

		time.Sleep(time.Minute - time.Nanosecond) //nolint:forbidigo // in a synctest bubble
		log.Warn("away")
		wantLines(t, &b)
		time.Sleep(time.Nanosecond) //nolint:forbidigo // in a synctest bubble
		log.Warn("away")
		log.Warn("away")
		log.Warn("away")
		wantLines(t, &b, "level=WARN msg=away left_out=3", "level=WARN msg=away")
		if got := h.state.total(); got != 4 {
			t.Errorf("left out: got %d, want 4", got)
		}
		log.Debug("away") // not enabled: neither written nor counted
		h.close(t.Context())
		wantLines(t, &b, `level=INFO msg="repetitions were left out" of=away left_out=1`)
		h.close(t.Context())
		wantLines(t, &b)
	})
}

// TestLogForgetsMessages: what is remembered is bounded.
func TestLogForgetsMessages(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	h := newTestLog(&b, 1, time.Hour)
	log := slog.New(h)
	for i := range 3 * logMessages {
		log.Info(fmt.Sprintf("message %d", i))
	}
	if n := len(lines(&b)); n != 3*logMessages {
		t.Errorf("%d lines, want all %d", n, 3*logMessages)
	}
	if n := len(h.state.seen); n > logMessages {
		t.Errorf("%d messages remembered, want %d at most", n, logMessages)
	}
}

// TestLogOfAClientIsLimited: the Client's own records go that way, under its
// name, and Stats count what was left out.
func TestLogOfAClientIsLimited(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	var b syncBuffer
	c := w.open(Options{Logger: slog.New(slog.NewTextHandler(&b, nil))}, hooks{})
	for range logBurst + 3 {
		c.bump("a test")
	}
	w.live(c)
	if got := strings.Count(b.String(), `msg="new L1 epoch" component=client why="a test"`); got != logBurst {
		t.Errorf("%d records, want %d:\n%s", got, logBurst, b.String())
	}
	w.want("left out", c.Stats().LogsLeftOut, uint64(3))
}

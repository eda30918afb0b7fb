package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/lethe-cache/lethe/warmer"
)

// terminal is a standard error that a person looks at: a line of progress
// stands below what is written, and moves down with it.
type terminal struct {
	mu   sync.Mutex
	w    io.Writer
	line string
}

const (
	barWidth = 24
	barEvery = 200 * time.Millisecond
	wipe     = "\r\x1b[K"
)

// isTerminal reports whether a person may be looking.
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0 && os.Getenv("TERM") != "dumb"
}

// Write implements io.Writer.
func (t *terminal) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.line == "" {
		return t.w.Write(p)
	}
	fmt.Fprint(t.w, wipe)
	n, err := t.w.Write(p)
	fmt.Fprint(t.w, t.line)
	return n, err
}

// show replaces the line; "" takes it away.
func (t *terminal) show(line string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if line != t.line {
		fmt.Fprint(t.w, wipe+line)
		t.line = line
	}
}

// follow shows what warm-up runs until stop is called, which waits for it.
func (t *terminal) follow(u *warmer.Warmups) (stop func()) {
	if t == nil {
		return func() {}
	}
	end, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		defer t.show("")
		ticker := time.NewTicker(barEvery)
		defer ticker.Stop()
		for {
			select {
			case <-end:
				return
			case <-ticker.C:
			}
			if p, ok := u.Running(); ok {
				t.show(bar(p))
			} else {
				t.show("")
			}
		}
	}()
	return func() { close(end); <-done }
}

// bar is one line: warming product [######      ] 1200 of 5000, 3400/s
func bar(p warmer.Progress) string {
	if p.Of <= 0 {
		return "warming " + p.String()
	}
	full := min(barWidth, p.Rows*barWidth/p.Of)
	line := fmt.Sprintf("warming %s [%s%s] %d of %d", p.Entry, strings.Repeat("#", full), strings.Repeat(" ", barWidth-full), p.Rows, p.Of)
	if rate := p.PerSecond(); rate > 0 && p.Rows < p.Of {
		left := time.Duration(float64(p.Of-p.Rows) / rate * float64(time.Second))
		line += fmt.Sprintf(", %.0f/s, %s left", rate, left.Round(time.Second))
	}
	return line
}

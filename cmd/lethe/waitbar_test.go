package main

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

func TestWaitBar(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	b := newWaitBar(&out) // no terminal
	b.show("swept", 1, 10)
	if out.Len() > 0 {
		t.Errorf("%q before its time", out.String())
	}
	b.last = time.Now().Add(-barLineEvery)
	b.show("swept", 3, 10)
	b.show("swept", 4, 10)
	b.end()
	if got, want := out.String(), "swept: 3 of 10, 30%\n"; got != want {
		t.Errorf("lines %q, want %q", got, want)
	}
	out.Reset()
	b = &waitBar{w: &out, terminal: true}
	b.show("swept", 12, 10) // some are swept twice
	b.last = time.Time{}
	b.show("looked", 7, 0)
	b.end()
	want := "\r\033[Kswept [" + strings.Repeat("#", barWidth) + "] 10 of 10, 100%\r\033[Klooked: 7\r\033[K"
	if got := out.String(); got != want {
		t.Errorf("on a terminal %q, want %q", got, want)
	}
}

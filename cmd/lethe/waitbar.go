package main

import (
	"fmt"
	"io"
	"strings"
	"time"
)

// waitBar shows how far what is waited for is: on a terminal as a line that is
// written over, elsewhere as a line each five seconds. It is used by one goroutine.
type waitBar struct {
	w        io.Writer
	terminal bool
	every    time.Duration
	last     time.Time
	drawn    bool
}

// barLineEvery is how often a line is written where there is no terminal.
const barLineEvery = 5 * time.Second

func newWaitBar(w io.Writer) *waitBar {
	b := &waitBar{w: w, every: barLineEvery, last: time.Now()}
	if isTerminal(w) {
		b.terminal, b.every, b.last = true, barEvery, time.Time{}
	}
	return b
}

// due reports whether it is time to show something again.
func (b *waitBar) due() bool { return time.Since(b.last) >= b.every }

// show says that done of total are done, if it is time; total 0 is unknown.
func (b *waitBar) show(what string, done, total int) {
	line := fmt.Sprintf("%s: %d", what, done)
	if total > 0 {
		done = min(done, total)
		line = fmt.Sprintf("%s: %d of %d, %d%%", what, done, total, 100*done/total)
		if b.terminal {
			full := barWidth * done / total
			line = fmt.Sprintf("%s [%s%s] %d of %d, %d%%", what, strings.Repeat("#", full), strings.Repeat(".", barWidth-full), done, total, 100*done/total)
		}
	}
	b.say(line)
}

// say shows a line, if it is time.
func (b *waitBar) say(line string) {
	if !b.due() {
		return
	}
	b.last, b.drawn = time.Now(), true
	if b.terminal {
		fmt.Fprintf(b.w, "%s%s", wipe, line)
		return
	}
	fmt.Fprintln(b.w, line)
}

// end takes the line off a terminal.
func (b *waitBar) end() {
	if b.terminal && b.drawn {
		fmt.Fprint(b.w, wipe)
	}
	b.drawn = false
}

package cdc

import "time"

// The walsender flushes every message by itself, and a reader that is always
// waiting is woken for each of them: under a backlog both sides then spend
// their time in system calls of 400 bytes. A reader that looks away for a
// moment finds a hundred kilobytes instead (measured: 2-3 times the rows per
// second at a tenth of the CPU). Under no backlog looking away is only delay.
//
// So the pacer watches for a backlog, and pauses only then.
type pacer struct {
	// sleep is replaced by tests.
	sleep func(time.Duration)
	on    bool
	// window and reads count reads that follow each other closely.
	window time.Time
	reads  int
	// small counts the reads in a row that brought little.
	small int
}

const (
	// pausePerRead: half of it gains little, four times of it lets the receive
	// buffer fill with tiny segments, which the kernel then collapses.
	pausePerRead = 250 * time.Microsecond
	// paceWindow and paceReads: this many reads within this time mean that the
	// server always has more. A single-row transaction is three messages, so
	// this begins at about 8,000 of them a second; a server that shares its
	// processor with us does not send many more of them one by one.
	paceWindow = 640 * time.Microsecond
	paceReads  = 16
	// paceFull: so much in one read is a backlog.
	paceFull = 16 << 10
	// paceEmpty: a read that brings less than this after a pause has caught up.
	// Single-row transactions at 100,000 a second bring ten times as much.
	paceEmpty = 2 << 10
	// paceSmall such reads in a row mean it: one may also be of a server that
	// was not given the processor during the pause.
	paceSmall = 4
)

func newPacer() pacer { return pacer{sleep: nap} }

// before is called before a read.
func (p *pacer) before() {
	if p.on {
		p.sleep(pausePerRead)
	}
}

// after is called after a read of n bytes that returned at now.
func (p *pacer) after(n int, now time.Time) {
	if p.on {
		if n >= paceEmpty {
			p.small = 0
			return
		}
		if p.small++; p.small == paceSmall {
			p.on, p.small, p.reads, p.window = false, 0, 0, now
		}
		return
	}
	if n >= paceFull {
		p.on = true
		return
	}
	if p.reads++; p.reads < paceReads {
		return
	}
	p.on = now.Sub(p.window) < paceWindow
	p.reads, p.window = 0, now
}

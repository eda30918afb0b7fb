package client

import (
	"testing"
	"testing/synctest"
	"time"
	"unsafe"
)

// The time of a hit is never before the true one, and not far behind it, also
// while others look at the clock and across looks.
func TestClockIsNeverEarly(t *testing.T) {
	t.Parallel()
	for name, usable := range map[string]bool{"counter": ticksUsable(), "clock": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if name == "counter" && !usable {
				t.Skip("the kernel does not make its clock from the counter")
			}
			var k clock
			k.start()
			k.usable = usable
			stop, done := make(chan struct{}), make(chan struct{})
			go func() {
				defer close(done)
				for {
					select {
					case <-stop:
						return
					default:
						k.soon()
					}
				}
			}()
			carried := false // some time was not that of a look
			for k.since() < ticksLearn+100*ticksTrust || usable && !carried && k.since() < 10*time.Second {
				before, got, after := k.since(), k.soon(), k.since()
				if got < before || got > after+ticksTrust {
					t.Errorf("soon is %v between %v and %v", got, before, after)
					break
				}
				carried = carried || got > after
			}
			close(stop)
			<-done
			if usable != carried {
				t.Errorf("the counter carried the time: %v, it is used: %v", carried, usable)
			}
		})
	}
}

// A process that was stopped finds a counter far ahead of the note.
func TestClockAfterAStop(t *testing.T) {
	t.Parallel()
	if !ticksUsable() {
		t.Skip("the kernel does not make its clock from the counter")
	}
	var k clock
	k.start()
	for k.window.Load() == 0 {
		k.soon()
	}
	// The note is an hour old, in both halves.
	hour := float64(k.window.Load()) / float64(ticksTrust) * float64(time.Hour)
	k.began = k.began.Add(-time.Hour)
	k.at.Store(k.at.Load() - uint64(hour))
	if got, now := k.soon(), k.since(); got < now-time.Second || now < time.Hour {
		t.Errorf("after an hour it is %v, by the counter %v", now, got)
	}
}

// A hit reads one cache line of an entry.
func TestEntryLayout(t *testing.T) {
	t.Parallel()
	var e l1Entry
	if got := unsafe.Offsetof(e.meta); got > 64 {
		t.Errorf("what a hit reads takes %d bytes", got)
	}
	if got := unsafe.Sizeof(e); got%64 != 0 {
		t.Errorf("an entry takes %d bytes, not a multiple of 64", got)
	}
}

// In a bubble the clock jumps while the counter goes on as ever.
func TestClockInABubble(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var k clock
		k.start()
		<-time.After(time.Second) // a jump
		for range 1000 {
			k.soon()
			<-time.After(time.Hour)
			if got, now := k.soon(), k.since(); got != now {
				t.Fatalf("after a jump it is %v, by the counter %v", now, got)
			}
		}
	})
}

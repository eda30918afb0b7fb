package client

import (
	"sync"
	"sync/atomic"
	"time"
)

const (
	// ticksTrust is how far the time of the last look at the clock is carried
	// on by the processor's counter.
	ticksTrust = 2 * time.Millisecond
	// ticksLearn is how long the counter is compared with the clock before it
	// is trusted at all.
	ticksLearn = 50 * time.Millisecond
)

// clock tells the time of a hit in L1. A look at the monotonic clock costs more
// than all the rest of a hit, most of it because the processor first ends
// whatever it has begun. So a hit reads the processor's counter by itself and
// only asks how much that has gone on since the last look at the clock: no more
// than ticksTrust is worth, and the time is that of the look plus ticksTrust,
// which is never too early. Else it looks at the clock.
//
// Nothing has to run for this to be right, unlike with a time that a goroutine
// keeps: the counter goes on while the process is stopped, as the clock does.
// How fast it goes is measured, and never taken on trust; where the kernel does
// not make its clock from it (see ticksUsable), it is not used.
type clock struct {
	began time.Time
	// at and now are the counter and the time of the last look, stored in
	// reverse: who sees a new at sees the now that belongs to it, or a later one.
	at, now atomic.Uint64
	// window is how much counter ticksTrust is; 0 until that is known.
	window atomic.Uint64
	usable bool

	mu    sync.Mutex // of who writes what stands above
	first uint64     // the counter when the clock began
}

func (k *clock) start() {
	k.began = time.Now() // before the counter, so that it seems too slow if anything
	k.first, k.usable = ticks(), ticksUsable()
}

// since is the monotonic time since start. It goes on while the process is
// stopped, so that a process that was asleep knows it.
func (k *clock) since() time.Duration { return time.Since(k.began) }

// of is since, of a look at the clock that has been taken.
func (k *clock) of(t time.Time) time.Duration { return t.Sub(k.began) }

// soon is since, or up to ticksTrust later.
func (k *clock) soon() time.Duration {
	if k.usable {
		if ticks()-k.at.Load() < k.window.Load() {
			return time.Duration(k.now.Load())
		}
		return k.look()
	}
	return k.since()
}

// look looks at the clock, and leaves a note of it unless somebody else is just
// doing so. The two reads and the stores are one step: of a process that was
// stopped in the middle of it, both halves of the note are old.
func (k *clock) look() time.Duration {
	if !k.mu.TryLock() {
		return k.since()
	}
	defer k.mu.Unlock()
	t := ticks() // before the clock: what that says holds from here on
	now := k.since()
	if t > k.first && now >= ticksLearn {
		k.now.Store(uint64(now + ticksTrust))
		k.at.Store(t)
		k.window.Store(uint64(float64(t-k.first) * (float64(ticksTrust) / float64(now))))
	}
	return now
}
